"""Who wants to know of each call of the API: that it begins, and with which code it ends."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from typing import Any, Protocol, cast

import grpc
from google.protobuf.descriptor import MethodDescriptor

Context = grpc.aio.ServicerContext[Any, Any]
Unary = Callable[[Any, Context], Awaitable[Any]]
Streaming = Callable[[Any, Context], AsyncIterator[Any]]
# Takes the code's name as Go writes it: OK, NotFound, Canceled.
Ended = Callable[[str], None]

_BY_NUMBER = {code.value[0]: code for code in grpc.StatusCode}


class Watcher(Protocol):
    """Neither method may raise, or wait."""

    def begin(self, rpc: MethodDescriptor, context: Context) -> Ended:
        """A call begins; what is returned is told of its end."""


def watched_unary(handle: Unary, watchers: Sequence[Watcher], rpc: MethodDescriptor) -> Unary:
    async def watched(request: Any, context: Context) -> Any:
        with _watched(watchers, rpc, context):
            return await handle(request, context)

    return watched


def watched_stream(
    handle: Streaming, watchers: Sequence[Watcher], rpc: MethodDescriptor
) -> Streaming:
    async def watched(request: Any, context: Context) -> AsyncIterator[Any]:
        with _watched(watchers, rpc, context):
            async with aclosing(cast("Any", handle(request, context))) as answers:
                async for answer in answers:
                    yield answer

    return watched


@contextmanager
def _watched(
    watchers: Sequence[Watcher], rpc: MethodDescriptor, context: Context
) -> Iterator[None]:
    ends = [watcher.begin(rpc, context) for watcher in watchers]
    code = "Canceled"
    try:
        yield
        code = "OK"
    except grpc.aio.AbortError:
        code = _spelled(context)
        raise
    finally:
        for ended in ends:
            ended(code)


def _spelled(context: Context) -> str:
    found: Any = context.code()
    code = found if isinstance(found, grpc.StatusCode) else _BY_NUMBER.get(found)
    if code is None:
        return "Unknown"
    name = "".join(word.capitalize() for word in code.name.split("_"))
    return {"Ok": "OK", "Cancelled": "Canceled"}.get(name, name)
