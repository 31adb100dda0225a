"""Health as it is remembered: a row for each container that is checked, gone with it."""

import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict

from lighter.daemon.health.check import Health, Probe
from lighter.daemon.metadata.db import Database


class HealthStore:
    """Rows of health. A power cut may take the last: it ends what they are about."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def get(self, namespace: str, container_id: str) -> Health | None:
        row = self._db.row(
            "SELECT * FROM health WHERE namespace = ? AND id = ?", (namespace, container_id)
        )
        return None if row is None else _health(row)

    def statuses(self, namespace: str) -> dict[str, tuple[str, str]]:
        """(incarnation, status) by container id."""
        rows = self._db.rows(
            "SELECT id, incarnation, status FROM health WHERE namespace = ?", (namespace,)
        )
        return {row["id"]: (row["incarnation"], row["status"]) for row in rows}

    @contextmanager
    def changes(self) -> Iterator[sqlite3.Connection]:
        """A transaction for `put`, which an event may join."""
        with self._db.fast_transaction() as tx:
            yield tx

    def put(
        self, tx: sqlite3.Connection, namespace: str, container_id: str, health: Health
    ) -> bool:
        """Write it in the place of the one before; False when the container is gone."""
        done = tx.execute(
            "INSERT INTO health(namespace, id, incarnation, status, failing_streak, log)"
            " SELECT ?,?,?,?,?,?"
            " WHERE EXISTS(SELECT 1 FROM containers WHERE namespace = ? AND id = ?)"
            " ON CONFLICT(namespace, id) DO UPDATE SET incarnation = excluded.incarnation,"
            " status = excluded.status, failing_streak = excluded.failing_streak,"
            " log = excluded.log",
            (
                namespace,
                container_id,
                health.incarnation,
                health.status,
                health.failing_streak,
                json.dumps([asdict(probe) for probe in health.log]),
                namespace,
                container_id,
            ),
        )
        return done.rowcount > 0


def _health(row: sqlite3.Row) -> Health:
    try:
        probes = tuple(Probe(**probe) for probe in json.loads(row["log"]))
    except (TypeError, ValueError, RecursionError):
        probes = ()  # damaged: what is known is the status, and the next probe
    return Health(
        incarnation=row["incarnation"],
        status=row["status"],
        failing_streak=row["failing_streak"],
        log=probes,
    )
