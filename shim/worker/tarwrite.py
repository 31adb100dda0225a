"""A tar writer: ustar headers, and PAX records for what they cannot say (POSIX.1-2017, pax).

Times keep their nanoseconds, attributes travel as SCHILY.xattr.<name>.
"""

import os
import stat
import struct
from collections.abc import Callable

from lighter.proto.errors import DataLoss

BLOCK = 512
_CHUNK = 1 << 20
# name mode uid gid size mtime checksum type linkname magic+version uname gname major minor prefix
_HEADER = struct.Struct("100s8s8s8s12s12s8sc100s8s32s32s8s8s155s12x")
_KINDS = {
    stat.S_IFREG: b"0",
    stat.S_IFLNK: b"2",
    stat.S_IFCHR: b"3",
    stat.S_IFBLK: b"4",
    stat.S_IFDIR: b"5",
    stat.S_IFIFO: b"6",
}
_MAX_ID = 0o7777777
_MAX_SIZE = 0o77777777777


class TarWriter:
    """Gives the bytes of an archive to `write`, entry by entry."""

    __slots__ = ("_write",)

    def __init__(self, write: Callable[[bytes], None]) -> None:
        self._write = write

    def entry(
        self,
        path: bytes,
        status: os.stat_result,
        xattrs: dict[bytes, bytes],
        *,
        link: bytes = b"",
        hardlink: bytes = b"",
        content: int = -1,
        data: bytes | None = None,
    ) -> None:
        """One file. `content` is the descriptor of a regular one. Raises DataLoss if it shrinks.

        `data`: all of its content, where what the status says of its size does not count.
        """
        kind = b"1" if hardlink else _KINDS[stat.S_IFMT(status.st_mode)]
        name = path + b"/" if kind == b"5" else path
        size = status.st_size if content >= 0 else 0
        if data is not None:
            size = len(data)
        self._header(name, kind, status, size, hardlink or link, xattrs)
        if data is not None:
            self._write(data + bytes(-size % BLOCK))
        elif content >= 0:
            self._content(content, size, path)

    def whiteout(self, parent: bytes, name: bytes) -> None:
        """The mark that `name` in `parent` is deleted."""
        marked = (parent + b"/" if parent else b"") + b".wh." + name
        self._header(marked, b"0", None, 0, b"", {})

    def finish(self) -> None:
        self._write(bytes(2 * BLOCK))

    def _header(
        self,
        name: bytes,
        kind: bytes,
        status: os.stat_result | None,
        size: int,
        link: bytes,
        xattrs: dict[bytes, bytes],
    ) -> None:
        records: list[tuple[bytes, bytes]] = []
        if len(name) > 100:
            records.append((b"path", name))
        if len(link) > 100:
            records.append((b"linkpath", link))
        if size > _MAX_SIZE:
            records.append((b"size", b"%d" % size))
        uid = gid = major = minor = mode = mtime_ns = 0
        if status is not None:
            uid, gid, mtime_ns = status.st_uid, status.st_gid, status.st_mtime_ns
            mode = stat.S_IMODE(status.st_mode)
            if kind in (b"3", b"4"):
                major, minor = os.major(status.st_rdev), os.minor(status.st_rdev)
        seconds, rest = divmod(mtime_ns, 10**9)
        if rest or not 0 <= seconds <= _MAX_SIZE:
            records.append((b"mtime", _time(mtime_ns)))
        for key, number in ((b"uid", uid), (b"gid", gid)):
            if number > _MAX_ID:
                records.append((key, b"%d" % number))
        records += [(b"SCHILY.xattr." + key, value) for key, value in sorted(xattrs.items())]
        if records:
            body = b"".join(_record(key, value) for key, value in records)
            self._write(_block(b"././@PaxHeader", b"x", size=len(body)))
            self._write(body + bytes(-len(body) % BLOCK))
        self._write(
            _block(
                name,
                kind,
                mode=mode,
                uid=min(uid, _MAX_ID),
                gid=min(gid, _MAX_ID),
                size=min(size, _MAX_SIZE),
                mtime=min(max(seconds, 0), _MAX_SIZE),
                link=link,
                device=(major, minor),
            )
        )

    def _content(self, fd: int, size: int, path: bytes) -> None:
        left = size
        while left:
            data = os.read(fd, min(left, _CHUNK))
            if not data:
                raise DataLoss(f"read {path[:256]!a}: it has become {left} bytes shorter")
            self._write(data)
            left -= len(data)
        self._write(bytes(-size % BLOCK))


def _time(ns: int) -> bytes:
    sign = b"-" if ns < 0 else b""
    seconds, rest = divmod(abs(ns), 10**9)
    return sign + (b"%d.%09d" % (seconds, rest)).rstrip(b"0").rstrip(b".")


def _record(key: bytes, value: bytes) -> bytes:
    raw = b" " + key + b"=" + value + b"\n"
    size = len(raw)
    while len(b"%d" % size) + len(raw) != size:
        size = len(b"%d" % size) + len(raw)
    return b"%d" % size + raw


def _block(
    name: bytes,
    kind: bytes,
    *,
    mode: int = 0o644,
    uid: int = 0,
    gid: int = 0,
    size: int = 0,
    mtime: int = 0,
    link: bytes = b"",
    device: tuple[int, int] = (0, 0),
) -> bytes:
    fields = [
        *(name[:100], b"%07o\0" % mode, b"%07o\0" % uid, b"%07o\0" % gid),
        *(b"%011o\0" % size, b"%011o\0" % mtime, b" " * 8, kind, link[:100], b"ustar\x0000"),
        *(b"", b"", b"%07o\0" % device[0], b"%07o\0" % device[1], b""),
    ]
    fields[6] = b"%06o\0 " % sum(_HEADER.pack(*fields))
    return _HEADER.pack(*fields)
