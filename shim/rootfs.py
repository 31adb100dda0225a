"""The container's root: a snapshot's mounts on one directory, and taking them off again."""

import errno
import os
import stat

from lighter.proto.errors import FailedPrecondition
from lighter.shim import linux

# Where a runtime makes nodes and links of its own, and mounts the kernel's files.
_OWN = ("dev", "proc", "sys")
# mount(2): what was asked for cannot be mounted so, and will not be by asking again.
_ASKED_WRONGLY = (
    *(errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL, errno.ENODEV),
    *(errno.ENOTBLK, errno.EACCES),
)


class Rootfs:
    """Owns what it has mounted on `path`."""

    __slots__ = ("_mounted", "path")

    def __init__(self, path: str) -> None:
        self.path = path
        self._mounted = 0

    def mount(self, mounts: list[tuple[str, str, list[str]]]) -> None:
        """Mount a snapshot's (type, source, options) list. After a failure `umount` undoes it.

        Raises FailedPrecondition for mounts that cannot be, and OSError.
        """
        for one in mounts:
            try:
                linux.mount_all([one], self.path)
            except OSError as err:
                if err.errno not in _ASKED_WRONGLY:
                    raise
                what = f"{one[0]} of {one[1]}"
                raise FailedPrecondition(f"mount root: {what}: {err.strerror}") from err
            self._mounted += 1

    def check(self) -> None:
        """Refuse a root in which a link stands where the runtime writes.

        runc 1.1 makes /dev/fd, /dev/ptmx, … by path: through a link that an image has in place of
        /dev it makes them in a directory of the host's. Raises FailedPrecondition.
        """
        for name in _OWN:
            try:
                mode = os.lstat(f"{self.path}/{name}").st_mode
            except FileNotFoundError:
                continue
            if not stat.S_ISDIR(mode):
                raise FailedPrecondition(f"use root: /{name} in it is no directory")

    def umount(self) -> None:
        """Take off what is still there of it. Raises OSError when even a detach is refused."""
        while self._mounted:
            try:
                linux.umount(self.path)
            except OSError as err:
                if err.errno in (errno.EINVAL, errno.ENOENT):
                    self._mounted = 0  # somebody has done it by hand
                    return
                if err.errno != errno.EBUSY:
                    raise
                # Somebody's open file or mount namespace; the kernel lets go when they do.
                linux.umount(self.path, linux.MNT_DETACH | linux.UMOUNT_NOFOLLOW)
            self._mounted -= 1
