"""What walks down a tree that somebody else may change meanwhile have in common."""

import errno
import os
import resource
import stat
import sys
import time

from lighter.shim import linux
from lighter.shim.worker.failure import typed

MAX_DEPTH = 900  # of directories in each other, each with its descriptors open
# What becomes of a name that is removed or swapped meanwhile; ELOOP by O_NOFOLLOW.
VANISHED = frozenset((errno.ENOENT, errno.ENOTDIR, errno.ELOOP))
_FRAMES = 2  # of Python for each level
_DESCRIPTORS = 2
_OTHERS = 500
_PATIENCE_S = 2.0
_POLL_S = 0.01


def allow_depth() -> None:
    """Let this process go down MAX_DEPTH levels. Raises OSError."""
    sys.setrecursionlimit(max(sys.getrecursionlimit(), _FRAMES * MAX_DEPTH + _OTHERS))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _DESCRIPTORS * MAX_DEPTH + _OTHERS
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class Opener:
    """Opens regular files and nothing else: what opening a device does cannot be undone.

    A file is named first (O_PATH), looked at, and then opened through /proc's link to that very
    one, whatever has its name by now. Made before the lock, which has no /proc: it keeps a mount
    of this process's descriptors alone, which leads nowhere else.

    A file may be leased (F_SETLEASE) to a process that the kernel would wait for, 45 s for each
    (fs.lease-break-time). One that gives it up is waited for, `patience_s` for all files together.
    """

    __slots__ = ("_descriptors", "_patience_s")

    def __init__(self, patience_s: float = _PATIENCE_S) -> None:
        self._patience_s = patience_s
        try:
            self._descriptors = linux.detached("/proc/self/fd")
        except OSError as err:
            raise typed(err, "lock worker in: open descriptors") from err

    def regular(self, parent: int, name: bytes) -> int:
        """The descriptor to read `name` by, -1 if it is no regular file. Raises OSError."""
        named = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
        try:
            if not stat.S_ISREG(os.fstat(named).st_mode):
                return -1
            fd = self._open(str(named))
        finally:
            os.close(named)
        os.set_blocking(fd, True)
        return fd

    def _open(self, descriptor: str) -> int:
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
        while True:
            try:
                return os.open(descriptor, flags, dir_fd=self._descriptors)
            except BlockingIOError as err:
                if self._patience_s <= 0:
                    raise OSError(err.errno, "a process does not give up its lease of it") from err
            time.sleep(_POLL_S)
            self._patience_s -= _POLL_S
