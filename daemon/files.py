"""Small files that are whole or absent, and directories of a given mode."""

import os
import secrets

from lighter.proto.faults import hit


def write_whole(path: str, data: bytes, mode: int = 0o600, durable: bool = False) -> None:
    """Replace `path` by temp file and rename; `durable` syncs file and directory."""
    directory = os.path.dirname(path)
    temporary = f"{path}.{secrets.token_hex(4)}.tmp"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    fd = os.open(temporary, flags, mode)
    try:
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
            os.fchmod(fd, mode)
            if durable:
                os.fsync(fd)
        finally:
            os.close(fd)
        hit("file.written")
        os.rename(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    if durable:
        sync_directory(directory)


def sync_directory(path: str) -> None:
    """Make names in this directory survive a power loss (fsync(2), "directory")."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_directory(path: str, mode: int) -> None:
    """Make it with its parents, or set the mode of one that exists; the umask plays no part."""
    os.makedirs(path, exist_ok=True)
    os.chmod(path, mode)


def read_capped(path: str, max_bytes: int) -> bytes | None:
    """The file's bytes, None when it is missing, is no regular file or is larger."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    with os.fdopen(fd, "rb") as file:
        data = file.read(max_bytes + 1)
    return data if len(data) <= max_bytes else None
