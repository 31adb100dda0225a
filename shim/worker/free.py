"""Job `free`: free what a lost shim held on the host. The one job that is not locked in.

    {"job": "free", "cgroup": <path of the container's cgroup>, "rootfs": <mount point>, "pid"}
    -> {"killed": <whether there were processes to end>, "left": [<pid that SIGKILL does not end>]}

Ends every process in the container's cgroup, removes that and unmounts its root; while a process is
left the root stays as it is. The path names the cgroup in
every hierarchy, because init, whose /proc entry would tell, may be gone.
"""

import errno
import time
from typing import Any

from lighter.proto.errors import InvalidArgument, Unavailable
from lighter.shim import cgroup, linux
from lighter.shim.worker.channel import Channel

KILL_S = 5.0
_POLL_S = 0.02


def run(job: dict[str, Any], _fds: list[int], _channel: Channel) -> dict[str, Any]:
    """Raises InvalidArgument for a cgroup that is not below a container's place, Unavailable."""
    path = str(job["cgroup"])
    killed = False
    left: list[int] = []
    if path:
        if not path.startswith("/") or path == "/" or "/.." in path:
            raise InvalidArgument(f"free container: {path!r} is no container's cgroup")
        killed, left = _end_processes(path)
    if not left:
        _unmount(str(job["rootfs"]))
    return {"killed": killed, "left": left}


def _end_processes(path: str) -> tuple[bool, list[int]]:
    """(whether there were any, those that do not end)."""
    group = cgroup.at_path(path)
    found = bool(group.pids())
    deadline = time.monotonic() + KILL_S
    # One that has ended but is still taken apart holds its cgroup for a moment.
    while not cgroup.remove(path) and time.monotonic() < deadline:
        group.kill_all()
        time.sleep(_POLL_S)
    return found, group.pids()


def _unmount(rootfs: str) -> None:
    """Take off every mount at this point; a create that was cut short may have made none."""
    while True:
        try:
            linux.umount(rootfs)
        except OSError as err:
            if err.errno == errno.EBUSY:
                linux.umount(rootfs, linux.MNT_DETACH | linux.UMOUNT_NOFOLLOW)
                continue
            if err.errno in (errno.EINVAL, errno.ENOENT):  # not mounted (any more)
                return
            raise Unavailable(f"unmount {rootfs}: {err.strerror}") from err
