"""Small files that are whole or absent, and directories of a given mode."""

import contextlib
import errno
import os
import re
import stat

from lighter.proto.faults import hit

# open(2), as it is called here: nothing there, a link, a socket or a device without a driver.
_IS_NO_FILE = frozenset((errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO, errno.ENODEV))

# What a runtime had begun is removed again when it fails, so a full disk has a little room then.
_FEW_BYTES = 256 << 10
_FEW_FILES = 16

_TEMPORARY = re.compile(r"(.+)\.[0-9a-f]{8}\.tmp")


def write_whole(path: str, data: bytes, mode: int = 0o600, durable: bool = False) -> None:
    """Replace `path` by temp file and rename; `durable` syncs file and directory."""
    directory = os.path.dirname(path)
    temporary = f"{path}.{os.urandom(4).hex()}.tmp"
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
    except BaseException as err:
        remove(temporary)
        if isinstance(err, OSError) and err.filename is None:
            err.filename = path  # a write has no word for it
        raise
    if durable:
        sync_directory(directory)


def sweep(directory: str, of: str = "") -> None:
    """Delete what `write_whole` left there when it was killed, `of` one file or of any.

    Nobody may write there meanwhile.
    """
    for name in os.listdir(directory):
        found = _TEMPORARY.fullmatch(name)
        if found and (not of or found[1] == of):
            remove(f"{directory}/{name}")


def remove(path: str) -> None:
    """Delete a file that somebody else may have deleted already."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def sync_directory(path: str) -> None:
    """Make names in this directory survive a power loss (fsync(2), "directory")."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def read_only_mount(directory: str) -> str:
    """The mount that this lies on, if nothing can be written there; else "".

    A file system that has met an error can be read-only without a flag that says so (ext4's
    EMERGENCY_RO): it is tried.
    """
    try:
        os.close(os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600))
    except OSError as err:
        if err.errno != errno.EROFS:
            return ""
    else:
        return ""
    while not os.path.ismount(directory):
        directory = os.path.dirname(directory)
    return directory


def full_disk(*directories: str) -> str:
    """The first of them whose file system has next to no room, for bytes or for files; else ""."""
    for directory in directories:
        with contextlib.suppress(OSError):
            found = os.statvfs(directory)
            # Of a file system without a number of inodes f_files is 0.
            names = found.f_favail if found.f_files else _FEW_FILES
            few = found.f_bavail * found.f_frsize < _FEW_BYTES
            if names < _FEW_FILES or (few and not _takes(directory, _FEW_BYTES)):
                return directory
    return ""


def free_bytes(directory: str, wanted_bytes: int) -> int:
    """What can be written below a directory: at least `wanted_bytes`, or all that there is."""
    found = os.statvfs(directory)
    free = found.f_bavail * found.f_frsize
    kept_for_root = found.f_bfree * found.f_frsize
    if free < wanted_bytes <= kept_for_root and _takes(directory, wanted_bytes):
        return kept_for_root
    return free


def _takes(directory: str, size: int) -> bool:
    """Whether so many bytes can be had: root may use blocks that statvfs(3) counts for nobody."""
    try:
        fd = os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(fd, 0, size)
        finally:
            os.close(fd)
    except OSError:  # or it has no files without a name: then statvfs's word counts
        return False
    return True


def make_directory(path: str, mode: int, follow: bool = False) -> None:
    """Make it with its parents, or set the mode of one that exists. Raises OSError.

    A link in its place is refused unless `follow`: in a tree that was open to everybody once,
    somebody may have made one to have the mode of another directory changed.
    """
    os.makedirs(path, exist_ok=True)
    nofollow = 0 if follow else os.O_NOFOLLOW
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | nofollow)
    try:
        os.fchmod(fd, mode)
    except OSError as err:
        err.filename = path
        raise
    finally:
        os.close(fd)


def read_capped(path: str, max_bytes: int) -> bytes | None:
    """The file's bytes, None when it is missing, is no regular file or is larger.

    Raises OSError for one that is there and cannot be read, for want of descriptors or by a broken
    disk: who took it for missing would act on that.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as err:
        if err.errno in _IS_NO_FILE:
            return None
        raise
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            return None
        # One call reads a regular file to its end. To make room for the most takes longer than it;
        # a file of size 0 may be one that the kernel makes while it is read.
        room = min(found.st_size or max_bytes, max_bytes) + 1
        data = os.read(fd, room)
        if len(data) == room <= max_bytes:  # it has grown
            data += os.read(fd, max_bytes + 1 - room)
    finally:
        os.close(fd)
    return data if len(data) <= max_bytes else None


def directories_in(path: str) -> list[str]:
    """The names of the directories in `path`, sorted; none where there is no such directory."""
    try:
        return sorted(entry.name for entry in os.scandir(path) if entry.is_dir())
    except (FileNotFoundError, NotADirectoryError):
        return []
