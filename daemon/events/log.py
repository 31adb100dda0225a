"""The event log: numbered, kept in the database, replayed to whoever asks from a number on.

Events are appended inside the transaction that changes what they tell about, and subscribers are
woken after its commit. A subscriber reads the database at its own pace, so that a slow one costs
no memory. The newest KEEP_EVENTS are kept, or as many of them as have MAX_BYTES; a subscriber
whose next one is gone is told so, and so is one that goes on from a number that was never given.
Numbers that a power cut made the manager leave out (numbering.py) are as those that are gone.
"""

import asyncio
import sqlite3
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any

import msgpack

from lighter.daemon.events.numbering import NEWEST
from lighter.daemon.metadata.db import Database
from lighter.daemon.values import frozen
from lighter.proto.errors import OutOfRange, ResourceExhausted

KEEP_EVENTS = 100_000
MAX_BYTES = 256 << 20
TRIM_EVERY = 1000
REPLAY_S = 30.0
LOOK_BACK = 4096  # how far find_last and of_topic search
_PAGE = 500
_PAGE_BYTES = 1 << 20


@frozen
class Event:
    sequence: int
    timestamp: int
    namespace: str
    topic: str
    body: dict[str, Any]


class EventLog:
    """Append within a transaction, then `announce` what was appended after the commit.

    `monotonic_s` is time.monotonic, by which it knows how long ago the start was.
    """

    def __init__(self, db: Database, monotonic_s: Callable[[], float] = time.monotonic) -> None:
        self._db = db
        self._monotonic_s = monotonic_s
        self._subscribers: set[asyncio.Event] = set()
        self._unweighed = 0  # bytes that were appended since the last trim
        self._weighed: int | None = None  # bytes of all at the last trim, or more
        self._first = self.newest()
        self._replay_until = monotonic_s() + REPLAY_S

    def begin_serving(self) -> None:
        """From now on, clients that lost their streams with the last manager may come back for what
        they have missed.
        """
        self._replay_until = self._monotonic_s() + REPLAY_S

    @property
    def subscribers(self) -> int:
        """How many are listening."""
        return len(self._subscribers)

    def since_start(self) -> int | None:
        """For a subscriber that has no number to go on from, and may have lost its stream with the
        manager before: soon after a start, the number before all that was ingested since; else
        None, for new ones only.
        """
        return self._first if self._monotonic_s() < self._replay_until else None

    def append(
        self,
        tx: sqlite3.Connection,
        namespace: str,
        topic: str,
        body: dict[str, Any],
        timestamp: int = 0,
    ) -> Event:
        """Record an event; it exists when the transaction `tx` commits."""
        at = timestamp or time.time_ns()
        packed = msgpack.packb(body)
        cursor = tx.execute(
            "INSERT INTO events(timestamp, namespace, topic, body) VALUES(?, ?, ?, ?)",
            (at, namespace, topic, packed),
        )
        sequence = int(cursor.lastrowid or 0)
        self._unweighed += len(packed)
        if sequence % TRIM_EVERY == 0 or self._unweighed > MAX_BYTES // 4:
            self._trim(tx, sequence)
        return Event(sequence, at, namespace, topic, body)

    def _trim(self, tx: sqlite3.Connection, newest: int) -> None:
        """Remove the oldest until both bounds hold; the newest stays whatever it has."""
        tx.execute("DELETE FROM events WHERE sequence <= ?", (newest - KEEP_EVENTS,))
        added, self._unweighed = self._unweighed, 0
        if self._weighed is None or self._weighed + added > MAX_BYTES:
            (weight,) = tx.execute("SELECT total(length(body)) FROM events").fetchone()
            self._weighed = int(weight)
        else:
            self._weighed += added
        if self._weighed <= MAX_BYTES:
            return
        self._weighed = None
        weight, oldest = 0, newest
        sizes = tx.execute("SELECT sequence, length(body) FROM events ORDER BY sequence DESC")
        for sequence, size in sizes:
            weight += size
            if weight > MAX_BYTES and sequence != newest:
                break
            oldest = sequence
        tx.execute("DELETE FROM events WHERE sequence < ?", (oldest,))

    def announce(self, *events: Event) -> None:
        """Tell the subscribers that these were committed."""
        if events:
            for news in self._subscribers:
                news.set()

    def publish(self, namespace: str, topic: str, body: dict[str, Any], timestamp: int = 0) -> None:
        """Append and announce one event that belongs to no other change."""
        with self._db.fast_transaction() as tx:
            event = self.append(tx, namespace, topic, body, timestamp)
        self.announce(event)

    async def subscribe(
        self,
        namespace: str,
        since: int | None,
        follow: bool,
        *,
        wanted: Callable[[Event], bool] = lambda _event: True,
        since_time: int | None = None,
        until: int | None = None,
        until_time: int | None = None,
    ) -> AsyncGenerator[Event, None]:
        """Events of `namespace` ("" for all) after number `since`, then new ones while `follow`.

        `since` 0: all that is kept. Only those that are `wanted`, and that happened in the times
        (ns, both included) are handed out; it ends when the second one is over, or after number
        `until`. Raises ResourceExhausted when events are gone that the subscriber was yet to see,
        OutOfRange for a number that no event has had.
        """
        last = since
        all_kept = since_time is not None if since is None else since <= 0
        if last is None:
            last = self.newest() if since_time is None else self._before(since_time)
        elif last > (newest := self.newest()):
            raise OutOfRange(f"subscribe events: there is none after {last}: the last is {newest}")
        seen_any = since is None or last > 0
        news = asyncio.Event()
        self._subscribers.add(news)
        try:
            while True:
                news.clear()
                if until is not None and last >= until:
                    return
                page = self._page(last)
                newest = page[-1].sequence if page else self.newest()
                if seen_any and not page and last < newest and not all_kept:
                    raise _gone(last, newest)
                for event in page:
                    if until is not None and event.sequence > until:
                        return
                    follows = event.sequence == last + 1
                    if seen_any and not follows and not (all_kept and self._has(last)):
                        raise _gone(last, event.sequence - 1)
                    last, seen_any = event.sequence, True
                    if (
                        namespace in ("", event.namespace)
                        and (since_time is None or event.timestamp >= since_time)
                        and (until_time is None or event.timestamp <= until_time)
                        and wanted(event)
                    ):
                        yield event
                await asyncio.sleep(0)  # who wants few of many holds nobody up
                if page and newest < self.newest():
                    continue
                if not follow or (until is not None and last >= until):
                    return
                if not await _happens(news, until_time):
                    return
        finally:
            self._subscribers.discard(news)

    def find_last(
        self, namespace: str, topic: str, wanted: Mapping[str, Any], since: int = 0
    ) -> Event | None:
        """The newest event of this topic after number `since` that has all `wanted` fields."""
        for row in self._db.rows(
            "SELECT sequence, timestamp, namespace, topic, body FROM events"
            " WHERE sequence > ? AND namespace = ? AND topic = ?"
            " ORDER BY sequence DESC LIMIT ?",
            (since, namespace, topic, LOOK_BACK),
        ):
            event = _event(row)
            if all(event.body.get(key) == value for key, value in wanted.items()):
                return event
        return None

    def of_topic(self, topic: str, until: int) -> list[Event]:
        """Events of a topic, among the last LOOK_BACK ones up to number `until`, oldest first."""
        rows = self._db.rows(
            "SELECT sequence, timestamp, namespace, topic, body FROM"
            " (SELECT * FROM events WHERE sequence <= ? ORDER BY sequence DESC LIMIT ?)"
            " WHERE topic = ? ORDER BY sequence",
            (until, LOOK_BACK, topic),
        )
        return [_event(row) for row in rows]

    def _before(self, time_ns: int) -> int:
        """The number before the first event that happened then or later.

        Numbers are in the order of arrival: what a shim tells after a manager was away is older
        than what has a lower number.
        """
        row = self._db.row("SELECT min(sequence) FROM events WHERE timestamp >= ?", (time_ns,))
        return int(row[0]) - 1 if row and row[0] else self.newest()

    def newest(self) -> int:
        """The number of the last event, 0 before the first; or the last one that was left out."""
        row = self._db.row(NEWEST)
        return int(row[0]) if row else 0

    def _has(self, sequence: int) -> bool:
        """Whether it is kept: then those that do not follow it were not trimmed, but left out."""
        return bool(self._db.row("SELECT 1 FROM events WHERE sequence = ?", (sequence,)))

    def _page(self, since: int) -> list[Event]:
        """The next events, at least one, with bodies of _PAGE_BYTES at most beside it."""
        # Sizes first: what a client publishes may be large, and rows are read all at once.
        sizes = self._db.rows(
            "SELECT sequence, length(body) FROM events WHERE sequence > ?"
            " ORDER BY sequence LIMIT ?",
            (since, _PAGE),
        )
        until, total = since, 0
        for sequence, size in sizes:
            total += size
            if total > _PAGE_BYTES and until != since:
                break
            until = sequence
        rows = self._db.rows(
            "SELECT sequence, timestamp, namespace, topic, body FROM events"
            " WHERE sequence > ? AND sequence <= ? ORDER BY sequence",
            (since, until),
        )
        return [_event(row) for row in rows]


def _gone(last: int, until: int) -> ResourceExhausted:
    return ResourceExhausted(
        f"subscribe events: those from {last + 1} to {until} "
        f"are no longer kept (the newest {KEEP_EVENTS} are)"
    )


def _event(row: sqlite3.Row) -> Event:
    return Event(row[0], row[1], row[2], row[3], msgpack.unpackb(row[4]))


async def _happens(news: asyncio.Event, until_time: int | None) -> bool:
    """Wait for news; False when the time is over."""
    if until_time is None:
        await news.wait()
        return True
    try:
        async with asyncio.timeout(max(0.0, (until_time - time.time_ns()) / 1e9)):
            await news.wait()
    except TimeoutError:
        return False
    return True


class Telling:
    """Appends one event in the transaction of what it tells about."""

    def __init__(self, log_: EventLog, namespace: str, topic: str, body: dict[str, Any]) -> None:
        self._log = log_
        self._event = (namespace, topic, body)
        self.events: list[Event] = []

    def __call__(self, tx: sqlite3.Connection) -> None:
        self.events.append(self._log.append(tx, *self._event))
