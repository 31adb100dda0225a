"""Who reads a task together: the first freezes it, the last one thaws it, nobody else does."""

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest

from lighter.daemon.containers.freezing import Freezing
from lighter.daemon.metadata.db import Database
from lighter.daemon.tasks.entry import Entry
from lighter.daemon.tasks.service import TaskService
from lighter.daemon.tasks.shims import Peer, ShimRouter
from lighter.daemon.tasks.types import Exit
from lighter.proto import states
from lighter.proto.errors import Unavailable


class Freezer:
    """The tasks' service, as far as it freezes: what was done to the one task."""

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        self.steps: list[str] = []

    def find(self, _namespace: str, _id: str) -> Entry:
        return self.entry

    async def pause(self, _namespace: str, _id: str) -> None:
        self.steps.append("pause")
        await asyncio.sleep(0)
        self.entry.state = states.PAUSED

    async def resume(self, _namespace: str, _id: str) -> None:
        self.steps.append("resume")
        await asyncio.sleep(0)
        self.entry.state = states.RUNNING


class Place:
    def __init__(self, directory: Path, state: str) -> None:
        self.entry = Entry("default", "c", "a" * 16, state, "", "boot", 1)
        router = ShimRouter(1, lambda _peer: None, lambda _peer, _event: True)
        self.entry.peer = Peer(router, self.entry.incarnation)
        self.entry.peer.version = 1
        self.db = Database(str(directory / "db"))
        self.freezer = Freezer(self.entry)
        self.freezing = Freezing(self.db, cast(Any, self.freezer))

    def notes(self) -> list[str]:
        rows = self.db.rows("SELECT key FROM meta WHERE key LIKE 'frozen:%'")
        return [row["key"] for row in rows]


@pytest.mark.parametrize("first_leaves_first", [True, False])
def test_readers_at_a_time_are_counted(tmp_path: Path, first_leaves_first: bool) -> None:
    place = Place(tmp_path, states.RUNNING)
    leave = [asyncio.Event(), asyncio.Event()]
    inside = [asyncio.Event(), asyncio.Event()]

    async def read(number: int) -> None:
        async with place.freezing.frozen("default", "c"):
            inside[number].set()
            await leave[number].wait()
            assert place.entry.state == states.PAUSED

    async def work() -> None:
        readers = [asyncio.create_task(read(number)) for number in (0, 1)]
        for one in inside:
            await one.wait()
        order = (0, 1) if first_leaves_first else (1, 0)
        leave[order[0]].set()
        await readers[order[0]]
        assert place.notes() == ["frozen:default/c"]
        leave[order[1]].set()
        await readers[order[1]]

    asyncio.run(work())
    assert place.freezer.steps == ["pause", "resume"]
    assert place.notes() == []
    assert place.entry.readers == 0
    place.db.close()


def test_what_a_user_has_paused_stays_so(tmp_path: Path) -> None:
    place = Place(tmp_path, states.PAUSED)

    async def work() -> None:
        async with place.freezing.frozen("default", "c"):
            assert place.entry.readers == 1

    asyncio.run(work())
    assert place.freezer.steps == []
    assert place.entry.state == states.PAUSED
    place.db.close()


def test_a_reader_who_gives_up_while_it_is_frozen_leaves_nothing_frozen(tmp_path: Path) -> None:
    place = Place(tmp_path, states.RUNNING)

    async def work() -> None:
        asked = asyncio.Event()
        go_on = asyncio.Event()

        async def late() -> None:
            await go_on.wait()
            place.entry.state = states.PAUSED

        async def pause(_namespace: str, _id: str) -> None:
            asked.set()
            await asyncio.shield(asyncio.create_task(late()))

        place.freezer.pause = pause  # type: ignore[method-assign]

        async def read() -> None:
            async with place.freezing.frozen("default", "c"):
                raise AssertionError("it is not frozen yet")

        reader = asyncio.create_task(read())
        await asked.wait()
        reader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reader
        go_on.set()
        async with asyncio.timeout(20):
            while place.notes():  # noqa: ASYNC110 (who takes them away tells nobody)
                await asyncio.sleep(0.01)

    asyncio.run(work())
    assert place.freezer.steps == ["resume"]
    assert place.entry.state == states.RUNNING
    place.db.close()


def test_what_is_stopped_goes_on_when_it_is_read(tmp_path: Path) -> None:
    """A user had paused it before, and so it is not the reader's to resume."""
    place = Place(tmp_path, states.PAUSED)
    signals: list[int] = []

    class Tasks(TaskService):
        async def kill(self, *about: Any) -> None:
            signals.append(about[3])

        async def _step(self, namespace: str, id_: str, step: str) -> None:
            await place.freezer.resume(namespace, id_)
            place.entry.exit = Exit(3, 1)
            place.entry.ended.set()

    tasks = Tasks.__new__(Tasks)
    tasks.find = place.freezer.find  # type: ignore[method-assign]

    async def work() -> None:
        async with asyncio.timeout(20), place.freezing.frozen("default", "c"):
            stop = asyncio.ensure_future(tasks.stop("default", "c", 15, None))
            while not place.entry.stops or not signals:  # noqa: ASYNC110 (it tells nobody)
                await asyncio.sleep(0.01)
            assert place.freezer.steps == []
        assert (await asyncio.wait_for(stop, 20)).exit_status == 3

    asyncio.run(work())
    assert (place.freezer.steps, signals) == (["resume"], [15])
    place.db.close()


def test_nobody_resumes_by_hand_what_is_read(tmp_path: Path) -> None:
    place = Place(tmp_path, states.PAUSED)
    tasks = TaskService.__new__(TaskService)
    tasks.find = place.freezer.find  # type: ignore[method-assign]
    place.entry.readers = 1
    with pytest.raises(Unavailable, match="it is held still"):
        asyncio.run(tasks.resume("default", "c"))
    place.db.close()
