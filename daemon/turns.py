"""Looking for news from outside once in a few turns of the event loop, while there is work inside.

asyncio asks the kernel before each turn. A container's life by containerd's API is a hundred turns,
most of which the one before has called for: nothing has come meanwhile, and to be told so costs
more than many a turn.
"""

import selectors
from typing import Any

TURNS = 4  # that may pass without a look; so long does who comes from outside wait


class Selector(selectors.EpollSelector):
    """For asyncio.SelectorEventLoop: with nothing to do, it waits as ever."""

    def __init__(self) -> None:
        super().__init__()
        self._passed = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, Any]]:
        if timeout == 0 and self._passed < TURNS:
            self._passed += 1
            return []
        self._passed = 0
        return super().select(timeout)
