"""The decoder: every split of the input gives the same bytes, in bounded chunks."""

import gzip
import os
import zlib
from collections.abc import Iterator
from typing import Any

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from lighter.proto.errors import DataLoss, LighterError, ResourceExhausted
from lighter.shim.worker.inflate import CHUNK, Source, decode
from tests.unit.worker.harness import memfd


def pieces(content: bytes, size: int) -> Iterator[bytes]:
    return (content[start : start + size] for start in range(0, len(content), size))


@given(
    st.lists(st.binary(max_size=2000), min_size=1, max_size=5),
    st.integers(1, 400),
    st.integers(0, 20),
)
def test_members_are_one_stream(parts: list[bytes], size: int, padding: int) -> None:
    stored = b"".join(gzip.compress(part) for part in parts) + bytes(padding)
    assert b"".join(decode(pieces(stored, size))) == b"".join(parts)


@given(st.binary(max_size=200), st.integers(1, 50))
def test_plain_bytes_pass(content: bytes, size: int) -> None:
    try:
        assert b"".join(decode(pieces(content, size))) == content
    except LighterError as err:
        assert content[:2] in (b"\x1f\x8b", b"\x28\xb5", b"\xfd7", b"BZ")
        assert err.code in ("data-loss", "unimplemented")


@given(st.binary(max_size=300), st.data())
def test_damage_is_data_loss_or_the_same_bytes(content: bytes, data: st.DataObject) -> None:
    stored = bytearray(gzip.compress(content, mtime=0))
    place = data.draw(st.integers(3, len(stored) - 1))
    stored[place] ^= data.draw(st.integers(1, 255))
    try:
        found = b"".join(decode(pieces(bytes(stored), 64)))
    except DataLoss:
        return
    assert found == content  # the damage was in a field that means nothing, as the time


def test_chunks_are_bounded() -> None:
    stored = gzip.compress(bytes(50 << 20))
    sizes = [len(chunk) for chunk in decode(pieces(stored, 256 << 10))]
    assert sum(sizes) == 50 << 20
    assert max(sizes) <= CHUNK


def test_many_empty_members_are_linear() -> None:
    member = gzip.compress(b"", mtime=0)
    assert b"".join(decode(pieces(member * 100_000, 256 << 10))) == b""


def test_all_deflate_kinds() -> None:
    content = os.urandom(5000) + b"text " * 10_000
    for level in (0, 1, 9):
        for strategy in (zlib.Z_DEFAULT_STRATEGY, zlib.Z_HUFFMAN_ONLY, zlib.Z_FIXED):
            deflate = zlib.compressobj(level, zlib.DEFLATED, 31, 9, strategy)
            stored = deflate.compress(content) + deflate.flush()
            assert b"".join(decode(pieces(stored, 1000))) == content


def test_a_source_counts_and_hashes() -> None:
    content = os.urandom(3 << 20)
    fd = memfd(gzip.compress(content, 1))
    source = Source(fd, hash_input=True)
    assert b"".join(source) == content
    assert source.out_bytes == len(content)
    assert source.in_bytes == os.fstat(fd).st_size
    os.close(fd)


def test_a_source_raises_in_the_consumer() -> None:
    fd = memfd(gzip.compress(b"x" * 1000)[:-9])
    with pytest.raises(DataLoss):
        list(Source(fd))
    os.close(fd)


def zstd(content: bytes, level: int = 3, **options: Any) -> bytes:
    return zstandard.ZstdCompressor(level, **options).compress(content)


def zstd_stream(content: bytes, **options: Any) -> bytes:
    """A frame whose header does not say how long the content is, as builders of images write."""
    out = zstandard.ZstdCompressor(**options).compressobj()
    return out.compress(content) + out.flush()


def skippable(content: bytes) -> bytes:
    return b"\x5a\x2a\x4d\x18" + len(content).to_bytes(4, "little") + content


def block(kind: int, size: int, content: bytes, *, last: bool = False) -> bytes:
    return (last | kind << 1 | size << 3).to_bytes(3, "little") + content


def frame(*blocks: bytes, window: int = 0x38) -> bytes:
    """A frame by hand: no checksum, no content size. The window is 128 KiB."""
    return b"\x28\xb5\x2f\xfd" + bytes((0, window)) + b"".join(blocks)


@given(
    st.lists(st.tuples(st.binary(max_size=3000), st.booleans(), st.booleans()), min_size=1),
    st.integers(1, 400),
)
def test_zstd_frames_are_one_stream(parts: list[tuple[bytes, bool, bool]], size: int) -> None:
    stored = b"".join(
        (skippable(part[:50]) if skip else b"")
        + zstd_stream(part, level=1, write_checksum=skip)
        + (zstd(part) if sized else b"")
        for part, sized, skip in parts
    )
    wanted = b"".join(part * (2 if sized else 1) for part, sized, _ in parts)
    assert b"".join(decode(pieces(stored, size))) == wanted


@pytest.mark.parametrize("level", [1, 19])
@pytest.mark.parametrize("size", [1, 131071, 131072, 131073, 5 << 20])
def test_zstd_of_every_size_and_content(level: int, size: int) -> None:
    for content in (bytes(size), os.urandom(size), (b"text %d " * (size // 8 + 1))[:size]):
        for stored in (zstd(content, level), zstd_stream(content, level=level)):
            assert b"".join(decode(pieces(stored, 100_000))) == content


def test_zstd_chunks_are_bounded() -> None:
    rle = block(1, 128 << 10, b"\0")
    stored = frame(*[rle] * 4000, block(0, 0, b"", last=True))
    assert len(stored) < 20_000
    sizes = [len(chunk) for chunk in decode(pieces(stored, 256 << 10))]
    assert sum(sizes) == 4000 * (128 << 10)
    assert max(sizes) <= CHUNK


def test_zstd_blocks_of_nothing_are_linear() -> None:
    stored = frame(*[block(0, 0, b"")] * 300_000, block(0, 1, b"x", last=True))
    assert b"".join(decode(pieces(stored, 256 << 10))) == b"x"


@pytest.mark.parametrize("cut", [1, 3, 5, 7, 100, 2000])
def test_a_zstd_frame_that_ends_early_is_data_loss(cut: int) -> None:
    stored = zstd_stream(os.urandom(3000), write_checksum=True)
    with pytest.raises(DataLoss, match="ends inside"):
        list(decode(pieces(stored[:-cut], 64)))


@pytest.mark.parametrize("after", [b"garbage", b"\0" * 600, b"\x28\xb5"])
def test_what_follows_the_last_zstd_frame_is_data_loss(after: bytes) -> None:
    with pytest.raises(DataLoss, match=r"follows|ends inside"):
        list(decode(pieces(zstd(b"content") + after, 64)))


@given(st.binary(min_size=1, max_size=3000), st.data())
def test_zstd_damage_is_an_error_or_the_same_bytes(content: bytes, data: st.DataObject) -> None:
    stored = bytearray(zstd_stream(content, write_checksum=True))
    place = data.draw(st.integers(4, len(stored) - 1))
    stored[place] ^= data.draw(st.integers(1, 255))
    try:
        found = b"".join(decode(pieces(bytes(stored), 64)))
    except (DataLoss, ResourceExhausted):
        return
    assert found == content  # an unused bit, or a window of another size


def test_a_zstd_window_is_at_most_128_mib() -> None:
    content = block(0, 1, b"x", last=True)
    assert b"".join(decode(iter([frame(content, window=17 << 3)]))) == b"x"
    for window in (17 << 3 | 1, 21 << 3, 0xFF):
        with pytest.raises(ResourceExhausted, match="window"):
            list(decode(iter([frame(content, window=window)])))
    single = b"\x28\xb5\x2f\xfd\xe0" + (1 << 40).to_bytes(8, "little") + content
    with pytest.raises(ResourceExhausted, match="window"):
        list(decode(iter([single])))


def test_a_plain_source_is_not_looked_into() -> None:
    stored = gzip.compress(b"x")
    fd = memfd(stored)
    source = Source(fd, compressed=False)
    source.look()
    assert b"".join(source) == stored
    os.close(fd)
