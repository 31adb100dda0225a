"""daemon/files: whole or absent, modes whatever the umask, and nothing through links."""

import errno
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from lighter.daemon import files
from tests.processes import own_descriptors


@pytest.fixture(params=[0o000, 0o022, 0o077], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_a_file_has_the_mode_it_was_given(tmp_path: Path, umask: int) -> None:
    path = tmp_path / "f"
    files.write_whole(str(path), b"x", 0o640, durable=True)
    assert path.stat().st_mode & 0o777 == 0o640
    assert os.listdir(tmp_path) == ["f"]


def test_a_shorter_file_leaves_nothing_of_the_longer_one(tmp_path: Path) -> None:
    path = tmp_path / "f"
    files.write_whole(str(path), b"long" * 1000)
    files.write_whole(str(path), b"short")
    assert path.read_bytes() == b"short"


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "d"
    path.mkdir()
    with pytest.raises(IsADirectoryError):
        files.write_whole(str(path), b"x")
    assert os.listdir(tmp_path) == ["d"]


def test_what_a_killed_write_has_left_is_swept_and_nothing_else(tmp_path: Path) -> None:
    others = {"f", "f.tmp", "f.0badcafe", "f.0BADCAFE.tmp", "f.0badcafe.tmp.x", ".0badcafe.tmp"}
    for name in (*others, "f.0badcafe.tmp", "g.0badcafe.tmp"):
        (tmp_path / name).touch()
    files.sweep(str(tmp_path), "g")
    assert set(os.listdir(tmp_path)) == {*others, "f.0badcafe.tmp"}
    files.sweep(str(tmp_path))
    assert set(os.listdir(tmp_path)) == others


def test_a_directorys_mode_is_corrected(tmp_path: Path, umask: int) -> None:
    path = tmp_path / "a" / "b"
    files.make_directory(str(path), 0o711)
    assert path.stat().st_mode & 0o7777 == 0o711
    path.chmod(0o1777)
    files.make_directory(str(path), 0o700)
    assert path.stat().st_mode & 0o7777 == 0o700


def test_no_mode_is_changed_through_a_link(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir(mode=0o755)
    link = tmp_path / "link"
    link.symlink_to(other)
    with pytest.raises(OSError):
        files.make_directory(str(link), 0o700)
    assert other.stat().st_mode & 0o777 == 0o755
    files.make_directory(str(link), 0o700, follow=True)
    assert other.stat().st_mode & 0o777 == 0o700


def test_reading_is_capped_and_of_regular_files_alone(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"12345")
    before = own_descriptors()
    assert files.read_capped(str(path), 5) == b"12345"
    assert files.read_capped(str(path), 4) is None
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to(path)
    for name in ("fifo", "link", "missing", "."):
        assert files.read_capped(str(tmp_path / name), 5) is None
    assert own_descriptors() <= before
    # Whose size is 0, and which must be read at once.
    boot_id = files.read_capped("/proc/sys/kernel/random/boot_id", 100)
    assert boot_id is not None and len(boot_id) == 37
    assert files.read_capped("/proc/sys/kernel/random/boot_id", 36) is None


def test_a_file_that_grows_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"1")
    fstat = os.fstat

    def grown(fd: int) -> os.stat_result:
        found = fstat(fd)
        path.write_bytes(b"12345")
        return found

    monkeypatch.setattr(os, "fstat", grown)
    for most, read in ((5, b"12345"), (4, None), (1, None)):
        path.write_bytes(b"1")
        assert files.read_capped(str(path), most) == read


def test_what_is_there_and_cannot_be_read_is_not_missing(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="Input/output error"):
        files.read_capped("/proc/self/mem", 5)  # nothing is mapped at its beginning
    path = tmp_path / "f"
    path.write_bytes(b"12345")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            files.read_capped(str(path), 5)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert files.read_capped(str(path / "below"), 5) is None


def test_removing_twice_is_no_error(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"")
    files.remove(str(path))
    files.remove(str(path))
    assert not path.exists()


def test_a_disk_is_full_that_takes_nothing_whatever_it_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root may use blocks that are kept from others, which statvfs(3) does not count."""
    counted = os.statvfs(tmp_path)
    none = os.statvfs_result([*counted[:3], 0, 0, *counted[5:]])
    assert none.f_bavail == 0 and none.f_files == counted.f_files
    monkeypatch.setattr(os, "statvfs", lambda _path: none)
    assert files.full_disk(str(tmp_path)) == ""

    def refuses(_fd: int, _start: int, _size: int) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "posix_fallocate", refuses)
    assert files.full_disk(str(tmp_path)) == str(tmp_path)
    assert list(tmp_path.iterdir()) == []
