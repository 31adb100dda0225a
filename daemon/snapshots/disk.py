"""What snapshotters do to directories, in threads: make, measure, sync."""

import ctypes
import os

from lighter.daemon.types import Usage

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


def measure(path: str) -> Usage:
    """Disk space below `path`, a hard-linked file counted once, other file systems not at all.

    The tree may change meanwhile and its names may be hostile: only descriptors are followed.
    """
    size_bytes = 0
    seen: set[int] = set()
    device = os.lstat(path).st_dev
    for _, folders, files, fd in os.fwalk(path, follow_symlinks=False, onerror=None):
        for name in (*folders, *files, "."):
            try:
                found = os.lstat(name, dir_fd=fd)
            except OSError:
                continue
            if found.st_dev != device:
                if name in folders:
                    folders.remove(name)
            elif found.st_ino not in seen:
                seen.add(found.st_ino)
                size_bytes += found.st_blocks * _BLOCK
    return Usage(size_bytes, len(seen))
