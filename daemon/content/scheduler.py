"""When garbage is collected: containerd's rules and settings (its scheduler plugin's).

A deletion that may have kept more asks for a collection, and so do enough other changes of the
database. How long collections hold up everything else is measured, and the time between two is kept
such that they take at most `pause_threshold` of it. An idle manager collects nothing and wakes for
nothing.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from lighter.daemon.journal import Repeated
from lighter.daemon.values import frozen

log = logging.getLogger("lighter.gc")

MIN_PAUSE_S = 0.005  # an average below it counts as this much, or an empty store would never rest
MAX_PAUSE_THRESHOLD = 0.5
RETRY_S = 1.0  # after a failure; twice as long after each further one
MAX_RETRY_S = 120.0


@frozen
class Schedule:
    """`deletion_threshold`: so many deletions are enough for a collection before its time (0: none
    is). `mutation_threshold`: so many changes ask for one (0: deletions alone do).
    """

    pause_threshold: float = 0.02
    deletion_threshold: int = 0
    mutation_threshold: int = 100
    schedule_delay_s: float = 0.0
    startup_delay_s: float = 0.1


class Scheduler:
    """Runs `collect` (which returns its pause in seconds) by a schedule that may be replaced."""

    def __init__(self, schedule: Schedule, collect: Callable[[], Awaitable[float]]) -> None:
        self.schedule = schedule
        self._collect = collect
        self._deletions = 0
        self._mutations = 0
        self._pauses: list[float] = []
        self._changed = asyncio.Event()
        self._failures = Repeated(log, "collect garbage")
        self._retry_s = RETRY_S
        self.collections = 0

    def deleted(self) -> None:
        """Something went that may have kept more."""
        self._deletions += 1
        self._changed.set()

    def mutated(self) -> None:
        """The database has changed."""
        self._mutations += 1
        if self._is_due():
            self._changed.set()

    def _is_due(self) -> bool:
        wanted = self.schedule.mutation_threshold
        return self._deletions > 0 or 0 < wanted <= self._mutations

    def _is_urgent(self) -> bool:
        """Whether to collect at once. Not after a failed collection: it would fail again, in a hot
        loop.
        """
        fails = self._retry_s > RETRY_S
        return not fails and 0 < self.schedule.deletion_threshold <= self._deletions

    async def run(self) -> None:
        """Collect until cancelled; first `startup_delay_s` from now."""
        await asyncio.sleep(self.schedule.startup_delay_s)
        while True:
            rest_s = await self._once()
            ended = time.monotonic()
            while not self._is_due():
                self._changed.clear()
                await self._changed.wait()
            await self._rest(ended + rest_s)

    async def _rest(self, until: float) -> None:
        """Wait for the next collection's time, or for so many deletions that it must not wait."""
        while not self._is_urgent() and (left := until - time.monotonic()) > 0:
            self._changed.clear()
            try:
                async with asyncio.timeout(left):
                    await self._changed.wait()
            except TimeoutError:
                break
        await asyncio.sleep(self.schedule.schedule_delay_s)

    async def _once(self) -> float:
        """Collect; returns how long the next one has to wait at least."""
        self._deletions = self._mutations = 0
        try:
            pause_s = await self._collect()
        except Exception as err:
            self._failures.failed(err)
            self._deletions += 1  # what asked for it still does
            retry_s, self._retry_s = self._retry_s, min(2 * self._retry_s, MAX_RETRY_S)
            return retry_s
        self._failures.ended()
        self._retry_s = RETRY_S
        self.collections += 1
        self._mutations = 0  # its own do not count
        self._pauses = [*self._pauses[-99:], max(MIN_PAUSE_S, pause_s)]
        threshold = min(MAX_PAUSE_THRESHOLD, self.schedule.pause_threshold)
        if threshold <= 0:
            return RETRY_S
        average = sum(self._pauses) / len(self._pauses)
        return average / threshold - average
