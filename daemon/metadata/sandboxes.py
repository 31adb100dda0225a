"""Sandboxes as clients record them. None of them runs: that comes with pods."""

import json
import sqlite3
import time
from dataclasses import replace

from lighter.daemon.metadata.columns import labels_of, mapping, stored
from lighter.daemon.metadata.db import Database
from lighter.daemon.metadata.namespaces import ensure_in
from lighter.daemon.types import Sandbox
from lighter.proto.errors import AlreadyExists, NotFound
from lighter.proto.names import check_labels, check_name

_EMPTY = {"runtime": "", "sandboxer": "", "options": [], "spec": [], "extensions": {}}


class SandboxStore:
    """The sandboxes of all namespaces."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def create(self, sandbox: Sandbox) -> Sandbox:
        """Record it, with now as its times. Raises AlreadyExists, InvalidArgument."""
        check_name(sandbox.id, "sandbox")
        now = time.time_ns()
        made = replace(sandbox, created_at=now, updated_at=now)
        labels = stored(check_labels(dict(made.labels)))
        with self._db.durable_transaction() as tx:
            ensure_in(tx, made.namespace)
            done = tx.execute(
                "INSERT OR IGNORE INTO sandboxes(namespace, id, labels, record, created_at,"
                " updated_at) VALUES(?, ?, ?, ?, ?, ?)",
                (made.namespace, made.id, labels, _record(made), now, now),
            )
            if not done.rowcount:
                raise AlreadyExists(f"create sandbox {made.id}: it already exists")
        return made

    def get(self, namespace: str, sandbox_id: str) -> Sandbox:
        """Raises NotFound."""
        row = self._db.row(
            "SELECT * FROM sandboxes WHERE namespace = ? AND id = ?", (namespace, sandbox_id)
        )
        if row is None:
            raise NotFound(f"get sandbox {sandbox_id}: there is none in namespace {namespace}")
        return _sandbox(row)

    def list(self, namespace: str) -> tuple[Sandbox, ...]:
        """By id."""
        rows = self._db.rows(
            "SELECT * FROM sandboxes WHERE namespace = ? ORDER BY id", (namespace,)
        )
        return tuple(map(_sandbox, rows))

    def update(self, sandbox: Sandbox) -> Sandbox:
        """Replace everything but the time of its creation. Raises NotFound, InvalidArgument."""
        changed = replace(sandbox, updated_at=time.time_ns())
        labels = stored(check_labels(dict(changed.labels)))
        with self._db.durable_transaction() as tx:
            done = tx.execute(
                "UPDATE sandboxes SET labels = ?, record = ?, updated_at = ?"
                " WHERE namespace = ? AND id = ?",
                (labels, _record(changed), changed.updated_at, changed.namespace, changed.id),
            )
            if not done.rowcount:
                raise NotFound(f"update sandbox {changed.id}: there is no such sandbox")
        return changed

    def delete(self, namespace: str, sandbox_id: str) -> None:
        """Raises NotFound."""
        with self._db.durable_transaction() as tx:
            done = tx.execute(
                "DELETE FROM sandboxes WHERE namespace = ? AND id = ?", (namespace, sandbox_id)
            )
            if not done.rowcount:
                raise NotFound(f"delete sandbox {sandbox_id}: there is no such sandbox")


def _record(sandbox: Sandbox) -> str:
    return json.dumps(
        {
            "runtime": sandbox.runtime,
            "sandboxer": sandbox.sandboxer,
            "options": list(sandbox.options),
            "spec": list(sandbox.spec),
            "extensions": {name: list(value) for name, value in sandbox.extensions.items()},
        }
    )


def _sandbox(row: sqlite3.Row) -> Sandbox:
    record = mapping(row["record"])
    damaged = () if record is not None else ("record",)
    record = {**_EMPTY, **(record or {})}
    return Sandbox(
        row["namespace"],
        row["id"],
        record["runtime"],
        record["sandboxer"],
        labels_of(row, f"sandbox {row['namespace']}/{row['id']}", *damaged),
        record["options"],
        record["spec"],
        record["extensions"],
        row["created_at"],
        row["updated_at"],
    )
