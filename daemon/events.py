"""The event log: numbered, kept in the database, replayed to whoever asks from a number on.

Events are appended inside the transaction that changes what they tell about, and subscribers are
woken after its commit. A subscriber reads the database at its own pace, so that a slow one costs
no memory; only one that sleeps through KEEP_EVENTS misses some, and is told so.
"""

import asyncio
import sqlite3
import time
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Any

import msgpack

from lighter.daemon.metadata.db import Database
from lighter.proto.errors import ResourceExhausted

KEEP_EVENTS = 100_000
TRIM_EVERY = 1000
REPLAY_S = 30.0
LOOK_BACK = 4096  # how far find_last searches
_PAGE = 500
_PAGE_BYTES = 1 << 20


@dataclass(frozen=True)
class Event:
    sequence: int
    timestamp: int
    namespace: str
    topic: str
    body: dict[str, Any]


class EventLog:
    """Append within a transaction, then `announce` what was appended after the commit."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._subscribers: set[asyncio.Event] = set()
        self._first = self._newest()
        self._replay_until = time.monotonic() + REPLAY_S

    @property
    def subscribers(self) -> int:
        """How many are listening."""
        return len(self._subscribers)

    def since_start(self) -> int | None:
        """For a subscriber that has no number to go on from, and may have lost its stream with the
        manager before: soon after a start, the number before all that was ingested since; else
        None, for new ones only.
        """
        return self._first if time.monotonic() < self._replay_until else None

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
        cursor = tx.execute(
            "INSERT INTO events(timestamp, namespace, topic, body) VALUES(?, ?, ?, ?)",
            (at, namespace, topic, msgpack.packb(body)),
        )
        sequence = int(cursor.lastrowid or 0)
        if sequence % TRIM_EVERY == 0:
            tx.execute("DELETE FROM events WHERE sequence <= ?", (sequence - KEEP_EVENTS,))
        return Event(sequence, at, namespace, topic, body)

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
        self, namespace: str, since: int | None, follow: bool
    ) -> AsyncGenerator[Event, None]:
        """Events of `namespace` ("" for all) after number `since`, then new ones while `follow`.

        `since` may be older than all that is kept. Raises ResourceExhausted when events were
        trimmed that the subscriber was yet to see.
        """
        news = asyncio.Event()
        self._subscribers.add(news)
        last = self._newest() if since is None else since
        seen_any = since is None
        try:
            while True:
                news.clear()
                page = self._page(last)
                if seen_any and page and page[0].sequence != last + 1:
                    raise ResourceExhausted(
                        f"subscribe events: those from {last + 1} to {page[0].sequence - 1} "
                        f"are no longer kept (the newest {KEEP_EVENTS} are)"
                    )
                for event in page:
                    last, seen_any = event.sequence, True
                    if namespace in ("", event.namespace):
                        yield event
                if not page or page[-1].sequence >= self._newest():
                    if not follow:
                        return
                    await news.wait()
        finally:
            self._subscribers.discard(news)

    def find_last(
        self, namespace: str, topic: str, wanted: Mapping[str, Any]
    ) -> dict[str, Any] | None:
        """The body of the newest event of this topic that has all `wanted` fields."""
        for row in self._db.rows(
            "SELECT body FROM events WHERE namespace = ? AND topic = ?"
            " ORDER BY sequence DESC LIMIT ?",
            (namespace, topic, LOOK_BACK),
        ):
            body: dict[str, Any] = msgpack.unpackb(row[0])
            if all(body.get(key) == value for key, value in wanted.items()):
                return body
        return None

    def _newest(self) -> int:
        row = self._db.row("SELECT max(sequence) FROM events")
        return int(row[0] or 0) if row else 0

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
        return [Event(r[0], r[1], r[2], r[3], msgpack.unpackb(r[4])) for r in rows]


class Telling:
    """Appends one event in the transaction of what it tells about."""

    def __init__(self, log_: EventLog, namespace: str, topic: str, body: dict[str, Any]) -> None:
        self._log = log_
        self._event = (namespace, topic, body)
        self.events: list[Event] = []

    def __call__(self, tx: sqlite3.Connection) -> None:
        self.events.append(self._log.append(tx, *self._event))
