"""Leases: what a client needs kept from the garbage collector until it says otherwise.

A lease names resources by containerd's types: "content" with a digest, "images" with a name,
"ingests" with a ref, "snapshots/<snapshotter>" with a key. Its label `containerd.io/gc.expire`
(RFC 3339) ends it by itself; the rows go at the next collection.
"""

import json
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from lighter.daemon.clock import Clock
from lighter.daemon.metadata.columns import labels_of, stored, texts
from lighter.daemon.metadata.db import Database
from lighter.daemon.metadata.namespaces import ensure_in
from lighter.daemon.snapshots.types import COMMITTED, UNDER_LEASE_LABEL
from lighter.proto.errors import AlreadyExists, InvalidArgument, NotFound
from lighter.proto.names import check_labels

EXPIRE_LABEL = "containerd.io/gc.expire"
MAX_ID_BYTES = 256
MAX_TIME_NS = (1 << 63) - 1

CONTENT = "content"
IMAGES = "images"
INGESTS = "ingests"
SNAPSHOTS = "snapshots/"


@dataclass(frozen=True)
class Lease:
    """`expires_at` is None for one that only its owner ends."""

    id: str
    labels: Mapping[str, str]
    created_at: int
    expires_at: int | None


class Leases:
    """The leases of all namespaces. `now_ns` is the time by which they expire, Clock's."""

    def __init__(self, db: Database, now_ns: Callable[[], int] | None = None) -> None:
        self._db = db
        self._now_ns = now_ns or Clock().now_ns

    def create(
        self, namespace: str, lease_id: str = "", labels: Mapping[str, str] | None = None
    ) -> Lease:
        """A new lease; "" makes up an id. Raises AlreadyExists, InvalidArgument."""
        lease_id = lease_id or f"{time.time_ns()}-{secrets.token_hex(4)}"
        if len(lease_id.encode(errors="replace")) > MAX_ID_BYTES or not lease_id.isprintable():
            raise InvalidArgument(
                f"create lease {lease_id[:60]!r}: an id has 1 to {MAX_ID_BYTES} printable bytes"
            )
        labels = check_labels(dict(labels or {}))
        now = time.time_ns()
        lease = Lease(lease_id, labels, now, _expiry(lease_id, labels))
        with self._db.durable_transaction() as tx:
            ensure_in(tx, namespace)
            done = tx.execute(
                "INSERT INTO leases(namespace, id, labels, created_at, expires_at)"
                " VALUES(?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
                (namespace, lease_id, stored(labels), now, lease.expires_at),
            )
            if not done.rowcount:
                raise AlreadyExists(f"create lease {lease_id}: it already exists")
        return lease

    def hold(
        self, namespace: str, lease_id: str, expires_at: int, resources: Iterable[tuple[str, str]]
    ) -> None:
        """Make or renew a lease of our own, with these (type, resource) beside what it has."""
        with self._db.durable_transaction() as tx:
            ensure_in(tx, namespace)
            expire = datetime.fromtimestamp(expires_at / 1e9, UTC).isoformat(timespec="seconds")
            tx.execute(
                "INSERT INTO leases(namespace, id, labels, created_at, expires_at)"
                " VALUES(?, ?, ?, ?, ?) ON CONFLICT DO UPDATE"
                " SET labels = excluded.labels, expires_at = excluded.expires_at",
                (
                    namespace,
                    lease_id,
                    json.dumps({EXPIRE_LABEL: expire}),
                    time.time_ns(),
                    expires_at,
                ),
            )
            _add(tx, namespace, lease_id, resources)

    def get(self, namespace: str, lease_id: str) -> Lease:
        """Raises NotFound."""
        row = self._db.row(
            "SELECT * FROM leases WHERE namespace = ? AND id = ?", (namespace, lease_id)
        )
        if row is None:
            raise _missing("get", namespace, lease_id)
        return _lease(row)

    def list(self, namespace: str) -> tuple[Lease, ...]:
        """By id."""
        rows = self._db.rows("SELECT * FROM leases WHERE namespace = ? ORDER BY id", (namespace,))
        return tuple(map(_lease, rows))

    def delete(self, namespace: str, lease_id: str) -> None:
        """What it held goes at the next collection. Raises NotFound.

        So do snapshots in use that neither a container nor another lease has: who ends a lease by
        name says that nobody works there any more. One that expires says nothing.
        """
        with self._db.durable_transaction() as tx:
            self._release_snapshots(tx, namespace, lease_id)
            done = tx.execute(
                "DELETE FROM leases WHERE namespace = ? AND id = ?", (namespace, lease_id)
            )
            if not done.rowcount:
                raise _missing("delete", namespace, lease_id)

    def add(self, namespace: str, lease_id: str, type_: str, resource: str) -> None:
        """Hold one more resource, there or not yet. Raises NotFound, InvalidArgument."""
        check_type(type_)
        self.get(namespace, lease_id)
        with self._db.durable_transaction() as tx:
            _add(tx, namespace, lease_id, [(type_, resource)])

    def remove(self, namespace: str, lease_id: str, type_: str, resource: str) -> None:
        """Hold a resource no longer. Raises NotFound."""
        self.get(namespace, lease_id)
        with self._db.durable_transaction() as tx:
            self._release_snapshots(tx, namespace, lease_id, (type_, resource))
            done = tx.execute(
                "DELETE FROM lease_resources"
                " WHERE namespace = ? AND lease = ? AND type = ? AND resource = ?",
                (namespace, lease_id, type_, resource),
            )
            if not done.rowcount:
                raise NotFound(f"change lease {lease_id}: it does not hold {type_} {resource}")

    def resources(self, namespace: str, lease_id: str) -> tuple[tuple[str, str], ...]:
        """(type, resource) of all that it holds. Raises NotFound."""
        self.get(namespace, lease_id)
        rows = self._db.rows(
            "SELECT type, resource FROM lease_resources WHERE namespace = ? AND lease = ?"
            " ORDER BY type, resource",
            (namespace, lease_id),
        )
        return tuple((row["type"], row["resource"]) for row in rows)

    def ingests(self) -> frozenset[tuple[str, str]]:
        """(namespace, ref) of all ingests that leases hold."""
        rows = self._db.rows(
            "SELECT namespace, resource FROM lease_resources WHERE type = ?", (INGESTS,)
        )
        return frozenset((row["namespace"], row["resource"]) for row in rows)

    def _release_snapshots(
        self,
        tx: sqlite3.Connection,
        namespace: str,
        lease_id: str,
        only: tuple[str | None, str | None] = (None, None),
    ) -> None:
        """Let active snapshots and views that this lease alone holds be collected.

        `only`: type and name of a resource, of which alone this is said.

        They are roots by themselves otherwise (content/references.py). dockerd keeps a container's
        root file system by a lease of its own and removes it by ending that.
        """
        held = tx.execute(
            "SELECT number, labels FROM snapshots AS s JOIN lease_resources AS r"
            " ON r.namespace = s.namespace AND r.resource = s.key"
            " AND r.type = 'snapshots/' || s.snapshotter"
            " WHERE r.namespace = ? AND r.lease = ?"
            " AND r.type = coalesce(?, r.type) AND r.resource = coalesce(?, r.resource)"
            " AND s.kind != ?"
            " AND NOT EXISTS (SELECT 1 FROM containers AS c WHERE c.namespace = s.namespace"
            " AND c.snapshotter = s.snapshotter AND c.snapshot_key = s.key)"
            " AND NOT EXISTS (SELECT 1 FROM lease_resources AS o JOIN leases AS l"
            " ON l.namespace = o.namespace AND l.id = o.lease"
            " WHERE o.namespace = r.namespace AND o.type = r.type AND o.resource = r.resource"
            " AND o.lease != r.lease AND coalesce(l.expires_at > ?, 1))",
            (namespace, lease_id, *only, COMMITTED, self._now_ns()),
        ).fetchall()
        for row in held:
            labels = stored({**(texts(row["labels"]) or {}), UNDER_LEASE_LABEL: "true"})
            tx.execute("UPDATE snapshots SET labels = ? WHERE number = ?", (labels, row["number"]))


def check_type(type_: str) -> str:
    """Raises InvalidArgument for what is no type of resource."""
    if type_ not in (CONTENT, IMAGES, INGESTS) and not (
        type_.startswith(SNAPSHOTS) and len(type_) > len(SNAPSHOTS)
    ):
        raise InvalidArgument(
            f"add lease resource of type {type_[:60]!r}: expected content, images, "
            "ingests or snapshots/<snapshotter>"
        )
    return type_


def _add(
    tx: sqlite3.Connection, namespace: str, lease_id: str, resources: Iterable[tuple[str, str]]
) -> None:
    tx.executemany(
        "INSERT OR IGNORE INTO lease_resources(namespace, lease, type, resource)"
        " VALUES(?, ?, ?, ?)",
        [(namespace, lease_id, type_, resource) for type_, resource in resources],
    )


def _expiry(lease_id: str, labels: Mapping[str, str]) -> int | None:
    text = labels.get(EXPIRE_LABEL)
    if text is None:
        return None
    try:
        at = datetime.fromisoformat(text)
        seconds = (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
        return min(int(seconds) * 10**9, MAX_TIME_NS)  # SQLite counts to the year 2262
    except (ValueError, OverflowError) as err:
        raise InvalidArgument(f"create lease {lease_id}: {EXPIRE_LABEL} {text!r}: {err}") from err


def _lease(row: sqlite3.Row) -> Lease:
    labels = labels_of(row, f"lease {row['namespace']}/{row['id']}")
    return Lease(row["id"], labels, row["created_at"], row["expires_at"])


def _missing(verb: str, namespace: str, lease_id: str) -> NotFound:
    return NotFound(f"{verb} lease {lease_id}: there is none in namespace {namespace}")
