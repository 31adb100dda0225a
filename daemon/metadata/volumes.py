"""Volumes as they are recorded; the directories are those of daemon/volumes/service.py.

Which containers use one stands in the containers' own options, so that it goes with them, whichever
release removes them. `trash` holds what was deleted and may still be on disk.
"""

import builtins
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lighter.daemon.metadata.columns import labels_of, mapping, stored
from lighter.daemon.metadata.db import Database
from lighter.daemon.metadata.namespaces import ensure_in
from lighter.proto.errors import AlreadyExists, NotFound
from lighter.proto.names import check_labels

_TRASH = "volumes"


@dataclass(frozen=True)
class Volume:
    """`anonymous`: made for one container that named none."""

    namespace: str
    name: str
    labels: Mapping[str, str]
    anonymous: bool
    created_at: int


class VolumeStore:
    """The volumes of all namespaces."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def create(self, volume: Volume) -> None:
        """Raises AlreadyExists, InvalidArgument."""
        labels = stored(check_labels(dict(volume.labels)))
        with self._db.durable_transaction() as tx:
            ensure_in(tx, volume.namespace)
            done = tx.execute(
                "INSERT OR IGNORE INTO volumes(namespace, name, labels, anonymous, created_at)"
                " VALUES(?, ?, ?, ?, ?)",
                (volume.namespace, volume.name, labels, volume.anonymous, volume.created_at),
            )
            if not done.rowcount:
                raise AlreadyExists(f"create volume {volume.name}: it already exists")

    def database_born_at(self) -> int:
        """When the first namespace of this database was made, in ns; 0 without any."""
        row = self._db.row("SELECT min(created_at) AS at FROM namespaces", ())
        return int(row["at"] or 0) if row is not None else 0

    def get(self, namespace: str, name: str) -> Volume:
        """Raises NotFound, which names the other namespaces that have such a volume."""
        row = self._db.row(
            "SELECT * FROM volumes WHERE namespace = ? AND name = ?", (namespace, name)
        )
        if row is None:
            raise self._missing("get", namespace, name)
        return _volume(row)

    def list(self, namespace: str) -> tuple[Volume, ...]:
        rows = self._db.rows(
            "SELECT * FROM volumes WHERE namespace = ? ORDER BY name", (namespace,)
        )
        return tuple(map(_volume, rows))

    def users(self, namespace: str) -> "dict[str, builtins.list[str]]":
        """The containers that use each volume: their records name it, or are damaged and may name
        any.
        """
        found: dict[str, builtins.list[str]] = {}
        for row in self._db.rows(
            "SELECT id, options FROM containers WHERE namespace = ? ORDER BY id", (namespace,)
        ):
            for name in self._named(namespace, mapping(row["options"])):
                found.setdefault(name, []).append(row["id"])
        return found

    def _named(self, namespace: str, options: Mapping[str, Any] | None) -> set[str]:
        if options is None:
            return {volume.name for volume in self.list(namespace)}
        return {one["name"] for one in options.get("volumes") or ()}

    def delete(self, namespace: str, name: str, removed_as: str) -> None:
        """Forget it and note its directory as trash, in one step. Raises NotFound."""
        with self._db.durable_transaction() as tx:
            done = tx.execute(
                "DELETE FROM volumes WHERE namespace = ? AND name = ?", (namespace, name)
            )
            if not done.rowcount:
                raise self._missing("delete", namespace, name)
            tx.execute(
                "INSERT INTO trash(owner, name) VALUES(?, ?)",
                (_TRASH, f"{namespace}/{name} {removed_as}"),
            )

    def trash(self) -> tuple[tuple[str, str, str], ...]:
        """(namespace, name, name while it is removed) of volumes that may still be on disk."""
        rows = self._db.rows("SELECT name FROM trash WHERE owner = ?", (_TRASH,))
        split = [row["name"].partition(" ") for row in rows]
        return tuple((*which.split("/", 1), removed_as) for which, _, removed_as in split)

    def forget_trash(self, namespace: str, name: str, removed_as: str) -> None:
        with self._db.durable_transaction() as tx:
            tx.execute(
                "DELETE FROM trash WHERE owner = ? AND name = ?",
                (_TRASH, f"{namespace}/{name} {removed_as}"),
            )

    def _missing(self, verb: str, namespace: str, name: str) -> NotFound:
        rows = self._db.rows(
            "SELECT namespace FROM volumes WHERE name = ? ORDER BY namespace LIMIT 3", (name,)
        )
        hint = "".join(
            f"; namespace {row['namespace']} has one (ctl -n {row['namespace']} …)" for row in rows
        )
        return NotFound(f"{verb} volume {name}: there is none in namespace {namespace}{hint}")


def _volume(row: sqlite3.Row) -> Volume:
    return Volume(
        row["namespace"],
        row["name"],
        labels_of(row, f"volume {row['namespace']}/{row['name']}"),
        bool(row["anonymous"]),
        row["created_at"],
    )
