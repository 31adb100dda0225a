"""Space kept back for the day the disk is full."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lighter.daemon.metadata.db import Database
from lighter.daemon.metadata.mend import open_database
from lighter.daemon.metadata.namespaces import NamespaceStore
from lighter.daemon.metadata.reserve import SIZE_BYTES, Reserve
from lighter.proto.errors import ResourceExhausted
from tests.unit.metadata import test_mend

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


def test_a_reserve_that_was_only_begun_is_taken_again(disk: Path) -> None:
    """Its maker was killed before it had its space."""
    (disk / "reserve").touch()
    Reserve(str(disk / "reserve"))
    assert (disk / "reserve").stat().st_blocks * 512 == SIZE_BYTES
