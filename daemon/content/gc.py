"""Garbage collection: what no image, container, active snapshot, lease or running work needs, goes.

Mark: `references` tells from the rows what keeps what; to it comes what work in this process has
pinned, which is what makes a collection safe beside a pull or an import.

Sweep: one durable transaction takes all other rows of the namespace and notes their bytes in
`trash`; then the bytes go. Killed in between, the next sweep finds the notes.
"""

import logging
import sqlite3
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from lighter.daemon.clock import Clock
from lighter.daemon.content import references
from lighter.daemon.content.digest import Digest
from lighter.daemon.content.references import (
    CONTENT,
    IMAGE,
    SNAPSHOT,
    Node,
    References,
    Step,
)
from lighter.daemon.content.rows import delete_rows as delete_content_rows
from lighter.daemon.content.store import ContentStore
from lighter.daemon.events.log import EventLog
from lighter.daemon.metadata.db import Database
from lighter.daemon.snapshots.rows import delete_rows as delete_snapshot_rows
from lighter.daemon.snapshots.types import COMMITTED, Snapshotter
from lighter.proto import events
from lighter.proto.errors import LighterError, NotFound
from lighter.proto.faults import hit

log = logging.getLogger("lighter.gc")

K = TypeVar("K")

ROOT_LABEL = references.ROOT_LABEL
CONTENT_LABEL = references.CONTENT_LABEL
SNAPSHOT_LABEL = references.SNAPSHOT_LABEL

MAX_CHAINS = 20


@dataclass(frozen=True)
class Collected:
    """What one collection removed, or would: digests, (snapshotter, key), images that expired.

    `size_bytes` is what the disk gets back; content that another namespace has counts nothing.
    `pause_s` is how long nothing else ran.
    """

    content: tuple[str, ...]
    snapshots: tuple[tuple[str, str], ...]
    images: tuple[str, ...] = ()
    size_bytes: int = field(default=0, compare=False)
    pause_s: float = field(default=0.0, compare=False)


class Pin:
    """What one piece of work needs kept until it ends."""

    def __init__(self, content: Counter[tuple[str, str]], snapshots: Counter[tuple[str, ...]]):
        self._all_content = content
        self._all_snapshots = snapshots
        self._content: list[tuple[str, str]] = []
        self._snapshots: list[tuple[str, ...]] = []

    def content(self, namespace: str, digest: str) -> None:
        """Keep content, whether it is there yet or not."""
        self._content.append((namespace, digest))
        self._all_content[namespace, digest] += 1

    def snapshot(self, namespace: str, snapshotter: str, key: str) -> None:
        """Keep a snapshot and its parents."""
        self._snapshots.append((namespace, snapshotter, key))
        self._all_snapshots[namespace, snapshotter, key] += 1

    def release(self) -> None:
        """Let go of everything. May be called again."""
        _subtract(self._all_content, self._content)
        _subtract(self._all_snapshots, self._snapshots)


def _subtract(counted: Counter[K], keys: list[K]) -> None:
    for key in keys:
        counted[key] -= 1
        if not counted[key]:
            del counted[key]
    keys.clear()


@dataclass(frozen=True)
class _Unneeded:
    """Rows that nothing keeps; snapshots as (number, snapshotter, key)."""

    content: list[Digest]
    snapshots: list[tuple[int, str, str]]
    images: list[str]


class Collector:
    """Collects one namespace at a time; mark and row removal are one transaction on the loop.

    The images and snapshots that it removes are told as gone.
    `on_deleted` is called when something was deleted that may have kept more: the scheduler's.
    """

    def __init__(
        self,
        db: Database,
        events_log: EventLog,
        content: ContentStore,
        snapshotters: Mapping[str, Snapshotter],
        now_ns: Callable[[], int] | None = None,
    ) -> None:
        self._db = db
        self._events = events_log
        self._content = content
        self._snapshotters = snapshotters
        self._now_ns = now_ns or Clock().now_ns
        self._pinned_content: Counter[tuple[str, str]] = Counter()
        self._pinned_snapshots: Counter[tuple[str, ...]] = Counter()
        self.on_deleted: Callable[[], None] = lambda: None

    def on_relabelled(self, before: Mapping[str, str], after: Mapping[str, str]) -> None:
        """An object's labels were changed. One that is gone may have kept more; without such, what
        somebody has just labelled is not collected over it."""
        if references.lets_go(before, after):
            self.on_deleted()

    @contextmanager
    def pin(self) -> Iterator[Pin]:
        """Within the block, what is named to the pin is kept. A dead manager pins nothing."""
        pin = Pin(self._pinned_content, self._pinned_snapshots)
        try:
            yield pin
        finally:
            pin.release()

    def pins_content(self, digest: str) -> bool:
        """Whether work in any namespace needs it."""
        return any(of == digest for _, of in self._pinned_content)

    def pins_snapshot(self, namespace: str, snapshotter: str, key: str) -> bool:
        return (namespace, snapshotter, key) in self._pinned_snapshots

    async def collect(self, namespace: str) -> Collected:
        """Remove what is not needed; returns when the bytes are gone too.

        A sweep that fails keeps no other from its turn; the first error is raised last.
        """
        hit("gc.asked")
        if self._db.loss:
            return Collected((), ())  # a lost row may have needed anything
        collected = self._drop_rows(namespace)
        hit("gc.rows-deleted")
        failure = None
        sweeps: list[Callable[[], Awaitable[object]]] = [self._content.sweep]
        for sweep in [*sweeps, *(one.sweep for one in self._snapshotters.values())]:
            try:
                await sweep()
            except LighterError as err:
                failure = failure or err
        if failure:
            raise failure
        return collected

    def preview(self, namespace: str) -> Collected:
        """What `collect` would remove now."""
        if self._db.loss:
            return Collected((), ())
        connection = self._db.durable
        unneeded = self._unneeded(connection, namespace)
        return _collected(unneeded, _freed(connection, namespace, unneeded))

    def references(self, namespace: str) -> References:
        """The graph as it is now."""
        return self._load(self._db.durable, namespace)

    def why(
        self, namespace: str, name: str, snapshotter: str = ""
    ) -> dict[str, list[tuple[Step, ...]]]:
        """What keeps the content or the snapshots of this name: chains, each from a root to it.

        Keys are "content" and "snapshot <snapshotter>", for those that exist; no chain: nothing
        keeps it. Raises NotFound.
        """
        graph = self.references(namespace)
        found = {}
        if not snapshotter and self._db.row(
            "SELECT 1 FROM content WHERE namespace = ? AND digest = ?", (namespace, name)
        ):
            found[CONTENT] = graph.chains(CONTENT, name, MAX_CHAINS)
        for row in self._db.rows(
            "SELECT snapshotter FROM snapshots WHERE namespace = ? AND key = ?", (namespace, name)
        ):
            if snapshotter in ("", row["snapshotter"]):
                node = references.snapshot(row["snapshotter"], name)
                kept = graph.chains(SNAPSHOT, node.name, MAX_CHAINS)
                found[f"{SNAPSHOT} {row['snapshotter']}"] = kept
        if not found:
            raise NotFound(
                f"explain {name}: namespace {namespace} has neither content nor a snapshot of "
                "this name"
            )
        return found

    # --- rows

    def _load(self, tx: sqlite3.Connection, namespace: str) -> References:
        work = {
            Node(CONTENT, digest): f"with content {digest}"
            for of, digest in self._pinned_content
            if of == namespace
        }
        for of, snapshotter, key in self._pinned_snapshots:
            if of == namespace:
                work[references.snapshot(snapshotter, key)] = f"with snapshot {key}"
        return references.load(tx, namespace, self._now_ns(), work)

    def _unneeded(self, tx: sqlite3.Connection, namespace: str) -> _Unneeded:
        graph = self._load(tx, namespace)
        found = _Unneeded([], [], [])
        damaged = [f"content {node.name}" for node in graph.unreadable if node.kind == CONTENT]
        if damaged := [*damaged, *graph.unnamed]:
            # What a manifest needs stands in its labels: nothing goes before it has gone.
            log.warning(
                "collect garbage of namespace %s: nothing is removed, the records of %s "
                "cannot be read",
                namespace,
                ", ".join(damaged[:3]),
            )
            return found
        needed = graph.reachable()
        for row in tx.execute("SELECT digest FROM content WHERE namespace = ?", (namespace,)):
            if (CONTENT, row["digest"]) not in needed:
                found.content.append(Digest.parse(row["digest"]))
        for row in tx.execute(
            "SELECT number, snapshotter, key, kind, labels FROM snapshots WHERE namespace = ?",
            (namespace,),
        ):
            if row["kind"] != COMMITTED and not references.is_under_lease(row["labels"]):
                continue
            node = references.snapshot(row["snapshotter"], row["key"])
            if (SNAPSHOT, node.name) not in needed:
                found.snapshots.append((row["number"], row["snapshotter"], row["key"]))
        for row in tx.execute("SELECT name FROM images WHERE namespace = ?", (namespace,)):
            if (IMAGE, row["name"]) not in needed:
                found.images.append(row["name"])
        return found

    def _drop_rows(self, namespace: str) -> Collected:
        began = time.monotonic()
        with self._db.durable_transaction() as tx:
            unneeded = self._unneeded(tx, namespace)
            size_bytes = _freed(tx, namespace, unneeded)
            delete_content_rows(tx, namespace, unneeded.content)
            # A child's number is above its parent's, whoever their snapshotter is.
            gone: list[tuple[str, dict[str, str]]] = []
            for number, snapshotter, key in sorted(unneeded.snapshots, reverse=True):
                delete_snapshot_rows(tx, snapshotter, [number])
                gone.append((events.SNAPSHOT_REMOVE, {"key": key, "snapshotter": snapshotter}))
            tx.executemany(
                "DELETE FROM images WHERE namespace = ? AND name = ?",
                [(namespace, name) for name in unneeded.images],
            )
            tx.execute(
                "DELETE FROM leases WHERE namespace = ? AND expires_at <= ?",
                (namespace, self._now_ns()),
            )
            gone += [(events.IMAGE_DELETE, {"name": name}) for name in unneeded.images]
            told = [self._events.append(tx, namespace, *one) for one in gone]
            hit("gc.marked")
        self._events.announce(*told)
        return _collected(unneeded, size_bytes, time.monotonic() - began)


def _collected(unneeded: _Unneeded, size_bytes: int, pause_s: float = 0.0) -> Collected:
    return Collected(
        tuple(unneeded.content),
        tuple((snapshotter, key) for _, snapshotter, key in unneeded.snapshots),
        tuple(unneeded.images),
        size_bytes,
        pause_s,
    )


def _freed(tx: sqlite3.Connection, namespace: str, unneeded: _Unneeded) -> int:
    """Bytes that go with these rows, as they were recorded."""
    size_bytes = 0
    for digest in unneeded.content:
        row = tx.execute(
            "SELECT size_bytes, (SELECT count(*) FROM content WHERE digest = c.digest) AS owners"
            " FROM content AS c WHERE namespace = ? AND digest = ?",
            (namespace, digest),
        ).fetchone()
        size_bytes += row["size_bytes"] if row["owners"] == 1 else 0
    for number, _, _ in unneeded.snapshots:
        row = tx.execute("SELECT size_bytes FROM snapshots WHERE number = ?", (number,)).fetchone()
        size_bytes += row["size_bytes"]
    return size_bytes
