"""The census itself: it must see a leak of each kind, or a clean report would mean nothing."""

import fcntl
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

import pytest

from lighter.daemon.metadata.db import Database
from tests import census, cgroups, held, lives
from tests.harness import Lighterd, await_that
from tests.lives import ask
from tests.processes import Process
from tests.storecheck import store_problems, unfinished

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
    hierarchy = census.hierarchies()[0]
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


def leak_lock(scratch: Path, undo: ExitStack) -> None:
    leak_directory(scratch, undo)
    held = undo.enter_context((scratch / "r" / "lock").open("w"))
    undo.callback((scratch / "r" / "lock").unlink)
    fcntl.flock(held, fcntl.LOCK_EX)


LEAKS = {
    "process": leak_process,
    "zombie": leak_zombie,
    "mount": leak_mount,
    "cgroup": leak_cgroup,
    "open socket": leak_socket,
    "directory": leak_directory,
    "lock": leak_lock,
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


def leak_any_cgroup(undo: ExitStack) -> str:
    path = census.hierarchies()[0] / f"space-{MARK}"
    path.mkdir()
    undo.callback(path.rmdir)
    return str(path)


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
    "any cgroup": leak_any_cgroup,
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


def test_what_is_left_where_a_client_put_it_is_seen(scratch: Path) -> None:
    marks = census.Owners({MARK}, {str(scratch)}, False, cgroups={f"/space-{MARK}"})
    # A new cpuset takes no process.
    top = next(path for path in census.hierarchies() if path.name != "cpuset") / f"space-{MARK}"
    with ExitStack() as undo:
        for path in (top, top / "web"):
            path.mkdir()
            undo.callback(path.rmdir)
        process = subprocess.Popen(["sleep", "60"])
        undo.callback(await_that, lambda: not cgroups.members(top), 10, "its cgroup is empty")
        undo.callback(process.wait)
        undo.callback(process.kill)
        (top / "web" / "cgroup.procs").write_text(str(process.pid))
        expected = [f"{top}/web", f"{process.pid} sleep 60"]
        assert list(census.left_of_containers(marks)) == expected
        assert [process.pid] == [one.pid for one in census.processes(marks)]
    assert list(census.left_of_containers(marks)) == []


def test_a_process_on_a_snapshot_of_ours_is_seen_wherever_its_cgroup_is(scratch: Path) -> None:
    marks = census.Owners(set(), {str(scratch)}, False)
    program = "import os, sys; os.chroot(input()); sys.stdin.read()"
    argv = ["unshare", "--mount", sys.executable, "-c", program]
    with ExitStack() as undo:
        point = undo.enter_context(tempfile.TemporaryDirectory(prefix="root-", dir="/tmp"))
        # What names a container's snapshot in a line of mounts is the overlay's upper directory.
        subprocess.run(["mount", "-t", "tmpfs", f"{scratch}/fs", point], check=True)
        undo.callback(subprocess.run, ["umount", point], check=True)
        process = undo.enter_context(subprocess.Popen(argv, stdin=subprocess.PIPE))
        undo.callback(process.kill)
        assert process.stdin is not None
        process.stdin.write(f"{point}\n".encode())
        process.stdin.flush()
        await_that(
            lambda: [one.pid for one in census.processes(marks)] == [process.pid], 20, "it is seen"
        )
        assert any(line.startswith(f"{process.pid} ") for line in census.left_of_containers(marks))


def test_nothing_of_a_neighbour_counts(scratch: Path) -> None:
    marks = census.Owners({"deadbeef"}, {"/tmp/lighter-nobody"}, False)
    before = census.Census.take(marks)
    with ExitStack() as undo:
        for leak in (leak_process, leak_mount, leak_cgroup, leak_socket):
            leak(scratch, undo)
        assert census.Census.take(marks).since(before) == {}


@contextmanager
def holding(title: str, *fds: int) -> Iterator[int]:
    """The pid of a process that has these descriptors and looks like one of ours."""
    process = subprocess.Popen(
        [title, "60"],
        executable="/usr/bin/sleep",
        pass_fds=fds,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process.pid
    finally:
        process.kill()
        process.wait()


def a_pipe(_scratch: Path, undo: ExitStack) -> int:
    ours, theirs = os.pipe()
    undo.callback(os.close, ours)
    undo.callback(os.close, theirs)
    return theirs


def a_pidfd(_scratch: Path, undo: ExitStack) -> int:
    pidfd = os.pidfd_open(os.getpid())
    undo.callback(os.close, pidfd)
    return pidfd


def a_netns(_scratch: Path, undo: ExitStack) -> int:
    return undo.enter_context(open("/proc/self/ns/net", "rb")).fileno()


def memory(_scratch: Path, undo: ExitStack) -> int:
    memfd = os.memfd_create("sealed")
    undo.callback(os.close, memfd)
    return memfd


def a_deleted_file(scratch: Path, undo: ExitStack) -> int:
    file = undo.enter_context((scratch / "gone").open("w"))
    (scratch / "gone").unlink()
    return file.fileno()


def a_file_of_a_task(scratch: Path, undo: ExitStack) -> int:
    (scratch / "s" / "tasks").mkdir(parents=True)
    return undo.enter_context((scratch / "s" / "tasks" / "shim.json").open("w")).fileno()


HELD = {
    "pipe": a_pipe,
    "pidfd": a_pidfd,
    "net:[": a_netns,
    "/memfd:sealed": memory,
    "(deleted)": a_deleted_file,
    "/s/tasks/shim.json": a_file_of_a_task,
}


@pytest.mark.parametrize("kind", HELD)
def test_what_a_manager_has_forgotten_to_close_is_seen(kind: str, scratch: Path) -> None:
    marks = census.Owners({MARK}, {str(scratch)}, False)
    with ExitStack() as undo:
        allowed = [a_pidfd(scratch, undo) for _ in range(3)]  # a spawner's and two clients'
        (scratch / "log").touch()
        allowed.append(undo.enter_context((scratch / "log").open("r")).fileno())
        with holding("lighterd", *allowed) as pid:
            assert held.left_in_manager(marks, pid, clients=2) == []
        with holding("lighterd", *allowed, HELD[kind](scratch, undo)) as pid:
            (left,) = held.left_in_manager(marks, pid, clients=2)
            assert left.startswith("manager's ") and kind in left


def test_connections_that_a_manager_has_forgotten_are_seen(scratch: Path) -> None:
    marks = census.Owners({MARK}, {str(scratch)}, False)
    with ExitStack() as undo:
        pidfds = [a_pidfd(scratch, undo) for _ in range(3)]
        clients = [a_connection(scratch / "lighter.sock", undo) for _ in range(3)]
        others = [a_connection(scratch / "containerd.sock", undo) for _ in range(3)]
        shim = a_connection(scratch / "shims.sock", undo)
        pairs = [a_connection(None, undo) for _ in range(held.MOST_PAIRS + 1)]
        allowed = (*pidfds, *clients[:2], *others, *pairs[:-1])
        with holding("lighterd", *allowed) as pid:
            assert held.left_in_manager(marks, pid, clients=2) == []
        for one, name in (clients[-1], "lighter.sock"), (shim, "shims.sock"), (pairs[-1], "a pair"):
            with holding("lighterd", *allowed, one) as pid:
                (left,) = held.left_in_manager(marks, pid, clients=2)
                assert f" sockets of {name}, " in left


def a_connection(path: Path | None, undo: ExitStack) -> int:
    """The end of it that listens at the path, or one of a pair."""
    if path is None:
        ours, theirs = socket.socketpair()
        undo.callback(theirs.close)
        return undo.enter_context(ours).fileno()
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        undo.enter_context(socket.socket(socket.AF_UNIX)).connect(str(path))
        return undo.enter_context(listening.accept()[0]).fileno()


@pytest.mark.parametrize("kind", [kind for kind in HELD if not kind.startswith("/s/")])
def test_what_a_spawner_has_forgotten_to_close_is_seen(kind: str, scratch: Path) -> None:
    with ExitStack() as undo:
        allowed = [a_pipe(scratch, undo) for _ in range(3)]  # its own two, and its spare's
        allowed.append(a_pidfd(scratch, undo))
        title = f"lighter-spawner --instance {MARK}"
        with holding(title, *allowed):
            assert held.left_in_spawners(MARK) == []
        with holding(title, *allowed, HELD[kind](scratch, undo)):
            (left,) = held.left_in_spawners(MARK)
            assert left.startswith("spawner's ") and kind in left


def test_a_dead_child_of_a_manager_or_spawner_is_seen() -> None:
    marks = census.Owners({MARK}, set(), False)
    # A shell might reap the child before it becomes the parent that does not.
    program = "import os, time; os.fork() and time.sleep(60)"
    process = subprocess.Popen(
        [f"lighter-spawner --instance {MARK}", "-I", "-S", "-c", program],
        executable=os.path.realpath(sys.executable),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        await_that(lambda: held.left_in_spawners(MARK), 30, "the zombie is seen")
        (left,) = held.left_in_spawners(MARK)
        assert left.startswith("spawner's zombie ")
        assert any("zombie" in one for one in held.left_in_manager(marks, process.pid, 0))
    finally:
        process.kill()
        process.wait()


def test_the_dead_that_init_has_inherited_are_its_own() -> None:
    def seen(parent: int, *, exclusive: bool = True) -> bool:
        dead = Process(2, parent, "lighter-shim", True, "")
        return census.is_forgotten(dead, {40}, exclusive=exclusive)

    assert seen(40) and seen(40, exclusive=False)
    assert seen(41) and not seen(41, exclusive=False)
    assert not seen(census.INIT)
    assert census.is_forgotten(Process(2, 1, "x", True, ""), {1}, exclusive=False), "it is pytest's"


def test_threads_that_a_manager_has_forgotten_are_seen() -> None:
    program = (
        "import threading\n"
        f"for _ in range({held.MOST_THREADS}): threading.Thread(target=input).start()"
    )
    marks = census.Owners({MARK}, set(), False)
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE) as process:
        try:
            await_that(
                lambda: any(
                    "threads" in one for one in held.left_in_manager(marks, process.pid, 0)
                ),
                30,
                "they are seen",
            )
        finally:
            process.kill()


def test_a_rule_of_the_packet_filter_is_seen() -> None:
    before = census.firewall_rules()
    chain = f"LT-{MARK}"
    with ExitStack() as undo:
        subprocess.run(["iptables", "-N", chain], check=True)
        undo.callback(subprocess.run, ["iptables", "-X", chain], check=True)
        assert any(chain in rule for rule in census.firewall_rules() - before)
    assert not any(chain in rule for rule in census.firewall_rules())


def test_what_is_left_in_a_machine_is_printed_there(scratch: Path) -> None:
    """The look of tests/systemd and tests/vm, in a mount namespace that has such a machine's."""
    (scratch / "lighter/tasks/default/web/rootfs").mkdir(parents=True)
    (scratch / "lighter/s").mkdir()
    (scratch / "lighter/s/01234567").touch()
    look = (
        f"mount --bind {scratch} /run && mount -t tmpfs none /run/lighter/tasks/default/web/rootfs"
        f" && {{ {census.LOOK_INSIDE}\n}}"
    )
    argv = ["unshare", "--mount", "sh", "-c", look]
    seen = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    assert "/run/lighter/tasks/default/web\n" in seen
    assert "/run/lighter/s/01234567\n" in seen
    assert " /run/lighter/tasks/default/web/rootfs rw" in seen


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


def test_what_a_pull_or_a_writer_has_left_is_seen(tmp_path: Path) -> None:
    """All of it once everything has worked; of a pull that failed, nothing at an instance's end."""
    assert unfinished(tmp_path) == []
    Database(str(tmp_path / "lighter.db")).close()
    with closing(sqlite3.connect(tmp_path / "lighter.db")) as opened:
        opened.execute("PRAGMA journal_mode = DELETE")
    assert unfinished(tmp_path) == []
    ingest = tmp_path / "content" / "writes" / "0123"
    ingest.mkdir(parents=True)
    assert unfinished(tmp_path) == [], "of what has become content"
    (ingest / "data").touch()
    assert unfinished(tmp_path) == ["half-written: 0123"]
    (ingest / "about.json").write_text('{"namespace": "n", "ref": "layer"}')
    assert unfinished(tmp_path, but_pulls=True) == ["half-written: layer"], "nobody holds it"
    put(tmp_path, "leases", namespace="n", id="pull-ab")
    assert unfinished(tmp_path) == ["lease: pull-ab of n", "half-written: layer"]
    assert unfinished(tmp_path, but_pulls=True) == []


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
    "snapshot of no container: v": lambda root: put(
        root, "snapshots", kind="view", key="v", parent=None
    ),
    "snapshot of no container: k": lambda root: put(
        root, "snapshots", kind="active", key="k", parent=None
    ),
    "row of containers: ('namespace', 'web'": lambda root: put(root, "containers", id="web"),
    "row of tasks: ('namespace', 'web'": lambda root: put(root, "tasks", id="web"),
    "row of execs: ('namespace', 'web'": lambda root: put(root, "execs", id="web"),
    "row of tombstones: ('incarnation', 'namespace'": lambda root: put(root, "tombstones"),
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


def test_what_a_failed_test_leaves_is_taken_away_frozen_too(owners: census.Owners) -> None:
    lighterd = Lighterd(owners).start()
    pid = lives.begin(lighterd, lighterd.import_busybox(), "c", "sleep", "1000")
    ask(lighterd, "tasks.pause", id="c")
    lighterd.kill9()
    its = lighterd.owners_of_this()
    assert cgroups.is_frozen(pid) and list(census.marked_cgroups(its))
    lighterd._clean_away()
    assert lives.process_state(pid) in ("", "Z") and not lighterd.base.exists()
    assert not list(census.marked_cgroups(its)) and not census.processes(its)
