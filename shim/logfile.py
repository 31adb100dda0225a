"""The container's log, written by the shim: chunks of proto/logchunks.py, rotated between chunks.

A full disk never stops a container: bytes that cannot be written are counted, and the next chunk
that can be written is preceded by a notice that says how many are missing.

A later shim of the same container goes on in the last file, after it has cut off a chunk that a
power loss may have left there: chunks behind a torn one could not be read.
"""

import errno
import os
import time

from lighter.proto import logchunks
from lighter.proto.daemon_api import NOTICE

# Going on in a file means reading the heads of its chunks; a larger one (a log without a limit) is
# left as it is, and a new file begun.
MAX_CONTINUED = 64 * 1024 * 1024


class LogFile:
    """One log directory of one container.

    `max_bytes` 0: one file without a limit. `max_files` 0: no file is ever removed.
    """

    __slots__ = ("_dir", "_fd", "_lost", "_max_bytes", "_max_files", "_number", "_size")

    def __init__(self, directory: str, max_bytes: int, max_files: int) -> None:
        self._dir = directory
        self._max_bytes = max_bytes
        self._max_files = max_files
        self._number = self._first_number()
        self._fd = -1
        self._size = 0
        self._lost = 0

    @property
    def lost_bytes(self) -> int:
        """Bytes not written since the last notice about lost bytes."""
        return self._lost

    def append(self, stream: int, data: "memoryview | bytes") -> None:
        """Write one chunk. Never raises: what cannot be written is counted as lost."""
        try:
            self._make_room(len(data))
            # In one write: on a nearly full disk notices alone would go on eating what is left.
            self._write([*self._notice(), *_chunk(stream, data)])
            self._lost = 0
        except OSError:
            self._lost += len(data)

    def lose(self, size_bytes: int) -> None:
        """Count output that nobody could append."""
        self._lost += size_bytes

    def close(self) -> None:
        if self._fd >= 0:
            try:
                self._write(self._notice())
            except OSError:
                pass  # the disk is full to the end
            self._close_file()

    def _close_file(self) -> None:
        os.close(self._fd)
        self._fd = -1

    def _notice(self) -> "list[memoryview | bytes]":
        if not self._lost:
            return []
        return _chunk(NOTICE, b"%d bytes of output could not be written here\n" % self._lost)

    def _write(self, parts: "list[memoryview | bytes]") -> None:
        size = sum(map(len, parts))
        if os.writev(self._fd, parts) != size:  # the disk filled up in the middle
            os.ftruncate(self._fd, self._size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._size += size

    def _make_room(self, length: int) -> None:
        if self._fd < 0:
            self._open(self._number)
        if self._max_bytes and self._size and self._size + length > self._max_bytes:
            following = self._number + 1
            try:
                self._open(following)
            except OSError:
                # Where there is no room for one file more, there may be when the oldest has gone.
                if not self._remove_before(following):
                    raise
                self._open(following)
            self._remove_before(following)

    def _remove_before(self, following: int) -> bool:
        """Remove what is too much beside that file, but not the open one; whether any was."""
        old = [
            number
            for number in self._numbers()
            if self._max_files and number <= following - self._max_files and number != self._number
        ]
        for number in old:
            os.unlink(self._path(number))
        return bool(old)

    def _open(self, number: int) -> None:
        """Go over to this file; without room for it the one before stays open."""
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        fd = os.open(self._path(number), flags, 0o600)
        if self._fd >= 0:
            self._close_file()
        self._fd = fd
        self._number = number
        self._size = _whole_chunks(fd)
        os.ftruncate(fd, self._size)

    def _path(self, number: int) -> str:
        return f"{self._dir}/{logchunks.file_name(number)}"

    def _first_number(self) -> int:
        last = max(self._numbers(), default=1)
        try:
            return last + (os.stat(self._path(last)).st_size > MAX_CONTINUED)
        except OSError:
            return last

    def _numbers(self) -> list[int]:
        try:
            names = os.listdir(self._dir)
        except OSError:
            return []
        return [n for n in map(logchunks.file_number, names) if n is not None]


def _chunk(stream: int, data: "memoryview | bytes") -> "list[memoryview | bytes]":
    return [logchunks.HEAD.pack(time.time_ns(), stream, len(data)), data]


def _whole_chunks(fd: int) -> int:
    """Where the last whole chunk of a log file ends, in bytes from its start."""
    size = os.fstat(fd).st_size
    end = 0
    while end < size:
        head = logchunks.parse_head(os.pread(fd, logchunks.HEAD.size, end))
        if head is None or end + logchunks.HEAD.size + head[2] > size:
            break
        end += logchunks.HEAD.size + head[2]
    return end
