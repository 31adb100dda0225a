"""Space kept back for the day the disk is full."""

import os
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from lighter.daemon import files
from lighter.daemon.metadata import copies
from lighter.daemon.metadata.db import Database
from lighter.daemon.metadata.mend import open_database
from lighter.daemon.metadata.namespaces import NamespaceStore
from lighter.daemon.metadata.reserve import LOW_BYTES, SIZE_BYTES, Reserve
from lighter.proto.errors import ResourceExhausted
from tests import loopdisk
from tests.unit.metadata import test_mend
from tests.unit.metadata.test_db import NEXT

pytestmark = pytest.mark.root


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 MiB."""
    folder = tmp_path / "lighter-disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "lighter-test", folder], check=True)
    yield folder
    # A database that a failed test has left open does not keep it here.
    subprocess.run(["umount", "-l", folder], check=True)


def fill(disk: Path, name: str = "filler") -> Path:
    """Take all of the disk that is free."""
    filler = disk / name
    fd = os.open(filler, os.O_WRONLY | os.O_CREAT)
    try:
        while True:
            os.write(fd, bytes(65536))
    except OSError:
        pass
    finally:
        os.close(fd)
    return filler


def test_f49_a_full_disk_still_takes_what_removes_things_and_then_refuses(disk: Path) -> None:
    db = Database(str(disk / "lighter.db"))
    namespaces = NamespaceStore(db)
    namespaces.create("before")
    reserve = disk / "lighter.db-reserve"
    assert reserve.stat().st_blocks * 512 == SIZE_BYTES
    assert reserve.stat().st_mode & 0o777 == 0o600
    filler = fill(disk)
    namespaces.delete("before")
    assert not reserve.exists()
    fill(disk, "second")  # somebody takes the reserve too
    with pytest.raises(ResourceExhausted):
        for number in range(10000):
            namespaces.create(f"n{number}", {"a": "x" * 4000})
    filler.unlink()
    namespaces.create("after")
    db.close()
    Database(str(disk / "lighter.db")).close()
    assert reserve.exists()


def test_a_database_opens_on_a_full_disk(disk: Path) -> None:
    db = Database(str(disk / "lighter.db"))
    generation = db.raise_generation()
    db.close()
    fill(disk)
    db = Database(str(disk / "lighter.db"))
    assert db.raise_generation() == generation + 1
    db.close()


def test_a_small_disk_is_left_alone(disk: Path) -> None:
    Reserve(str(disk / "reserve"), 20 << 20)
    assert not (disk / "reserve").exists()


def test_f49_a_damaged_database_is_found_on_a_full_disk(disk: Path) -> None:
    """The look at it needs the index of its log, for which there is the reserve alone."""
    path = disk / "lighter.db"
    test_mend.damage(path, "in-the-log")
    Path(f"{path}-shm").unlink()
    fill(disk)
    db = open_database(str(path))
    assert db.loss.startswith("lost: rows of events; the damaged file is ")
    db.close()


def test_f39_f49_a_copy_without_room_is_refused_and_nothing_is_written(disk: Path) -> None:
    """Whether of a sound database before its migration, or of a damaged one."""
    path = disk / "lighter.db"
    test_mend.damage(path, "in-the-log")
    with closing(sqlite3.connect(path)) as opened, opened:
        opened.execute("INSERT INTO meta VALUES('large', ?)", ("x" * (12 << 20),))
    room = copies.size_of(str(path)) + LOW_BYTES
    filler = disk / "filler"
    with filler.open("wb") as file:
        found = os.statvfs(disk)
        os.posix_fallocate(file.fileno(), 0, found.f_bavail * found.f_frsize - room + 4096)
    before = {*os.listdir(disk), "lighter.db-shm", "lighter.db-wal"}
    said = rf"it needs {room} bytes in {disk}, \d+ are free"
    with pytest.raises(ResourceExhausted, match=f"mend database {path}: {said}"):
        open_database(str(path))
    with pytest.raises(ResourceExhausted, match=f"copy database {path} before its migration: it "):
        Database(str(path), NEXT)
    assert {*os.listdir(disk)} <= before
    filler.unlink()
    db = open_database(str(path))
    assert db.loss
    db.close()
    Database(str(path), NEXT).close()


def test_blocks_that_are_roots_alone_count_as_room(tmp_path: Path) -> None:
    with loopdisk.ext4_at(tmp_path, "-m", "20", size_bytes=16 << 20):
        fill(tmp_path)
        (tmp_path / "filler").unlink()
        found = os.statvfs(tmp_path)
        for_all, for_root = found.f_bavail * found.f_frsize, found.f_bfree * found.f_frsize
        assert for_root - for_all > 1 << 20
        assert files.free_bytes(str(tmp_path), for_all) == for_all
        assert files.free_bytes(str(tmp_path), for_all + (1 << 20)) == for_root
        assert files.free_bytes(str(tmp_path), for_root + 1) == for_all


def test_a_reserve_that_was_only_begun_is_taken_again(disk: Path) -> None:
    """Its maker was killed before it had its space."""
    (disk / "reserve").touch()
    Reserve(str(disk / "reserve"))
    assert (disk / "reserve").stat().st_blocks * 512 == SIZE_BYTES
