"""One call of a client: what its headers say, and how what a method raises becomes its status."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, cast

import grpc
from google.protobuf.message import Message

from lighter.daemon.config.listening import prefixed
from lighter.daemon.grpc.errors import status_of
from lighter.daemon.grpc.words import identifier
from lighter.proto.errors import FailedPrecondition, LighterError

log = logging.getLogger("lighter.grpc")

# containerd's request metadata.
NAMESPACE = "containerd-namespace"
LEASE = "containerd-lease"

Context = grpc.aio.ServicerContext[Any, Any]


class Call:
    """Who asks for what: the namespace and lease of a call's headers.

    Of several of one name the first counts: containerd's client puts the one that it has set last
    before those that it was called with.
    """

    def __init__(self, context: Context) -> None:
        self._headers: dict[str, str] = {}
        for key, value in context.invocation_metadata() or ():
            if isinstance(value, str):
                self._headers.setdefault(key, value)

    @property
    def namespace(self) -> str:
        """Raises FailedPrecondition without the header, InvalidArgument for a bad name."""
        name = self._headers.get(NAMESPACE, "")
        if not name:
            raise FailedPrecondition("namespace is required: failed precondition")
        with prefixed("namespace validation"):
            return identifier(name)

    @property
    def lease(self) -> str:
        """What the client wants its new resources to be held by; "" for nothing."""
        return self._headers.get(LEASE, "")


# What a method answers with: bytes are a message that is encoded already.
Answer = Message | bytes
Unary = Callable[[Call, Any], Awaitable[Answer]]
Streaming = Callable[[Call, Any], AsyncIterator[Answer]]


def unary(name: str, method: Unary) -> Callable[[Any, Context], Awaitable[Answer]]:
    """A method with one answer, as grpc calls it."""

    async def handle(request: Any, context: Context) -> Answer:
        try:
            return await method(Call(context), request)
        except Exception as err:
            await _abort(name, context, err)
            raise  # not reached: abort raises

    return handle


def streaming(name: str, method: Streaming) -> Callable[[Any, Context], AsyncIterator[Answer]]:
    """A method that answers with a stream; `request` is a stream too where the API has one.

    When the client goes, the method's generator is closed, so that its `finally` releases what
    it held.
    """

    async def handle(request: Any, context: Context) -> AsyncIterator[Answer]:
        try:
            answers = cast("Any", method(Call(context), request))
            async with aclosing(answers):
                async for answer in answers:
                    yield answer
        except Exception as err:
            await _abort(name, context, err)

    return handle


async def _abort(name: str, context: Context, err: Exception) -> None:
    if isinstance(err, (grpc.aio.AbortError, asyncio.CancelledError)):
        raise err
    if isinstance(err, LighterError):
        log.debug("%s: %s: %s", name, err.code, err.message)
        await context.abort(*status_of(err))
    if isinstance(err, MemoryError):
        log.warning("%s: there is no memory for it", name)
        await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"{name}: there is no memory")
    log.error("%s failed", name, exc_info=err)
    await context.abort(grpc.StatusCode.INTERNAL, f"{name}: {type(err).__name__}: {err}")
