"""The kernel's cgroup lock, taken ahead of a runtime by a move that moves nothing."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from lighter.daemon.tasks.cgrouplock import CgroupLock, procs_file
from tests.harness import await_that


def place(base: Path, relative: str) -> Path:
    """A cgroup's cgroup.procs below `base`, empty."""
    file = base / relative / "cgroup.procs"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()
    return file


def lock_of(base: Path, own: str) -> CgroupLock:
    (base / "own").write_text(own)
    return CgroupLock(str(base / "mount"), str(base / "own"))


def test_who_asks_is_written_into_the_cgroup_that_it_is_in(tmp_path: Path) -> None:
    procs = place(tmp_path / "mount", "a.slice/b.service")
    lock = lock_of(tmp_path, "0::/a.slice/b.service\n")
    lock.take()
    assert procs.read_text() == "0"


@pytest.mark.parametrize(
    ("own", "where"),
    [
        ("0::/a\n", "a"),
        ("0::/\n", "."),
        ("12:cpu,cpuacct:/a\n1:name=systemd:/b\n0::/b\n", "cpu,cpuacct/a"),
        ("3:freezer:/gone\n1:name=systemd:/b\n0::/b\n", "systemd/b"),
        ("3:freezer:/gone\n0::/b\n", "unified/b"),
        ("0::/with:colon\n", "with:colon"),
    ],
)
def test_where_that_is(tmp_path: Path, own: str, where: str) -> None:
    procs = place(tmp_path, where)
    assert os.path.samefile(procs_file(own, str(tmp_path)), procs)


@pytest.mark.parametrize("own", ["", "0::/../outside\n", "2:cpu:/gone\n0::/gone\n"])
def test_a_cgroup_that_is_not_to_be_seen(tmp_path: Path, own: str) -> None:
    place(tmp_path, "outside")
    (tmp_path / "mount").mkdir()
    with pytest.raises(FileNotFoundError):
        procs_file(own, str(tmp_path / "mount"))


def test_who_was_moved_is_not_moved_back(tmp_path: Path) -> None:
    before, after = place(tmp_path / "mount", "before"), place(tmp_path / "mount", "after")
    lock = lock_of(tmp_path, "0::/before\n")
    lock.take()
    before.write_text("")
    (tmp_path / "own").write_text("0::/after\n")
    lock.take()
    assert (before.read_text(), after.read_text()) == ("", "0")


def test_the_caller_does_not_wait(tmp_path: Path) -> None:
    """A pipe that nobody reads stands for a lock that another holds."""
    procs = place(tmp_path / "mount", "a")
    procs.unlink()
    os.mkfifo(procs)
    lock = lock_of(tmp_path, "0::/a\n")
    for _ in range(5):
        lock.take_soon()
    with procs.open("rb", buffering=0) as reader:
        assert reader.read(1) == b"0"
        lock.take_soon()  # read(2) of a pipe without a writer would return at once
        await_that(lambda: reader.read(1) == b"0", 10, "it is taken again")


def test_f59_no_thread_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    procs = place(tmp_path / "mount", "a")
    lock = lock_of(tmp_path, "0::/a\n")

    def fail(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as limited:
        limited.setattr(threading.Thread, "start", fail)
        lock.take_soon()
    lock.take_soon()
    await_that(lambda: procs.read_text() == "0", 10, "there is one again")


def test_what_fails_once_is_tried_again(tmp_path: Path) -> None:
    """A manager that was moved between the look at where it is and the write, for one."""
    lock = lock_of(tmp_path, "0::/made-later\n")
    with pytest.raises(FileNotFoundError):
        lock.take()
    lock.take_soon()
    procs = place(tmp_path / "mount", "made-later")

    def is_taken() -> bool:
        lock.take_soon()
        return procs.read_text() == "0"

    await_that(is_taken, 10, "it is taken")


def test_a_process_and_its_threads_stay_where_they_are() -> None:
    """On this host's own cgroups."""
    program = (
        "from lighter.daemon.tasks.cgrouplock import CgroupLock\n"
        "import pathlib\n"
        "own = pathlib.Path('/proc/self/cgroup')\n"
        "before = own.read_text()\n"
        "CgroupLock().take()\n"
        "assert own.read_text() == before\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
