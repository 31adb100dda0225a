"""One layer as an erofs image: made by mkfs.erofs, mounted by the kernel.

The image is made here of a layer that was already applied, so the kernel reads no file system that
somebody else wrote. mkfs.erofs keeps what overlayfs marks: devices 0/0 and trusted attributes.
"""

import asyncio
import ctypes
import errno
import os
import platform
import shutil
import stat

from lighter.daemon.errors import from_os
from lighter.daemon.snapshots import disk
from lighter.daemon.types import Usage
from lighter.proto.errors import FailedPrecondition, Internal, ResourceExhausted

MAKER = "mkfs.erofs"
_MS_RDONLY = 1
_MNT_DETACH = 2
_UMOUNT_NOFOLLOW = 8
_BLOCK = 512
# Owners above 65535 and times need the larger inodes.
_OPTIONS = ("--quiet", "-Eforce-inode-extended", "--preserve-mtime")
# Holes are kept only in files of chunks.
_WITH_HOLES = "--chunksize=65536"
_MOUNT_S = 30.0


def missing() -> str:
    """What this host lacks for images of this kind, "" for nothing."""
    with open("/proc/filesystems", encoding="ascii") as known:
        loaded = "erofs" in known.read().split()
    module = f"/lib/modules/{platform.release()}/kernel/fs/erofs"
    if not loaded and not os.path.isdir(module):
        return "this kernel has no erofs"
    if shutil.which(MAKER) is None:
        return f"there is no {MAKER} (package erofs-utils)"
    return ""


async def make(tree: str, image: str) -> Usage:
    """Write `tree` to the file `image`, which is there whole and synced, or not at all.

    Raises ResourceExhausted, Internal.
    """
    part = f"{image}.part"
    has_holes, inodes = await asyncio.to_thread(_look, tree)
    argv = [MAKER, *_OPTIONS, *([_WITH_HOLES] if has_holes else []), part, tree]
    try:
        await _run(f"make image of {tree}", *argv)
        size_bytes = await asyncio.to_thread(_settle, part, image)
    except OSError as err:
        raise from_os(f"make image of {tree}", err) from err
    except BaseException:
        _remove(part)
        raise
    return Usage(size_bytes, inodes)


def _look(tree: str) -> tuple[bool, int]:
    """Whether a file in the tree has holes, and how many inodes there are."""
    linked = disk.Linked()
    has_holes, inodes = False, 0
    for found in disk.files(tree):
        inodes += linked.is_first(found)
        short = found.st_blocks * _BLOCK < found.st_size - 4096
        has_holes |= stat.S_ISREG(found.st_mode) and short
    return has_holes, inodes


def _settle(part: str, image: str) -> int:
    fd = os.open(part, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        os.fsync(fd)
        size_bytes = os.fstat(fd).st_blocks * _BLOCK
    finally:
        os.close(fd)
    os.rename(part, image)
    folder = os.open(os.path.dirname(image), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return size_bytes


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


async def mount(image: str, target: str) -> None:
    """Mount it read-only. Raises FailedPrecondition, Internal."""
    number = await asyncio.to_thread(_mount, image, target)
    if number == errno.ENOTBLK:  # before Linux 6.12 the kernel mounts block devices alone
        argv = ("mount", "-t", "erofs", "-o", "ro,loop", "--", image, target)
        async with asyncio.timeout(_MOUNT_S):
            await _run(f"mount {image}", *argv)
    elif number:
        raise FailedPrecondition(f"mount {image} at {target}: {os.strerror(number)}")


def _mount(image: str, target: str) -> int:
    """errno, 0 when it is mounted; for a thread, since it reads the disk."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(os.fsencode(image), os.fsencode(target), b"erofs", _MS_RDONLY, None):
        return ctypes.get_errno()
    return 0


def unmount(target: str) -> None:
    """Nothing happens where nothing is mounted. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(os.fsencode(target), _MNT_DETACH | _UMOUNT_NOFOLLOW) < 0:
        number = ctypes.get_errno()
        if number not in (errno.EINVAL, errno.ENOENT):
            raise OSError(number, os.strerror(number), target)


async def _run(what: str, *argv: str) -> None:
    process = await asyncio.create_subprocess_exec(
        *argv,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        env={"LC_ALL": "C", "PATH": os.environ.get("PATH", "") + ":/usr/sbin:/sbin"},
    )
    try:
        _, complaint = await process.communicate()
    except BaseException:
        process.kill()
        await process.wait()
        raise
    if process.returncode:
        text = complaint.decode(errors="replace").strip().splitlines()
        cause = text[-1] if text else f"{argv[0]} ended with {process.returncode}"
        kind = ResourceExhausted if "No space left" in cause or "quota" in cause else Internal
        raise kind(f"{what}: {cause}")
