"""The body of an upload, and the watch over whether the registry still takes it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from lighter.daemon.registry.answer import Deadlines
from lighter.daemon.registry.failures import Broken

Upload = Callable[[], AsyncIterator[bytes]]

# So much at a time is looked for as taken: a slow line needs long for a chunk of the source.
PIECE_BYTES = 64 << 10


class Feed:
    """An upload: its bytes in pieces, and a watch over whether they are still being taken."""

    def __init__(self, source: Upload) -> None:
        self._source = source
        self._taken = 0
        self._done = False
        self._failed: Exception | None = None

    async def pieces(self) -> AsyncIterator[bytes | memoryview]:
        try:
            async for chunk in self._source():
                self._taken += 1
                view = memoryview(chunk)
                for start in range(0, len(chunk), PIECE_BYTES):
                    yield view[start : start + PIECE_BYTES]
                    self._taken += 1
        except Exception as err:
            self._failed = err
            raise
        self._done = True

    async def watch(self, request: Awaitable[Any], deadlines: Deadlines, what: str) -> Any:
        """The answer to a request that sends these pieces."""
        task = asyncio.ensure_future(request)
        try:
            while True:
                before, limit_s = self._taken, deadlines.stall_s
                if self._done:
                    limit_s = deadlines.stored_s
                done, _ = await asyncio.wait((task,), timeout=limit_s)
                if self._failed is not None:  # the source's fault and not the connection's
                    raise self._failed
                if done:
                    return task.result()
                if self._taken == before and (self._done or limit_s == deadlines.stall_s):
                    raise Broken(f"{what}: the registry takes no more of it for {limit_s:g} s")
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait((task,))
            if not task.cancelled():
                task.exception()  # looked at: what is raised instead says more
