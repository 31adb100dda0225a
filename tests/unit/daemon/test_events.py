"""daemon/events/log: numbered, replayed, followed; a slow subscriber misses none."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from lighter.daemon.events import log as eventlog
from lighter.daemon.events import numbering
from lighter.daemon.events.log import Event, EventLog
from lighter.daemon.events.wishes import wishes
from lighter.daemon.metadata.db import Database
from lighter.proto.errors import InvalidArgument, OutOfRange, ResourceExhausted


@pytest.fixture
def log(tmp_path: Path) -> Iterator[EventLog]:
    db = Database(str(tmp_path / "lighter.db"))
    yield EventLog(db)
    db.close()


def publish(log: EventLog, count: int, namespace: str = "default") -> None:
    for number in range(count):
        log.publish(namespace, "/t", {"n": number})


async def collect(stream: AsyncIterator[Event], count: int = -1) -> list[int]:
    """Sequences of the first `count` log, of all when it is negative."""
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
    with pytest.raises(OutOfRange, match="none after 6: the last is 5"):
        replayed(log, since=6)


def test_namespaces_are_told_apart(log: EventLog) -> None:
    publish(log, 1, "a")
    publish(log, 1, "b")
    assert replayed(log, "a") == [1]
    assert replayed(log, "b") == [2]
    assert replayed(log, "c") == []
    assert replayed(log) == [1, 2]


def test_more_than_a_page_is_replayed_whole(log: EventLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eventlog, "_PAGE", 3)
    for count in (0, 1, 2, 3, 4):
        publish(log, count)
    assert replayed(log) == list(range(1, 11))


def test_a_follower_sees_what_comes_while_it_reads_once_each(
    log: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(eventlog, "_PAGE", 2)
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
    """F80: and it misses nothing once it reads again."""

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
    """F80: what is kept for slow readers has an end."""
    monkeypatch.setattr(eventlog, "KEEP_EVENTS", 10)
    monkeypatch.setattr(eventlog, "TRIM_EVERY", 20)
    publish(log, 5)

    async def sleeper() -> list[int]:
        stream = log.subscribe("", 0, True)
        assert await collect(stream, 5) == [1, 2, 3, 4, 5]
        publish(log, 15)
        return await collect(stream, 1)

    with pytest.raises(ResourceExhausted, match="from 6 to 10 are no longer kept"):
        asyncio.run(sleeper())
    assert replayed(log) == list(range(11, 21))


def test_who_goes_on_from_a_number_whose_next_is_gone_is_told(
    log: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(eventlog, "KEEP_EVENTS", 10)
    monkeypatch.setattr(eventlog, "TRIM_EVERY", 20)
    publish(log, 20)
    with pytest.raises(ResourceExhausted, match="from 6 to 10 are no longer kept"):
        replayed(log, since=5)
    assert replayed(log, since=10) == list(range(11, 21))
    assert replayed(log, since=0) == list(range(11, 21)), "0 is all that is kept"


def cut(log: EventLog, seen: int, boot: str = "second") -> EventLog:
    """The log of the next manager, after a power cut that took all events after `seen`."""
    with log._db.durable_transaction() as tx:
        tx.execute("DELETE FROM events WHERE sequence > ?", (seen,))
        tx.execute("UPDATE sqlite_sequence SET seq = ? WHERE name = 'events'", (seen,))
    numbering.begin(log._db, boot)
    return EventLog(log._db)


def test_f50_a_number_that_a_power_cut_took_is_not_given_out_again(log: EventLog) -> None:
    numbering.begin(log._db, "first")
    publish(log, 8)
    log = cut(log, 5)
    for since in (5, 6, 8):
        with pytest.raises(ResourceExhausted, match=f"from {since + 1} to 10005"):
            replayed(log, since=since)
    assert replayed(log, since=None) == []
    publish(log, 2)
    for since in (3, 5, 6, 8):
        with pytest.raises(ResourceExhausted, match="no longer kept"):
            replayed(log, since=since)
    assert replayed(log, since=10005) == [10006, 10007]
    assert replayed(log, since=0) == [1, 2, 3, 4, 5, 10006, 10007], "0 is all that is kept"
    assert chosen(log, since_time=1) == [1, 2, 3, 4, 5, 10006, 10007]


def test_after_a_power_cut_new_events_alone_are_followed(log: EventLog) -> None:
    numbering.begin(log._db, "first")
    publish(log, 8)
    log = cut(log, 0)

    async def follow() -> list[int]:
        stream = log.subscribe("", None, True)
        first = asyncio.create_task(collect(stream, 1))
        await asyncio.sleep(0)
        publish(log, 1)
        found = await first
        await stream.aclose()  # type: ignore[attr-defined]
        return found

    assert asyncio.run(follow()) == [10001]


def test_a_manager_that_ended_while_the_host_went_on_has_lost_no_event(log: EventLog) -> None:
    numbering.begin(log._db, "first")
    publish(log, 3)
    numbering.begin(log._db, "first")  # killed
    publish(log, 1)
    numbering.end(log._db)
    numbering.begin(log._db, "second")  # stopped in order, and the host after it
    publish(log, 1)
    assert replayed(log, since=3) == [4, 5]
    log = cut(log, 4, "third")
    publish(log, 1)
    with pytest.raises(ResourceExhausted):
        replayed(log, since=4)


def test_a_number_to_end_at_is_heeded_whatever_is_wanted(log: EventLog) -> None:
    publish(log, 5)

    async def until(number: int, **how: Any) -> list[int]:
        return await collect(log.subscribe("", how.pop("since", 0), True, until=number, **how))

    assert asyncio.run(until(3)) == [1, 2, 3]
    assert asyncio.run(until(5, wanted=lambda event: event.sequence < 2)) == [1]
    assert asyncio.run(until(3, since=4)) == []

    async def to_come() -> list[int]:
        waiting = asyncio.create_task(until(7, wanted=lambda event: event.sequence != 7))
        await asyncio.sleep(0)
        publish(log, 3)
        return await waiting

    assert asyncio.run(to_come()) == [1, 2, 3, 4, 5, 6]


def test_large_events_are_bounded_by_their_bytes(
    log: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(eventlog, "MAX_BYTES", 10_000)
    for _ in range(40):
        log.publish("default", "/t", {"text": "x" * 1000})
    kept = replayed(log)
    assert kept[-1] == 40
    assert 5 <= len(kept) <= 13
    log.publish("default", "/t", {"text": "x" * 100_000})
    assert replayed(log) == [41], "one that is larger than all may be stays alone"


def chosen(log: EventLog, **how: Any) -> list[int]:
    return asyncio.run(collect(log.subscribe("", 0, False, **how)))


def test_times_and_wishes_choose(log: EventLog) -> None:
    for number, at in enumerate((100, 300, 200), start=1):  # the third arrived late
        log.publish("default", "/tasks/exit", {"container_id": f"c{number}"}, at)
    log.publish("other", "/containers/create", {"id": "c1", "image": "i", "ok": True}, 400)
    assert chosen(log, since_time=200) == [2, 3, 4]
    assert asyncio.run(collect(log.subscribe("", None, False, since_time=200))) == [2, 3, 4]
    assert chosen(log, since_time=200, until_time=300) == [2, 3]
    assert asyncio.run(collect(log.subscribe("", 0, True, until_time=200))) == [1, 3], "it ends"
    for words, expressions, found in (
        (["container=c1"], [], [1, 4]),
        (["container=c1", "container=c2"], [], [1, 2, 4]),
        (["container=c1", "event=exit"], [], [1]),
        (["type=container"], [], [4]),
        (["topic=/tasks"], [], [1, 2, 3]),
        (["topic=/task"], [], []),
        (["image=i"], [], [4]),
        (["namespace=other"], [], [4]),
        ([], ["topic==/tasks/exit,event.container_id==c2", "event.ok==true"], [2, 4]),
        (["event=exit"], ["event.container_id~=^c[12]$"], [1, 2]),
    ):
        assert chosen(log, wanted=wishes(words, expressions)) == found, (words, expressions)
    for word in ("container", "color=red", "type=thing", "event="):
        with pytest.raises(InvalidArgument, match="filter events"):
            wishes([word], [])


def test_the_newest_match_is_found(log: EventLog) -> None:
    log.publish("default", "/t", {"id": "a", "n": 1})
    log.publish("default", "/t", {"id": "a", "n": 2})
    log.publish("other", "/t", {"id": "a", "n": 3})
    log.publish("default", "/u", {"id": "a", "n": 4})
    found = log.find_last("default", "/t", {"id": "a"})
    assert found is not None and (found.sequence, found.body) == (2, {"id": "a", "n": 2})
    assert log.find_last("default", "/t", {"id": "b"}) is None
    assert log.find_last("default", "/t", {"id": "a"}, since=1) == found
    assert log.find_last("default", "/t", {"id": "a"}, since=2) is None


def test_only_soon_after_the_start_is_what_was_missed_told(tmp_path: Path) -> None:
    now = [1000.0]
    db = Database(str(tmp_path / "lighter.db"))
    publish(EventLog(db), 3)
    log = EventLog(db, lambda: now[0])
    publish(log, 2)
    assert replayed(log, since=log.since_start()) == [4, 5]
    now[0] += eventlog.REPLAY_S - 0.1
    assert log.since_start() == 3
    now[0] += 0.2
    assert log.since_start() is None
    log.begin_serving()  # nobody could come back before
    assert log.since_start() == 3
    assert eventlog.REPLAY_S == 30.0  # what docs/grpc.md promises
    db.close()
