"""What becomes of tasks that a start finds when something about them cannot be read, and of shims
that nobody expected.
"""

import asyncio
import json
import os
import sqlite3
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from lighter.daemon.events.log import EventLog
from lighter.daemon.metadata.db import Database
from lighter.daemon.procfs import read_boot_id
from lighter.daemon.tasks import recovery
from lighter.daemon.tasks.bundle import Bundle
from lighter.daemon.tasks.entry import Entry
from lighter.daemon.tasks.hearsay import Hearsay
from lighter.daemon.tasks.lost import LostTasks
from lighter.daemon.tasks.reach import is_alive, living_shims, may_be_shim
from lighter.daemon.tasks.recovery import Recovery
from lighter.daemon.tasks.shims import Peer, ShimRouter
from lighter.daemon.tasks.store import TaskStore
from lighter.daemon.tasks.supervisor import Supervisor
from lighter.daemon.tasks.types import Exit
from lighter.proto import states
from lighter.proto.paths import Root, State
from tests.harness import await_that
from tests.stuckmemory import stuck_process

pytestmark = pytest.mark.root

ME = "00112233aabbccdd"
SAID = {
    "incarnation": ME,
    "namespace": "default",
    "id": "c",
    "state": states.RUNNING,
    "init_pid": 0,
    "terminal": False,
}


class Followers:
    """Whom nothing is asked."""

    def on_started(self, entry: Entry) -> None:
        pass

    on_exit = on_closed = on_forgotten = on_started

    def on_forgetting(self, tx: sqlite3.Connection, entry: Entry) -> None:
        pass


class Freeing:
    """What it was asked to free."""

    def __init__(self) -> None:
        self.freed: list[str] = []

    async def free(self, entry: Entry, _bundle: Bundle) -> bool:
        self.freed.append(entry.id)
        return False


def buried(tx: sqlite3.Connection, incarnation: str) -> None:
    tx.execute(
        "INSERT INTO tombstones(incarnation, namespace, id, at) VALUES(?, 'default', 'c', ?)",
        (incarnation, time.time_ns()),
    )


def start_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


class Start:
    """A manager's tasks before and after its start, without shims that connect."""

    def __init__(self, directory: Path) -> None:
        self.root, self.state = Root(str(directory / "root")), State(str(directory / "state"))
        os.makedirs(self.state.short_sockets)
        self.bundle_of = partial(Bundle, self.state, self.root)
        self.db = Database(str(directory / "db"))
        self.store = TaskStore(self.db)
        self.supervisor = Supervisor(self.db, self.store, EventLog(self.db), self.bundle_of)
        self.router = self.supervisor.router = ShimRouter(
            1, self.supervisor.on_hello, self.supervisor.on_event
        )
        self.freer = Freeing()
        self.lost = LostTasks(self.supervisor, self.bundle_of, self.freer)
        self.recovery = Recovery(
            db=self.db,
            store=self.store,
            supervisor=self.supervisor,
            bundle_of=self.bundle_of,
            instance=self.root.instance,
            state=self.state,
            boot_id=read_boot_id(),
        )
        self.supervisor.on_stranger = self.recovery.on_stranger
        self.supervisor.on_behind = Hearsay(self.supervisor, self.store).on_behind

    def record(self, boot_id: str = "", state: str = states.RUNNING, **row: Any) -> Bundle:
        """A task, running unless said, whose shim is gone, as the manager before has left it."""
        bundle = self.bundle_of("default", "c")
        bundle.write(b"{}", ME, "")
        os.unlink(bundle.claim(ME))
        Path(bundle.record).write_text(json.dumps({"incarnation": ME, "pid": 1, "start": 1}))
        entry = Entry("default", "c", ME, state, "", boot_id or read_boot_id(), 1, **row)
        with self.db.fast_transaction() as tx:
            self.store.save(tx, entry)
        return bundle

    def started_again(self, bundle: Bundle, incarnation: str) -> None:
        """Since then; its shim, for which this process stands, lives."""
        record = {"incarnation": incarnation, "pid": os.getpid(), "start": start_of(os.getpid())}
        Path(bundle.record).write_text(json.dumps({**record, "boot_id": read_boot_id()}))

    def run(self) -> Entry:
        self.recovery.run()
        self.supervisor.follow(Followers(), self.lost)
        return self.supervisor.entries["default", "c"]

    def said_hello(self, kind: type[Peer] = Peer, **identity: Any) -> None:
        me = identity.get("incarnation", ME)
        peer = self.router.peers[me] = kind(self.router, me)
        peer.version = 1
        peer.identity = {**SAID, "pid": os.getpid(), "start": start_of(os.getpid()), **identity}
        self.supervisor.on_hello(peer)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    made = Start(tmp_path)
    yield made
    made.db.close()


@contextmanager
def unreadable(path: str) -> Iterator[None]:
    """A file that is there, and every read of it an error (EIO): nothing is mapped at the beginning
    of this process's memory.
    """
    subprocess.run(["mount", "--bind", f"/proc/{os.getpid()}/mem", path], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", path], check=True)


async def comes_true(condition: Any) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 (what it asks for tells nobody)
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("boot_id", ["", "an-earlier-boot"], ids=["this boot", "before"])
def test_an_exit_that_cannot_be_read_now_is_waited_for(start: Start, boot_id: str) -> None:
    bundle = start.record(boot_id)
    exit_ = {"incarnation": ME, "exit_status": 42, "exited_at": 9, "cause": ""}
    Path(bundle.exit_record).write_text(json.dumps(exit_))

    async def work() -> None:
        with unreadable(bundle.exit_record):
            entry = start.run()
            await comes_true(lambda: entry.stuck)
            assert "Input/output error" in entry.view().reason
            assert (entry.exit, start.freer.freed) == (None, [])
        await comes_true(lambda: entry.closed)
        assert entry.exit is not None
        assert (entry.exit.exit_status, entry.exit.exited_at) == (42, 9)
        start.supervisor.close()

    asyncio.run(work())


def test_a_shim_whose_record_cannot_be_read_now_is_not_taken_for_dead(start: Start) -> None:
    bundle = start.record()

    async def work() -> None:
        with unreadable(bundle.record):
            entry = start.run()
            view = entry.view()
            assert view.status == states.UNKNOWN and "Input/output error" in view.reason
            await asyncio.sleep(1.5)  # it has looked again
            assert (entry.exit, start.freer.freed) == (None, [])
        await comes_true(lambda: entry.closed)
        assert start.freer.freed == ["c"]
        start.supervisor.close()

    asyncio.run(work())


def test_a_bundle_without_a_row_stays_while_it_cannot_be_read(start: Start) -> None:
    bundle = start.record()
    with start.db.fast_transaction() as tx:
        tx.execute("DELETE FROM tasks")

    async def work() -> None:
        with unreadable(bundle.record):
            assert start.recovery.run() == 0
            start.supervisor.follow(Followers(), start.lost)
            await asyncio.sleep(0.1)
            assert bundle.exists()
        start.supervisor.close()

    asyncio.run(work())


@pytest.mark.parametrize("maker", ["docker", "ctl"])
@pytest.mark.parametrize("namespace", ["moby", "default"])
@pytest.mark.parametrize(
    "row",
    [
        {"pid": 7, "last_sequence": 3},
        {"state": states.STOPPED, "exit": Exit(3, 1), "closed": True, "last_sequence": 9},
    ],
    ids=["ran", "had ended"],
)
def test_a_reboot_leaves_no_task_of_an_owner_who_expects_none(
    start: Start, namespace: str, maker: str, row: dict[str, Any]
) -> None:
    """At once, and without a word: an owner that starts beside the manager begins anew."""
    stays = namespace == "default" or maker == "ctl"
    start.bundle_of(namespace, "c").write(b"{}", ME, "")
    fields = {"state": states.RUNNING, **row, "image": "", "boot_id": "-", "created_at": 1}
    made = {"options": {"cgroup": "/docker/c"}} if maker == "docker" else {}
    with start.db.fast_transaction() as tx:
        start.store.save(tx, Entry(namespace, "c", ME, **fields, **made))

    async def work() -> None:
        start.recovery.run()
        assert ((namespace, "c") in start.supervisor.entries) == stays
        assert len(start.store.load()) == stays
        start.supervisor.follow(Followers(), start.lost)
        await asyncio.sleep(0)  # what it does for those that stay has begun
        start.supervisor.close()

    asyncio.run(work())
    if not stays:
        assert EventLog(start.db).newest() == 0


def test_f55_no_pid_of_before_a_reboot_means_anything(start: Start) -> None:
    """Row and record are of an earlier boot, and name a process that lives, by pid and start."""
    with lighter_shim(start.root.instance) as pid:
        row = {"pid": pid, "shim_pid": pid, "shim_start": start_of(pid), "last_sequence": 3}
        bundle = start.record("an-earlier-boot", **row)
        record = {"incarnation": ME, "pid": pid, "start": start_of(pid), "boot_id": "earlier"}
        Path(bundle.record).write_text(json.dumps(record))

        async def work() -> None:
            entry = start.run()
            assert entry.pidfd == -1
            assert entry.exit is not None
            assert (entry.view().status, entry.exit.exit_status, entry.exit.cause) == (
                *(states.STOPPED, 255, "reboot"),
            )
            await comes_true(lambda: entry.closed)
            assert is_alive(record)
            start.supervisor.close()

        asyncio.run(work())


LATER = "ffeeddccbbaa9988"
KEPT = {"runtime", "auto_remove", "stdio"}
OLD_ROWS: dict[str, dict[str, Any]] = {
    "ran": {"shim_pid": 1, "shim_start": 1, "last_sequence": 3},
    "was being created": {"state": states.CREATING},
    "had ended": {"state": states.STOPPED, "exit": Exit(3, 1), "last_sequence": 9},
    "was over": {"state": states.STOPPED, "exit": Exit(3, 1), "closed": True, "last_sequence": 9},
    "ran before a reboot": {"boot_id": "an-earlier-boot", "last_sequence": 3},
    "was being undone": {"options": {"abandoned": True, "runtime": "crun"}},
    "removed itself": {
        "options": {"auto_remove": True, "stdio": ["", "/out", ""], "network": "of that start"},
        "last_sequence": 3,
    },
}


@pytest.mark.parametrize("row", OLD_ROWS.values(), ids=OLD_ROWS)
def test_f53_a_row_of_an_older_copy_ends_no_later_start(start: Start, row: dict[str, Any]) -> None:
    """Its container was started again after the copy was made, and runs."""
    bundle = start.record(**row)
    start.started_again(bundle, LATER)

    async def work() -> None:
        entry = start.run()
        assert (entry.incarnation, entry.exit, entry.closed) == (LATER, None, False)
        assert entry.options == {
            **{key: value for key, value in row.get("options", {}).items() if key in KEPT},
            "from_hello": True,
        }
        assert entry.pidfd >= 0
        start.said_hello(incarnation=LATER, state=states.PAUSED, init_pid=4711)
        assert start.supervisor.entries["default", "c"] is entry
        assert (entry.view().status, entry.pid) == (states.PAUSED, 4711)
        await asyncio.sleep(0.1)
        assert start.freer.freed == []
        start.supervisor.close()

    asyncio.run(work())
    assert [(one.incarnation, one.state, one.pid) for one in start.store.load()] == [
        (LATER, states.PAUSED, 4711)
    ]


def test_f53_a_later_start_that_has_not_told_is_asked_by_the_next_manager(start: Start) -> None:
    bundle = start.record(last_sequence=3)
    start.started_again(bundle, LATER)

    async def work() -> None:
        start.run()
        start.supervisor.close()
        start.supervisor.entries.clear()
        start.supervisor.by_incarnation.clear()
        entry = start.run()
        start.said_hello(incarnation=LATER, state=states.STOPPED)
        assert (entry.state, start.freer.freed) == (states.STOPPED, [])
        start.supervisor.close()

    asyncio.run(work())


@pytest.mark.parametrize("why", ["its shim is dead", "its delete was accepted", "before a reboot"])
def test_a_later_start_that_is_over_is_not_waited_for(start: Start, why: str) -> None:
    bundle = start.record(last_sequence=3)
    start.started_again(bundle, LATER)
    if why == "its delete was accepted":
        with start.db.fast_transaction() as tx:
            buried(tx, LATER)
    else:
        record = json.loads(Path(bundle.record).read_bytes())
        record["start" if why == "its shim is dead" else "boot_id"] = 1
        Path(bundle.record).write_text(json.dumps(record))

    async def work() -> None:
        entry = start.run()
        await comes_true(lambda: entry.closed)
        assert (entry.incarnation, start.freer.freed) == (ME, ["c"])
        start.supervisor.close()

    asyncio.run(work())


def sleep_as(directory: str) -> str:
    """A program that the kernel gives the short name that setproctitle gives to shims."""
    program = f"{directory}/lighter-shim --"
    os.symlink("/bin/sleep", program)
    return program


@contextmanager
def lighter_shim(instance: str) -> Iterator[int]:
    """A process that is called as a shim of this instance."""
    title = f"lighter-shim --instance {instance} --namespace default --id c"
    with (
        tempfile.TemporaryDirectory() as directory,
        subprocess.Popen([title, "1000"], executable=sleep_as(directory)) as process,
    ):
        try:
            # An exec is told of before its arguments can be read.
            await_that(lambda: process.pid in living_shims(instance), 20, "it is called so")
            yield process.pid
        finally:
            process.kill()


def test_a_tombstone_goes_with_its_shim_though_no_manager_saw_that(start: Start) -> None:
    with start.db.fast_transaction() as tx:
        buried(tx, LATER)

    async def work() -> None:
        with lighter_shim(start.root.instance):
            start.recovery.run()
            assert start.store.tombstones() == {LATER}
        with lighter_shim("another"):
            start.recovery.run()
            assert start.store.tombstones() == set()
        start.supervisor.close()

    asyncio.run(work())


def test_a_process_whose_memory_is_locked_holds_up_no_start(tmp_path: Path) -> None:
    """As when it waits for a dead disk. One in a container may call itself a shim."""
    found: list[set[int]] = []
    argv = ["unshare", "--pid", "--fork", "--kill-child", sleep_as(str(tmp_path)), "1000"]
    with (
        lighter_shim("0badcafe") as shim,
        stuck_process(tmp_path / "disk"),
        subprocess.Popen(argv) as outside,
    ):
        look = threading.Thread(target=lambda: found.append(living_shims("0badcafe")), daemon=True)
        look.start()
        look.join(30)
        answered = list(found)
        children = Path(f"/proc/{outside.pid}/task/{outside.pid}/children")
        await_that(lambda: bool(children.read_text()), 30, "it has forked")
        inside = int(children.read_text())
        comm = Path(f"/proc/{inside}/comm")
        await_that(lambda: comm.read_text() == "lighter-shim --\n", 30, "it has its short name")
        seen = may_be_shim(shim), may_be_shim(inside)
        outside.kill()
    assert answered == [{shim}]
    assert seen == (True, False)


def test_shims_that_have_tasks_keep_no_tombstone(start: Start) -> None:
    with lighter_shim(start.root.instance) as pid:
        start.record(shim_pid=pid, shim_start=start_of(pid), last_sequence=1)
        with start.db.fast_transaction() as tx:
            buried(tx, LATER)

        async def work() -> None:
            assert start.run().pidfd >= 0
            assert start.store.tombstones() == set()
            start.supervisor.close()

        asyncio.run(work())


def test_a_shim_without_a_row_gets_one(start: Start) -> None:
    async def work() -> None:
        start.said_hello()
        start.supervisor.close()

    asyncio.run(work())
    assert [(row.namespace, row.id, row.state) for row in start.store.load()] == [
        ("default", "c", states.RUNNING)
    ]


@pytest.mark.parametrize(
    "lie",
    [
        {"namespace": "../.."},
        {"namespace": None},
        {"id": "../../../etc"},
        {"id": ""},
        {"id": ["c"]},
        {"state": "deleted"},
        {"state": "unheard-of"},
        {"state": {}},
        {"start": "1"},
        {"init_pid": -1},
        {"init_pid": 1 << 70},
    ],
    ids=str,
)
def test_one_that_says_what_no_shim_says_becomes_no_row_and_no_path(
    start: Start, lie: dict[str, Any]
) -> None:
    async def work() -> None:
        start.said_hello(**lie)

    asyncio.run(work())
    assert start.store.load() == []
    assert start.supervisor.entries == {}
    assert start.router.peers == {}


def test_f49_and_f55_no_start_fails_for_one_end_that_cannot_be_recorded(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    """After a reboot onto a full disk: it is told why, the others are, and it is tried again."""
    for id_ in ("b", "c", "d"):
        entry = Entry("default", id_, ME + id_, states.RUNNING, "", "an-earlier-boot", 1)
        with start.db.fast_transaction() as tx:
            start.store.save(tx, entry)
    start.db.durable.execute(
        "CREATE TEMP TRIGGER t BEFORE INSERT ON tasks WHEN new.id = 'c'"
        " BEGIN SELECT RAISE(FAIL, 'disk full'); END"
    )

    async def work() -> None:
        entry = start.run()
        view = entry.view()
        assert view.status == states.UNKNOWN and "disk full" in view.reason
        assert not entry.ended.is_set() and entry.exit is None
        for other in ("b", "d"):
            told = start.supervisor.entries["default", other]
            assert told.exit is not None and told.exit.cause == "reboot"
        await comes_true(lambda: start.freer.freed == ["b", "d"])
        start.db.durable.execute("DROP TRIGGER t")
        await comes_true(lambda: entry.closed)
        assert entry.exit is not None and entry.exit.cause == "reboot"
        view = entry.view()
        assert (view.status, view.reason) == (states.STOPPED, "")
        start.supervisor.close()

    with caplog.at_level("WARNING"):
        asyncio.run(work())
    failed, *_again, done = (record.getMessage() for record in caplog.records)
    assert failed.startswith("recover task c: write database ")
    assert failed.endswith(": disk full; trying on")
    assert done.startswith("recover task c: done, at try ")


def test_a_mistake_about_one_task_ends_no_start(
    start: Start, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    start.record("an-earlier-boot")
    mistakes = [ZeroDivisionError("one"), ZeroDivisionError("one"), KeyError("two")]
    record_exit = start.supervisor.record_exit

    def mistaken(entry: Entry, exit_: Exit, of_execs: Exit) -> None:
        if mistakes:
            raise mistakes.pop(0)
        record_exit(entry, exit_, of_execs)

    monkeypatch.setattr(start.supervisor, "record_exit", mistaken)
    monkeypatch.setattr(recovery, "retries", lambda: iter([0.01] * 5))

    async def work() -> None:
        entry = start.run()
        assert "one" in entry.view().reason
        await comes_true(lambda: entry.closed)
        start.supervisor.close()

    asyncio.run(work())
    told = [(record.getMessage(), bool(record.exc_info)) for record in caplog.records]
    assert told == [
        ("recover task c: ZeroDivisionError: one; trying on", True),
        ("recover task c: ZeroDivisionError: one; 2 times so far, trying on", False),
        ("recover task c: KeyError: 'two'; trying on", True),
        ("recover task c: done, at try 4", False),
    ]


@pytest.mark.parametrize("what", ["living_shims", "is_alive", "sockets", "tombstones"])
def test_what_a_start_cannot_tidy_up_is_left_to_the_next(
    start: Start, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    def mistaken(*_of: object) -> None:
        raise ZeroDivisionError

    bundle = start.bundle_of("default", "lost")
    bundle.write(b"{}", LATER, "")
    alive = {"incarnation": LATER, "pid": 1, "start": 1, "boot_id": read_boot_id()}
    Path(bundle.record).write_text(json.dumps(alive))
    if what == "sockets":
        os.mkdir(f"{start.state.short_sockets}/directory")
    elif what == "tombstones":
        start.db.fast.execute(
            "CREATE TEMP TRIGGER t BEFORE DELETE ON tombstones"
            " BEGIN SELECT RAISE(FAIL, 'disk full'); END"
        )
    else:
        monkeypatch.setattr(recovery, what, mistaken)
    with start.db.durable_transaction() as tx:
        buried(tx, LATER)
        if what == "tombstones":
            tx.execute("UPDATE tombstones SET at = 1")

    async def work() -> None:
        start.record()
        entry = start.run()
        await comes_true(lambda: entry.closed)
        start.supervisor.close()

    asyncio.run(work())
