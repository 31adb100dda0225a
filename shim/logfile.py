"""The container's log, written by the shim: chunks of proto/logchunks.py, rotated between chunks.

A full disk never stops a container: bytes that cannot be written are counted, and the next chunk
that can be written is preceded by a notice that says how many are missing.
"""

import os
import time

from lighter.proto import logchunks
from lighter.proto.daemon_api import NOTICE


class LogFile:
    """One log directory of one container. `max_bytes` 0: one file without a limit."""

    __slots__ = ("_dir", "_fd", "_lost", "_max_bytes", "_max_files", "_number", "_size")

    def __init__(self, directory: str, max_bytes: int, max_files: int) -> None:
        self._dir = directory
        self._max_bytes = max_bytes
        self._max_files = max(1, max_files)
        self._number = max(self._numbers(), default=0)
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
            if self._lost:
                notice = f"{self._lost} bytes of output could not be written here\n".encode()
                self._write(NOTICE, notice)
                self._lost = 0
            self._write(stream, data)
        except OSError:
            self._lost += len(data)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _write(self, stream: int, data: "memoryview | bytes") -> None:
        head = logchunks.HEAD.pack(time.time_ns(), stream, len(data))
        whole = len(head) + len(data)
        written = os.writev(self._fd, [head, data])
        if written != whole:  # the disk filled up inside the chunk
            os.ftruncate(self._fd, self._size)
            raise OSError(28, "No space left on device")
        self._size += whole

    def _make_room(self, length: int) -> None:
        if self._fd < 0:
            self._open(self._number or 1)
        if self._max_bytes and self._size and self._size + length > self._max_bytes:
            self.close()
            self._open(self._number + 1)
            for number in self._numbers():
                if number <= self._number - self._max_files:
                    os.unlink(f"{self._dir}/{logchunks.file_name(number)}")

    def _open(self, number: int) -> None:
        path = f"{self._dir}/{logchunks.file_name(number)}"
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        self._fd = os.open(path, flags, 0o600)
        self._number = number
        self._size = os.fstat(self._fd).st_size

    def _numbers(self) -> list[int]:
        try:
            names = os.listdir(self._dir)
        except OSError:
            return []
        return [n for n in map(logchunks.file_number, names) if n is not None]
