"""The container's root: a snapshot's mounts on one directory, and taking them off again."""

import errno

from lighter.shim import linux


class Rootfs:
    """Owns what it has mounted on `path`."""

    __slots__ = ("_mounted", "path")

    def __init__(self, path: str) -> None:
        self.path = path
        self._mounted = 0

    def mount(self, mounts: list[tuple[str, str, list[str]]]) -> None:
        """Mount a snapshot's (type, source, options) list. After an OSError `umount` undoes it."""
        for one in mounts:
            linux.mount_all([one], self.path)
            self._mounted += 1

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
