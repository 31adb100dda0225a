"""The files of content: opened, read and taken only when they are what was recorded."""

import hashlib
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field

from lighter.daemon.content.digest import Digest
from lighter.daemon.errors import from_os
from lighter.proto.errors import DataLoss


@dataclass(frozen=True)
class Arrival:
    """A complete file, written and synced, that is to become content under `digest`.

    `shared`: it has another name elsewhere, whose owner and mode are not ours to change.
    """

    path: str
    digest: str
    size_bytes: int
    labels: Mapping[str, str] = field(default_factory=dict)
    shared: bool = False


def read_verified(fd: int, digest: str, size_bytes: int) -> bytes:
    """`size_bytes` bytes from the start of `fd`, hashed. Raises DataLoss when they differ."""
    parts: list[bytes] = []
    offset = 0
    while offset < size_bytes:
        part = os.pread(fd, size_bytes - offset, offset)
        if not part:
            break
        parts.append(part)
        offset += len(part)
    data = b"".join(parts)
    if hashlib.sha256(data).hexdigest() != Digest.parse(digest).hex:
        raise DataLoss(f"read content {digest}: its bytes have another digest")
    return data


def open_blob(path: str, digest: str, size_bytes: int) -> int:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError as err:
        raise DataLoss(f"open content {digest}: its file {path} is missing") from err
    except OSError as err:
        raise from_os(f"open content {digest}", err) from err
    found = os.fstat(fd).st_size
    if found != size_bytes:
        os.close(fd)
        raise DataLoss(
            f"open content {digest}: its file has {found} bytes, {size_bytes} were recorded"
        )
    return fd


def read_blob(path: str, digest: str, size_bytes: int) -> bytes:
    fd = open_blob(path, digest, size_bytes)
    try:
        return read_verified(fd, digest, size_bytes)
    finally:
        os.close(fd)


def check_file(digest: Digest, arrival: Arrival) -> None:
    try:
        found = os.lstat(arrival.path)
    except OSError as err:
        raise from_os(f"adopt content {digest}", err) from err
    if not stat.S_ISREG(found.st_mode) or found.st_size != arrival.size_bytes:
        raise DataLoss(
            f"adopt content {digest}: expected a file of {arrival.size_bytes} bytes, "
            f"found {stat.filemode(found.st_mode)} with {found.st_size}"
        )
