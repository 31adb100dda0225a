"""Btrfs's subvolumes, by its ioctls (linux/btrfs.h, linux/btrfs_tree.h); no program is needed.

A subvolume is a directory whose inode number is 256, and has an id. Others may lie within it, and
then it is not deleted: those who write to a snapshot may make some.
"""

import errno
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from fcntl import ioctl

_TREE_SEARCH = 0xD0009411
_INO_LOOKUP = 0xD0009412
_SUBVOL_CREATE = 0x5000940E
_SNAP_CREATE_V2 = 0x50009417
_SUBVOL_SETFLAGS = 0x4008941A
_SNAP_DESTROY_V2 = 0x5000943F

# Of all but SETFLAGS. To be mutable: Python takes no others above 1024 bytes.
_ARGS_BYTES = 4096
_SUBVOL_RDONLY = 1 << 1
_SPEC_BY_ID = 1 << 4

ROOT_INODE = 256  # BTRFS_FIRST_FREE_OBJECTID
_ROOT_TREE = 1
_ROOT_REF = 156  # parent id, type, child id: of each subvolume within another
_MAX = (1 << 64) - 1
_SEARCH = struct.Struct("=QQQQQQQIII4x32x")
_FOUND = struct.Struct("=QQQII")  # transaction, objectid, offset, type, length of what follows


def is_btrfs(directory: str) -> bool:
    """Whether the directory lies on a btrfs. Raises OSError."""
    with _opened(directory) as fd:
        try:
            _id_of(fd)
        except OSError as err:
            if err.errno in (errno.ENOTTY, errno.EOPNOTSUPP, errno.EINVAL):
                return False
            raise
    return True


def create(directory: str, name: str, mode: int = 0o755) -> None:
    """Make an empty subvolume with exactly this mode, whatever the umask. Raises OSError."""
    args = struct.pack("=q4088s", 0, os.fsencode(name))
    with _opened(directory) as fd:
        ioctl(fd, _SUBVOL_CREATE, bytearray(args))
    os.chmod(f"{directory}/{name}", mode)


def snapshot(source: str, directory: str, name: str) -> None:
    """Make a subvolume that begins as `source` and can be written to. Raises OSError."""
    with _opened(source) as source_fd, _opened(directory) as fd:
        args = struct.pack("=qQQ32x4040s", source_fd, 0, 0, os.fsencode(name))
        ioctl(fd, _SNAP_CREATE_V2, bytearray(args))


def freeze(path: str) -> None:
    """Let nobody write to a subvolume any more. Raises OSError."""
    with _opened(path) as fd:
        ioctl(fd, _SUBVOL_SETFLAGS, struct.pack("=Q", _SUBVOL_RDONLY))


def destroy(directory: str, name: str) -> None:
    """Delete a subvolume and those within it; nothing when there is none of that name.

    By their ids, so that neither names nor depths within matter. Raises OSError: EBUSY while
    something is mounted within, which the kernel would unmount without a word.
    """
    try:
        with _opened(f"{directory}/{name}") as fd:
            if os.fstat(fd).st_ino != ROOT_INODE:
                return
            number = _id_of(fd)
    except FileNotFoundError:
        return
    within = f"{os.path.realpath(directory)}/{name}/"
    if any(point.startswith(within) for point in _mount_points()):
        raise OSError(errno.EBUSY, "a mount is within it", within)
    with _opened(directory) as fd:
        if next(_children(fd, number), None) is not None:
            _thaw(f"{directory}/{name}")
        pending = [number]
        while pending:
            if children := list(_children(fd, pending[-1])):
                pending += children
                continue
            args = struct.pack("=qQQ32xQ4032x", 0, 0, _SPEC_BY_ID, pending.pop())
            ioctl(fd, _SNAP_DESTROY_V2, bytearray(args))


def _thaw(path: str) -> None:
    """Make subvolumes writable, this one and those within: nothing is deleted from a frozen one.

    A container freezes its own without any capability.
    """
    for _path, _folders, _files, fd in os.fwalk(path, follow_symlinks=False):
        if os.fstat(fd).st_ino == ROOT_INODE:
            ioctl(fd, _SUBVOL_SETFLAGS, struct.pack("=Q", 0))


@contextmanager
def _opened(path: str) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def _id_of(fd: int) -> int:
    """The id of the subvolume in which the descriptor's file lies."""
    args = bytearray(_ARGS_BYTES)
    struct.pack_into("=QQ", args, 0, 0, ROOT_INODE)
    ioctl(fd, _INO_LOOKUP, args)
    return int(struct.unpack_from("=Q", args)[0])


def _children(fd: int, number: int) -> Iterator[int]:
    """The ids of the subvolumes directly within the subvolume `number`."""
    first = 0
    while True:
        args = bytearray(_ARGS_BYTES)
        _SEARCH.pack_into(
            *(args, 0, _ROOT_TREE, number, number, first, _MAX, 0, _MAX, _ROOT_REF, _ROOT_REF, 64)
        )
        ioctl(fd, _TREE_SEARCH, args)
        count = _SEARCH.unpack_from(args)[9]
        if not count:
            return
        place = _SEARCH.size
        for _ in range(count):
            _, _, child, _, length = _FOUND.unpack_from(args, place)
            yield child
            first = child + 1
            place += _FOUND.size + length


def _mount_points() -> Iterator[str]:
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            point = line.split(" ", 5)[4]
            yield point.replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\")
