"""The decoder: every split of the input gives the same bytes, in bounded chunks."""

import gzip
import os
import zlib
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lighter.proto.errors import DataLoss, LighterError
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
