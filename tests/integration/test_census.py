"""The census itself: it must see a leak of each kind, or a clean report would mean nothing."""

import os
import shutil
import socket
import sqlite3
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import pytest

from lighter.daemon.metadata.db import Database
from tests import census
from tests.storecheck import store_problems

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


def leak_netns(undo: ExitStack) -> str:
    subprocess.run(["ip", "netns", "add", f"lighter-{MARK}"], check=True)
    undo.callback(subprocess.run, ["ip", "netns", "delete", f"lighter-{MARK}"], check=True)
    return f"lighter-{MARK}"


def leak_link(undo: ExitStack) -> str:
    subprocess.run(["ip", "link", "add", f"lt{MARK}", "type", "veth"], check=True)
    undo.callback(subprocess.run, ["ip", "link", "delete", f"lt{MARK}"], check=True)
    return f"lt{MARK}"


def leak_shared_memory(undo: ExitStack) -> str:
    path = Path(f"/dev/shm/lighter-{MARK}")
    path.touch()
    undo.callback(path.unlink)
    return path.name


def leak_any_mount(undo: ExitStack) -> str:
    point = undo.enter_context(tempfile.TemporaryDirectory(prefix=f"any-{MARK}-", dir="/tmp"))
    subprocess.run(["mount", "-t", "tmpfs", "none", point], check=True)
    undo.callback(subprocess.run, ["umount", point], check=True)
    return point


def leak_loop_device(undo: ExitStack) -> str:
    folder = undo.enter_context(tempfile.TemporaryDirectory(prefix=f"loop-{MARK}-"))
    disk = Path(folder, "disk")
    disk.write_bytes(bytes(1 << 20))
    argv = ["losetup", "--find", "--show", disk]
    device = subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()
    undo.callback(subprocess.run, ["losetup", "--detach", device], check=True)
    return os.path.basename(device)


def leak_temporary_directory(undo: ExitStack) -> str:
    return os.path.basename(
        undo.enter_context(tempfile.TemporaryDirectory(prefix=f"lighter-{MARK}-", dir="/tmp"))
    )


UNMARKED: dict[str, Callable[[ExitStack], str]] = {
    "any mount": leak_any_mount,
    "netns": leak_netns,
    "link": leak_link,
    "loop device": leak_loop_device,
    "shared memory": leak_shared_memory,
    "temporary directory": leak_temporary_directory,
}


@pytest.mark.parametrize("kind", UNMARKED)
def test_on_a_machine_of_our_own_unmarked_kinds_are_compared(kind: str) -> None:
    alone = census.Owners(exclusive=True)
    before = census.Census.take(alone)
    with ExitStack() as undo:
        thing = UNMARKED[kind](undo)
        assert thing in census.Census.take(alone).since(before)[kind]


def test_no_kind_is_without_a_leak_of_its_own() -> None:
    assert set(census.Census.take(census.Owners(exclusive=True)).things) == {*LEAKS, *UNMARKED}


@pytest.mark.parametrize("leak", [leak_mount, leak_cgroup])
def test_what_is_left_of_a_container_is_seen_while_its_manager_runs(
    leak: Callable[[Path, ExitStack], None], scratch: Path
) -> None:
    marks = census.Owners({MARK}, {str(scratch)}, False)
    with ExitStack() as undo:
        leak(scratch, undo)
        left = list(census.left_of_containers(marks))
        assert left and all(MARK in thing or str(scratch) in thing for thing in left)
    assert list(census.left_of_containers(marks)) == []


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
        root / "addresses" / "default" / "10.88.0.2",
    ):
        path.mkdir(parents=True)
        assert census.leftovers_on_disk(root, state) == [str(path)]
        path.rmdir()
    # What host-local keeps beside them, for the next address.
    (root / "addresses" / "default" / "last_reserved_ip.0").touch()
    assert census.leftovers_on_disk(root, state) == []


def put(root: Path, table: str, **values: object) -> None:
    """A row with these values, and something in each other column, whatever it refers to."""
    with closing(sqlite3.connect(root / "lighter.db")) as opened:
        columns = [(row[1], row[2]) for row in opened.execute(f"PRAGMA table_info({table})")]
        row = {name: 1 if "INT" in kind else name for name, kind in columns} | values
        marks = ",".join("?" * len(row))
        opened.execute(f"INSERT INTO {table}({','.join(row)}) VALUES({marks})", list(row.values()))
        opened.commit()


def blob_without_a_row(root: Path) -> None:
    (root / "content" / "blobs" / "sha256").mkdir(parents=True)
    (root / "content" / "blobs" / "sha256" / "ab").touch()


def directory_without_a_row(root: Path) -> None:
    (root / "snapshots" / "overlayfs" / "7").mkdir(parents=True)


def damaged(root: Path) -> None:
    with (root / "lighter.db").open("r+b") as file:
        file.seek(4096)  # the second page: a table
        file.write(b"\xff" * 64)


STORES: dict[str, Callable[[Path], None]] = {
    "blob without a record: sha256:ab": blob_without_a_row,
    "record without its blob: sha256:ab": lambda root: put(root, "content", digest="sha256:ab"),
    "image without its content: sha256:ab": lambda root: put(root, "images", digest="sha256:ab"),
    "snapshot directory without a record: overlayfs/7": directory_without_a_row,
    "snapshot record without its directory: native/7": lambda root: put(
        root, "snapshots", snapshotter="native", number=7, parent=None
    ),
    "snapshot of no container: k": lambda root: put(
        root, "snapshots", kind="active", key="k", parent=None
    ),
    "row of containers: ('namespace', 'web'": lambda root: put(root, "containers", id="web"),
    "row of tasks: ('namespace', 'web'": lambda root: put(root, "tasks", id="web"),
    "row of execs: ('namespace', 'web'": lambda root: put(root, "execs", id="web"),
    "row of trash: ('owner', 'name'": lambda root: put(root, "trash"),
    "database: broken reference ('snapshots'": lambda root: put(root, "snapshots", parent=99),
    "database: ": damaged,
}


@pytest.mark.parametrize("problem", STORES)
def test_a_difference_between_records_and_disk_is_seen(problem: str, tmp_path: Path) -> None:
    Database(str(tmp_path / "lighter.db")).close()
    with closing(sqlite3.connect(tmp_path / "lighter.db")) as opened:
        opened.execute("PRAGMA journal_mode = DELETE")
    assert store_problems(tmp_path) == []
    STORES[problem](tmp_path)
    assert any(line.startswith(problem) for line in store_problems(tmp_path)), problem
