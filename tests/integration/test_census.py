"""The census itself: it must see a leak of each kind, or a clean report would mean nothing."""

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from tests import census

MARK = "0badcafe"


@pytest.fixture
def scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="lighter-", dir="/tmp") as folder:
        yield Path(folder)


def leak_process(scratch: Path, undo: ExitStack) -> None:
    # What our processes look like in ps: the title is their argv[0].
    title = f"lighter-shim --instance {MARK} --namespace default --id web"
    process = subprocess.Popen([title, "60"], executable="/usr/bin/sleep")
    undo.callback(process.wait)
    undo.callback(process.kill)


def leak_zombie(scratch: Path, undo: ExitStack) -> None:
    process = subprocess.Popen(["true"])
    undo.callback(process.wait)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)


def leak_mount(scratch: Path, undo: ExitStack) -> None:
    point = scratch / "s" / "rootfs"
    point.mkdir(parents=True)
    undo.callback(shutil.rmtree, scratch / "s")
    subprocess.run(["mount", "-t", "tmpfs", "none", str(point)], check=True)
    undo.callback(subprocess.run, ["umount", str(point)], check=True)


def leak_cgroup(scratch: Path, undo: ExitStack) -> None:
    hierarchy = next(
        path for path in (Path("/sys/fs/cgroup/pids"), Path("/sys/fs/cgroup")) if path.is_dir()
    )
    path = hierarchy / "lighter" / MARK / "default" / "web"
    path.mkdir(parents=True)
    undo.callback(remove_when_empty, hierarchy / "lighter")
    undo.callback(path.parent.parent.rmdir)
    undo.callback(path.parent.rmdir)
    undo.callback(path.rmdir)


def remove_when_empty(folder: Path) -> None:
    with suppress(OSError):  # a neighbour's instance may be in it
        folder.rmdir()


def leak_socket(scratch: Path, undo: ExitStack) -> None:
    bound = undo.enter_context(socket.socket(socket.AF_UNIX))
    path = scratch / "x.sock"
    bound.bind(str(path))
    path.unlink()


def leak_directory(scratch: Path, undo: ExitStack) -> None:
    (scratch / "r").mkdir()
    undo.callback((scratch / "r").rmdir)


LEAKS = {
    "process": leak_process,
    "zombie": leak_zombie,
    "mount": leak_mount,
    "cgroup": leak_cgroup,
    "open socket": leak_socket,
    "directory": leak_directory,
}


@pytest.mark.parametrize("kind", LEAKS)
def test_a_leak_of_each_kind_is_seen_and_its_end_too(kind: str, scratch: Path) -> None:
    marks = census.Owners({MARK}, {f"{scratch}/s", f"{scratch}/x", f"{scratch}/r"}, False)
    before = census.Census.take(marks)
    with ExitStack() as undo:
        LEAKS[kind](scratch, undo)
        left = census.Census.take(marks).since(before)
        assert kind in left, left
        assert census.report(left)
    assert census.Census.settled(marks, before, deadline_s=5).get(kind) is None


def leak_netns(undo: ExitStack) -> None:
    subprocess.run(["ip", "netns", "add", f"lighter-{MARK}"], check=True)
    undo.callback(subprocess.run, ["ip", "netns", "delete", f"lighter-{MARK}"], check=True)


def leak_link(undo: ExitStack) -> None:
    subprocess.run(["ip", "link", "add", f"lt{MARK}", "type", "veth"], check=True)
    undo.callback(subprocess.run, ["ip", "link", "delete", f"lt{MARK}"], check=True)


def leak_shared_memory(undo: ExitStack) -> None:
    path = Path(f"/dev/shm/lighter-{MARK}")
    path.touch()
    undo.callback(path.unlink)


UNMARKED: dict[str, Callable[[ExitStack], None]] = {
    "netns": leak_netns,
    "link": leak_link,
    "shared memory": leak_shared_memory,
}


@pytest.mark.parametrize("kind", UNMARKED)
def test_on_a_machine_of_our_own_unmarked_kinds_are_compared(kind: str) -> None:
    alone = census.Owners(exclusive=True)
    before = census.Census.take(alone)
    with ExitStack() as undo:
        UNMARKED[kind](undo)
        assert any(MARK in thing for thing in census.Census.take(alone).since(before)[kind])


def test_nothing_of_a_neighbour_counts(scratch: Path) -> None:
    marks = census.Owners({"deadbeef"}, {"/tmp/lighter-nobody"}, False)
    before = census.Census.take(marks)
    with ExitStack() as undo:
        for leak in (leak_process, leak_mount, leak_cgroup, leak_socket):
            leak(scratch, undo)
        assert census.Census.take(marks).since(before) == {}


def test_leftovers_of_a_container_on_disk_are_seen(tmp_path: Path) -> None:
    root, state = tmp_path / "r", tmp_path / "s"
    for path in (
        state / "tasks" / "default" / "web",
        state / "runc" / "default" / "web",
        state / "s" / "01234567",
        root / "exits" / "default" / "web.json",
        root / "content" / "ingest" / "abc",
    ):
        path.mkdir(parents=True)
        assert census.leftovers_on_disk(root, state) == [str(path)]
        path.rmdir()
