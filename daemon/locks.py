"""The locks of an instance: one on its root, one on its state, taken before anything is bound.

flock(2) belongs to the open file description, so the spawner that inherits the descriptors holds
them too: the next manager waits until no order of the last one can be carried out any more. A
spawner that keeps them (stopped, say) although its manager is gone is ended: it holds no state.
"""

import contextlib
import fcntl
import os
import signal
import time
from contextlib import ExitStack

from lighter.proto.errors import FailedPrecondition

WAIT_S = 5.0
KILL_AFTER_S = 1.0
_POLL_S = 0.005
_SPAWNER = b"lighter-spawner"
_SPAWNER_TO_BE = b"--unit=lighter-shims-"  # systemd-run, which becomes one (spawning/placement.py)


def take_lock(path: str, wait_s: float = WAIT_S, instance: str = "") -> int:
    """The locked descriptor. Raises FailedPrecondition naming the holder after `wait_s`.

    `instance`: whose spawners are ended too when they were given the lock and have not taken it.

    Only a dying manager's spawner is worth waiting for: it ends, or lets go, within milliseconds.
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as err:
        raise FailedPrecondition(f"lock {path}: {err.strerror}") from err
    with ExitStack() as undo:
        undo.callback(os.close, fd)
        _lock(fd, path, time.monotonic() + wait_s, instance)
        # Whoever may open the file may hold its lock.
        os.fchmod(fd, 0o600)
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        undo.pop_all()
    return fd


def _lock(fd: int, path: str, deadline: float, instance: str) -> None:
    kill_at = time.monotonic() + KILL_AFTER_S
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError as err:
            written = os.pread(fd, 64, 0).decode(errors="replace").strip()
            holder = int(written) if written.isdigit() else 0
            manager = holder not in (0, os.getpid()) and _has_open(holder, fd)
            if manager or time.monotonic() > deadline:
                who = f"manager with pid {written}" if manager else "another process"
                raise FailedPrecondition(f"lock {path}: {who} holds it") from err
            if time.monotonic() > kill_at:
                for pid in _others():
                    _end_spawner(pid, fd, instance)
            time.sleep(_POLL_S)


def _others() -> list[int]:
    names = [name for name in os.listdir("/proc") if name.isdigit()]
    return [int(name) for name in names if int(name) != os.getpid()]


def _has_open(pid: int, fd: int) -> bool:
    wanted = os.fstat(fd)
    with contextlib.suppress(OSError):
        for name in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                if os.path.samestat(os.stat(f"/proc/{pid}/fd/{name}"), wanted):
                    return True
    return False


def _end_spawner(pid: int, fd: int, instance: str) -> None:
    """SIGKILL, if it is a spawner that holds this lock, or may be about to take a copy of it.

    A copy that is on its way in a socket is a lock that no process is seen to hold.
    """
    with contextlib.suppress(OSError):
        pidfd = os.pidfd_open(pid)
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                title = file.read(4096)
            # Looked at with the pidfd open: from here on the pid cannot come round unnoticed.
            ours = title.startswith(_SPAWNER) or _SPAWNER_TO_BE in title
            # One of this user's: anybody can call itself so.
            takes = instance != "" and f" --instance {instance}".encode() in title
            takes = takes and os.stat(f"/proc/{pid}").st_uid == os.geteuid()
            if ours and (takes or _has_open(pid, fd)):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        finally:
            os.close(pidfd)
