"""Disk space kept back for the day the disk is full.

Removing anything begins with a write to the database. So a file beside it holds a little space,
and gives it up when there is no other: then containers, images and content can still be removed,
which frees more, and the file is made again.
"""

import logging
import os

log = logging.getLogger("lighter.reserve")

SIZE_BYTES = 8 << 20  # twice what SQLite's log grows to before it is moved into the database
LOW_BYTES = SIZE_BYTES // 8  # with less than this free it is given up


class Reserve:
    """The file `path`. `check` is cheap: one system call while all is well."""

    def __init__(self, path: str, size_bytes: int = SIZE_BYTES) -> None:
        self._path = path
        self._size_bytes = size_bytes
        self._is_held = self._is_there()
        self.check()

    def _is_there(self) -> bool:
        """Whether the file has its space: one that was only begun has its name alone."""
        try:
            return os.lstat(self._path).st_blocks * 512 >= self._size_bytes
        except OSError:
            return False

    def check(self) -> None:
        """Give the space up when a write would find none; take it again when there is plenty."""
        try:
            found = os.statvfs(os.path.dirname(self._path))
        except OSError:
            return
        free_bytes = found.f_bavail * found.f_frsize
        if self._is_held and free_bytes < self._size_bytes // 8:
            log.warning("the disk is full: the reserve %s is given up", self._path)
            self._drop()
        elif not self._is_held and free_bytes > 4 * self._size_bytes:
            self._take()

    def _drop(self) -> None:
        try:
            os.unlink(self._path)
        except FileNotFoundError:
            pass
        except OSError as err:
            log.warning("give up reserve %s: %s", self._path, err.strerror)
            return
        self._is_held = False

    def _take(self) -> None:
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            fd = os.open(self._path, flags, 0o600)
            try:
                os.posix_fallocate(fd, 0, self._size_bytes)
            finally:
                os.close(fd)
        except OSError as err:
            log.warning("take reserve %s: %s", self._path, err.strerror)
            self._drop()
            return
        self._is_held = True
