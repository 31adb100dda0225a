"""daemon/events: numbered, replayed, followed; a slow subscriber costs nothing and misses none."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from lighter.daemon import events
from lighter.daemon.events import Event, EventLog
from lighter.daemon.metadata.db import Database
from lighter.proto.errors import ResourceExhausted


@pytest.fixture
def log(tmp_path: Path) -> Iterator[EventLog]:
    db = Database(str(tmp_path / "lighter.db"))
    yield EventLog(db)
    db.close()


def publish(log: EventLog, count: int, namespace: str = "default") -> None:
    for number in range(count):
        log.publish(namespace, "/t", {"n": number})


async def collect(stream: AsyncIterator[Event], count: int = -1) -> list[int]:
    """Sequences of the first `count` events, of all when it is negative."""
    found: list[int] = []
    async with asyncio.timeout(30):
        while len(found) != count:
            try:
                found.append((await anext(stream)).sequence)
            except StopAsyncIteration:
                break
    return found


def replayed(log: EventLog, namespace: str = "", since: int | None = 0) -> list[int]:
    return asyncio.run(collect(log.subscribe(namespace, since, False)))


def test_events_are_numbered_and_replayed_from_any_number(log: EventLog) -> None:
    publish(log, 5)
    assert replayed(log) == [1, 2, 3, 4, 5]
    assert replayed(log, since=3) == [4, 5]
    assert replayed(log, since=5) == []
    assert replayed(log, since=None) == []
    assert replayed(log, since=-9) == [1, 2, 3, 4, 5]
    assert replayed(log, since=1 << 62) == []


def test_namespaces_are_told_apart(log: EventLog) -> None:
    publish(log, 1, "a")
    publish(log, 1, "b")
    assert replayed(log, "a") == [1]
    assert replayed(log, "b") == [2]
    assert replayed(log, "c") == []
    assert replayed(log) == [1, 2]


def test_more_than_a_page_is_replayed_whole(log: EventLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "_PAGE", 3)
    for count in (0, 1, 2, 3, 4):
        publish(log, count)
    assert replayed(log) == list(range(1, 11))


def test_a_follower_sees_what_comes_while_it_reads_once_each(
    log: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "_PAGE", 2)
    publish(log, 3)

    async def follow() -> list[int]:
        stream = log.subscribe("", 0, True)
        found = await collect(stream, 2)
        publish(log, 3)  # between two pages
        found += await collect(stream, 4)
        later = asyncio.create_task(collect(stream, 1))
        await asyncio.sleep(0)  # it waits now
        publish(log, 1)
        found += await later
        await stream.aclose()  # type: ignore[attr-defined]
        return found

    assert asyncio.run(follow()) == [1, 2, 3, 4, 5, 6, 7]


def test_a_subscriber_that_stops_reading_holds_nothing(log: EventLog) -> None:
    async def slow() -> tuple[list[int], int]:
        stream = log.subscribe("", None, True)
        first = asyncio.create_task(collect(stream, 1))
        await asyncio.sleep(0)
        publish(log, 1)
        found = await first
        publish(log, 6000)
        found += await collect(stream, 6000)
        waiting = len(log._subscribers)
        await stream.aclose()  # type: ignore[attr-defined]
        return found, waiting

    found, waiting = asyncio.run(slow())
    assert found == list(range(1, 6002))
    assert waiting == 1
    assert not log._subscribers


def test_an_event_of_a_transaction_that_failed_was_never_there(log: EventLog) -> None:
    publish(log, 1)
    with pytest.raises(RuntimeError):
        with log._db.fast_transaction() as tx:
            log.append(tx, "default", "/t", {})
            raise RuntimeError
    publish(log, 1)
    assert replayed(log) == [1, 2]


def test_old_events_are_trimmed_and_who_slept_through_them_is_told(
    log: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "KEEP_EVENTS", 10)
    monkeypatch.setattr(events, "TRIM_EVERY", 20)
    publish(log, 5)

    async def sleeper() -> list[int]:
        stream = log.subscribe("", 0, True)
        assert await collect(stream, 5) == [1, 2, 3, 4, 5]
        publish(log, 15)
        return await collect(stream, 1)

    with pytest.raises(ResourceExhausted, match="from 6 to 10 are no longer kept"):
        asyncio.run(sleeper())
    assert replayed(log) == list(range(11, 21))


def test_the_newest_match_is_found(log: EventLog) -> None:
    log.publish("default", "/t", {"id": "a", "n": 1})
    log.publish("default", "/t", {"id": "a", "n": 2})
    log.publish("other", "/t", {"id": "a", "n": 3})
    log.publish("default", "/u", {"id": "a", "n": 4})
    assert log.find_last("default", "/t", {"id": "a"}) == {"id": "a", "n": 2}
    assert log.find_last("default", "/t", {"id": "b"}) is None
