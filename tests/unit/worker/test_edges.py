"""Row F72: layers at the edges of what a file system takes. They work, or name the entry."""

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from lighter.proto.errors import LighterError
from tests.security.images import DIR, FILE, archive, base256, entry, pax
from tests.unit.worker.harness import Worker, apply, memfd

pytestmark = pytest.mark.root
RESULT_S = 600.0

# What ext4 holds with inodes of 256 bytes (Documentation/filesystems/ext4/inodes.rst), and what a
# number of nanoseconds does.
LIMITS_S = (-(1 << 31), (1 << 34) - (1 << 31) - 1, -(2**63) // 10**9, 2**63 // 10**9)


def test_f72_names_up_to_what_a_directory_takes(tmp_path: Path) -> None:
    longest = b"n" * 255
    apply(archive(entry(longest, FILE, b"1")), str(tmp_path))
    assert os.listdir(bytes(tmp_path)) == [longest]
    with pytest.raises(LighterError, match=r"unpack b?'?n{20}.*File name too long"):
        apply(archive(pax({"path": b"n" * 256}), entry("x")), str(tmp_path))


def test_f72_paths_up_to_path_max(tmp_path: Path) -> None:
    deep = b"/".join([b"d" * 255] * 15)
    assert len(deep) < 4096
    apply(archive(pax({"path": deep + b"/f"}), entry("x", FILE, b"deep")), str(tmp_path))
    here = os.open(tmp_path, os.O_RDONLY)
    for part in deep.split(b"/"):
        below = os.open(part, os.O_RDONLY | os.O_DIRECTORY, dir_fd=here)
        os.close(here)
        here = below
    found = os.open("f", os.O_RDONLY, dir_fd=here)
    assert os.read(found, 9) == b"deep"
    os.close(found)
    os.close(here)
    with pytest.raises(LighterError, match="more than 4096 bytes"):
        apply(archive(pax({"path": b"d/" * 2049}), entry("x")), str(tmp_path))


@pytest.mark.parametrize("size", [1, 3000, 65536, 65537])
def test_f72_attributes_are_kept_whole_or_refused(tmp_path: Path, size: int) -> None:
    """64 KiB is the kernel's limit, and a file system may have a lower one."""
    value = bytes(range(1, 256)) * 300
    layer = archive(pax({"SCHILY.xattr.user.big": value[:size]}), entry("file"))
    try:
        apply(layer, str(tmp_path))
    except LighterError as err:
        assert "unpack 'file': " in err.message and size > 3000, err.message
    else:
        assert os.getxattr(tmp_path / "file", "user.big") == value[:size]


@pytest.mark.parametrize("seconds", [-1, -(1 << 40), 0, 1 << 31, 1 << 33, 1 << 62])
def test_f72_times_are_kept_or_brought_to_the_nearest(tmp_path: Path, seconds: int) -> None:
    apply(archive(entry("d", DIR), entry("f", mtime=base256(seconds, 12))), str(tmp_path))
    found = (tmp_path / "f").stat().st_mtime_ns // 10**9
    assert found == seconds or found in LIMITS_S, found


def test_f72_a_time_beyond_all_numbers_is_a_time(tmp_path: Path) -> None:
    apply(archive(pax({"mtime": b"%d" % 2**100}), entry("f")), str(tmp_path))
    assert (tmp_path / "f").stat().st_mtime_ns // 10**9 >= 1 << 32


def test_f72_the_last_of_two_entries_holds(tmp_path: Path) -> None:
    apply(
        archive(
            *(entry("a", FILE, b"first"), entry("a", FILE, b"last", mode=0o600)),
            *(entry("d", DIR), entry("d/x", FILE, b"x"), entry("d", FILE, b"now a file")),
            *(entry("e", FILE), entry("e", DIR, mode=0o700), entry("e/y", FILE, b"y")),
        ),
        str(tmp_path),
    )
    assert (tmp_path / "a").read_bytes() == b"last"
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o600
    assert (tmp_path / "d").read_bytes() == b"now a file"
    assert (tmp_path / "e/y").read_bytes() == b"y"


@pytest.mark.parametrize(
    ("many", "few"),
    [
        (24_000, 8000),
        pytest.param(1_000_000, 8000, marks=[pytest.mark.soak, pytest.mark.timeout(900)]),
    ],
)
def test_f72_memory_does_not_grow_with_the_number_of_files(
    tmp_path: Path, many: int, few: int, record_property: Callable[[str, object], None]
) -> None:
    # All made before the first fork: a worker's peak begins with what this process has.
    layers = {count: _layer(count) for count in (many, few)}
    peaks = {}
    for count, layer in layers.items():
        target = tmp_path / str(count)
        target.mkdir()
        with Worker() as worker:
            job = {"job": "apply", "media_type": "", "target": str(target), "whiteouts": "overlay"}
            worker.send(job, [layer])
            assert worker.result(RESULT_S)["entries"] == count
        os.close(layer)
        peaks[count] = worker.max_rss_bytes
    record_property("peak of memory by files", peaks)
    assert peaks[many] - peaks[few] < 8 << 20, peaks


def _layer(count: int) -> int:
    """A file in memory with the archive of so many files, written in pieces."""
    layer = memfd(b"")
    for first in range(0, count, 10_000):
        piece = range(first, min(first + 10_000, count))
        data = b"".join(entry(f"d{n % 100}/f{n}", FILE, b"x") for n in piece)
        os.pwrite(layer, data, os.fstat(layer).st_size)
    os.pwrite(layer, bytes(1024), os.fstat(layer).st_size)
    return layer
