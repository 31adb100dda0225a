"""The container's log: rotation, full disks, and going on after a torn chunk."""

import os
from pathlib import Path

import pytest

from lighter.proto import logchunks
from lighter.proto.daemon_api import NOTICE, STDERR, STDOUT
from lighter.shim import linux
from lighter.shim.logfile import LogFile


def chunks(path: Path) -> list[tuple[int, bytes]]:
    """(stream, data) of each chunk of one file; the file must be whole."""
    data = path.read_bytes()
    found, at = [], 0
    while at < len(data):
        head = logchunks.parse_head(data[at : at + logchunks.HEAD.size])
        assert head is not None, f"no chunk begins at {at} of {len(data)}"
        _, stream, length = head
        at += logchunks.HEAD.size
        assert at + length <= len(data), "the last chunk is cut short"
        found.append((stream, data[at : at + length]))
        at += length
    return found


def files(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.log"))


def test_chunks_hold_the_bytes_as_they_came(tmp_path: Path) -> None:
    log = LogFile(str(tmp_path), 0, 1)
    log.append(STDOUT, b"one\ntwo")
    log.append(STDERR, memoryview(b"\xff\x00"))
    log.close()
    assert chunks(tmp_path / "0000000001.log") == [(STDOUT, b"one\ntwo"), (STDERR, b"\xff\x00")]


def test_rotation_is_between_chunks_by_size_and_count(tmp_path: Path) -> None:
    size = 100
    head = logchunks.HEAD.size
    log = LogFile(str(tmp_path), 5 * (size + head), 3)
    sent = [bytes([number]) * size for number in range(50)]
    for data in sent:
        log.append(STDOUT, data)
    log.close()
    kept = files(tmp_path)
    assert [path.name for path in kept] == [f"{n:010d}.log" for n in (8, 9, 10)]
    assert all(path.stat().st_size <= 5 * (size + head) for path in kept)
    assert [data for path in kept for _, data in chunks(path)] == sent[-len(kept) * 5 :]


def test_a_chunk_larger_than_the_limit_gets_a_file_of_its_own(tmp_path: Path) -> None:
    log = LogFile(str(tmp_path), 10, 2)
    for letter in (b"a", b"b", b"c"):
        log.append(STDOUT, letter * 1000)
    log.close()
    assert [chunks(path) for path in files(tmp_path)] == [
        [(STDOUT, b"b" * 1000)],
        [(STDOUT, b"c" * 1000)],
    ]


def test_without_a_limit_there_is_one_file(tmp_path: Path) -> None:
    log = LogFile(str(tmp_path), 0, 5)
    for _ in range(100):
        log.append(STDOUT, bytes(logchunks.MAX_CHUNK))
    log.close()
    assert len(files(tmp_path)) == 1


def test_without_a_limit_of_files_none_is_removed(tmp_path: Path) -> None:
    log = LogFile(str(tmp_path), 1000, 0)
    for number in range(40):
        log.append(STDOUT, bytes([number]) * 990)
    log.close()
    kept = [data[0] for path in files(tmp_path) for _, data in chunks(path)]
    assert kept == list(range(40))


def test_a_later_shim_goes_on_in_the_same_file(tmp_path: Path) -> None:
    for data in (b"first run", b"second run"):
        log = LogFile(str(tmp_path), 0, 1)
        log.append(STDOUT, data)
        log.close()
    assert chunks(tmp_path / "0000000001.log") == [(STDOUT, b"first run"), (STDOUT, b"second run")]


@pytest.mark.parametrize("cut", [1, logchunks.HEAD.size, logchunks.HEAD.size + 3, 25])
def test_a_torn_chunk_is_cut_off_before_more_is_written(tmp_path: Path, cut: int) -> None:
    log = LogFile(str(tmp_path), 0, 1)
    log.append(STDOUT, b"whole")
    log.append(STDOUT, b"torn by power loss")
    log.close()
    path = tmp_path / "0000000001.log"
    os.truncate(path, path.stat().st_size - cut)
    log = LogFile(str(tmp_path), 0, 1)
    log.append(STDOUT, b"after")
    log.close()
    assert chunks(path) == [(STDOUT, b"whole"), (STDOUT, b"after")]


def test_a_huge_log_is_not_walked_through_but_left(tmp_path: Path) -> None:
    with (tmp_path / "0000000003.log").open("wb") as file:
        file.truncate(65 * 1024 * 1024)
    log = LogFile(str(tmp_path), 0, 5)
    log.append(STDOUT, b"new")
    log.close()
    assert chunks(tmp_path / "0000000004.log") == [(STDOUT, b"new")]


def test_strange_names_are_left_alone(tmp_path: Path) -> None:
    for name in ("9999999999.log.gz", "x.log", "99999999999.log"):
        (tmp_path / name).write_text("mine")
    log = LogFile(str(tmp_path), 10, 1)
    log.append(STDOUT, b"a" * 50)
    log.append(STDOUT, b"b" * 50)
    log.close()
    assert (tmp_path / "0000000002.log").exists()
    assert {path.read_text() for path in tmp_path.iterdir() if path.stat().st_size == 4} == {"mine"}


@pytest.mark.root
def test_a_full_disk_is_counted_and_noticed_and_never_raises(tiny_disk: Path) -> None:
    """F47: the log's own disk is full."""
    log = LogFile(str(tiny_disk), 0, 1)
    data = bytes(10_000)
    for _ in range(100):
        log.append(STDOUT, data)
    lost = log.lost_bytes
    written = chunks(tiny_disk / "0000000001.log")
    assert written == [(STDOUT, data)] * len(written)
    assert 0 < lost == 1_000_000 - len(written) * len(data)
    # Space comes back.
    os.truncate(tiny_disk / "0000000001.log", 0)
    log._size = 0
    log.append(STDERR, b"again")
    assert log.lost_bytes == 0
    log.close()
    assert chunks(tiny_disk / "0000000001.log") == [
        (NOTICE, f"{lost} bytes of output could not be written here\n".encode()),
        (STDERR, b"again"),
    ]


@pytest.mark.root
def test_bytes_lost_at_the_very_end_are_noticed_too(tiny_disk: Path) -> None:
    filler = tiny_disk / "filler"
    filler.write_bytes(bytes(200_000))
    log = LogFile(str(tiny_disk), 0, 1)
    while not log.lost_bytes:
        log.append(STDOUT, bytes(60_000))
    lost = log.lost_bytes
    filler.unlink()
    log.close()
    notice = f"{lost} bytes of output could not be written here\n".encode()
    assert chunks(tiny_disk / "0000000001.log")[-1] == (NOTICE, notice)


@pytest.mark.root
def test_a_full_directory_has_room_again_when_the_oldest_file_goes(tiny_disk: Path) -> None:
    log = LogFile(str(tiny_disk), 25_000, 3)
    for _ in range(6):
        log.append(STDOUT, b"x" * 10_000)
    assert len(files(tiny_disk)) == 3
    linux.mount("", str(tiny_disk), "", linux.MS_REMOUNT, "nr_inodes=4")  # the directory is one
    log.append(STDOUT, b"y" * 10_000)
    assert [path.name for path in files(tiny_disk)] == [f"{n:010d}.log" for n in (2, 3, 4)]
    assert log.lost_bytes == 0
    log.close()


def test_without_room_for_a_new_file_the_old_one_stays_open(tiny_disk: Path) -> None:
    log = LogFile(str(tiny_disk), 25_000, 3)
    log.append(STDOUT, bytes(10_000))
    # The root directory and the first file are two inodes.
    linux.mount("", str(tiny_disk), "", linux.MS_REMOUNT, "nr_inodes=2")
    for _ in range(5):
        log.append(STDOUT, bytes(10_000))
    assert log.lost_bytes == 40_000
    linux.mount("", str(tiny_disk), "", linux.MS_REMOUNT, "nr_inodes=10")
    log.append(STDOUT, bytes(10_000))
    log.close()
    assert [len(chunks(path)) for path in files(tiny_disk)] == [2, 2]


def test_a_directory_that_is_gone_loses_bytes_and_nothing_else(tmp_path: Path) -> None:
    log = LogFile(str(tmp_path / "none"), 0, 1)
    log.append(STDOUT, b"12345")
    assert log.lost_bytes == 5
    log.close()
