"""Jobs `look` and `pack`: what a path of a container is, and what is there as a tar.

    {job: "look", path, follow, …see contained.py} + [namespace, optional]
    → {found: [mode, size, mtime_ns] | nil, link: bytes, target: mode | 0}
    {job: "pack", path, name, follow, portable: bool, …}
     + [where the tar is written, namespace (optional)]
    → {entries, size_bytes}

`name` is what the first entry is called, and the others below it; "." packs a directory's content.
With `portable` it has no attributes that only this host can use.
A link at the end of the path is followed with `follow` or a trailing slash. The container may go
on meanwhile: a name that vanishes or changes its kind is left out, a file that shrinks is an error.
"""

import os
import stat
from typing import Any

from lighter.proto.errors import Canceled, InvalidArgument, ResourceExhausted
from lighter.shim.worker import contained, lockin
from lighter.shim.worker.channel import Channel
from lighter.shim.worker.failure import show, typed
from lighter.shim.worker.metadata import copied_xattrs, link_xattrs, portable
from lighter.shim.worker.tarwrite import TarWriter
from lighter.shim.worker.walking import MAX_DEPTH, VANISHED, Opener, allow_depth

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_MAX_UNSIZED = 4 << 20
_CHUNK = 1 << 16


class Packer:
    """Walks a tree by descriptors and writes what is there."""

    __slots__ = ("_channel", "_first", "_opener", "_portable", "_tar", "entries")

    def __init__(
        self, tar: TarWriter, opener: Opener, channel: Channel, *, portable: bool = False
    ) -> None:
        self._tar = tar
        self._opener = opener
        self._channel = channel
        self._portable = portable
        self._first: dict[tuple[int, int], bytes] = {}
        self.entries = 0

    def one(self, parent: int, name: bytes, path: bytes, depth: int = 0) -> None:
        """Write `name` in the open directory `parent` as `path`, with what is below it."""
        try:
            status = os.lstat(name, dir_fd=parent)
            if stat.S_ISDIR(status.st_mode):
                fd = os.open(name, _DIRECTORY, dir_fd=parent)
                try:
                    self.directory(fd, path, depth)
                finally:
                    os.close(fd)
            elif stat.S_ISREG(status.st_mode):
                self._file(parent, name, path)
            elif stat.S_ISLNK(status.st_mode):
                link = os.readlink(name, dir_fd=parent)
                self._entry(path, status, link_xattrs(parent, name), link=link)
            elif not stat.S_ISSOCK(status.st_mode):  # a socket is nobody's file any more
                self._entry(path, status, link_xattrs(parent, name))
        except OSError as err:
            if err.errno not in VANISHED:
                raise typed(err, f"read {show(path)}") from err

    def directory(self, fd: int, path: bytes, depth: int = 0) -> None:
        """Write the open directory as `path`, with what is below it."""
        if depth > MAX_DEPTH:
            raise InvalidArgument(f"read {show(path)}: it is too deep")
        self._entry(path, os.fstat(fd), copied_xattrs(fd))
        for name in sorted(map(os.fsencode, os.listdir(fd))):
            self.one(fd, name, path + b"/" + name if path != b"." else name, depth + 1)

    def _file(self, parent: int, name: bytes, path: bytes) -> None:
        fd = self._opener.regular(parent, name)
        if fd < 0:
            return  # something else was put there meanwhile
        try:
            self.file(fd, path, os.fstat(fd))
        finally:
            os.close(fd)

    def file(self, fd: int, path: bytes, status: os.stat_result) -> None:
        """Write an open regular file."""
        inode = (status.st_dev, status.st_ino)
        first = self._first.get(inode)
        if first is not None:
            self._entry(path, status, {}, hardlink=first)
            return
        if status.st_nlink > 1:
            self._first[inode] = path
        xattrs = copied_xattrs(fd)
        # Files of procfs and sysfs say 0 or a page, and have no blocks (a short file inside its
        # inode has none either).
        data = None
        if not status.st_blocks and status.st_size <= _MAX_UNSIZED:
            data = _read_all(fd, path)
        self._entry(path, status, xattrs, content=fd, data=data)

    def _entry(
        self, path: bytes, status: os.stat_result, xattrs: dict[bytes, bytes], **more: Any
    ) -> None:
        self._tar.entry(path, status, portable(xattrs) if self._portable else xattrs, **more)
        self.entries += 1
        self._channel.tick(entries=self.entries)


def _read_all(fd: int, path: bytes) -> bytes:
    """The content of a file whose size is not known before. Raises ResourceExhausted, OSError."""
    os.set_blocking(fd, False)  # some of procfs and tracefs wait for what the kernel will say
    found = bytearray()
    while data := os.read(fd, _CHUNK):
        found += data
        if len(found) > _MAX_UNSIZED:
            raise ResourceExhausted(
                f"read {show(path)}: it tells no size, and has more than {_MAX_UNSIZED} bytes"
            )
    return bytes(found)


def look(job: dict[str, Any], fds: list[int], channel: Channel) -> dict[str, Any]:
    """Do the job; see the module's head. Raises typed errors."""
    path, namespace_fd = contained.check_path(job), _namespace("look", fds, 0)
    lockin.close_all_but([channel.fileno(), *fds])
    root_fd = contained.enter(job, namespace_fd)
    try:
        parent, name = _locate(root_fd, path, follow=bool(job.get("follow")))
        status = os.lstat(name, dir_fd=parent) if name else os.fstat(parent)
    except (FileNotFoundError, NotADirectoryError):
        return {"found": None, "link": b"", "target": 0}
    except OSError as err:
        raise typed(err, f"look at {show(path)}") from err
    link, target = b"", status.st_mode
    if stat.S_ISLNK(status.st_mode):
        link, target = os.readlink(name, dir_fd=parent), _target(root_fd, path)
    found = [status.st_mode, status.st_size, status.st_mtime_ns]
    return {"found": found, "link": link, "target": target}


def _target(root_fd: int, path: bytes) -> int:
    """The mode of what a link leads to, 0 for nothing."""
    try:
        fd = contained.find(root_fd, path, os.O_PATH)
    except OSError:
        return 0
    try:
        return os.fstat(fd).st_mode
    finally:
        os.close(fd)


def run(job: dict[str, Any], fds: list[int], channel: Channel) -> dict[str, Any]:
    """Do the job; see the module's head. Raises typed errors."""
    path, name = contained.check_path(job), job.get("name")
    if not fds or not isinstance(name, bytes) or not name or b"/" in name or name == b"..":
        raise InvalidArgument("pack: expected a name and where to write")
    namespace_fd = _namespace("pack", fds, 1)
    allow_depth()
    lockin.close_all_but([channel.fileno(), *fds])
    opener = Opener()
    root_fd = contained.enter(job, namespace_fd)
    out = _Out(fds[0])
    tar = TarWriter(out.write)
    packer = Packer(tar, opener, channel, portable=bool(job.get("portable")))
    try:
        parent, last = _locate(root_fd, path, follow=bool(job.get("follow")))
        if last:
            os.lstat(last, dir_fd=parent)
            packer.one(parent, last, name)
        else:
            packer.directory(parent, name)
        tar.finish()
    except OSError as err:
        raise typed(err, f"read {show(path)}") from err
    return {"entries": packer.entries, "size_bytes": out.size_bytes}


class _Out:
    """Bytes to a descriptor, all of them."""

    __slots__ = ("_fd", "size_bytes")

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.size_bytes = 0

    def write(self, data: bytes) -> None:
        """Raises Canceled when nobody reads, or a typed error."""
        self.size_bytes += len(data)
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[os.write(self._fd, rest) :]
        except BrokenPipeError as err:
            raise Canceled("write archive: nobody reads it any more") from err
        except OSError as err:
            raise typed(err, "write archive") from err


def _namespace(verb: str, fds: list[int], before: int) -> int:
    if not before <= len(fds) <= before + 1:
        raise InvalidArgument(f"{verb}: got {len(fds)} descriptors")
    return fds[before] if len(fds) > before else -1


def _locate(root_fd: int, path: bytes, *, follow: bool) -> tuple[int, bytes]:
    """(an open directory, a name in it), or (the directory itself, b""). Raises OSError."""
    plain = path.rstrip(b"/")
    above, _, name = plain.rpartition(b"/")
    if name in (b"", b".", b"..") or path.endswith(b"/"):
        return contained.find(root_fd, path, os.O_RDONLY | os.O_DIRECTORY), b""
    if follow:
        fd = contained.find(root_fd, plain, os.O_PATH)
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            return os.open(".", _DIRECTORY, dir_fd=fd), b""
        return _real_place(root_fd, plain)
    return contained.find(root_fd, above or b"/", os.O_RDONLY | os.O_DIRECTORY), name


def _real_place(root_fd: int, path: bytes) -> tuple[int, bytes]:
    """Where a file really is: link after link, each seen from its own directory."""
    for _ in range(40):  # as the kernel's limit, path_resolution(7)
        above, _, name = path.rpartition(b"/")
        parent = contained.find(root_fd, above or b"/", os.O_RDONLY | os.O_DIRECTORY)
        if not stat.S_ISLNK(os.lstat(name, dir_fd=parent).st_mode):
            return parent, name
        link = os.readlink(name, dir_fd=parent)
        os.close(parent)
        path = link if link.startswith(b"/") else above + b"/" + link
        path = path.rstrip(b"/")
    raise InvalidArgument(f"read {show(path)}: more than 40 links")
