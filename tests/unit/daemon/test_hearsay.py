"""Rows that are behind their shims: what these say in their hello stands in for what is missing."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lighter.daemon.tasks.entry import Entry
from lighter.daemon.tasks.shims import Peer
from lighter.daemon.tasks.types import Exit
from lighter.proto import events, shim_api, states
from lighter.proto.errors import Unavailable, Unimplemented
from tests.unit.daemon.test_killed import recorded, shim, told, topics
from tests.unit.daemon.test_recovery import (
    ME,
    Followers,
    Start,
    comes_true,
    lighter_shim,
    start_of,
)

pytestmark = pytest.mark.root


class Shim(Peer):
    """One that refuses what it does not know, as they all do, once it has told what it has to."""

    to_tell: tuple[tuple[int, str], ...] = ()
    start: Start

    async def call(
        self, method: str, body: dict[str, Any] | None = None, timeout_s: float = 0
    ) -> Any:
        assert method == shim_api.UNHEARD_OF
        for sequence, topic in self.to_tell:
            told(self.start, sequence, topic, pid=7, exit_status=3, exited_at=9, cause="")
        raise Unimplemented(f"call task.{method}: this shim has no such method")


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    made = Start(tmp_path)
    yield made
    made.db.close()


def telling(start: Start, *to_tell: tuple[int, str]) -> type[Peer]:
    return type("Telling", (Shim,), {"start": start, "to_tell": to_tell})


def heard(start: Start, kind: type[Peer], **identity: Any) -> Entry:
    """The task of a living shim that has said hello to a new manager, a moment later."""

    async def work() -> Entry:
        entry = start.run()
        start.said_hello(kind, **identity)
        for _ in range(20):  # as many turns of the loop as it may take, and more
            await asyncio.sleep(0)
        start.supervisor.close()
        return entry

    with shim(start):
        return asyncio.run(work())


@pytest.mark.parametrize("row", [states.CREATING, states.CREATED, states.RUNNING])
def test_f53_a_shim_that_tells_no_more_is_believed(start: Start, row: str) -> None:
    recorded(start, row, last_sequence=1)
    with lighter_shim(start.root.instance) as init:
        entry = heard(start, telling(start), state=states.PAUSED, init_pid=init, sequence=4)
    assert (entry.state, entry.pid, entry.last_sequence) == (states.PAUSED, init, 4)
    assert entry.is_task and not entry.is_behind
    (kept,) = start.store.load()
    assert (kept.state, kept.pid, kept.last_sequence) == (states.PAUSED, init, 4)
    # A policy goes by that it has run, and by how long.
    assert kept.started_at is not None
    assert kept.started_at > 1_000_000_000 * 1_000_000_000


def test_f53_what_is_told_again_counts_and_nothing_else(start: Start) -> None:
    recorded(start, states.CREATED, last_sequence=1)
    told_again = telling(start, (2, events.START), (3, events.PAUSED))
    entry = heard(start, told_again, state=states.RUNNING, init_pid=7, sequence=3)
    assert (entry.state, entry.started_at, entry.last_sequence) == (states.PAUSED, 2, 3)
    assert topics(start) == [events.START, events.PAUSED]


def test_f53_a_step_that_is_missing_before_what_is_told_again_is_known(start: Start) -> None:
    recorded(start, states.CREATED, last_sequence=1)
    entry = heard(
        start, telling(start, (3, events.OOM)), state=states.RUNNING, init_pid=7, sequence=3
    )
    assert (entry.state, entry.last_sequence, entry.is_behind) == (states.RUNNING, 3, False)
    assert not start.store.load()[0].is_behind


def test_f53_one_that_has_changed_since_its_hello_is_asked_again(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(start.router, "ask_again", asked.append)
    recorded(start, states.CREATED, last_sequence=1)
    changed = telling(start, (4, events.PAUSED))
    entry = heard(start, changed, state=states.RUNNING, init_pid=7, sequence=3)
    assert (asked, entry.state, entry.last_sequence) == ([ME], states.PAUSED, 4)
    # The manager may die over it: that something is missing stands in the row.
    assert start.store.load()[0].is_behind


@pytest.mark.parametrize("why", ["stalled", "gone"])
def test_f53_one_that_may_tell_more_is_not_believed(start: Start, why: str) -> None:
    class Waiting(Shim):
        async def call(self, *_args: Any, **_kw: Any) -> Any:
            if why == "gone":
                raise Unavailable("its shim does not take messages")
            self.stalled = True
            raise Unimplemented("no such method")

    recorded(start, states.CREATED, last_sequence=1)
    entry = heard(start, Waiting, state=states.RUNNING, init_pid=7, sequence=3)
    assert (entry.state, entry.last_sequence) == (states.CREATED, 1)


def test_a_create_under_way_costs_no_question(start: Start) -> None:
    asked: list[Entry] = []
    start.supervisor.on_behind = lambda entry, _peer: asked.append(entry)
    entry = recorded(start, states.CREATING)
    start.supervisor.add(entry)
    with shim(start) as process:
        record = {"pid": process.pid, "start": start_of(process.pid)}
        entry.pidfd = 0  # watched already
        start.said_hello(sequence=1, **record)
    assert asked == []
    entry.orphan = True
    start.said_hello(sequence=1, **record)
    assert asked == [entry]


@pytest.mark.parametrize("is_recorded", [True, False])
@pytest.mark.parametrize("row", ["lost", "of an older copy"])
def test_f53_an_exit_that_is_not_told_again_is_known_with_its_end(
    start: Start, row: str, is_recorded: bool
) -> None:
    """It was acknowledged before the rows were lost, and the shim has only the rest to tell."""
    if row != "lost":
        recorded(start, states.RUNNING, last_sequence=2, started_at=5)

    async def work() -> Entry:
        start.recovery.run()
        start.supervisor.follow(Followers(), start.lost)
        start.said_hello(telling(start), state=states.STOPPED, init_pid=7, sequence=4)
        told(start, 4, events.CLOSED)
        entry = start.supervisor.entries["default", "c"]
        await asyncio.sleep(0)  # what goes on in the background has begun
        start.supervisor.close()
        return entry

    with shim(start):
        if is_recorded:
            said = {"incarnation": ME, "exit_status": 42, "exited_at": 9, "cause": "oom"}
            Path(start.bundle_of("default", "c").exit_record).write_text(json.dumps(said))
        entry = asyncio.run(work())
    assert entry.exit is not None and entry.ended.is_set() and entry.closed
    expected = (42, "oom") if is_recorded else (255, "unknown")
    assert (entry.exit.exit_status, entry.exit.cause) == expected
    (kept,) = start.store.load()
    assert (kept.state, kept.exit) == (states.STOPPED, entry.exit)
    assert topics(start) == [events.EXIT]


def test_f53_an_exit_that_comes_behind_a_hello_is_told_once(start: Start) -> None:
    """Its shim counts a task as stopped a moment before it tells how that ended."""
    recorded(start, states.RUNNING, last_sequence=2, started_at=5)

    async def work() -> Entry:
        entry = start.run()
        start.said_hello(telling(start), state=states.STOPPED, init_pid=7, sequence=4)
        for _ in range(20):
            await asyncio.sleep(0)
        assert entry.state == states.STOPPED and entry.exit is None
        told(start, 5, events.EXIT, pid=7, exit_status=3, exited_at=9, cause="")
        told(start, 6, events.CLOSED)
        start.supervisor.close()
        return entry

    with shim(start):
        said = {"incarnation": ME, "exit_status": 3, "exited_at": 9, "cause": ""}
        Path(start.bundle_of("default", "c").exit_record).write_text(json.dumps(said))
        entry = asyncio.run(work())
    assert entry.exit is not None and entry.exit.exit_status == 3 and entry.ended.is_set()
    assert topics(start) == [events.EXIT]


def test_f53_an_adopted_tasks_policy_goes_by_its_start(start: Start) -> None:
    with lighter_shim(start.root.instance) as init, shim(start):

        async def work() -> None:
            start.recovery.run()
            start.said_hello(state=states.RUNNING, init_pid=init, sequence=4)
            start.supervisor.close()

        asyncio.run(work())
    (kept,) = start.store.load()
    assert kept.started_at is not None and kept.exit is None


def test_f41_a_shim_that_dies_behind_its_hello_is_settled(start: Start) -> None:
    """Its row was lost, so nobody has a pidfd of it."""
    with shim(start) as process:
        gone = {"pid": process.pid, "start": start_of(process.pid)}

        async def work() -> None:
            start.recovery.run()
            process.kill()
            process.wait()
            start.supervisor.follow(Followers(), start.lost)
            start.said_hello(state=states.RUNNING, init_pid=0, sequence=4, **gone)
            entry = start.supervisor.entries["default", "c"]
            assert entry.peer is None
            await comes_true(lambda: entry.closed)
            assert entry.exit is not None
            assert entry.exit == Exit(255, entry.exit.exited_at, "unknown")
            start.supervisor.close()

        asyncio.run(work())
