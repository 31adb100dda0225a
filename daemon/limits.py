"""File descriptors: as many as may be had, a floor to start at, and when to refuse new work.

libzmq aborts the whole process when an accept meets EMFILE, so the limit must never be reached.
"""

import logging
import os
import resource

from lighter.proto.errors import FailedPrecondition

log = logging.getLogger("lighter.limits")

FLOOR = 4096
REFUSE_AT = 0.8


def raise_descriptor_limit() -> int:
    """Raise the soft limit to the hard one; returns it. Raises FailedPrecondition below FLOOR."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        soft = hard
    if soft < FLOOR:
        raise FailedPrecondition(
            f"start manager: RLIMIT_NOFILE allows {soft} file descriptors, "
            f"at least {FLOOR} are needed (LimitNOFILE= in the unit, ulimit -n in a shell)"
        )
    return soft


class DescriptorBudget:
    """Whether there is room for one more container or client."""

    def __init__(self, limit: int) -> None:
        self._limit = limit

    @property
    def used(self) -> int:
        return len(os.listdir("/proc/self/fd"))

    def has_room(self) -> bool:
        return self.used < REFUSE_AT * self._limit
