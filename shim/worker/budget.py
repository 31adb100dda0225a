"""How much a job may write: the disk's free space less a reserve, or what the caller says."""

import os

from lighter.proto.errors import ResourceExhausted

_RESERVE = 20  # one part in twenty stays free
_BLOCK = 4096
# The most that is written between two looks at the disk, which others fill too: the workers of the
# layers beside this one. On a small disk it is an eighth of the reserve.
_LOOK_BYTES = 16 << 20


class Budget:
    """Counts what is made in one file system. `used_bytes` is in whole blocks, as du(1) counts;
    what the same job removes again is not given back."""

    __slots__ = ("_dir_fd", "_look_at", "_look_bytes", "_max_bytes", "_reserve", "used_bytes")

    def __init__(self, dir_fd: int, max_bytes: int | None) -> None:
        status = os.fstatvfs(dir_fd)
        free = status.f_bavail * status.f_frsize
        allowed = free - free // _RESERVE
        self._dir_fd = dir_fd
        self._reserve = free // _RESERVE
        self._look_bytes = min(_LOOK_BYTES, self._reserve // 8)
        self._look_at = self._look_bytes
        self._max_bytes = allowed if max_bytes is None else min(max_bytes, allowed)
        self.used_bytes = 0

    def file(self, size_bytes: int) -> None:
        """Before the content of a file is written. Raises ResourceExhausted."""
        self._charge((size_bytes + _BLOCK - 1) // _BLOCK * _BLOCK)

    def directory(self) -> None:
        """A directory takes a block. Raises ResourceExhausted."""
        self._charge(_BLOCK)

    def _charge(self, count: int) -> None:
        if self.used_bytes + count > self._max_bytes:
            raise ResourceExhausted(
                f"it needs {self.used_bytes + count} bytes or more, {self._max_bytes} are allowed"
            )
        self.used_bytes += count
        if self.used_bytes >= self._look_at:
            self._look_at = self.used_bytes + self._look_bytes
            status = os.fstatvfs(self._dir_fd)
            left = status.f_bavail * status.f_frsize
            if left - count < self._reserve:
                raise ResourceExhausted(
                    f"the disk has {left} bytes left, {self._reserve} are kept free"
                )
