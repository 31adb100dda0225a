"""What a method is, who calls it, and which there are: what the server and all handlers share."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

from lighter.daemon.errors import from_os
from lighter.daemon.values import frozen
from lighter.proto.errors import Internal, LighterError, NotFound, ResourceExhausted, Unimplemented
from lighter.proto.names import check_name

log = logging.getLogger("lighter.rpc")

NO_MEMORY = "there is no memory for it"


@frozen
class Call:
    """Who asks, and in which namespace. `pid` is the kernel's word.

    `forced`: they mean what is another program's too (owners.py).
    """

    namespace: str
    pid: int
    uid: int
    forced: bool = False


@frozen
class Result:
    """What a streaming method yields last: the body of the stream's end."""

    value: Any


Unary = Callable[[Call, Mapping[str, Any]], Awaitable[Any]]
Streaming = Callable[[Call, Mapping[str, Any]], AsyncIterator[Any]]


@frozen
class Method:
    """One method: `unary` answers once; `stream` yields items and at the end a Result.

    `uncounted`: it holds no descriptors, and must not wait for those whose streams do.
    """

    unary: Unary | None = None
    stream: Streaming | None = None
    uncounted: bool = False


class MethodTable:
    """Methods by name. With `more_to_come`, those that are not there yet are waited for."""

    def __init__(self, methods: Mapping[str, Method], more_to_come: bool) -> None:
        self._methods = dict(methods)
        self._complete = asyncio.Event()
        self.awaited = 0  # calls that wait for one
        if not more_to_come:
            self._complete.set()

    @property
    def is_complete(self) -> bool:
        return self._complete.is_set()

    def get(self, name: str) -> Method | None:
        return self._methods.get(name)

    def complete(self, methods: Mapping[str, Method]) -> None:
        """The other methods."""
        self._methods.update(methods)
        self._complete.set()

    async def wait_for(self, name: str) -> Method:
        """Wait until all methods are there, for one that is not among the first. Raises
        Unimplemented.
        """
        self.awaited += 1
        try:
            await self._complete.wait()
        finally:
            self.awaited -= 1
        if name not in self._methods:
            raise no_such(name)
        return self._methods[name]


def no_such(name: str) -> Unimplemented:
    return Unimplemented(f"call {name}: there is no such method")


def in_words(name: str, err: Exception) -> LighterError:
    """The typed error for an exception that no method has handled: something that the host lacks,
    or a bug.
    """
    if isinstance(err, OSError):
        found = from_os(f"call {name}", err)
        # NotFound would be taken for the word that the object is not there.
        if not isinstance(found, NotFound | Internal):
            log.warning("%s", found.message)
            return found
    if isinstance(err, MemoryError):
        log.warning("call %s: %s", name, NO_MEMORY)
        return ResourceExhausted(f"call {name}: {NO_MEMORY}")
    log.error("call %s", name, exc_info=err)
    return Internal(f"call {name}: {type(err).__name__}: {err}")


def methods(service: str, **methods: Any) -> dict[str, Method]:
    """Unary methods by their names within a service."""
    return {f"{service}.{name}": Method(unary=method) for name, method in methods.items()}


def namespace_of(call: Call) -> str:
    """Raises InvalidArgument."""
    return check_name(call.namespace, "namespace")
