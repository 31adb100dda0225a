"""Sparse files in archives: where the stored bytes belong (GNU tar manual, "Storing Sparse Files").

    old GNU    type S; four pieces in the header, 21 in each block that follows it
    PAX 0.0    records GNU.sparse.offset and GNU.sparse.numbytes, again and again
    PAX 0.1    one record GNU.sparse.map with all of them
    PAX 1.0    the map is text before the content, padded to a block

Pieces are (offset, length), and what is not in one is a hole. As in Go's archive/tar they are in
order, do not overlap, end within the file, and add up to what is stored.
"""

from lighter.proto.errors import DataLoss, InvalidArgument
from lighter.shim.worker.bytestream import ByteStream
from lighter.shim.worker.pax import Extended, decimal

Pieces = list[tuple[int, int]]

BLOCK = 512
MAX_MAP_BYTES = 1 << 20
_PREFIX = b"GNU.sparse."
_IN_HEADER = slice(386, 482)
_IN_BLOCK = slice(0, 504)
_HEADER_GOES_ON = 482
_BLOCK_GOES_ON = 504
_REAL_SIZE = slice(483, 495)
_PIECE_BYTES = 24
_MAX_NUMBER_BYTES = 20


class Sparse:
    """What a header says: size with holes, and the pieces (None: they stand in the content).

    `name` is b"" where the entry's own is the file's.
    """

    __slots__ = ("name", "pieces", "size")

    def __init__(self, size: int, pieces: Pieces | None, name: bytes = b"") -> None:
        self.name = name
        self.size = size
        self.pieces = pieces


def of_header(block: bytes, stream: ByteStream) -> Sparse:
    """An old GNU entry's map, from its header and the blocks after it."""
    pieces = _pieces(block[_IN_HEADER])
    goes_on = block[_HEADER_GOES_ON]
    read = 0
    while goes_on:
        more = stream.read(BLOCK)
        read += len(more)
        if len(more) < BLOCK:
            raise DataLoss("the archive ends inside a map of holes")
        if read > MAX_MAP_BYTES:
            raise InvalidArgument(f"a map of holes has more than {MAX_MAP_BYTES} bytes")
        pieces += _pieces(more[_IN_BLOCK])
        goes_on = more[_BLOCK_GOES_ON]
    return Sparse(_number(block[_REAL_SIZE]), pieces)


def of_records(extended: Extended) -> Sparse | None:
    """What PAX records say; None when they speak of no holes."""
    said = extended.sparse
    if not said:
        return None
    one = {key.removeprefix(_PREFIX): value for key, value in said}
    major, minor = one.get(b"major", b"0"), one.get(b"minor", b"0")
    size_text = one.get(b"realsize") or one.get(b"size")
    if size_text is None:
        raise InvalidArgument("a sparse file has no size")
    size = decimal(size_text)
    name = one.get(b"name", b"")
    if b"\0" in name:
        raise InvalidArgument("a sparse file's name holds a NUL byte")
    if (major, minor) == (b"1", b"0"):
        return Sparse(size, None, name)
    if major != b"0" or minor not in (b"0", b"1"):
        raise InvalidArgument(f"sparse format {major!r}.{minor!r} is not known")
    if b"map" in one:
        numbers = [decimal(text) for text in one[b"map"].split(b",")] if one[b"map"] else []
    else:
        numbers = [
            decimal(value) for key, value in said if key[len(_PREFIX) :] in (b"offset", b"numbytes")
        ]
    if len(numbers) % 2:
        raise InvalidArgument("a map of holes has an odd number of entries")
    return Sparse(size, list(zip(numbers[::2], numbers[1::2], strict=True)), name)


def of_content(stream: ByteStream, stored: int) -> tuple[Pieces, int]:
    """The map that stands before the content of PAX 1.0, and how many bytes it took."""
    taken = 0
    rest = b""

    def number() -> int:
        nonlocal taken, rest
        while (end := rest.find(b"\n")) < 0:
            if len(rest) > _MAX_NUMBER_BYTES:
                raise InvalidArgument("a map of holes has no line ends")
            if taken + BLOCK > min(stored, MAX_MAP_BYTES):
                raise InvalidArgument("a map of holes is longer than its file or too long")
            block = stream.read(BLOCK)
            taken += len(block)
            if len(block) < BLOCK:
                raise DataLoss("the archive ends inside a map of holes")
            rest += block
        text, rest = rest[:end], rest[end + 1 :]
        return decimal(text)

    count = number()
    if count > MAX_MAP_BYTES // 4:
        raise InvalidArgument(f"a map of holes has {count} entries")
    return [(number(), number()) for _ in range(count)], taken


def check(pieces: Pieces, size: int, stored: int) -> None:
    """Raises InvalidArgument unless the pieces are in order, inside, and as many as is stored."""
    end = total = 0
    for offset, length in pieces:
        if offset < end or length < 0:
            raise InvalidArgument("a map of holes is not in order")
        end = offset + length
        total += length
    if end > size:
        raise InvalidArgument(f"a map of holes leads to {end} in a file of {size} bytes")
    if total != stored:
        raise InvalidArgument(f"a map of holes speaks of {total} bytes, {stored} are stored")


def _pieces(raw: bytes) -> Pieces:
    found = []
    for start in range(0, len(raw), _PIECE_BYTES):
        offset, length = raw[start : start + 12], raw[start + 12 : start + 24]
        if not offset[0]:
            break  # unused places are at the end
        found.append((_number(offset), _number(length)))
    return found


def _number(field: bytes) -> int:
    """Octal, or base-256 as GNU tar writes what is larger."""
    if field[0] & 0x80:
        return int.from_bytes(field, "big") & ~(1 << (8 * len(field) - 1))
    text = field.strip(b" \0")
    if not text:
        return 0
    if not text.isdigit() or text.strip(b"01234567"):
        raise InvalidArgument(f"sparse number {field!r} is not octal")
    return int(text, 8)
