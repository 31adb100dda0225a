"""The locks of an instance: one on its root, one on its state, taken before anything is bound.

flock(2) belongs to the open file description, so the spawner that inherits the descriptors holds
them too: the next manager waits until no order of the last one can be carried out any more.
"""

import errno
import fcntl
import os
import time

from lighter.proto.errors import FailedPrecondition

WAIT_S = 5.0
_POLL_S = 0.02


def take_lock(path: str, wait_s: float = WAIT_S) -> int:
    """The locked descriptor. Raises FailedPrecondition naming the holder after `wait_s`.

    Only a dying manager's spawner is worth waiting for, and it ends within milliseconds.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    deadline = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except OSError as err:
            holder = os.pread(fd, 64, 0).decode(errors="replace").strip()
            living = holder.isdigit() and _is_manager(int(holder))
            if err.errno != errno.EWOULDBLOCK or living or time.monotonic() > deadline:
                os.close(fd)
                who = f"manager with pid {holder}" if living else "another process"
                raise FailedPrecondition(f"lock {path}: {who} holds it") from err
            time.sleep(_POLL_S)
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd


def _is_manager(pid: int) -> bool:
    """Whether this process is alive: then it is a second manager, and waiting is no use."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read(4096).rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False
