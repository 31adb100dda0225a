"""Owner, mode, extended attributes and times, put on through descriptors and without following.

The order is the point: chown(2) clears setuid bits and file capabilities, so it comes before
both; a directory's time changes with everything made in it, so it comes last of all.
"""

import errno
import os

from lighter.shim.worker.tree import Directory, Tree

OPAQUE = "trusted.overlay.opaque"
_OVERLAY_PRIVATE = (b"trusted.overlay.", b"user.overlay.")
_CAPABILITY = b"security.capability"
_OF_THE_HOST = (b"security.", b"trusted.")
_TIME_LIMIT_NS = (1 << 63) - 1  # what Go and containerd hold too: the year 2262


def dress(fd: int, uid: int, gid: int, mode: int, xattrs: dict[bytes, bytes]) -> None:
    """Give the open file or directory its owner, attributes and mode, in the order that holds."""
    os.fchown(fd, uid, gid)
    for name, value in xattrs.items():
        _set_xattr(fd, name, value)
    os.fchmod(fd, mode)


def add_xattrs(fd: int, xattrs: dict[bytes, bytes]) -> None:
    """Give the open file those attributes that it does not have."""
    present = {os.fsencode(name) for name in os.listxattr(fd)}
    for name, value in xattrs.items():
        if name not in present:
            _set_xattr(fd, name, value)


def set_link_xattrs(parent: Directory, name: bytes, xattrs: dict[bytes, bytes]) -> None:
    """Attributes of what cannot be opened: a link, a device, a FIFO.

    There is no setxattrat(2) before Linux 6.13, so the parent becomes the working directory, and
    the name is one component that is not followed.
    """
    if not xattrs:
        return
    os.fchdir(parent.fd)
    try:
        for key, value in xattrs.items():
            _set_xattr(name, key, value)
    finally:
        os.chdir("/")


def _set_xattr(target: int | bytes, name: bytes, value: bytes) -> None:
    """Set one attribute of an archive; overlayfs' own are dropped: they would steer the merge.

    What the file system or the kind of file does not take is left out, as containerd does; file
    capabilities never are, a program would silently lose its rights.
    """
    if name.startswith(_OVERLAY_PRIVATE):
        return
    try:
        if isinstance(target, int):
            os.setxattr(target, name, value)
        else:
            os.setxattr(target, name, value, follow_symlinks=False)
    except OSError as err:
        if name == _CAPABILITY or err.errno not in (errno.ENOTSUP, errno.EPERM):
            raise


def copied_xattrs(fd: int) -> dict[bytes, bytes]:
    """The attributes of an open file that a copy of it shall have."""
    found = {}
    for name in os.listxattr(fd):
        key = os.fsencode(name)
        if not key.startswith(_OVERLAY_PRIVATE):
            found[key] = os.getxattr(fd, name)
    return found


def link_xattrs(fd: int, name: bytes) -> dict[bytes, bytes]:
    """The attributes of a name in an open directory that is not followed and need not be openable.

    There is no getxattrat(2) before Linux 6.13, so the directory becomes the working directory.
    """
    os.fchdir(fd)
    try:
        return {
            os.fsencode(key): os.getxattr(name, key, follow_symlinks=False)
            for key in os.listxattr(name, follow_symlinks=False)
            if not os.fsencode(key).startswith(_OVERLAY_PRIVATE)
        }
    finally:
        os.chdir("/")


def portable(xattrs: dict[bytes, bytes]) -> dict[bytes, bytes]:
    """Those that another host can use: not this one's labels, hashes of its files and the like."""
    return {
        name: value
        for name, value in xattrs.items()
        if name == _CAPABILITY or not name.startswith(_OF_THE_HOST)
    }


def clamp_ns(time_ns: int) -> int:
    """The nearest time that utimensat(2) takes; the file system narrows it further."""
    return max(-_TIME_LIMIT_NS, min(_TIME_LIMIT_NS, time_ns))


class LateTimes:
    """Times of directories, kept until nothing is made in them any more."""

    __slots__ = ("_times",)

    def __init__(self) -> None:
        self._times: dict[bytes, tuple[int, int, int]] = {}

    def __contains__(self, path: bytes) -> bool:
        return path in self._times

    def set(self, directory: Directory, atime_ns: int, mtime_ns: int) -> None:
        """Remember the times of a directory; the last call counts."""
        inode = os.fstat(directory.fd).st_ino
        self._times[directory.path] = (inode, clamp_ns(atime_ns), clamp_ns(mtime_ns))

    def put_on(self, tree: Tree) -> None:
        """Set them all. One that was replaced meanwhile is no longer the same inode: left out."""
        for path, (inode, atime_ns, mtime_ns) in self._times.items():
            directory = tree.at(path)
            if directory is not None and os.fstat(directory.fd).st_ino == inode:
                os.utime(directory.fd, ns=(atime_ns, mtime_ns))
