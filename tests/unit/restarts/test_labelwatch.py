"""The look at containerd's restart labels goes on, whatever happens to containers meanwhile."""

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from lighter.daemon.events.log import EventLog
from lighter.daemon.metadata.containers import ContainerStore
from lighter.daemon.metadata.db import Database
from lighter.daemon.restarts import labels, labelwatch
from lighter.daemon.restarts.labelwatch import LabelWatch
from lighter.daemon.restarts.service import Restarts
from lighter.daemon.restarts.store import RestartStore
from lighter.daemon.tasks.entry import Entry
from lighter.daemon.types import Container
from lighter.proto.errors import Unavailable


class Running:
    """A task that runs, as far as it is looked at."""

    is_task = True
    exit = None
    closed = False


class Tasks:
    """`meanwhile` is what happens while a task is killed."""

    def __init__(self) -> None:
        self.kills = 0
        self.meanwhile: Callable[[], None] = lambda: None
        self.again = asyncio.Event()

    async def kill(self, *_words: Any) -> None:
        self.kills += 1
        if self.kills == 3:
            self.again.set()
        self.meanwhile()


class World:
    def __init__(self, path: Path) -> None:
        self.db = Database(str(path / "db"))
        self.containers = ContainerStore(self.db)
        self.store = RestartStore(self.db, str(path / "notes"))
        self.tasks = Tasks()
        self.entries = {("default", "a"): cast(Entry, Running())}
        self.restarts = Restarts(
            store=self.store,
            containers=cast(Any, None),
            tasks=cast(Any, self.tasks),
            supervisor=cast(Any, self),
            events_log=EventLog(self.db),
        )
        self.watch = LabelWatch(
            restarts=self.restarts,
            store=self.store,
            tasks=cast(Any, self.tasks),
            supervisor=cast(Any, self),
        )
        self.add("a", labels.STOPPED)

    def in_background(self, work: Any) -> None:
        work.close()

    def add(self, id_: str, status: str, **more: str) -> None:
        made = Container(
            namespace="default",
            id=id_,
            image="",
            runtime="io.containerd.runc.v2",
            snapshotter="",
            snapshot_key="",
            spec=b"{}",
            labels={labels.STATUS: status, **more},
            options={},
            created_at=0,
            updated_at=0,
        )
        self.containers.create(made)

    def rounds(self) -> None:
        """Until it has looked three times."""

        async def look() -> None:
            watching = asyncio.create_task(self.watch.run())
            waiting = asyncio.create_task(self.tasks.again.wait())
            await asyncio.wait((watching, waiting), timeout=30, return_when="FIRST_COMPLETED")
            assert waiting.done() and not watching.done(), "it goes on"
            watching.cancel()

        asyncio.run(look())


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr(labelwatch, "LOOK_S", 0.01)
    made = World(tmp_path)
    yield made
    made.db.close()


def test_a_container_that_is_deleted_meanwhile_does_not_end_the_look(world: World) -> None:
    world.add("b", labels.RUNNING)

    def delete() -> None:
        if world.tasks.kills == 1:
            world.containers.delete("default", "b")

    world.tasks.meanwhile = delete
    world.rounds()
    assert world.store.get("default", "b") is None


def test_who_says_meanwhile_that_it_is_stopped_is_heard(world: World) -> None:
    world.add("b", labels.RUNNING)

    def stop() -> None:
        if world.tasks.kills == 1:
            world.containers.update(
                "default",
                "b",
                labels={labels.STATUS: labels.RUNNING, labels.EXPLICITLY_STOPPED: "true"},
            )

    world.tasks.meanwhile = stop
    world.rounds()
    assert world.store.get("default", "b") is None
    definition = world.store.definition("default", "b")
    assert definition is not None and definition.is_stopped


@pytest.mark.parametrize("error", [Unavailable("kill: no"), RuntimeError("a mistake")])
def test_what_fails_for_one_is_done_for_others(world: World, error: Exception) -> None:
    world.add("b", labels.RUNNING)

    def fail() -> None:
        raise error

    world.tasks.meanwhile = fail
    world.rounds()
    owed = world.store.get("default", "b")
    assert owed is not None and owed.due_at is not None


@pytest.mark.parametrize(("ahead_s", "is_started"), [(-30, True), (0, False), (3600, True)])
def test_f57_after_a_clock_that_was_set_back_what_has_no_task_is_started(
    world: World, monkeypatch: pytest.MonkeyPatch, ahead_s: int, is_started: bool
) -> None:
    """Recorded some time ago, or in an hour: nobody is about to make a task."""
    monkeypatch.setattr(labelwatch, "LOOK_S", 20.0)
    world.add("b", labels.RUNNING)
    with world.db.durable_transaction() as tx:
        at = time.time_ns() + ahead_s * 10**9
        tx.execute("UPDATE containers SET updated_at = ? WHERE id = 'b'", (at,))

    async def look() -> None:
        await world.watch._look_safely("default", "b")

    asyncio.run(look())
    owed = world.store.get("default", "b")
    assert (owed is not None and owed.due_at is not None) is is_started


def test_an_idle_database_is_not_read_again(world: World) -> None:
    read: list[str] = []
    world.db.durable.set_trace_callback(read.append)
    assert [one.id for one in world.store.labelled()] == ["a"] and read
    read.clear()
    assert [one.id for one in world.store.labelled()] == ["a"] and not read
    world.add("b", labels.RUNNING)
    assert [one.id for one in world.store.labelled()] == ["a", "b"]
    # By the other connection, and by a row that goes with another one.
    with world.db.fast_transaction() as tx:
        tx.execute("UPDATE containers SET labels = '{}' WHERE id = 'b'")
    assert [one.id for one in world.store.labelled()] == ["a"]
    before = world.db.changes
    world.containers.delete("default", "a")
    assert world.store.labelled() == [] and world.db.changes > before
