"""A tar reader for bytes that nobody vouches for: one pass, bounded memory, typed errors.

Reads ustar, GNU (long names) and PAX (POSIX.1-2017, pax; GNU tar manual, "Basic Tar Format"), and
sparse files of all of them (sparse.py).
What is ambiguous is decided as Go's archive/tar does, because that is what the images of this world
were made and tested with:

- the stream may end at any header boundary; two zero blocks end it before that; what comes after
  them is not looked at. One zero block followed by a header is an error;
- a global PAX header is passed over;
- links, devices, directories and FIFOs have no content whatever their size says.

It does no input of its own (see bytestream.py), and each step consumes at least one block.
"""

import struct
from collections.abc import Iterator

from lighter.proto.errors import (
    DataLoss,
    InvalidArgument,
    LighterError,
    ResourceExhausted,
)
from lighter.shim.worker import sparse
from lighter.shim.worker.bytestream import ByteStream
from lighter.shim.worker.failure import show
from lighter.shim.worker.pax import Extended
from lighter.shim.worker.sparse import Pieces

REGULAR = b"0"
HARDLINK = b"1"
SYMLINK = b"2"
CHAR_DEVICE = b"3"
BLOCK_DEVICE = b"4"
DIRECTORY = b"5"
FIFO = b"6"

BLOCK = 512
MAX_SPECIAL = 1 << 20  # the size of one extended header or long name
MAX_PATH = 4096  # PATH_MAX
MAX_ID = (1 << 32) - 2  # the id after it means "leave as it is" to chown(2)
MAX_SIZE = (1 << 63) - 1
DEFAULT_MAX_ENTRIES = 4_000_000

# name mode uid gid size mtime checksum type linkname magic+version (uname gname) major minor prefix
_HEADER = struct.Struct("100s8s8s8s12s12s8sc100s8s64x8s8s155s12x")
_ZERO_BLOCK = bytes(BLOCK)
_BLANK_CHECKSUM = sum(b" " * 8)

_CONTIGUOUS = b"7"
_SPARSE = b"S"
_OLD_REGULAR = b"\0"
_GLOBAL_PAX = b"g"
_PAX = (b"x", b"X")
_LONG_NAME = b"L"
_LONG_LINK = b"K"
_SPECIAL = frozenset((*_PAX, _GLOBAL_PAX, _LONG_NAME, _LONG_LINK))
_KINDS = frozenset(
    (REGULAR, HARDLINK, SYMLINK, CHAR_DEVICE, BLOCK_DEVICE, DIRECTORY, FIFO, _CONTIGUOUS, _SPARSE)
)


class Entry:
    """One file of the archive. `kind` is one of the constants above; names are as written."""

    __slots__ = (
        "atime_ns",
        "gid",
        "kind",
        "linkname",
        "major",
        "minor",
        "mode",
        "mtime_ns",
        "name",
        "pieces",
        "size",
        "uid",
        "xattrs",
    )

    name: bytes
    linkname: bytes
    kind: bytes
    mode: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    atime_ns: int
    major: int
    minor: int
    xattrs: dict[bytes, bytes]
    # Of a sparse file: (offset, length) of what `content` gives, one after another; `size` is that
    # with the holes. None of any other.
    pieces: Pieces | None


class TarReader:
    """Iterate for the entries; between two of them `content` gives the bytes of the first."""

    __slots__ = ("_left", "_max_entries", "_padding", "_stream", "entries")

    def __init__(self, stream: ByteStream, max_entries: int = DEFAULT_MAX_ENTRIES) -> None:
        self._stream = stream
        self._max_entries = max_entries
        self._left = 0
        self._padding = 0
        self.entries = 0

    def __iter__(self) -> Iterator[Entry]:
        while True:
            number = self.entries + 1
            try:
                entry = self._next()
            except LighterError as err:
                doubt = "; is this a tar archive?" if number == 1 else ""
                err.args = (f"read tar header {number}: {err.message}{doubt}",)
                err.message = err.args[0]
                raise
            if entry is None:
                return
            yield entry

    def content(self) -> Iterator[memoryview]:
        """The current entry's bytes in pieces. Raises DataLoss when the stream ends inside."""
        for piece in self._stream.take(self._left):
            self._left -= len(piece)
            yield piece
        if self._left:
            raise DataLoss(f"the archive ends {self._left} bytes before the content does")

    def _next(self) -> Entry | None:
        if self._left or self._padding:
            rest = self._left + self._padding
            if self._stream.skip(rest) != rest:
                raise DataLoss("the archive ends inside an entry")
            self._left = self._padding = 0
        extended: Extended | None = None
        while True:
            block = self._block()
            if block is None:
                if extended is not None:
                    raise DataLoss("the archive ends after an extended header")
                return None
            self.entries += 1
            if self.entries > self._max_entries:
                raise ResourceExhausted(f"more than {self._max_entries} entries")
            fields = _HEADER.unpack(block)
            _check_sum(block, fields[6])
            kind = fields[7]
            if kind in _SPECIAL:
                body = self._special(_number(fields[4], "size"))
                if kind != _GLOBAL_PAX:
                    extended = extended or Extended()
                    _extend(extended, kind, body)
                continue
            entry = _entry(fields, extended)
            if entry.kind == REGULAR:
                self._left = entry.size
                self._padding = -entry.size % BLOCK
            self._make_sparse(entry, block, extended)
            return entry

    def _make_sparse(self, entry: Entry, block: bytes, extended: Extended | None) -> None:
        if block[156:157] == _SPARSE:
            said: sparse.Sparse | None = sparse.of_header(block, self._stream)
        else:
            said = sparse.of_records(extended) if extended is not None else None
        if said is None:
            return
        if entry.kind != REGULAR:
            raise InvalidArgument(f"entry {show(entry.name)} is sparse and no regular file")
        if said.size > MAX_SIZE:
            raise InvalidArgument(f"entry {show(entry.name)}: size {said.size} is out of range")
        if said.pieces is None:
            said.pieces, taken = sparse.of_content(self._stream, self._left + self._padding)
            self._left -= taken
            if self._left < 0:
                raise InvalidArgument(f"entry {show(entry.name)}: its map of holes is too long")
        if said.name:
            entry.name = said.name
            _check_entry(entry)
        sparse.check(said.pieces, said.size, self._left)
        entry.pieces, entry.size = said.pieces, said.size

    def _block(self) -> bytes | None:
        """The next header; None at the end of the archive."""
        block = self._stream.read(BLOCK)
        if not block:
            return None
        if len(block) < BLOCK:
            raise DataLoss("the archive ends inside a header")
        if block == _ZERO_BLOCK:
            after = self._stream.read(BLOCK)
            if after and after != _ZERO_BLOCK[: len(after)]:
                raise InvalidArgument("a single zero block stands before it")
            return None
        return block

    def _special(self, size: int) -> bytes:
        if not 0 <= size <= MAX_SPECIAL:
            raise InvalidArgument(f"extended header of {size} bytes, at most {MAX_SPECIAL}")
        body = self._stream.read(size)
        padding = -size % BLOCK
        if len(body) != size or self._stream.skip(padding) != padding:
            raise DataLoss("the archive ends inside an extended header")
        return body


def _extend(extended: Extended, kind: bytes, body: bytes) -> None:
    if kind == _LONG_NAME:
        extended.path = body.split(b"\0", 1)[0]
    elif kind == _LONG_LINK:
        extended.linkpath = body.split(b"\0", 1)[0]
    else:
        extended.update(body)


def _check_sum(block: bytes, field: bytes) -> None:
    """The sum of all bytes with the field itself as spaces; some old writers summed them signed."""
    stated = _number(field, "checksum")
    unsigned = sum(block) - sum(field) + _BLANK_CHECKSUM
    if stated != unsigned:
        signed = unsigned - 256 * sum(byte > 127 for byte in block[:148] + block[156:])
        if stated != signed:
            raise InvalidArgument("checksum differs")


def _number(field: bytes, what: str) -> int:
    """A numeric field: octal text, or base-256 when its first bit is set (GNU tar manual)."""
    if field[0] & 0x80:
        bits = 8 * len(field)
        value = int.from_bytes(field, "big") & ~(1 << (bits - 1))
        if field[0] & 0x40:
            value -= 1 << (bits - 1)
        if not -MAX_SIZE <= value <= MAX_SIZE:
            raise InvalidArgument(f"{what} is out of range")
        return value
    text = field.strip(b" \0")
    if not text:
        return 0
    if not text.isdigit():
        text = text.split(b"\0", 1)[0].rstrip(b" ")
        if not text.isdigit():
            raise InvalidArgument(f"{what} {field!r} is not a number")
    try:
        return int(text, 8)
    except ValueError as err:
        raise InvalidArgument(f"{what} {field!r} is not an octal number") from err


def _entry(fields: tuple[bytes, ...], extended: Extended | None) -> Entry:
    entry = Entry()
    kind = fields[7]
    entry.name = _name(fields)
    entry.linkname = fields[8].split(b"\0", 1)[0]
    entry.mode = _number(fields[1], "mode") & 0o7777
    entry.uid = _number(fields[2], "uid")
    entry.gid = _number(fields[3], "gid")
    entry.size = _number(fields[4], "size")
    entry.mtime_ns = _number(fields[5], "mtime") * 1_000_000_000
    entry.atime_ns = 0
    entry.xattrs = {}
    entry.pieces = None
    if extended is not None:
        _override(entry, extended)
    if kind == _OLD_REGULAR:
        kind = DIRECTORY if entry.name.endswith(b"/") else REGULAR
    elif kind not in _KINDS:
        raise InvalidArgument(f"entry {show(entry.name)} has type {kind!r}, which is not supported")
    entry.kind = REGULAR if kind in (_CONTIGUOUS, _SPARSE) else kind
    _check_entry(entry)
    entry.major = entry.minor = 0
    if kind in (CHAR_DEVICE, BLOCK_DEVICE):
        entry.major = _number(fields[10], "device major")
        entry.minor = _number(fields[11], "device minor")
    return entry


def _name(fields: tuple[bytes, ...]) -> bytes:
    name = fields[0].split(b"\0", 1)[0]
    # Only POSIX's magic is followed by a prefix: GNU's ("ustar  ") has times at that place.
    if fields[9].startswith(b"ustar\0"):
        prefix = fields[12].split(b"\0", 1)[0]
        if prefix:
            return prefix + b"/" + name
    return name


def _override(entry: Entry, extended: Extended) -> None:
    if extended.path is not None:
        entry.name = extended.path
    if extended.linkpath is not None:
        entry.linkname = extended.linkpath
    if extended.size is not None:
        entry.size = extended.size
    if extended.uid is not None:
        entry.uid = extended.uid
    if extended.gid is not None:
        entry.gid = extended.gid
    if extended.mtime_ns is not None:
        entry.mtime_ns = extended.mtime_ns
    if extended.atime_ns is not None:
        entry.atime_ns = extended.atime_ns
    entry.xattrs = extended.xattrs


def _check_entry(entry: Entry) -> None:
    if len(entry.name) > MAX_PATH or len(entry.linkname) > MAX_PATH:
        raise InvalidArgument(f"entry {show(entry.name)}: path has more than {MAX_PATH} bytes")
    if not 0 <= entry.size <= MAX_SIZE:
        raise InvalidArgument(f"entry {show(entry.name)}: size {entry.size} is out of range")
    if not 0 <= entry.uid <= MAX_ID or not 0 <= entry.gid <= MAX_ID:
        raise InvalidArgument(
            f"entry {show(entry.name)}: owner {entry.uid}:{entry.gid} is out of range"
        )
