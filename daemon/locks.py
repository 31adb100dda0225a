"""The locks of an instance: one on its root, one on its state, taken before anything is bound.

flock(2) belongs to the open file description, so the spawner that inherits the descriptors holds
them too: the next manager waits until no order of the last one can be carried out any more.
"""

import fcntl
import os
import time
from contextlib import ExitStack

from lighter.proto.errors import FailedPrecondition

WAIT_S = 5.0
_POLL_S = 0.02


def take_lock(path: str, wait_s: float = WAIT_S) -> int:
    """The locked descriptor. Raises FailedPrecondition naming the holder after `wait_s`.

    Only a dying manager's spawner is worth waiting for, and it ends within milliseconds.
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as err:
        raise FailedPrecondition(f"lock {path}: {err.strerror}") from err
    with ExitStack() as undo:
        undo.callback(os.close, fd)
        _lock(fd, path, time.monotonic() + wait_s)
        # Whoever may open the file may hold its lock.
        os.fchmod(fd, 0o600)
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        undo.pop_all()
    return fd


def _lock(fd: int, path: str, deadline: float) -> None:
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError as err:
            holder = os.pread(fd, 64, 0).decode(errors="replace").strip()
            living = holder.isdigit() and _is_alive(int(holder))
            if living or time.monotonic() > deadline:
                who = f"manager with pid {holder}" if living else "another process"
                raise FailedPrecondition(f"lock {path}: {who} holds it") from err
            time.sleep(_POLL_S)


def _is_alive(pid: int) -> bool:
    """Whether this process lives: then it is a second manager, and waiting is no use."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read(4096).rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False
