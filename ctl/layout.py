"""An OCI image layout in a directory (image-spec, image-layout.md), as the archive it would be.

The bytes are read with the caller's own rights; what they are is for the manager to judge. Links
are not followed below the directory: a layout has none, and one in it may lead anywhere.
"""

import os
import stat
import tarfile
from collections.abc import Iterator

from lighter.proto.errors import DataLoss, InvalidArgument, NotFound

MAX_FILES = 100_000
_BLOCK = 512
_MOST = 1 << 30


def write_archive(directory: str, fd: int) -> None:
    """Write the layout in `directory` to `fd`, a pipe. Raises InvalidArgument, OSError."""
    top = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for path, file_fd in _files(directory, top):
            try:
                _write_file(fd, path, file_fd)
            finally:
                os.close(file_fd)
        _write(fd, bytes(2 * _BLOCK))
    finally:
        os.close(top)


def _files(directory: str, top: int) -> Iterator[tuple[str, int]]:
    """(path, descriptor) of what makes a layout; the reader closes the descriptor."""
    try:
        yield "index.json", _open(top, "index.json")
    except NotFound as err:
        cause = "it has no index.json, so it is no OCI layout"
        raise InvalidArgument(f"import {directory}: {cause}") from err
    count = 0
    blobs = _open(top, "blobs", os.O_DIRECTORY)
    try:
        for algorithm in sorted(os.listdir(blobs)):
            folder = _open(blobs, algorithm, os.O_DIRECTORY)
            try:
                for name in sorted(os.listdir(folder)):
                    count += 1
                    if count > MAX_FILES:
                        raise InvalidArgument(f"import {directory}: over {MAX_FILES} blobs")
                    yield f"blobs/{algorithm}/{name}", _open(folder, name)
            finally:
                os.close(folder)
    finally:
        os.close(blobs)


def _open(folder: int, name: str, flags: int = 0) -> int:
    mode = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | flags
    try:
        fd = os.open(name, mode, dir_fd=folder)
    except FileNotFoundError as err:
        raise NotFound(f"import {name}: {err.strerror}") from err
    except OSError as err:
        raise InvalidArgument(f"import {name}: {err.strerror}") from err
    if not flags and not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise InvalidArgument(f"import {name}: it is no regular file")
    return fd


def _write_file(fd: int, path: str, file_fd: int) -> None:
    info = tarfile.TarInfo(path)
    info.size = os.fstat(file_fd).st_size
    _write(fd, info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape"))
    offset = 0
    while offset < info.size:
        moved = os.sendfile(fd, file_fd, offset, min(_MOST, info.size - offset))
        if not moved:
            raise DataLoss(f"import {path}: it ended after {offset} of {info.size} bytes")
        offset += moved
    _write(fd, bytes(-info.size % _BLOCK))


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
