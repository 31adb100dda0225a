"""Jobs `mount` and `unmount`: a snapshot on a directory of the host. They are not locked in.

    {job: "mount", mounts: [[type, source, [option]]]} + [directory, O_PATH] → {}
    {job: "unmount", target: path} → {unmounted: bool}

The directory comes as a descriptor, so nobody can put another in its place meanwhile. Whatever is
in the image: set-user-ID programs and devices do not work through this mount.
"""

import errno
import os
from typing import Any

from lighter.proto.errors import FailedPrecondition, InvalidArgument
from lighter.shim import linux
from lighter.shim.worker.channel import Channel
from lighter.shim.worker.failure import typed

_HARMLESS = ("nosuid", "nodev")


def mount(job: dict[str, Any], fds: list[int], _channel: Channel) -> dict[str, Any]:
    """Raises InvalidArgument, FailedPrecondition; then nothing is mounted."""
    if len(fds) != 1:
        raise InvalidArgument(f"mount image: expected one descriptor, got {len(fds)}")
    path = os.readlink(f"/proc/self/fd/{fds[0]}")
    done = 0
    try:
        for fstype, source, options in job["mounts"]:
            # What the descriptor leads to is below a mount once there is one.
            place = path if done else f"/proc/self/fd/{fds[0]}"
            flags, data = linux.mount_flags([*options, *_HARMLESS])
            if fstype in ("bind", "rbind"):
                linux.mount(source, place, "", linux.MS_BIND)
                done += 1
                flags = flags & ~linux.MS_REC | linux.MS_BIND | linux.MS_REMOUNT
                linux.mount("", path, "", flags)  # mount(2): the first call ignores all others
            else:
                linux.mount(source, place, fstype, flags, data)
                done += 1
    except OSError as err:
        for _ in range(done):
            linux.umount(path, linux.MNT_DETACH | linux.UMOUNT_NOFOLLOW)
        raise typed(err, f"mount image on {path}") from err
    return {}


def unmount(job: dict[str, Any], _fds: list[int], _channel: Channel) -> dict[str, Any]:
    """Take off the topmost mount. Raises FailedPrecondition when it is in use."""
    target = str(job["target"])
    try:
        linux.umount(target)
    except OSError as err:
        if err.errno == errno.EBUSY:
            raise FailedPrecondition(f"unmount {target}: a process uses it") from err
        if err.errno in (errno.EINVAL, errno.ENOENT):  # somebody has done it by hand
            return {"unmounted": False}
        raise typed(err, f"unmount {target}") from err
    return {"unmounted": True}
