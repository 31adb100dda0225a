"""Namespaces: containerd's unit of isolation, a name that every other object is filed under.

They come into being by use. There is `default` from the first start on.
"""

import sqlite3
import time
from collections.abc import Callable, Mapping

from lighter.daemon.metadata.columns import labels_of, stored, texts
from lighter.daemon.metadata.db import Database
from lighter.daemon.types import Namespace
from lighter.proto.errors import AlreadyExists, FailedPrecondition, NotFound
from lighter.proto.names import BROKEN_LABEL, check_labels, check_name

DEFAULT = "default"
# containerd's labels of a namespace (its docs/namespaces.md).
DEFAULT_RUNTIME_LABEL = "containerd.io/defaults/runtime"
DEFAULT_SNAPSHOTTER_LABEL = "containerd.io/defaults/snapshotter"

_HOLDERS = (
    *("containers", "tasks", "images", "snapshots", "content", "leases", "volumes"),
    "sandboxes",
)


# What joins a change in its transaction: the event that tells of it.
Also = Callable[[sqlite3.Connection], object]


def nothing(_tx: sqlite3.Connection) -> None:
    """An `Also` that adds nothing to the transaction."""


def ensure_in(tx: sqlite3.Connection, name: str) -> None:
    """Record the namespace inside an open transaction, unless it is there."""
    check_name(name, "namespace")
    tx.execute(
        "INSERT OR IGNORE INTO namespaces(name, labels, created_at) VALUES(?, '{}', ?)",
        (name, time.time_ns()),
    )


def merge_labels(old: Mapping[str, str], changes: Mapping[str, str]) -> dict[str, str]:
    """`old` with `changes` applied; the value "" removes a label. Raises InvalidArgument."""
    merged = {**old, **changes, BROKEN_LABEL: ""}
    return check_labels({key: value for key, value in merged.items() if value})


class NamespaceStore:
    """The namespaces of one instance."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self.ensure(DEFAULT)

    def ensure(self, name: str) -> None:
        """Make the namespace unless it exists. Raises InvalidArgument for a bad name."""
        check_name(name, "namespace")
        if self._db.row("SELECT 1 FROM namespaces WHERE name = ?", (name,)) is None:
            with self._db.durable_transaction() as tx:
                ensure_in(tx, name)

    def create(
        self, name: str, labels: Mapping[str, str] | None = None, also: Also = nothing
    ) -> Namespace:
        """Make a namespace. Raises AlreadyExists, InvalidArgument."""
        check_name(name, "namespace")
        namespace = Namespace(name, check_labels(dict(labels or {})), time.time_ns())
        with self._db.durable_transaction() as tx:
            made = tx.execute(
                "INSERT OR IGNORE INTO namespaces(name, labels, created_at) VALUES(?, ?, ?)",
                (name, stored(namespace.labels), namespace.created_at),
            )
            if not made.rowcount:
                raise AlreadyExists(f"create namespace {name}: it already exists")
            also(tx)
        return namespace

    def get(self, name: str) -> Namespace:
        """Raises NotFound."""
        row = self._db.row("SELECT * FROM namespaces WHERE name = ?", (name,))
        if row is None:
            raise NotFound(f"get namespace {name}: there is no such namespace")
        return _namespace(row)

    def labels(self, name: str) -> dict[str, str]:
        """The labels of a namespace; none for one that does not exist yet."""
        row = self._db.row("SELECT labels FROM namespaces WHERE name = ?", (name,))
        return (texts(row["labels"]) if row else None) or {}

    def list(self) -> tuple[Namespace, ...]:
        """All namespaces, by name."""
        return tuple(map(_namespace, self._db.rows("SELECT * FROM namespaces ORDER BY name")))

    def label(self, name: str, changes: Mapping[str, str], also: Also = nothing) -> Namespace:
        """Set labels; the value "" removes one. Raises NotFound, InvalidArgument."""
        namespace = self.get(name)
        labels = merge_labels(namespace.labels, changes)
        with self._db.durable_transaction() as tx:
            tx.execute("UPDATE namespaces SET labels = ? WHERE name = ?", (stored(labels), name))
            also(tx)
        return Namespace(name, labels, namespace.created_at)

    def delete(self, name: str, also: Also = nothing) -> None:
        """Remove an empty namespace. Raises NotFound, or FailedPrecondition with what it holds."""
        self.get(name)
        with self._db.durable_transaction() as tx:
            held = {
                table: tx.execute(
                    f"SELECT count(*) FROM {table} WHERE namespace = ?",  # noqa: S608 (our words)
                    (name,),
                ).fetchone()[0]
                for table in _HOLDERS
            }
            if any(held.values()):
                listed = ", ".join(f"{count} {table}" for table, count in held.items() if count)
                names = tx.execute(
                    "SELECT DISTINCT snapshotter FROM snapshots WHERE namespace = ? ORDER BY 1",
                    (name,),
                )
                raise FailedPrecondition(
                    f"delete namespace {name}: it is not empty: {listed}",
                    held=[table for table, count in held.items() if count],
                    snapshotters=[row["snapshotter"] for row in names],
                )
            tx.execute("DELETE FROM namespaces WHERE name = ?", (name,))
            also(tx)


def _namespace(row: sqlite3.Row) -> Namespace:
    labels = labels_of(row, f"namespace {row['name']}")
    return Namespace(row["name"], labels, row["created_at"])
