"""File descriptors: as many as may be had, a floor to start at, who may hold how many of them, and
when to refuse new work; and no core, whatever the limit of those is.

libzmq aborts the whole process when an accept meets EMFILE, so the limit must never be reached. So
each kind of work has a share, and all shares together are what there is.
"""

import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lighter.daemon.values import frozen
from lighter.proto.errors import FailedPrecondition, ResourceExhausted

FLOOR = 4096
UNLIMITED = 1 << 20  # what "unlimited" counts as: sysctl fs.nr_open, at which the kernel ends
PARTS = 256
LEAST = 8  # below the floor too, which a limit that was changed later may be
REFUSE_AT = 0.8
_PR_SET_DUMPABLE = 4  # linux/prctl.h
_CAP_SYS_PTRACE = 19  # linux/capability.h


def descriptor_limit() -> int:
    """The soft limit as it is now: prlimit(1) changes that of a running manager too."""
    soft, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return UNLIMITED if soft == resource.RLIM_INFINITY else soft


@frozen
class Share:
    """What one kind of work may hold: so many PARTS of all descriptors, and at most `most` places,
    of which each is `each` descriptors.
    """

    parts: int
    each: int = 1
    most: int = UNLIMITED

    def places(self, limit: int = 0) -> int:
        """How many there may be at a time, by the limit as it is now."""
        allowed = limit or descriptor_limit()
        return min(self.most, max(LEAST, allowed * self.parts // PARTS // self.each))


# docs/architecture.md, "Descriptors", says what each is of.
OWN = Share(36)
UNSEEN = Share(60)
TASKS = Share(80, each=2)
CLIENTS = Share(32, each=2, most=1024)
STREAMS = Share(12, each=2, most=4096)
SOCKETS = 2  # of clients, and of shims
SILENT = Share(16, each=SOCKETS, most=1024)  # on each of them
GRPC_SOCKETS = 3  # in the state directory, the configured one, the one for TLS
GRPC = Share(12, each=GRPC_SOCKETS, most=1024)  # on each of its sockets
BLOBS = Share(6, each=2, most=1024)
PAGE = Share(2, most=64)
SHARES = (OWN, UNSEEN, TASKS, CLIENTS, STREAMS, SILENT, GRPC, BLOBS, PAGE)


def raise_descriptor_limit() -> None:
    """Raise the soft limit to the hard one. Raises FailedPrecondition below FLOOR."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    limit = descriptor_limit()
    if limit < FLOOR:
        raise FailedPrecondition(
            f"start manager: RLIMIT_NOFILE allows {limit} file descriptors, "
            f"at least {FLOOR} are needed (LimitNOFILE= in the unit, ulimit -n in a shell)"
        )


def leave_no_core() -> None:
    """A core would hold the passwords of registries.

    Where shims may not trace all processes it stays as it was: they could not reach the manager's
    pipes by /proc any more. An execve makes a process dumpable again, so nobody else notices.
    """
    if not may_trace():
        return
    import ctypes  # 2 ms: before the configuration is read, which may have such passwords

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_DUMPABLE, ctypes.c_ulong(0), 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl PR_SET_DUMPABLE")


def may_trace() -> bool:
    """Whether this process may trace all others (CAP_SYS_PTRACE)."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as status:
        effective = next((line for line in status if line.startswith("CapEff:")), "CapEff: 0")
    return bool(int(effective.split()[1], 16) >> _CAP_SYS_PTRACE & 1)


class Places:
    """The places of a share, for work that a client may begin as often as it likes."""

    def __init__(self, share: Share, limit: Callable[[], int] = descriptor_limit) -> None:
        self._share = share
        self._limit = limit
        self._taken = 0

    @contextmanager
    def take(self, attempt: str) -> Iterator[None]:
        """Hold a place within the block. Raises ResourceExhausted, as "`attempt`: cause"."""
        most = self._share.places(self._limit())
        if self._taken >= most:
            raise ResourceExhausted(f"{attempt}: {most} are under way already; try again")
        self._taken += 1
        try:
            yield
        finally:
            self._taken -= 1


class DescriptorBudget:
    """Whether there is room for one more container or client. `limit` tells what is allowed."""

    def __init__(self, limit: Callable[[], int] = descriptor_limit) -> None:
        self._limit = limit

    @property
    def used(self) -> int:
        return len(os.listdir("/proc/self/fd"))

    def has_room(self) -> bool:
        return self.used < REFUSE_AT * self._limit()

    def most_tasks(self) -> int:
        return TASKS.places(self._limit())
