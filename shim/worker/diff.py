"""Job `diff`: the layer that makes one tree of another, as a tar, hashed and compressed.

    {job: "diff", lower: [[type, source, [option]]] | [], upper: the same,
     compression: "" | "gzip" | "zstd"} + [where the layer is written]
    → {diff_id, digest, size_bytes, entries}

Both trees are mounted read-only in the worker and walked side by side. A name that only the lower
has becomes a whiteout; a file is the same when its status, attributes, time and bytes are. The
bytes of a file that the upper shows from below are not read, and what only this host can use of the
attributes stays here. Names of one file in the upper are one file in the layer. The directories
above a change are in the layer too: not everybody looks below for them. The container may go on
meanwhile: a name that vanishes or changes its kind is left out.
"""

import os
import stat
from typing import Any, Protocol

from lighter.proto.errors import InvalidArgument
from lighter.shim import linux
from lighter.shim.worker import lockin, syscalls
from lighter.shim.worker.channel import Channel
from lighter.shim.worker.deflate import Sink
from lighter.shim.worker.failure import typed
from lighter.shim.worker.metadata import copied_xattrs, link_xattrs, portable
from lighter.shim.worker.readfiles import read_only
from lighter.shim.worker.tarwrite import TarWriter
from lighter.shim.worker.walking import MAX_DEPTH, VANISHED, allow_depth

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_CAPABILITIES = (syscalls.CAP_DAC_OVERRIDE, syscalls.CAP_SYS_ADMIN)
_HARMLESS = linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC
_CHUNK = 1 << 20
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class Writer(Protocol):
    """What is told of each difference: a TarWriter, or whoever wants the names alone."""

    def entry(
        self,
        path: bytes,
        status: os.stat_result,
        xattrs: dict[bytes, bytes],
        *,
        link: bytes = b"",
        hardlink: bytes = b"",
        content: int = -1,
    ) -> None: ...

    def whiteout(self, parent: bytes, name: bytes) -> None: ...


class Differ:
    """Walks two directories, given by descriptors, and writes what differs."""

    __slots__ = ("_above", "_channel", "_first", "_tar", "_unchanged", "entries")

    def __init__(self, tar: Writer, channel: Channel) -> None:
        self._tar = tar
        self._channel = channel
        # By inode of files of several names: the first name that was written, and those that are
        # unchanged and were not.
        self._first: dict[tuple[int, int], bytes] = {}
        self._unchanged: dict[tuple[int, int], list[tuple[bytes, os.stat_result]]] = {}
        # Unchanged directories that are not written unless something in them is.
        self._above: list[tuple[bytes, os.stat_result, dict[bytes, bytes]]] = []
        self.entries = 0

    def directory(self, lower: int, upper: int, path: bytes, depth: int = 0) -> None:
        """Write what is below `path`; `lower` is -1 where nothing is there."""
        if depth > MAX_DEPTH:
            raise InvalidArgument(f"compare snapshots: {path[:64]!a}… is too deep")
        below = set(_names(lower)) if lower >= 0 else set()
        here = set(_names(upper))
        for name in sorted(below | here):
            child = path + b"/" + name if path else name
            old = os.lstat(name, dir_fd=lower) if name in below else None
            status = _status(upper, name) if name in here else None
            if status is not None:
                try:
                    self._one(lower, upper, name, child, old, status, depth)
                except OSError as err:
                    if err.errno not in VANISHED:
                        raise
            elif old is not None:
                self._entry()
                self._tar.whiteout(path, name)

    def _one(
        self,
        lower: int,
        upper: int,
        name: bytes,
        path: bytes,
        old: os.stat_result | None,
        new: os.stat_result,
        depth: int,
    ) -> None:
        if stat.S_ISDIR(new.st_mode):
            fd = os.open(name, _DIRECTORY, dir_fd=upper)
            was = -1
            try:
                if old is not None and stat.S_ISDIR(old.st_mode):
                    was = os.open(name, _DIRECTORY, dir_fd=lower)
                xattrs = portable(copied_xattrs(fd))
                if was < 0 or not _same(old, new) or xattrs != portable(copied_xattrs(was)):
                    self._entry()
                    self._tar.entry(path, new, xattrs)
                else:
                    self._above.append((path, new, xattrs))
                self.directory(was, fd, path, depth + 1)
                if self._above and self._above[-1][0] == path:
                    self._above.pop()
            finally:
                os.close(fd)
                if was >= 0:
                    os.close(was)
            return
        xattrs = portable(link_xattrs(upper, name))
        same = (
            old is not None
            and _same(old, new)
            and xattrs == portable(link_xattrs(lower, name))
            and (not stat.S_ISLNK(new.st_mode) or _link(lower, name) == _link(upper, name))
            and (_is_one(old, new) or self._same_bytes(lower, upper, name))
        )
        if stat.S_ISREG(new.st_mode):
            self._file(upper, name, path, new, xattrs, same=same)
        elif not same:
            link = _link(upper, name) if stat.S_ISLNK(new.st_mode) else b""
            self._entry()
            if not stat.S_ISSOCK(new.st_mode):  # a socket is nobody's file any more
                self._tar.entry(path, new, xattrs, link=link)

    def _file(
        self,
        upper: int,
        name: bytes,
        path: bytes,
        status: os.stat_result,
        xattrs: dict[bytes, bytes],
        *,
        same: bool,
    ) -> None:
        inode = (status.st_dev, status.st_ino)
        if status.st_nlink > 1 and inode in self._first:
            self._entry()
            self._tar.entry(path, status, {}, hardlink=self._first[inode])
            return
        if same:
            if status.st_nlink > 1:
                self._unchanged.setdefault(inode, []).append((path, status))
            return
        fd = os.open(name, _FILE, dir_fd=upper)
        try:
            opened = os.fstat(fd)
            if not stat.S_ISREG(opened.st_mode):
                return  # something else was put there meanwhile
            if status.st_nlink > 1:
                self._first[inode] = path
            self._entry()
            self._tar.entry(path, status, xattrs, content=fd)
        finally:
            os.close(fd)
        # Names that come before and are as they were, but names of a file that is written anew.
        for other, earlier in self._unchanged.pop(inode, ()):
            self._entry()
            self._tar.entry(other, earlier, {}, hardlink=path)

    def _same_bytes(self, lower: int, upper: int, name: bytes) -> bool:
        fds: list[int] = []
        try:
            for parent in (lower, upper):
                fds.append(os.open(name, _FILE, dir_fd=parent))
            if not all(stat.S_ISREG(os.fstat(fd).st_mode) for fd in fds):
                return False  # something else was put there meanwhile
            while True:
                was, now = (os.read(fd, _CHUNK) for fd in fds)
                if was != now or not now:
                    return was == now
                self._channel.tick(entries=self.entries)
        finally:
            for fd in fds:
                os.close(fd)

    def _entry(self) -> None:
        """Before anything is written."""
        for path, status, xattrs in self._above:
            self._tar.entry(path, status, xattrs)
        self.entries += len(self._above) + 1
        self._above.clear()
        self._channel.tick(entries=self.entries)


def _names(fd: int) -> list[bytes]:
    try:
        return [os.fsencode(name) for name in os.listdir(fd)]
    except FileNotFoundError:  # it was removed while it was open
        return []


def _status(fd: int, name: bytes) -> os.stat_result | None:
    """None for what has vanished since its directory was listed."""
    try:
        return os.lstat(name, dir_fd=fd)
    except FileNotFoundError:
        return None


def _link(fd: int, name: bytes) -> bytes:
    return os.readlink(name, dir_fd=fd)


def _same(old: os.stat_result | None, new: os.stat_result) -> bool:
    if old is None:
        return False
    same = (old.st_mode, old.st_uid, old.st_gid, old.st_rdev) == (
        *(new.st_mode, new.st_uid, new.st_gid, new.st_rdev),
    )
    if not same or stat.S_ISDIR(new.st_mode):
        return same
    return (old.st_size, old.st_mtime_ns) == (new.st_size, new.st_mtime_ns)


def _is_one(old: os.stat_result, new: os.stat_result) -> bool:
    """Whether two files that look the same are one, or have no bytes.

    Size and time do not say it: what tar or cp -p puts in a file's place may have both. erofs keeps
    no time of the last change but shows the other one, of an image's files in whole seconds.
    """
    if not stat.S_ISREG(new.st_mode) or not new.st_size:
        return True
    is_one = (old.st_ino, old.st_ctime_ns) == (new.st_ino, new.st_ctime_ns)
    return is_one and new.st_ctime_ns % 10**9 != 0


def run(job: dict[str, Any], fds: list[int], channel: Channel) -> dict[str, Any]:
    """Do the job; see the module's head. Raises typed errors."""
    if len(fds) != 1:
        raise InvalidArgument(f"compare snapshots: expected one descriptor, got {len(fds)}")
    sink = Sink(fds[0], job.get("compression", ""))
    lockin.close_all_but([channel.fileno(), fds[0]])
    lower, upper = enter(job)
    tar = TarWriter(sink.write)
    differ = Differ(tar, channel)
    try:
        differ.directory(lower, upper, b"")
        tar.finish()
        sink.finish()
    except OSError as err:
        raise typed(err, "compare snapshots") from err
    return {
        "diff_id": sink.diff_id,
        "digest": sink.digest,
        "size_bytes": sink.size_bytes,
        "entries": differ.entries,
    }


def enter(job: dict[str, Any]) -> tuple[int, int]:
    """Mount both trees and lock in; returns their descriptors (-1: there is no lower one)."""
    if not job.get("upper"):
        raise InvalidArgument("compare snapshots: there is no upper one")
    allow_depth()
    lockin.private_mounts()
    try:
        place = lockin.SPARE_DIR
        linux.mount("lighter-worker", place, "tmpfs", _HARMLESS, "size=1m,mode=0700")
        for name in ("lower", "upper"):
            os.mkdir(f"{place}/{name}", 0o700)
            if job.get(name):
                # The second overlay of a deep stack is made on the first one's place.
                directory, prepared = read_only(job[name], f"{place}/{name}")
                os.chdir(directory)
                linux.mount_all(prepared, f"{place}/{name}")
    except OSError as err:
        raise typed(err, "compare snapshots: mount them") from err
    lockin.pivot(lockin.SPARE_DIR)
    lockin.drop_privileges(_CAPABILITIES)
    lower = os.open("/lower", _DIRECTORY) if job.get("lower") else -1
    return lower, os.open("/upper", _DIRECTORY)
