"""The tar reader on bytes of every kind: what it reads, what it refuses, that it always ends."""

import io
import tarfile
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lighter.proto.errors import DataLoss, InvalidArgument, LighterError, ResourceExhausted
from lighter.shim.worker import pax, tarstream
from lighter.shim.worker.bytestream import ByteStream
from lighter.shim.worker.tarstream import Entry, TarReader
from tests.security import images as img
from tests.security.images import FILE, archive, entry


def pieces(content: bytes, size: int) -> Iterator[bytes]:
    return (content[start : start + size] for start in range(0, len(content), size))


def read(content: bytes, size: int = 1000, **options: int) -> list[tuple[Entry, bytes]]:
    tar = TarReader(ByteStream(pieces(content, size)), **options)
    return [(found, b"".join(tar.content())) for found in tar]


@given(st.binary(max_size=3000), st.integers(1, 700), st.data())
def test_a_byte_stream_gives_every_byte_once(
    content: bytes, size: int, data: st.DataObject
) -> None:
    stream = ByteStream(pieces(content, size))
    start = 0
    while start < len(content):
        step = data.draw(st.integers(0, 900))
        way = data.draw(st.sampled_from(["read", "take", "skip"]))
        expected = content[start : start + step]
        if way == "read":
            assert stream.read(step) == expected
        elif way == "take":
            assert b"".join(stream.take(step)) == expected
        else:
            assert stream.skip(step) == len(expected)
        start += len(expected)
        assert stream.offset == start
    assert stream.drain() == 0


@given(st.binary(max_size=3000), st.integers(1, 700), st.integers(0, 4000))
def test_drain_counts_the_rest(content: bytes, size: int, passed: int) -> None:
    stream = ByteStream(pieces(content, size))
    stream.skip(passed)
    assert stream.drain() == max(0, len(content) - passed)
    assert stream.offset == len(content)


def bounded(content: bytes) -> None:
    """Reads to the end or a typed error; each header takes at least a block."""
    tar = TarReader(ByteStream(pieces(content, 777)))
    try:
        for found in tar:
            assert found.size >= 0
            assert len(found.name) <= tarstream.MAX_PATH
            for _ in tar.content():
                pass
    except LighterError as err:
        assert err.message.startswith(("read tar header", "the archive ends"))
    assert tar.entries <= len(content) // 512 + 1


@given(st.binary(max_size=4096))
def test_random_bytes(content: bytes) -> None:
    bounded(content)


SAMPLE = archive(
    entry("d", img.DIR),
    entry("n" * 200, FILE, b"x" * 900, xattrs={"user.a": b"1"}),
    img.special(b"L", b"long" * 60 + b"\0"),
    entry("z", FILE, b"y" * 100),
    entry("l", img.SYMLINK, link="t" * 120),
)


@given(
    st.lists(
        st.tuples(st.integers(0, len(SAMPLE) - 1), st.binary(min_size=1, max_size=12)), max_size=4
    ),
    st.booleans(),
)
@settings(max_examples=500)
def test_mutated_archives(changes: list[tuple[int, bytes]], mend: bool) -> None:
    content = bytearray(SAMPLE)
    for place, replacement in changes:
        content[place : place + len(replacement)] = replacement
    if mend:  # a right checksum lets the damage get further
        for start in range(0, len(content) - 511, 512):
            if content[start + 257 : start + 262] == b"ustar":
                content[start + 148 : start + 156] = b" " * 8
                total = sum(content[start : start + 512])
                content[start + 148 : start + 156] = b"%06o\0 " % total
    bounded(bytes(content))


@given(
    st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), min_size=1)
    .map(lambda text: text.strip("/"))
    .filter(bool),
    st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]),
    st.integers(0, 1 << 31),
    st.integers(0, 1 << 40),
    st.binary(max_size=1500),
)
def test_it_reads_what_tarfile_writes(
    name: str, form: int, owner: int, mtime: int, content: bytes
) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as tar:
        info = tarfile.TarInfo(name)
        info.uid, info.mtime, info.size = owner, mtime, len(content)
        tar.addfile(info, io.BytesIO(content))
    ((found, body),) = read(out.getvalue())
    assert found.name == name.encode()
    assert (found.uid, found.mtime_ns, body) == (owner, mtime * 1_000_000_000, content)


def test_pax_overrides_the_header() -> None:
    records = {
        "path": b"p/q",
        "size": b"5",
        "uid": b"70000",
        "mtime": b"-1.25",
        "atime": b"3.0000000019",
        "SCHILY.xattr.user.x": b"a\nb=c\0",
        "comment": b"ignored",
    }
    content = img.pax(records) + img.header(b"short") + img.padded(b"12345") + img.END
    ((found, body),) = read(content)
    assert (found.name, found.uid, body) == (b"p/q", 70000, b"12345")
    assert (found.mtime_ns, found.atime_ns) == (-1_250_000_000, 3_000_000_001)
    assert found.xattrs == {b"user.x": b"a\nb=c\0"}


def test_a_global_header_is_passed_over() -> None:
    content = img.pax({"path": b"everything"}, b"g") + entry("x") + img.END
    assert [found.name for found, _ in read(content)] == [b"x"]


def test_only_posix_magic_has_a_prefix() -> None:
    assert read(img.header(b"n", prefix=b"p") + img.END)[0][0].name == b"p/n"
    assert read(img.header(b"n", prefix=b"p", magic=b"ustar  \0") + img.END)[0][0].name == b"n"


def test_an_old_header_with_a_slash_is_a_directory() -> None:
    assert read(img.header(b"d/", b"\0") + img.END)[0][0].kind == tarstream.DIRECTORY
    assert read(img.header(b"d", b"\0") + img.END)[0][0].kind == tarstream.REGULAR


def test_only_files_have_content() -> None:
    content = img.header(b"l", img.HARDLINK, size=img.octal(512, 12)) + entry("x") + img.END
    assert [found.name for found, _ in read(content)] == [b"l", b"x"]


@pytest.mark.parametrize("signed", [False, True])
def test_both_checksums_are_known(signed: bool) -> None:
    raw = bytearray(img.header(b"\xff\xfe"))
    if signed:
        total = sum(byte - 256 * (byte > 127) for byte in raw[:148] + b" " * 8 + raw[156:])
        raw[148:156] = b"%06o\0 " % total
    assert read(bytes(raw) + img.END)[0][0].name == b"\xff\xfe"
    raw[0] = 1
    with pytest.raises(InvalidArgument, match="checksum"):
        read(bytes(raw) + img.END)


@pytest.mark.parametrize("end", [b"", bytes(512), bytes(1024), bytes(10240), bytes(512) + b"\0"])
def test_ends_that_are_ends(end: bytes) -> None:
    assert len(read(entry("x") + end)) == 1


def test_what_follows_the_end_is_not_looked_at() -> None:
    assert len(read(entry("x") + img.END + b"garbage" * 1000)) == 1


@pytest.mark.parametrize("lost", [1, 511, 513, 1000])
def test_an_end_inside_is_data_loss(lost: int) -> None:
    content = entry("x", FILE, b"c" * 700)
    with pytest.raises(DataLoss):
        read(content[:-lost])


def test_extended_headers_count_as_entries() -> None:
    with pytest.raises(ResourceExhausted):
        read(img.pax({"comment": b"x"}, b"g") * 5 + entry("x"), max_entries=5)


@given(st.binary(max_size=200))
def test_records_advance_or_fail(body: bytes) -> None:
    try:
        found = pax.records(body)
    except InvalidArgument:
        return
    assert len(found) <= len(body) // 4 + 1


@pytest.mark.parametrize("text", [b"", b"+1", b"-1", b" 1", b"1_0", b"0x1", "١".encode(), b"1e3"])
def test_a_pax_number_is_digits(text: bytes) -> None:
    with pytest.raises(InvalidArgument):
        pax.decimal(text)
