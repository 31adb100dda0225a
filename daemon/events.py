"""The event log: numbered, kept in the database, replayed to whoever asks from a number on.

Events are appended inside the transaction that changes what they tell about, and are shown to
subscribers after its commit. A subscriber that does not keep up is told so and dropped.
"""

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

import msgpack

from lighter.daemon.metadata.db import Database
from lighter.proto.errors import ResourceExhausted

KEEP_EVENTS = 100_000
TRIM_EVERY = 1000
MAX_BEHIND = 4096
_PAGE = 500


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
        self._subscribers: set[asyncio.Queue[Event | None]] = set()

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
        """Show committed events to the subscribers."""
        for queue in list(self._subscribers):
            for event in events:
                if queue.qsize() >= MAX_BEHIND:
                    self._subscribers.discard(queue)
                    queue.put_nowait(None)
                    break
                queue.put_nowait(event)

    def publish(self, namespace: str, topic: str, body: dict[str, Any]) -> None:
        """Append and announce one event that belongs to no other change."""
        with self._db.fast_transaction() as tx:
            event = self.append(tx, namespace, topic, body)
        self.announce(event)

    async def subscribe(
        self, namespace: str, since: int | None, follow: bool
    ) -> AsyncIterator[Event]:
        """Events of `namespace` ("" for all) after number `since`, then new ones while `follow`.

        Raises ResourceExhausted when the subscriber falls too far behind; it may go on from the
        last number it saw.
        """
        queue: asyncio.Queue[Event | None] = asyncio.Queue()
        self._subscribers.add(queue)
        last = since if since is not None else self._newest()
        try:
            if since is not None:
                for event in self._after(since):
                    last = event.sequence
                    if namespace in ("", event.namespace):
                        yield event
            while follow:
                event_or_end = await queue.get()
                if event_or_end is None:
                    raise ResourceExhausted(
                        f"subscribe events: more than {MAX_BEHIND} are waiting; "
                        f"go on from number {last}"
                    )
                # What was read from the database may stand in the queue too.
                if event_or_end.sequence > last:
                    last = event_or_end.sequence
                    if namespace in ("", event_or_end.namespace):
                        yield event_or_end
        finally:
            self._subscribers.discard(queue)

    def find_last(
        self, namespace: str, topic: str, wanted: Mapping[str, Any]
    ) -> dict[str, Any] | None:
        """The body of the newest event of this topic that has all `wanted` fields."""
        for row in self._db.rows(
            "SELECT body FROM events WHERE namespace = ? AND topic = ?"
            " ORDER BY sequence DESC LIMIT ?",
            (namespace, topic, MAX_BEHIND),
        ):
            body: dict[str, Any] = msgpack.unpackb(row[0])
            if all(body.get(key) == value for key, value in wanted.items()):
                return body
        return None

    def _newest(self) -> int:
        row = self._db.row("SELECT max(sequence) FROM events")
        return int(row[0] or 0) if row else 0

    def _after(self, since: int) -> list[Event]:
        found: list[Event] = []
        while True:
            rows = self._db.rows(
                "SELECT sequence, timestamp, namespace, topic, body FROM events"
                " WHERE sequence > ? ORDER BY sequence LIMIT ?",
                (found[-1].sequence if found else since, _PAGE),
            )
            found += [Event(r[0], r[1], r[2], r[3], msgpack.unpackb(r[4])) for r in rows]
            if len(rows) < _PAGE:
                return found
