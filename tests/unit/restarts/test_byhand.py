"""Removals by force that the manager before has begun: done in the end, or called off."""

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import repeat
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from lighter.daemon.containers.autoremoval import AutoRemoval
from lighter.daemon.events.log import EventLog
from lighter.daemon.metadata.containers import ContainerStore
from lighter.daemon.metadata.db import Database
from lighter.daemon.restarts import byhand
from lighter.daemon.restarts.byhand import ByHand
from lighter.daemon.restarts.service import Restarts
from lighter.daemon.restarts.store import WITH_VOLUMES, Restart, RestartStore
from lighter.daemon.types import Container
from lighter.proto.errors import NotFound, Unavailable

KEY = ("default", "a")


class World:
    """One container, whose removal was noted. `failures` of it come first, with what they do."""

    def __init__(self, path: Path) -> None:
        self.db = Database(str(path / "db"))
        self.containers = ContainerStore(self.db)
        self.notes = path / "notes"
        self.store = RestartStore(self.db, str(self.notes))
        self.failures: list[Callable[[], Any]] = []
        self.tries = 0
        self.tasks: list[asyncio.Task[None]] = []
        self.entries: dict[Any, Any] = {}
        common = {
            "store": self.store,
            "containers": cast(Any, self),
            "tasks": cast(Any, self),
            "supervisor": cast(Any, self),
        }
        self.restarts = Restarts(events_log=EventLog(self.db), **common)
        self.by_hand = ByHand(restarts=self.restarts, **common)
        self.containers.create(
            Container(
                *(*KEY, "", "io.containerd.runc.v2", "", "", b"{}"),
                labels={},
                options={},
                created_at=0,
                updated_at=0,
            )
        )
        with self.store.changes() as tx:
            self.store.put(tx, Restart(*KEY, stopped=True, removal=WITH_VOLUMES))

    def in_background(self, work: Any) -> None:
        self.tasks.append(asyncio.ensure_future(work))

    async def delete(self, *key: str, force: bool, volumes: bool) -> None:
        assert force and volumes
        self.tries += 1
        if self.failures:
            await self.failures.pop(0)()
            raise Unavailable("the disk is full")
        self.containers.delete(*key)

    async def start(self, *_key: str, asked: Callable[[], None]) -> int:
        asked()
        return 7

    @property
    def is_there(self) -> bool:
        return self.store.definition(*KEY) is not None

    async def recovered(self) -> None:
        self.by_hand.recover()
        async with asyncio.timeout(20):
            await asyncio.gather(*self.tasks)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr(byhand, "retries", lambda: repeat(0.001))
    made = World(tmp_path)
    yield made
    made.db.close()


async def nothing() -> None:
    pass


def test_f49_a_removal_that_was_noted_is_tried_until_it_is_done(world: World) -> None:
    world.failures = [nothing] * 3
    asyncio.run(world.recovered())
    assert (world.tries, world.is_there) == (4, False)


@pytest.mark.parametrize("when", ["between two tries", "while it is removed"])
def test_a_start_calls_off_a_removal_that_nobody_is_at(world: World, when: str) -> None:
    """The next manager would end what runs by then."""

    async def start_it() -> None:
        await world.by_hand.start_task(*KEY)

    async def start_it_later() -> None:
        world.in_background(start_it())

    async def work() -> None:
        await world.recovered()
        await asyncio.gather(*world.tasks)

    world.failures = [start_it_later if when == "between two tries" else start_it]
    asyncio.run(work())
    called_off = when == "between two tries"
    assert world.is_there == called_off
    assert world.tries == (1 if called_off else 2)
    if called_off:
        row = world.store.get(*KEY)
        assert row is not None and not row.removal


def test_making_way_for_a_task_calls_off_the_removal(world: World) -> None:
    """One that waits meanwhile for the container to be at rest would remove what was made."""

    async def work() -> None:
        async with world.restarts.alone(KEY):
            # Who comes first has the lock first.
            world.tasks.append(asyncio.ensure_future(world.by_hand.make_way(*KEY)))
            await asyncio.sleep(0)
            world.by_hand.recover()
            await asyncio.sleep(0)
        async with asyncio.timeout(20):
            await asyncio.gather(*world.tasks)

    asyncio.run(work())
    row = world.store.get(*KEY)
    assert world.is_there and world.tries == 0
    assert row is not None and not row.removal


@pytest.mark.parametrize("removes_itself", [True, False])
def test_what_removes_itself_may_be_faster_than_who_removes_it(
    world: World, removes_itself: bool
) -> None:
    container = world.containers.get(*KEY)
    world.containers.replace(replace(container, options={"auto_remove": removes_itself}))

    async def be_faster(*_key: str, **_how: bool) -> None:
        world.containers.delete(*KEY)
        raise NotFound("get container a: there is none")

    world.delete = be_faster  # type: ignore[method-assign]
    said = contextlib.nullcontext() if removes_itself else pytest.raises(NotFound)
    with said:
        asyncio.run(world.by_hand.delete(*KEY, force=True))
    with pytest.raises(NotFound):
        asyncio.run(world.by_hand.delete(*KEY, force=True))
    if removes_itself:
        assert world.store.get(*KEY) is None, "nothing is noted of it any more"


def test_f49_a_stop_that_is_not_written_does_not_hide_that_it_removes_itself(world: World) -> None:
    class Supervisor:
        entries: dict[Any, Any] = {}

    removal = AutoRemoval(
        supervisor=cast(Any, Supervisor()),
        containers=cast(Any, world),
        store=world.store,
        goes_on=lambda _entry: False,
    )
    options = {"auto_remove": True}
    entry = SimpleNamespace(key=KEY, options=options, is_abandoned=False, state="stopped")
    world.store.keep(Restart(*KEY, stopped=True))
    with world.db.fast_transaction() as tx:
        removal.on_forgetting(tx, cast(Any, entry))
    for store in (world.store, RestartStore(world.db, str(world.notes))):
        row = store.get(*KEY)
        assert row is not None and (row.stopped, row.removal) == (True, WITH_VOLUMES)
