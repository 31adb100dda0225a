"""The time that expiry goes by, which a step of the clock does not move on."""

import time
from collections.abc import Callable


def _passed_ns() -> int:
    """Since the boot, sleep included: clock_gettime(2)."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class Clock:
    """Wall time, but never more of it than has passed since this was made, sleep included.

    A clock that jumps by years would end all leases at once; one that was wrong when the manager
    started and is put right later ends none too early.
    """

    def __init__(
        self,
        wall_ns: Callable[[], int] = time.time_ns,
        passed_ns: Callable[[], int] = _passed_ns,
    ) -> None:
        self._wall_ns = wall_ns
        self._passed_ns = passed_ns
        self._began_ns = wall_ns() - passed_ns()

    def now_ns(self) -> int:
        """Nanoseconds since the epoch."""
        return min(self._wall_ns(), self._began_ns + self._passed_ns())
