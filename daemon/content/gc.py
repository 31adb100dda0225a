"""Garbage collection: what no image, container, active snapshot, lease or running work needs, goes.

Mark: roots are the targets of image names, the snapshots of containers, all active snapshots and
views, what leases hold, what carries `containerd.io/gc.root`, and what work in this process has
pinned. From content, labels lead on: `containerd.io/gc.ref.content.*` to content and
`containerd.io/gc.ref.snapshot.<snapshotter>` to snapshots; from snapshots, parents.

Sweep: one durable transaction takes all other rows of the namespace and notes their bytes in
`trash`; then the bytes go. Killed in between, the next sweep finds the notes.
"""

import json
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from lighter.daemon.content.digest import Digest
from lighter.daemon.content.store import ContentStore
from lighter.daemon.content.store import delete_rows as delete_content_rows
from lighter.daemon.metadata.db import Database
from lighter.daemon.snapshots.rows import delete_rows as delete_snapshot_rows
from lighter.daemon.snapshots.types import COMMITTED, Snapshotter
from lighter.proto.faults import hit

K = TypeVar("K")

ROOT_LABEL = "containerd.io/gc.root"
CONTENT_LABEL = "containerd.io/gc.ref.content"
SNAPSHOT_LABEL = "containerd.io/gc.ref.snapshot."

_CONTENT_TYPE = "content"
_SNAPSHOT_TYPE = "snapshots/"  # and the snapshotter's name, as in containerd's leases


@dataclass(frozen=True)
class Collected:
    """What one collection removed."""

    content: tuple[str, ...]
    snapshots: tuple[tuple[str, str], ...]


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
        """Let go of everything; again is nothing."""
        _subtract(self._all_content, self._content)
        _subtract(self._all_snapshots, self._snapshots)


def _subtract(counted: Counter[K], keys: list[K]) -> None:
    for key in keys:
        counted[key] -= 1
        if not counted[key]:
            del counted[key]
    keys.clear()


@dataclass
class _Marked:
    content: set[str] = field(default_factory=set)
    snapshots: set[int] = field(default_factory=set)


class Collector:
    """Collects one namespace at a time; mark and row removal are one transaction on the loop."""

    def __init__(
        self, db: Database, content: ContentStore, snapshotters: Mapping[str, Snapshotter]
    ) -> None:
        self._db = db
        self._content = content
        self._snapshotters = snapshotters
        self._pinned_content: Counter[tuple[str, str]] = Counter()
        self._pinned_snapshots: Counter[tuple[str, ...]] = Counter()

    @contextmanager
    def pin(self) -> Iterator[Pin]:
        """Within the block, what is named to the pin is kept. A dead manager pins nothing."""
        pin = Pin(self._pinned_content, self._pinned_snapshots)
        try:
            yield pin
        finally:
            pin.release()

    async def collect(self, namespace: str) -> Collected:
        """Remove what is not needed; returns when the bytes are gone too."""
        collected = self._drop_rows(namespace)
        hit("gc.rows-deleted")
        await self._content.sweep()
        for snapshotter in self._snapshotters.values():
            await snapshotter.sweep()
        return collected

    def _drop_rows(self, namespace: str) -> Collected:
        with self._db.durable_transaction() as tx:
            marked = self._mark(tx, namespace)
            content = [
                Digest.parse(row["digest"])
                for row in tx.execute(
                    "SELECT digest FROM content WHERE namespace = ?", (namespace,)
                )
                if row["digest"] not in marked.content
            ]
            delete_content_rows(tx, namespace, content)
            snapshots = [
                row
                for row in tx.execute(
                    "SELECT number, snapshotter, key FROM snapshots"
                    " WHERE namespace = ? AND kind = ?",
                    (namespace, COMMITTED),
                )
                if row["number"] not in marked.snapshots
            ]
            # A child's number is above its parent's, whoever their snapshotter is.
            for row in sorted(snapshots, key=lambda row: -int(row["number"])):
                delete_snapshot_rows(tx, row["snapshotter"], [row["number"]])
        return Collected(
            tuple(content), tuple((row["snapshotter"], row["key"]) for row in snapshots)
        )

    def _mark(self, tx: sqlite3.Connection, namespace: str) -> _Marked:
        marked = _Marked()
        labels = {
            row["digest"]: json.loads(row["labels"])
            for row in tx.execute(
                "SELECT digest, labels FROM content WHERE namespace = ?", (namespace,)
            )
        }
        needed = [digest for digest, of in labels.items() if ROOT_LABEL in of]
        needed += self._content_roots(tx, namespace)
        keys = set(self._snapshot_roots(tx, namespace))
        while needed:
            digest = needed.pop()
            if digest in marked.content:
                continue
            marked.content.add(digest)
            for label, value in labels.get(digest, {}).items():
                if label.startswith(CONTENT_LABEL):
                    needed.append(value)
                elif label.startswith(SNAPSHOT_LABEL):
                    keys.add((label.removeprefix(SNAPSHOT_LABEL).partition("/")[0], value))
        self._mark_snapshots(tx, namespace, keys, marked)
        return marked

    def _content_roots(self, tx: sqlite3.Connection, namespace: str) -> list[str]:
        roots = [
            row["digest"]
            for row in tx.execute("SELECT digest FROM images WHERE namespace = ?", (namespace,))
        ]
        roots += [
            resource for type_, resource in self._leased(tx, namespace) if type_ == _CONTENT_TYPE
        ]
        roots += [digest for of, digest in self._pinned_content if of == namespace]
        return roots

    def _snapshot_roots(self, tx: sqlite3.Connection, namespace: str) -> Iterator[tuple[str, str]]:
        """(snapshotter, key) of what is needed besides active snapshots, views and labels."""
        for row in tx.execute(
            "SELECT snapshotter, snapshot_key FROM containers WHERE namespace = ?", (namespace,)
        ):
            yield row["snapshotter"], row["snapshot_key"]
        for type_, resource in self._leased(tx, namespace):
            if type_.startswith(_SNAPSHOT_TYPE):
                yield type_.removeprefix(_SNAPSHOT_TYPE), resource
        for of, snapshotter, key in self._pinned_snapshots:
            if of == namespace:
                yield snapshotter, key

    def _leased(self, tx: sqlite3.Connection, namespace: str) -> list[tuple[str, str]]:
        rows = tx.execute(
            "SELECT type, resource FROM lease_resources AS r JOIN leases AS l"
            " ON l.namespace = r.namespace AND l.id = r.lease"
            " WHERE r.namespace = ? AND (l.expires_at IS NULL OR l.expires_at > ?)",
            (namespace, time.time_ns()),
        )
        return [(row["type"], row["resource"]) for row in rows]

    def _mark_snapshots(
        self, tx: sqlite3.Connection, namespace: str, keys: set[tuple[str, str]], marked: _Marked
    ) -> None:
        rows = tx.execute(
            "SELECT number, parent, kind, labels, snapshotter, key FROM snapshots"
            " WHERE namespace = ?",
            (namespace,),
        ).fetchall()
        parents = {row["number"]: row["parent"] for row in rows}
        for row in rows:
            if (
                row["kind"] != COMMITTED
                or (row["snapshotter"], row["key"]) in keys
                or ROOT_LABEL in json.loads(row["labels"])
            ):
                number = row["number"]
                while number is not None and number not in marked.snapshots:
                    marked.snapshots.add(number)
                    number = parents[number]
