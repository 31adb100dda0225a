"""What snapshotters do to directories, in threads: make, measure, sync."""

import ctypes
import os
import stat
from collections.abc import Iterator

from lighter.daemon.types import Usage

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
MAX_LINKED = 1 << 20
_BLOCK = 512  # st_blocks counts these, whatever the file system's block is (stat(2))


def make_directory(path: str, mode: int) -> None:
    """Make a directory with exactly this mode, whatever the umask."""
    os.mkdir(path, mode)
    os.chmod(path, mode)


def remove_if_empty(path: str) -> bool:
    """Remove a snapshot's directory that nothing was written to; False when there is more.

    Most containers leave nothing behind, and then no process is needed to look: rmdir(2) follows
    no link and takes no directory that holds anything.
    """
    try:
        for inner in ("fs", "work/work", "work", ""):
            try:
                os.rmdir(f"{path}/{inner}")
            except FileNotFoundError:
                continue  # a view has no work directory
    except OSError:
        return False
    return True


def sync_file_system(path: str) -> None:
    """All of the file system that holds `path` is on disk when this returns: syncfs(2)."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        if libc.syncfs(fd) < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), path)
    finally:
        os.close(fd)


def measure(path: str, below: str = "") -> Usage:
    """Disk space below `path`, a hard-linked file counted once, other file systems not at all.

    What the tree `below`, of which `path` began as a snapshot, has with the same inode number, size
    and time of change is that one's. The trees may change meanwhile and their names may be hostile:
    only descriptors are followed.
    """
    shared = {_version(found) for found in files(below)} if below else set()
    size_bytes = inodes = 0
    linked = Linked()
    for found in files(path):
        if (not below or _version(found) not in shared) and linked.is_first(found):
            inodes += 1
            size_bytes += found.st_blocks * _BLOCK
    return Usage(size_bytes, inodes)


class Linked:
    """Tells the first name of a file from its others.

    Only files with several names are remembered, and MAX_LINKED of them: of more every name is a
    first one. Whoever fills the tree decides how many there are.
    """

    def __init__(self) -> None:
        self._seen: set[int] = set()

    def is_first(self, found: os.stat_result) -> bool:
        if found.st_nlink < 2 or stat.S_ISDIR(found.st_mode):
            return True
        if found.st_ino in self._seen:
            return False
        if len(self._seen) < MAX_LINKED:
            self._seen.add(found.st_ino)
        return True


def _version(found: os.stat_result) -> tuple[int, int, int]:
    return found.st_ino, found.st_size, found.st_mtime_ns


def files(path: str) -> Iterator[os.stat_result]:
    """All below `path` and itself, on its file system alone.

    One descriptor is open at a time and no name is longer than one part, so that no depth is too
    deep. The way back up is "..", which whoever moves directories about decides: where it leads
    elsewhere than it came from, the rest is not looked at.
    """
    fd = os.open(path, _DIRECTORY)
    try:
        top = os.fstat(fd)
        yield top
        folders: list[str] = []
        yield from _entries(fd, top.st_dev, folders)
        above: list[tuple[tuple[int, int], list[str]]] = []
        while folders or above:
            if folders:
                here = os.fstat(fd)
                inner = _open_inside(fd, folders.pop())
                if inner < 0:
                    continue
                os.close(fd)
                fd = inner
                above.append(((here.st_dev, here.st_ino), folders))
                folders = []
                if os.fstat(fd).st_dev == top.st_dev:
                    yield from _entries(fd, top.st_dev, folders)
            else:
                whence, folders = above.pop()
                outer = _open_inside(fd, "..")
                if outer < 0:
                    return
                os.close(fd)
                fd = outer
                back = os.fstat(fd)
                if (back.st_dev, back.st_ino) != whence:
                    return
    finally:
        os.close(fd)


def _entries(fd: int, device: int, folders: list[str]) -> Iterator[os.stat_result]:
    """What is in the directory on this device; names of directories are added to `folders`."""
    try:
        with os.scandir(fd) as names:  # not a list: there may be millions
            for entry in names:
                try:
                    found = os.lstat(entry.name, dir_fd=fd)
                except OSError:
                    continue
                if found.st_dev == device:
                    if stat.S_ISDIR(found.st_mode):
                        folders.append(entry.name)
                    yield found
    except OSError:
        return  # it was removed meanwhile


def _open_inside(fd: int, name: str) -> int:
    """-1: it went, or is a link by now."""
    try:
        return os.open(name, _DIRECTORY, dir_fd=fd)
    except OSError:
        return -1
