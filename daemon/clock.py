"""The time that expiry goes by, which a step of the clock does not move on."""

import time


class Clock:
    """Wall time, but never more of it than has passed since this was made, sleep included.

    A clock that jumps by years would end all leases at once; one that was wrong when the manager
    started and is put right later ends none too early.
    """

    def __init__(self) -> None:
        self._wall_ns = time.time_ns()
        self._passed_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)

    def now_ns(self) -> int:
        """Nanoseconds since the epoch."""
        passed = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - self._passed_ns
        return min(time.time_ns(), self._wall_ns + passed)
