"""Sparse files as GNU tar writes them in all its formats, and as nobody should."""

import os
import subprocess
from pathlib import Path

import pytest

from lighter.proto.errors import DataLoss, InvalidArgument, LighterError
from tests.security.images import END, FILE, SYMLINK, archive, base256, entry, header, octal, pax
from tests.unit.worker.harness import apply

pytestmark = pytest.mark.root

FORMATS = {
    "gnu": ["--format=gnu"],
    "0.0": ["--format=posix", "--sparse-version=0.0"],
    "0.1": ["--format=posix", "--sparse-version=0.1"],
    "1.0": ["--format=posix", "--sparse-version=1.0"],
}


def holey(path: Path, pieces: list[tuple[int, bytes]], size: int) -> None:
    with path.open("wb") as file:
        for offset, data in pieces:
            file.seek(offset)
            file.write(data)
        file.truncate(size)


def tar(folder: Path, *options: str) -> bytes:
    words = ["tar", "--create", "--sparse", "--numeric-owner", *options, "-C", str(folder), "."]
    return subprocess.run(words, check=True, capture_output=True).stdout


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    found = tmp_path / "from"
    found.mkdir()
    holey(found / "none", [], 1 << 20)
    holey(found / "begin", [(0, b"x" * 5000)], 1 << 20)
    holey(found / "end", [((1 << 20) - 5000, b"y" * 5000)], 1 << 20)
    holey(found / "large", [(9 << 30, b"z")], 10 << 30)
    many = [(number * 16384, os.urandom(4096)) for number in range(200)]
    holey(found / "many", many, 200 * 16384 + 7)
    holey(found / ("long-" * 30), [(65536, b"n" * 100)], 131072)
    (found / "plain").write_bytes(b"plain")
    return found


@pytest.mark.parametrize("form", FORMATS)
def test_what_gnu_tar_writes_is_the_same_with_its_holes(folder: Path, form: str) -> None:
    target = folder.parent / "to"
    target.mkdir()
    layer = tar(folder, *FORMATS[form])
    assert len(layer) < 3 << 20
    apply(layer, str(target), limits={"max_bytes": 3 << 20})
    assert sorted(os.listdir(target)) == sorted(os.listdir(folder))
    for path in folder.iterdir():
        copy = target / path.name
        theirs, ours = path.stat(), copy.stat()
        assert ours.st_size == theirs.st_size
        assert ours.st_blocks <= theirs.st_blocks + 16
        assert ours.st_mtime_ns // 10**9 == theirs.st_mtime_ns // 10**9
        if ours.st_size < 1 << 30:
            assert copy.read_bytes() == path.read_bytes()
    with (target / "large").open("rb") as file:
        file.seek(9 << 30)
        assert file.read(2) == b"z\0"


def old_gnu(pieces: bytes, size: bytes, goes_on: int = 0, stored: bytes = b"") -> bytes:
    """A header of type S by hand, with a right checksum."""
    raw = bytearray(header(b"x", b"S", magic=b"ustar  \0", size=octal(len(stored), 12)))
    raw[386:482] = pieces.ljust(96, b"\0")
    raw[482], raw[483:495] = goes_on, size
    raw[148:156] = b" " * 8
    raw[148:156] = b"%06o\0 " % sum(raw)
    return bytes(raw) + stored + bytes(-len(stored) % 512)


def piece(offset: int, length: int) -> bytes:
    return octal(offset, 12) + octal(length, 12)


def version_1(text: bytes, content: bytes = b"", realsize: bytes = b"1000") -> bytes:
    stored = text + bytes(-len(text) % 512) + content
    said = {
        "GNU.sparse.major": b"1",
        "GNU.sparse.minor": b"0",
        "GNU.sparse.name": b"x",
        "GNU.sparse.realsize": realsize,
    }
    return pax(said) + entry("GNUSparseFile.1/x", FILE, stored)


def mapped(map_: bytes, size: bytes = b"1000", stored: bytes = b"") -> bytes:
    said = {"GNU.sparse.size": size, "GNU.sparse.map": map_, "GNU.sparse.minor": b"1"}
    return pax(said) + entry("x", FILE, stored)


HOSTILE = {
    "overlap": mapped(b"0,5,4,5", stored=b"x" * 10),
    "backwards": mapped(b"10,5,0,5", stored=b"x" * 10),
    "past the end": mapped(b"998,5", stored=b"x" * 5),
    "more than is stored": mapped(b"0,50", stored=b"x" * 5),
    "less than is stored": mapped(b"0,5", stored=b"x" * 50),
    "odd": mapped(b"0,5,6", stored=b"x" * 5),
    "negative": mapped(b"-1,5", stored=b"x" * 5),
    "no number": mapped(b"0,x", stored=b"x" * 5),
    "huge size": mapped(b"", size=b"9" * 30),
    "no size": pax({"GNU.sparse.map": b"0,5"}) + entry("x", FILE, b"x" * 5),
    "unknown version": pax({"GNU.sparse.major": b"2", "GNU.sparse.size": b"5"}) + entry("x"),
    "a link": pax({"GNU.sparse.size": b"5", "GNU.sparse.map": b""}) + entry("x", SYMLINK, link="y"),
    "1.0 count": version_1(b"99999999\n0\n5\n"),
    "1.0 no line ends": version_1(b"1" * 512),
    "1.0 empty": version_1(b""),
    "1.0 short map": version_1(b"3\n0\n5\n", b"x" * 5),
    "old, negative": old_gnu(base256(-5, 12) + octal(5, 12), octal(1000, 12), stored=b"x" * 5),
    "old, past the end": old_gnu(piece(998, 5), octal(1000, 12), stored=b"x" * 5),
    "old, endless map": old_gnu(b"", octal(0, 12), 1) + (bytes(504) + b"\1" * 8) * 3000,
    "old, cut": old_gnu(b"", octal(0, 12), 1),
}


@pytest.mark.parametrize("shape", HOSTILE)
def test_sec_09_hostile_maps_are_errors(tmp_path: Path, shape: str) -> None:
    content = HOSTILE[shape] + (b"" if shape == "old, cut" else END)
    with pytest.raises((InvalidArgument, DataLoss)):
        apply(content, str(tmp_path))


def test_the_good_neighbours_of_the_hostile(tmp_path: Path) -> None:
    for layer in (
        mapped(b"0,5,6,5", stored=b"abcdefghij"),
        version_1(b"2\n0\n5\n6\n5\n", b"abcdefghij"),
        old_gnu(piece(0, 5) + piece(6, 5), octal(1000, 12), stored=b"abcdefghij"),
    ):
        apply(archive(layer), str(tmp_path))
        assert (tmp_path / "x").read_bytes() == b"abcde\0fghij" + bytes(989)


def test_sec_10_holes_cost_nothing_and_what_is_stored_is_charged(tmp_path: Path) -> None:
    apply(archive(mapped(b"", size=b"%d" % (1 << 40))), str(tmp_path), limits={"max_bytes": 4096})
    assert (tmp_path / "x").stat().st_blocks == 0
    with pytest.raises(LighterError) as caught:
        apply(
            archive(mapped(b"0,5000", size=b"5000", stored=b"x" * 5000)),
            str(tmp_path),
            limits={"max_bytes": 4096},
        )
    assert caught.value.code == "resource-exhausted"
