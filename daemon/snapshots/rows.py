"""The records of snapshots: one row each, its number naming its directory."""

import sqlite3
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from lighter.daemon.events.log import Event, EventLog
from lighter.daemon.metadata.columns import labels_of, stored
from lighter.daemon.metadata.db import Database
from lighter.daemon.metadata.namespaces import ensure_in, merge_labels
from lighter.daemon.snapshots.types import ACTIVE, COMMITTED, VIEW
from lighter.daemon.types import SnapshotInfo, Usage
from lighter.proto import events
from lighter.proto.daemon_api import PAGE_ROWS
from lighter.proto.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from lighter.proto.names import check_labels

MAX_KEY_BYTES = 1024

_SELECT = (
    "SELECT s.*, coalesce(p.key, '') AS parent_key FROM snapshots AS s"
    " LEFT JOIN snapshots AS p ON p.number = s.parent"
)


@dataclass(frozen=True)
class Row:
    """One record. `parent` is the parent's number, None for a base."""

    number: int
    parent: int | None
    info: SnapshotInfo
    usage: Usage


def trash_owner(snapshotter: str) -> str:
    """The owner under which `trash` notes directories of this snapshotter."""
    return f"snapshots/{snapshotter}"


def forget_leases(tx: sqlite3.Connection, number: int) -> None:
    """Inside a transaction: what has this name later is not what a lease was given."""
    tx.execute(
        "DELETE FROM lease_resources WHERE (namespace, type, resource) IN"
        " (SELECT namespace, 'snapshots/' || snapshotter, key FROM snapshots WHERE number = ?)",
        (number,),
    )


def delete_rows(tx: sqlite3.Connection, snapshotter: str, numbers: Iterable[int]) -> None:
    """Inside a transaction: drop records and note their directories for a sweep.

    A child's number is above its parent's, so the highest goes first.
    """
    for number in sorted(numbers, reverse=True):
        forget_leases(tx, number)
        tx.execute("DELETE FROM snapshots WHERE number = ?", (number,))
        tx.execute(
            "INSERT OR IGNORE INTO trash(owner, name) VALUES(?, ?)",
            (trash_owner(snapshotter), str(number)),
        )


class SnapshotRows:
    """The records of one snapshotter.

    A snapshot that is prepared, committed or removed is told, by an event in the transaction.
    """

    def __init__(self, db: Database, events_log: EventLog, snapshotter: str) -> None:
        self._db = db
        self._events = events_log
        self._snapshotter = snapshotter

    def find(self, verb: str, namespace: str, key: str) -> Row:
        """Raises NotFound as "verb snapshot key: …"."""
        row = self._db.row(
            f"{_SELECT} WHERE s.snapshotter = ? AND s.namespace = ? AND s.key = ?",
            (self._snapshotter, namespace, key),
        )
        if row is None:
            raise NotFound(
                f"{verb} snapshot {key}: {self._snapshotter} has none in namespace {namespace}"
            )
        return _row(row)

    def by_number(self, number: int) -> Row | None:
        """The record whose directory has this number."""
        row = self._db.row(
            f"{_SELECT} WHERE s.snapshotter = ? AND s.number = ?", (self._snapshotter, number)
        )
        return None if row is None else _row(row)

    def check_absent(self, verb: str, namespace: str, key: str) -> None:
        """Raises AlreadyExists, or InvalidArgument for a key that cannot be one."""
        if not key or "\0" in key or len(key.encode()) > MAX_KEY_BYTES:
            raise InvalidArgument(
                f"{verb} snapshot {key[:64]!r}: a key has 1 to {MAX_KEY_BYTES} bytes and no NUL"
            )
        try:
            self.find(verb, namespace, key)
        except NotFound:
            return
        raise AlreadyExists(f"{verb} snapshot {key}: it already exists")

    def chain(self, number: int | None) -> tuple[int, ...]:
        """`number` and all below it, nearest first."""
        rows = self._db.rows(
            "WITH RECURSIVE chain(number, parent, depth) AS ("
            " SELECT number, parent, 0 FROM snapshots WHERE number = ?"
            " UNION ALL SELECT s.number, s.parent, depth + 1 FROM snapshots AS s"
            " JOIN chain ON s.number = chain.parent"
            ") SELECT number FROM chain ORDER BY depth",
            (number,),
        )
        return tuple(row["number"] for row in rows)

    def page(self, namespace: str, cursor: str, limit: int) -> tuple[tuple[SnapshotInfo, ...], str]:
        """Records by key after `cursor`, and the next cursor."""
        limit = max(1, min(limit, PAGE_ROWS))
        rows, more = self._db.page(
            f"{_SELECT} WHERE s.snapshotter = ? AND s.namespace = ? AND s.key > ?"
            " ORDER BY s.key LIMIT ?",
            (self._snapshotter, namespace, cursor),
            limit,
        )
        page = tuple(_row(row).info for row in rows)
        return page, page[-1].key if more else ""

    def mountable(self, namespace: str, numbers: Collection[int]) -> tuple[Row, ...]:
        """The namespace's active snapshots of these numbers, and all its views: a view's mounts
        name what is below it."""
        listed = f",{','.join(map(str, numbers))},"
        rows = self._db.rows(
            f"{_SELECT} WHERE s.snapshotter = ? AND s.namespace = ? AND (s.kind = ? OR s.kind = ?"
            " AND instr(?, ',' || s.number || ',')) ORDER BY s.number",
            (self._snapshotter, namespace, VIEW, ACTIVE, listed),
        )
        return tuple(map(_row, rows))

    def numbers(self) -> frozenset[int]:
        """All numbers that this snapshotter has records of."""
        rows = self._db.rows(
            "SELECT number FROM snapshots WHERE snapshotter = ?", (self._snapshotter,)
        )
        return frozenset(row["number"] for row in rows)

    def below_new(self, namespace: str, key: str, parent: str) -> Row | None:
        """What a new snapshot of this key stands on, None without a `parent`.

        Raises AlreadyExists, NotFound for the parent, FailedPrecondition for one not committed.
        """
        self.check_absent("prepare", namespace, key)
        if not parent:
            return None
        below = self.find("prepare on", namespace, parent)
        if below.info.kind != COMMITTED:
            raise FailedPrecondition(
                f"prepare snapshot {key}: its parent {parent} is {below.info.kind}, not committed"
            )
        return below

    def new_number(self, above: int) -> int:
        """A number that no snapshot of any snapshotter has or had, higher than `above`."""
        return self._db.next_number("snapshots", max(above, self.highest()))

    def highest(self) -> int:
        """The highest number ever recorded, by any snapshotter."""
        row = self._db.row("SELECT seq FROM sqlite_sequence WHERE name = 'snapshots'")
        return int(row["seq"]) if row else 0

    def insert(
        self,
        namespace: str,
        key: str,
        number: int,
        parent: int | None,
        kind: str,
        labels: Mapping[str, str],
        lease: str = "",
    ) -> None:
        """Record a new snapshot, which the lease holds if one is named: in one transaction, since
        nobody would ever collect an active one that was left without it.

        Raises AlreadyExists, NotFound (the parent or the lease went meanwhile).
        """
        now = time.time_ns()
        text = stored(check_labels(dict(labels)))
        # What makes it count is a commit or a container, recorded later and durably; both write to
        # one log, so that a sync of theirs takes this with it.
        with self._db.fast_transaction() as tx:
            ensure_in(tx, namespace)
            below = tx.execute("SELECT key FROM snapshots WHERE number = ?", (parent,)).fetchone()
            if parent is not None and below is None:
                raise NotFound(f"prepare snapshot {key}: its parent has been removed")
            done = tx.execute(
                "INSERT OR IGNORE INTO snapshots(number, snapshotter, namespace, key, parent,"
                " kind, labels, created_at, updated_at) VALUES(?,?,?,?,?,?,?,?,?)",
                (number, self._snapshotter, namespace, key, parent, kind, text, now, now),
            )
            if not done.rowcount:
                raise AlreadyExists(f"prepare snapshot {key}: it already exists")
            if lease:
                self._hold(tx, namespace, key, lease)
            told = []
            if kind == ACTIVE:  # containerd tells of no views
                name = below["key"] if below else ""
                told.append(self._tell(tx, namespace, events.SNAPSHOT_PREPARE, key, parent=name))
        self._events.announce(*told)

    def _hold(self, tx: sqlite3.Connection, namespace: str, key: str, lease: str) -> None:
        found = tx.execute(
            "SELECT 1 FROM leases WHERE namespace = ? AND id = ?", (namespace, lease)
        ).fetchone()
        if found is None:
            raise NotFound(f"prepare snapshot {key}: lease {lease} does not exist")
        tx.execute(
            "INSERT OR IGNORE INTO lease_resources(namespace, lease, type, resource)"
            " VALUES(?, ?, ?, ?)",
            (namespace, lease, f"snapshots/{self._snapshotter}", key),
        )

    def _tell(
        self, tx: sqlite3.Connection, namespace: str, topic: str, key: str, **more: str
    ) -> Event:
        body = {"key": key, "snapshotter": self._snapshotter, **more}
        return self._events.append(tx, namespace, topic, body)

    def commit(
        self,
        namespace: str,
        name: str,
        row: Row,
        labels: Mapping[str, str],
        usage: Usage,
        parent: int | None,
    ) -> None:
        """Make the active `row` the committed `name` on `parent` (a number; None: as it is).

        What became of it since it was looked up counts: raises NotFound when it is not there as
        such any more, FailedPrecondition when it is a container's, and as `check_absent`.
        """
        self.check_absent("commit", namespace, name)
        key = row.info.key
        with self._db.durable_transaction() as tx:
            now = tx.execute(
                "SELECT c.id FROM snapshots AS s LEFT JOIN containers AS c ON"
                " (c.namespace, c.snapshotter, c.snapshot_key)"
                " = (s.namespace, s.snapshotter, s.key)"
                " WHERE s.number = ? AND s.kind = ? AND s.key = ?",
                (row.number, ACTIVE, key),
            ).fetchone()
            if now is None:
                raise NotFound(f"commit snapshot {key}: it has been removed or committed meanwhile")
            if now["id"] is not None:
                raise FailedPrecondition(f"commit snapshot {key}: container {now['id']} uses it")
            forget_leases(tx, row.number)
            at_ns = time.time_ns()
            tx.execute(
                "UPDATE snapshots SET key = ?, kind = ?, labels = ?, size_bytes = ?, inodes = ?,"
                " created_at = ?, updated_at = ?, parent = coalesce(?, parent) WHERE number = ?",
                (
                    name,
                    COMMITTED,
                    stored(check_labels(dict(labels))),
                    usage.size_bytes,
                    usage.inodes,
                    at_ns,
                    at_ns,
                    parent,
                    row.number,
                ),
            )
            told = self._tell(tx, namespace, events.SNAPSHOT_COMMIT, key, name=name)
        self._events.announce(told)

    def label(self, namespace: str, key: str, changes: Mapping[str, str]) -> None:
        """Set labels; "" removes one. Raises NotFound."""
        row = self.find("update", namespace, key)
        labels = merge_labels(row.info.labels, changes)
        with self._db.durable_transaction() as tx:
            tx.execute(
                "UPDATE snapshots SET labels = ?, updated_at = ? WHERE number = ?",
                (stored(labels), time.time_ns(), row.number),
            )

    def delete(self, namespace: str, key: str) -> None:
        """Drop a record and note its directory. Raises NotFound, FailedPrecondition.

        Durable for a committed one, whose files must not go before its record has: an active one
        that comes back after a power cut comes back empty.
        """
        row = self.find("remove", namespace, key)
        committed = row.info.kind == COMMITTED
        begin = self._db.durable_transaction if committed else self._db.fast_transaction
        with begin() as tx:
            children = tx.execute(
                "SELECT key FROM snapshots WHERE parent = ? ORDER BY key LIMIT 4", (row.number,)
            ).fetchall()
            if children:
                listed = ", ".join(child["key"] for child in children)
                raise FailedPrecondition(
                    f"remove snapshot {key}: it is the parent of {listed}", children=listed
                )
            delete_rows(tx, self._snapshotter, [row.number])
            told = self._tell(tx, namespace, events.SNAPSHOT_REMOVE, key)
        self._events.announce(told)

    def note(self, number: int) -> None:
        """Note what is about to be made under a number, so that it is swept if nobody records it.
        Not durable: after a power cut the note is lost, and with it what is only a leftover."""
        with self._db.fast_transaction() as tx:
            tx.execute(
                "INSERT OR IGNORE INTO trash(owner, name) VALUES(?, ?)",
                (trash_owner(self._snapshotter), str(number)),
            )

    def trash(self) -> tuple[str, ...]:
        """Names of directories that may be removed."""
        rows = self._db.rows(
            "SELECT name FROM trash WHERE owner = ?", (trash_owner(self._snapshotter),)
        )
        # A name that cannot be read is mended by `ctl system check --repair`.
        return tuple(row["name"] for row in rows if row["name"].isdecimal())

    def forget_trash(self, name: str) -> None:
        """A directory is gone. Not durable: a note that comes back names nothing."""
        with self._db.fast_transaction() as tx:
            tx.execute(
                "DELETE FROM trash WHERE owner = ? AND name = ?",
                (trash_owner(self._snapshotter), name),
            )


def _row(row: sqlite3.Row) -> Row:
    return Row(
        number=row["number"],
        parent=row["parent"],
        info=SnapshotInfo(
            key=row["key"],
            parent=row["parent_key"],
            kind=row["kind"],
            labels=labels_of(row, f"snapshot {row['namespace']}/{row['key']}"),
            created_at=row["created_at"],
            updated_at=row["updated_at"],
        ),
        usage=Usage(row["size_bytes"], row["inodes"]),
    )
