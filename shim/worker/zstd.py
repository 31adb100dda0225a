"""zstd (RFC 8878): frames taken apart by hand as far as it needs to bound what comes out of them.

The decoder returns all that one call expands to, and a block of four bytes may expand to 128 KiB.
So the blocks, whose sizes stand in the clear, are counted here and fed a mebibyte of output at a
time; that also tells a frame that ends early, which the decoder would pass over, and what follows
the last one.

The library is 11 MB, which shims shall not carry: a worker loads it after its fork, before it locks
itself in, and only for input that needs it (see inflate.py).
"""

from collections.abc import Iterator
from types import ModuleType

from lighter.proto.errors import (
    DataLoss,
    LighterError,
    ResourceExhausted,
    Unavailable,
    words_of,
)
from lighter.shim import guard
from lighter.shim.worker.bytestream import ByteStream

MAX_WINDOW = 128 << 20  # what the zstd command line takes without being asked to take more
_MAGIC = b"\x28\xb5\x2f\xfd"
_SKIPPABLE = b"\x2a\x4d\x18"  # after a byte 0x50 to 0x5f

_MAX_BLOCK = 128 << 10
_RAW, _RLE, _COMPRESSED = range(3)
_DICTIONARY_BYTES = (0, 1, 2, 4)
_CONTENT_SIZE_BYTES = (0, 2, 4, 8)
_MOST_OUT = 1 << 20
_MOST_IN = 256 << 10


def is_zstd(head: bytes) -> bool:
    """Whether this is how a zstd file begins, with a frame or with one to be skipped."""
    return head.startswith(_MAGIC) or _is_skippable(head[:4])


def load() -> ModuleType:
    """The library. Raises Unavailable when its files are gone."""
    try:
        return guard.load_late("zstandard")
    except (ImportError, OSError) as err:
        raise Unavailable(f"load zstandard: {words_of(err)}") from err


def unzstd(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """All frames of a file as one stream, in chunks of about a mebibyte.

    Raises DataLoss for damage, an early end and anything after the last frame, ResourceExhausted
    for a window above MAX_WINDOW.
    """
    library = load()
    decoder = library.ZstdDecompressor(max_window_size=MAX_WINDOW)
    stream = ByteStream(chunks)
    while magic := stream.read(4):
        if magic == _MAGIC:
            try:
                yield from _frame(stream, decoder.decompressobj())
            except library.ZstdError as err:
                raise DataLoss(f"decompress input: {err}") from err
        elif _is_skippable(magic):
            size = int.from_bytes(_exactly(stream, 4), "little")
            if stream.skip(size) != size:
                raise _ends_early()
        else:
            raise DataLoss("decompress input: data follows the last zstd frame")


def _frame(stream: ByteStream, decoder: "object") -> Iterator[bytes]:
    piece = bytearray(_MAGIC)
    has_checksum = _header(stream, piece)
    out = 0
    while True:
        raw = _exactly(stream, 3)
        header = int.from_bytes(raw, "little")
        last, kind, size = header & 1, header >> 1 & 3, header >> 3
        if kind > _COMPRESSED or size > _MAX_BLOCK:
            raise DataLoss("decompress input: damaged zstd block")
        piece += raw
        piece += _exactly(stream, 1 if kind == _RLE else size)
        out += _MAX_BLOCK if kind == _COMPRESSED else size
        if last and has_checksum:
            piece += _exactly(stream, 4)
        if last or out + _MAX_BLOCK > _MOST_OUT or len(piece) > _MOST_IN:
            content = decoder.decompress(bytes(piece))  # type: ignore[attr-defined]
            if content:
                yield content
            piece.clear()
            out = 0
        if last:
            break
    if not decoder.eof:  # type: ignore[attr-defined]
        raise _ends_early()


def _header(stream: ByteStream, piece: bytearray) -> bool:
    """Add a frame's header to `piece`; returns whether a checksum ends the frame (3.1.1.1)."""
    first = _exactly(stream, 1)
    descriptor = first[0]
    single = bool(descriptor & 0x20)
    window = b"" if single else _exactly(stream, 1)
    dictionary = _exactly(stream, _DICTIONARY_BYTES[descriptor & 3])
    size_flag = descriptor >> 6
    content_size = _exactly(
        stream, 1 if single and not size_flag else _CONTENT_SIZE_BYTES[size_flag]
    )
    if single:
        wanted = int.from_bytes(content_size, "little") + (256 if size_flag == 1 else 0)
    else:
        base = 1 << (10 + (window[0] >> 3))
        wanted = base + (base >> 3) * (window[0] & 7)
    if wanted > MAX_WINDOW:
        raise ResourceExhausted(
            f"decompress input: it asks for a window of {wanted} bytes, {MAX_WINDOW} are allowed"
        )
    piece += first + window + dictionary + content_size
    return bool(descriptor & 4)


def _is_skippable(magic: bytes) -> bool:
    return magic[1:4] == _SKIPPABLE and magic[0] & 0xF0 == 0x50


def _exactly(stream: ByteStream, size: int) -> bytes:
    found = stream.read(size)
    if len(found) != size:
        raise _ends_early()
    return found


def _ends_early() -> LighterError:
    return DataLoss("decompress input: it ends inside a zstd frame")
