"""What a manager does with tasks whose shims are gone."""

import asyncio
import os
import sqlite3
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgpack
import pytest

from lighter.daemon.app import _Followers
from lighter.daemon.events.log import EventLog
from lighter.daemon.metadata.db import Database
from lighter.daemon.tasks import execs
from lighter.daemon.tasks.bundle import Bundle
from lighter.daemon.tasks.cgrouplock import CgroupLock
from lighter.daemon.tasks.entry import Entry, Exec
from lighter.daemon.tasks.execs import ENDED_KEPT, ExecService
from lighter.daemon.tasks.lost import LostTasks
from lighter.daemon.tasks.shims import Peer, ShimRouter
from lighter.daemon.tasks.store import TaskStore
from lighter.daemon.tasks.supervisor import Supervisor
from lighter.daemon.tasks.types import Exit
from lighter.proto import codec, events, faults, states
from lighter.proto.errors import FailedPrecondition, Internal, LighterError, Unavailable, from_wire
from lighter.proto.paths import Root, State

pytestmark = pytest.mark.root


class Followers:
    """Who only want to know when a task is forgotten."""

    def __init__(self) -> None:
        self.forgotten = asyncio.Event()

    def on_started(self, entry: Entry) -> None:
        pass

    on_exit = on_closed = on_started

    def on_forgetting(self, tx: sqlite3.Connection, entry: Entry) -> None:
        pass

    def on_forgotten(self, entry: Entry) -> None:
        self.forgotten.set()


class Unmounting:
    """Frees a task's root, which is all that these tasks hold."""

    def __init__(self) -> None:
        self.freed: list[str] = []

    async def free(self, entry: Entry, bundle: Bundle) -> bool:
        self.freed.append(entry.incarnation)
        _unmount(bundle.rootfs)
        return False


def _unmount(path: str) -> None:
    if os.path.ismount(path):
        subprocess.run(["umount", path], check=True)


class Place:
    def __init__(self, directory: Path) -> None:
        self.bundle_of = partial(
            Bundle, State(str(directory / "state")), Root(str(directory / "root"))
        )
        self.db = Database(str(directory / "db"))
        self.store = TaskStore(self.db)
        self.supervisor = Supervisor(self.db, self.store, EventLog(self.db), self.bundle_of)
        self.freer = Unmounting()
        self.lost = LostTasks(self.supervisor, self.bundle_of, self.freer)

    def entry(self, incarnation: str, state: str) -> Entry:
        entry = Entry("default", "c", incarnation, state, "", "boot", 1, closed=True)
        with self.db.fast_transaction() as tx:
            self.store.save(tx, entry)
        self.supervisor.add(entry)
        return entry


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    made.db.close()


def test_f03_a_removal_that_failed_is_tried_again_though_its_task_is_closed(place: Place) -> None:
    """A create that a dead manager had begun: its root was mounted still when it was found."""

    bundle = place.bundle_of("default", "c")
    os.makedirs(bundle.rootfs)
    subprocess.run(["mount", "-t", "tmpfs", "none", bundle.rootfs], check=True)

    async def work() -> None:
        entry = place.entry("a" * 16, states.CREATING)
        entry.orphan = True
        followers = Followers()
        place.supervisor.on_known_closed(entry)
        place.supervisor.follow(followers, place.lost)
        async with asyncio.timeout(20):
            await followers.forgotten.wait()

    try:
        asyncio.run(work())
    finally:
        _unmount(bundle.rootfs)
    assert not bundle.exists()
    assert place.freer.freed == ["a" * 16]
    assert place.store.load() == []


def test_f03_and_f49_a_create_that_was_undone_goes_when_there_is_space_again(place: Place) -> None:
    """Its shim has told the end of it, and does not repeat what was committed."""

    async def work() -> None:
        entry = place.entry("a" * 16, states.CREATING)
        entry.orphan, entry.closed = True, False
        followers = Followers()
        place.supervisor.follow(followers, place.lost)
        peer = Peer(ShimRouter(1, lambda _p: None, lambda _p, _e: True), entry.incarnation)
        event = codec.Event(1, 1, events.CLOSED, 7, {"container_id": "c", "error": "no"})
        with place.db.fast_transaction() as tx:
            tx.execute(
                "CREATE TEMP TRIGGER t BEFORE DELETE ON tasks BEGIN SELECT RAISE(FAIL, 'no'); END"
            )
        assert place.supervisor.on_event(peer, event)
        assert place.supervisor.entries
        with place.db.fast_transaction() as tx:
            tx.execute("DROP TRIGGER t")
        async with asyncio.timeout(20):
            await followers.forgotten.wait()

    asyncio.run(work())
    assert place.store.load() == []


def test_f49_who_follows_hears_whatever_another_could_not_do() -> None:
    heard: list[str] = []

    def fails(_entry: Entry) -> None:
        heard.append("restarts")
        raise Unavailable("the disk is full")

    followers = _Followers(
        *(
            SimpleNamespace(on_started=fails),
            SimpleNamespace(on_started=lambda _: heard.append("health")),
        ),
        *(SimpleNamespace(), SimpleNamespace()),
    )  # type: ignore[arg-type]
    with pytest.raises(Unavailable, match="full"):
        followers.on_started(Entry("default", "c", "a" * 16, states.RUNNING, "", "", 1))
    assert heard == ["restarts", "health"]


def test_what_has_a_forgotten_tasks_name_now_is_left_alone(place: Place) -> None:
    async def work() -> None:
        old = place.entry("a" * 16, states.STOPPED)
        settling = asyncio.ensure_future(place.supervisor.settle(old))
        await asyncio.sleep(0)
        place.supervisor.remove(old)
        place.entry("b" * 16, states.RUNNING)
        place.supervisor.follow(Followers(), place.lost)
        await settling

    asyncio.run(work())
    assert place.freer.freed == []
    assert [(one.incarnation, one.state) for one in place.store.load()] == [
        ("b" * 16, states.RUNNING)
    ]


def test_f21_one_that_is_forgotten_while_it_is_freed_takes_no_later_ones_row(place: Place) -> None:
    class Freeing(Unmounting):
        async def free(self, entry: Entry, bundle: Bundle) -> bool:
            place.supervisor.remove(entry)
            place.entry("b" * 16, states.RUNNING)
            return await super().settle(entry, bundle)

    async def work() -> None:
        old = place.entry("a" * 16, states.RUNNING)
        lost = LostTasks(place.supervisor, place.bundle_of, Freeing())
        place.supervisor.follow(Followers(), lost)
        await place.supervisor.settle(old)

    asyncio.run(work())
    assert [one.incarnation for one in place.store.load()] == ["b" * 16]
    assert place.db.rows("SELECT topic FROM events") == []


@pytest.mark.parametrize(("exec_id", "flushed"), [("", True), ("e", False)])
def test_the_end_of_a_container_is_flushed_and_that_of_an_exec_is_not(
    place: Place, exec_id: str, flushed: bool
) -> None:
    """A flush takes milliseconds in which nobody else is served; no exec outlives a power cut."""
    entry = place.entry("a" * 16, states.RUNNING)
    entry.execs["e"] = Exec("e", states.RUNNING, False, 1)
    durable: list[str] = []
    place.db.durable.set_trace_callback(durable.append)
    body = {"exec_id": exec_id, "exit_status": 3, "exited_at": 5, "cause": ""}
    router = ShimRouter(1, lambda _peer: None, lambda _peer, _event: True)
    told = codec.Event(1, 1, events.EXIT, 5, body)
    assert place.supervisor.on_event(Peer(router, entry.incarnation), told)
    assert ("COMMIT" in durable) == flushed
    (kept,) = place.store.load()
    ended = kept.execs["e"] if exec_id else kept
    assert ended.exit is not None and ended.exit.exit_status == 3


def test_of_ended_execs_the_newest_stay_and_those_of_clients_who_delete_them(place: Place) -> None:
    entry = place.entry("a" * 16, states.RUNNING)
    router = ShimRouter(1, lambda _peer: None, lambda _peer, _event: True)
    entry.peer = Peer(router, entry.incarnation)
    entry.peer.version = 1
    bundle = place.bundle_of("default", "c")
    os.makedirs(bundle.dir)
    bundle.write_added("x000", {"process": {}, "stdio": {}})
    with place.db.fast_transaction() as tx:
        for number in range(ENDED_KEPT + 10):
            exec_ = Exec(f"x{number:03}", states.STOPPED, False, 1, exit=Exit(0, number))
            entry.execs[exec_.exec_id] = exec_
            place.store.save_exec(tx, entry, exec_)
        entry.execs["runs"] = Exec("runs", states.RUNNING, False, 1)
    with pytest.raises(Unavailable):  # there is no shim
        asyncio.run(execs_of(place).exec("default", "c", "new", {}, {}))
    kept = {"x000", *(f"x{number:03}" for number in range(11, ENDED_KEPT + 10))}
    assert set(entry.execs) == kept | {"runs"}
    (recorded,) = place.store.load()
    assert set(recorded.execs) == kept


def execs_of(place: Place) -> ExecService:
    return ExecService(
        db=place.db,
        store=place.store,
        log=EventLog(place.db),
        supervisor=place.supervisor,
        bundle_of=place.bundle_of,
        cgroup_lock=CgroupLock(own="/dev/null"),
    )


def test_an_exec_whose_task_ends_before_it_is_recorded_is_refused(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While its shim is waited for. Nothing of an exec comes after its task's exit."""
    entry = place.entry("a" * 16, states.RUNNING)

    async def connected(_entry: Entry) -> None:
        place.supervisor.record_exit(entry, Exit(0, 5), Exit(255, 5))

    monkeypatch.setattr(execs, "connected", connected)
    with pytest.raises(FailedPrecondition):
        asyncio.run(execs_of(place).exec("default", "c", "x", {}, {}))
    assert not entry.execs
    rows = place.db.rows("SELECT topic FROM events")
    assert [row["topic"] for row in rows] == [events.EXIT]


@pytest.mark.parametrize("code", ["deadline-exceeded", "unavailable", "failed-precondition"])
@pytest.mark.parametrize("answered", [True, False])
def test_who_waits_for_an_exec_hears_when_its_shim_cannot_start_it(
    place: Place, monkeypatch: pytest.MonkeyPatch, code: str, answered: bool
) -> None:
    """Its runtime was ended then. Where the shim itself says nothing, it may be at it still."""
    place.entry("a" * 16, states.RUNNING)
    error = from_wire(code, "exec: no answer", {})
    error.answered = answered

    class Shim:
        async def call(self, *_request: Any) -> Any:
            raise error

    async def connected(_entry: Entry) -> Any:
        return Shim()

    async def work() -> bool:
        service = execs_of(place)
        await service.add("default", "c", "x", {}, False, {})
        with pytest.raises(type(error)):
            await service.start("default", "c", "x")
        return place.supervisor.find("default", "c").execs["x"].ended.is_set()

    place.bundle_of("default", "c").write(b"{}", "a" * 16, "")
    monkeypatch.setattr(execs, "connected", connected)
    assert asyncio.run(work()) == (answered or code == "failed-precondition")


def test_an_exec_whose_start_was_not_recorded_ends_with_its_task(place: Place) -> None:
    """As on a full disk: who waits for it, or for the event of its end, is answered."""
    entry = place.entry("a" * 16, states.RUNNING)
    runs = entry.execs["runs"] = Exec("runs", states.RUNNING, False, 1, pid=7, started_at=2)
    untold = entry.execs["untold"] = Exec("untold", states.RUNNING, False, 1, pid=8)
    asked = entry.execs["asked"] = Exec("asked", states.CREATING, False, 1)
    place.supervisor.record_exit(entry, Exit(137, 5), Exit(255, 5))
    for exec_ in (runs, untold):
        assert exec_.ended.is_set() and exec_.exit == Exit(255, 5)
    assert not asked.ended.is_set() and asked.exit is None
    rows = place.db.rows("SELECT topic, body FROM events ORDER BY sequence")
    told = [(topic, msgpack.unpackb(body).get("exec_id", "")) for topic, body in rows]
    assert told == [
        (events.EXIT, "runs"),
        (events.EXEC_STARTED, "untold"),
        (events.EXIT, "untold"),
        (events.EXIT, ""),
    ]


def test_f10_what_could_not_be_committed_has_not_happened(place: Place) -> None:
    """Its shim tells it again, and then it is in its place and there once."""
    entry = place.entry("a" * 16, states.CREATED)
    peer = Peer(ShimRouter(1, lambda _peer: None, lambda _peer, _event: True), entry.incarnation)
    event = codec.Event(1, 1, events.START, 7, {"container_id": "c", "pid": 1})
    with place.db.fast_transaction() as tx:
        tx.execute(
            "CREATE TEMP TRIGGER t BEFORE INSERT ON events BEGIN SELECT RAISE(FAIL, 'no'); END"
        )
    with pytest.raises(LighterError):
        place.supervisor.on_event(peer, event)
    assert (entry.state, entry.started_at, entry.last_sequence) == (states.CREATED, None, 0)
    with place.db.fast_transaction() as tx:
        tx.execute("DROP TRIGGER t")
    assert place.supervisor.on_event(peer, event)
    assert (entry.state, entry.started_at) == (states.RUNNING, 7)
    (kept,) = place.store.load()
    assert (kept.state, kept.last_sequence) == (states.RUNNING, 1)
    assert [row[0] for row in place.db.rows("SELECT topic FROM events")] == [events.START]


def test_who_waits_for_an_end_wakes_when_something_fails_behind_its_commit(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its shim tells it again, and then it is an old one."""
    entry = place.entry("a" * 16, states.RUNNING)
    peer = Peer(ShimRouter(1, lambda _peer: None, lambda _peer, _event: True), entry.incarnation)
    event = codec.Event(1, 1, events.EXIT, 5, {"exit_status": 3, "exited_at": 5, "cause": ""})
    plan = faults.Faults({"FAULT": "event.exit-committed:error"}).plan
    monkeypatch.setattr(faults._faults, "plan", plan)
    monkeypatch.setattr(faults._faults, "passes", {})
    with pytest.raises(Internal):
        place.supervisor.on_event(peer, event)
    assert entry.exit is not None and entry.ended.is_set()
    assert place.supervisor.on_event(peer, event)


def test_f80_an_event_that_is_told_again_is_not_applied_again(place: Place) -> None:
    """Its acknowledgement was lost with a manager; meanwhile the container has gone further."""
    entry = place.entry("a" * 16, states.CREATED)
    router = ShimRouter(1, lambda _peer: None, lambda _peer, _event: True)
    peer = Peer(router, entry.incarnation)
    topics = (events.START, events.PAUSED, events.RESUMED, events.PAUSED)
    told = [
        codec.Event(1, number, topic, number, {"container_id": "c", "pid": 1})
        for number, topic in enumerate(topics, 1)
    ]
    for event in (*told, *told):
        assert place.supervisor.on_event(peer, event), "it is acknowledged, once more"
    (kept,) = place.store.load()
    assert (kept.state, kept.last_sequence) == (states.PAUSED, len(told))
    with place.db.fast_transaction() as tx:
        written = [row[0] for row in tx.execute("SELECT topic FROM events ORDER BY sequence")]
    assert written == list(topics)
