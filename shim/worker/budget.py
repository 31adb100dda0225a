"""How much a job may write: the disk's free space and inodes, less a reserve, or what the caller
says.

Charged is what takes blocks of its own: content, directories, and the links and attributes that
are too long for an inode. Names are counted, and the disk is looked at after some thousands: of
very many small things the inodes and the directories fill it.
"""

import os
from collections.abc import Mapping

from lighter.proto.errors import ResourceExhausted

_RESERVE = 20  # one part in twenty stays free
_BLOCK = 4096
# The most that is written between two looks at the disk, which others fill too: the workers of the
# layers beside this one. On a small disk it is an eighth of the reserve.
_LOOK_BYTES = 16 << 20
_LOOK_NAMES = 4096
# What ext4 keeps in the inode itself, the other file systems no less: the target of a link, and the
# attributes, whose entries have heads.
_LINK_BYTES = 59
_XATTR_BYTES = 64


class Budget:
    """Counts what is made in one file system. `used_bytes` is in whole blocks, as du(1) counts;
    what the same job removes again is not given back."""

    __slots__ = (
        "_dir_fd",
        "_inode_reserve",
        "_look_at",
        "_look_bytes",
        "_look_names",
        "_max_bytes",
        "_names",
        "_reserve",
        "used_bytes",
    )

    def __init__(self, dir_fd: int, max_bytes: int | None) -> None:
        status = os.fstatvfs(dir_fd)
        free = status.f_bavail * status.f_frsize
        allowed = free - free // _RESERVE
        self._dir_fd = dir_fd
        self._reserve = free // _RESERVE
        self._look_bytes = min(_LOOK_BYTES, self._reserve // 8)
        self._look_at = self._look_bytes
        # btrfs, which has no number of inodes, says that 0 are free: nothing is kept of that.
        self._inode_reserve = status.f_favail // _RESERVE
        self._look_names = min(_LOOK_NAMES, (self._inode_reserve + 7) // 8 or _LOOK_NAMES)
        self._names = 0
        self._max_bytes = allowed if max_bytes is None else min(max_bytes, allowed)
        self.used_bytes = 0

    def name(self) -> None:
        """Before anything gets a name. Raises ResourceExhausted."""
        self._names += 1
        if self._names >= self._look_names:
            self._names = 0
            self._look(0)

    def file(self, size_bytes: int) -> None:
        """Before the content of a file is written. Raises ResourceExhausted."""
        self._charge((size_bytes + _BLOCK - 1) // _BLOCK * _BLOCK)

    def directory(self) -> None:
        """A directory takes a block, and no entry need name it. Raises ResourceExhausted."""
        self.name()
        self._charge(_BLOCK)

    def symlink(self, target: bytes) -> None:
        """Before a link is made. Raises ResourceExhausted."""
        if len(target) > _LINK_BYTES:
            self._charge(_BLOCK)

    def xattrs(self, xattrs: Mapping[bytes, bytes]) -> None:
        """Before a file gets the attributes. Raises ResourceExhausted."""
        if xattrs:
            size_bytes = sum(len(name) + len(value) for name, value in xattrs.items())
            if size_bytes > _XATTR_BYTES:
                self.file(size_bytes)

    def _charge(self, count: int) -> None:
        if self.used_bytes + count > self._max_bytes:
            raise ResourceExhausted(
                f"it needs {self.used_bytes + count} bytes or more, {self._max_bytes} are allowed"
            )
        self.used_bytes += count
        if self.used_bytes >= self._look_at:
            self._look_at = self.used_bytes + self._look_bytes
            self._look(count)

    def _look(self, count: int) -> None:
        status = os.fstatvfs(self._dir_fd)
        left = status.f_bavail * status.f_frsize
        if left - count < self._reserve:
            raise ResourceExhausted(
                f"the disk has {left} bytes left, {self._reserve} are kept free"
            )
        if status.f_favail < self._inode_reserve:
            raise ResourceExhausted(
                f"the disk has {status.f_favail} inodes left, {self._inode_reserve} are kept free"
            )
