"""How often, and after what time, the same is tried again."""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from lighter.daemon.registry.failures import Answered, Refused, TooMany, may_retry
from lighter.proto.errors import LighterError

log = logging.getLogger("lighter.registry")

T = TypeVar("T")


@dataclass(frozen=True)
class Backoff:
    """Of the n-th failure: first_s * 2**(n-1), at most most_s, from half of it up by chance.

    `tries` counts all, the first too. A Retry-After is followed up to `most_asked_s`; whoever has
    had too many requests and wants a longer pause is not asked again.
    """

    tries: int = 5
    first_s: float = 0.25
    most_s: float = 8.0
    most_asked_s: float = 60.0

    def pause_s(self, failures: int, error: LighterError) -> float:
        """How long to wait after this many failures, the last with `error`."""
        limit: float = min(self.first_s * 2.0 ** (failures - 1), self.most_s)
        pause_s = limit * random.uniform(0.5, 1.0)  # noqa: S311 (spreads clients, hides nothing)
        if isinstance(error, Answered | TooMany) and error.retry_after_s > 0:
            return min(max(error.retry_after_s, pause_s), self.most_asked_s)
        return pause_s

    def gives_up(self, error: LighterError) -> bool:
        """Whether nothing that is tried again within our pauses can help."""
        return isinstance(error, TooMany) and error.retry_after_s > self.most_asked_s

    def for_mirror(self) -> "Backoff":
        """Another host has the same: one more try, soon."""
        return Backoff(min(self.tries, 2), self.first_s, self.first_s, self.first_s)


async def retried(act: Callable[[], Awaitable[T]], backoff: Backoff) -> T:
    """`act` until it succeeds, or fails for good. Raises its last error."""
    failures = 0
    while True:
        try:
            return await act()
        except LighterError as err:
            failures += 1
            if not may_retry(err) or failures >= backoff.tries:
                raise
            if backoff.gives_up(err):
                raise
            if isinstance(err, Refused) and backoff.tries <= 2:
                raise  # a mirror that does not listen: the next host does
            pause_s = backoff.pause_s(failures, err)
            log.debug("try %d failed, next in %.2f s: %s", failures, pause_s, err.message)
        await asyncio.sleep(pause_s)
