"""So many at a time, as long as each of them gets on."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

PATIENCE_S = 10.0


class Turns:
    """At most `at_once` holders; who comes later waits, in order.

    The bound is there because more of them only make each other slow. One that has not ended after
    `patience_s` seconds waits for something that no processor will bring (a mount that hangs, a
    hook, a lock): it goes on and counts no longer. Else that many which hang would hold up all
    others until their deadlines.
    """

    def __init__(self, at_once: int, patience_s: float = PATIENCE_S) -> None:
        self._free = asyncio.Semaphore(at_once)
        self._patience_s = patience_s

    @asynccontextmanager
    async def take(self) -> AsyncIterator[None]:
        """Hold a turn within the block."""
        await self._free.acquire()
        counts = True

        def lapse() -> None:
            nonlocal counts
            counts = False
            self._free.release()

        timer = asyncio.get_running_loop().call_later(self._patience_s, lapse)
        try:
            yield
        finally:
            timer.cancel()
            if counts:
                self._free.release()
