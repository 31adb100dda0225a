"""Writing a tar whose files are content: bytes are hashed as they pass.

The same entries make the same bytes: owner 0, no times, directories before what is in them
(POSIX.1-2001 pax; a size above 8 GiB takes an extended header).
"""

import hashlib
import os
import select
import tarfile

from lighter.daemon.content.digest import Digest
from lighter.proto.errors import Canceled, DataLoss

_BLOCK = 512
_RECORD = 20 * _BLOCK  # tar(1)'s, which pads an archive to whole ones
_MOST = 1 << 20  # moved at a time


class TarOut:
    """Writes to `fd`, from a thread of its own. `stop_fd` is an eventfd: once it counts, the next
    call raises Canceled. `done_bytes` counts what was written.

    A pipe must be non-blocking. Raises OSError for what the destination answers (EPIPE, ENOSPC).
    """

    def __init__(self, fd: int, stop_fd: int) -> None:
        self._fd = fd
        self._stop_fd = stop_fd
        self._poll = select.poll()
        self._poll.register(stop_fd, select.POLLIN)
        self._poll.register(fd, select.POLLOUT)
        self.done_bytes = 0

    def directory(self, name: str) -> None:
        info = tarfile.TarInfo(name)
        info.type, info.mode = tarfile.DIRTYPE, 0o755
        self._write(_header(info))

    def data(self, name: str, data: bytes) -> None:
        """A file of these bytes."""
        info = tarfile.TarInfo(name)
        info.size, info.mode = len(data), 0o644
        self._write(_header(info) + data + _padding(len(data)))

    def blob(self, name: str, source_fd: int, size_bytes: int, digest: Digest) -> None:
        """A file of the bytes of another. Raises DataLoss when those are not of this digest."""
        info = tarfile.TarInfo(name)
        info.size, info.mode = size_bytes, 0o444
        self._write(_header(info))
        hashed, offset = hashlib.sha256(), 0
        while offset < size_bytes:
            data = os.pread(source_fd, min(_MOST, size_bytes - offset), offset)
            if not data:
                raise DataLoss(f"write {name}: its file ends after {offset} of {size_bytes} bytes")
            offset += len(data)
            hashed.update(data)
            self._write(data)
        if hashed.hexdigest() != digest.hex:
            raise DataLoss(f"write {name}: its bytes have another digest")
        self._write(_padding(size_bytes))

    def end(self) -> None:
        """Two empty blocks, and whole records."""
        tail = 2 * _BLOCK
        self._write(bytes(tail + -(self.done_bytes + tail) % _RECORD))

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            self._wait()
            try:
                written = os.write(self._fd, view)
            except BlockingIOError:
                continue
            self.done_bytes += written
            view = view[written:]

    def _wait(self) -> None:
        """Return when the destination takes bytes, or has an error that writing will tell."""
        for fd, _events in self._poll.poll():
            if fd == self._stop_fd:
                raise Canceled("write archive: nobody waits for it any more")


def _header(info: tarfile.TarInfo) -> bytes:
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict")


def _padding(size_bytes: int) -> bytes:
    return bytes(-size_bytes % _BLOCK)
