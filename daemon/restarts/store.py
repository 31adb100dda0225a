"""What is remembered of restarts, one row for each container that was ever ended or stopped.

A row goes with its container. It is written durably before what it tells is done, so that a manager
that is killed leaves word of what it owes.
"""

import json
import logging
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from lighter.daemon import files
from lighter.daemon.metadata.columns import mapping, texts
from lighter.daemon.metadata.db import Database
from lighter.daemon.restarts import labels
from lighter.daemon.restarts.policy import RestartPolicy, from_record
from lighter.daemon.values import frozen
from lighter.proto.errors import InvalidArgument

log = logging.getLogger("lighter.restarts")

_MAX_NOTES_BYTES = 16 << 20

# What of a container is being removed by force.
CONTAINER, WITH_VOLUMES = "container", "container and volumes"


@frozen
class Restart:
    """`count`: restarts since the last start by hand. `stopped`: by hand. `settled`: incarnation of
    the task whose end was dealt with. `exit_status`: how that ended. `delay_ms`: the pause before
    the last restart. `due_at`: when a start is owed, in ns, None: none is. `error`: why the last
    attempt at one failed. `removal`: CONTAINER or WITH_VOLUMES while it is removed by force.
    """

    namespace: str
    id: str
    count: int = 0
    stopped: bool = False
    settled: str = ""
    exit_status: int | None = None
    delay_ms: int = 0
    due_at: int | None = None
    error: str = ""
    removal: str = ""

    @property
    def key(self) -> tuple[str, str]:
        return self.namespace, self.id


@frozen
class Definition:
    """What of a container decides about its restarts."""

    namespace: str
    id: str
    labels: Mapping[str, str]
    options: Mapping[str, Any]
    updated_at: int
    is_whole: bool = True  # whether `options` could be read

    @property
    def by_labels(self) -> bool:
        """Whether containerd's labels decide: the container has no policy of its own."""
        return self.is_whole and "restart" not in self.options and labels.STATUS in self.labels

    @property
    def is_stopped(self) -> bool:
        """Whether a client of containerd's says that it has stopped the container."""
        return self.by_labels and labels.is_stopped(self.labels)

    def policy(self) -> RestartPolicy:
        """Raises InvalidArgument for labels that cannot be read."""
        if self.by_labels:
            return labels.policy(self.labels)
        return from_record(self.options.get("restart") or {})

    def count(self, row: Restart | None) -> int:
        """How often it was started again. Raises InvalidArgument."""
        if self.by_labels:
            return labels.count(self.labels)
        return row.count if row is not None else 0


class RestartStore:
    """Rows of restarts, and the parts of containers that they hang on.

    `notes` is a file on another file system than the database's, of what a full disk has not taken:
    a manager that dies before there is space leaves it to the next.
    """

    def __init__(self, db: Database, notes: str) -> None:
        self._db = db
        self._notes = notes
        self._unwritten = {row.key: row for row in _read_notes(notes)}
        self._labelled: list[Definition] = []
        self._labelled_at = -1  # the database's changes when they were read

    def get(self, namespace: str, container_id: str) -> Restart | None:
        if (namespace, container_id) in self._unwritten:
            return self._unwritten[namespace, container_id]
        row = self._db.row(
            "SELECT * FROM restarts WHERE namespace = ? AND id = ?", (namespace, container_id)
        )
        return None if row is None else _restart(row)

    def all(self) -> list[Restart]:
        written = {row.key: row for row in map(_restart, self._db.rows("SELECT * FROM restarts"))}
        return list({**written, **self._unwritten}.values())

    def of_namespace(self, namespace: str) -> dict[str, Restart]:
        """By container id."""
        return {row.id: row for row in self.all() if row.namespace == namespace}

    @contextmanager
    def changes(self) -> Iterator[sqlite3.Connection]:
        """A durable transaction for `put` and `set_count_label`, which events may join."""
        with self._db.durable_transaction() as tx:
            for row in self._unwritten.values():
                self.put(tx, row)
            yield tx
        if self._unwritten:
            self._unwritten.clear()
            files.remove(self._notes)

    def keep(self, row: Restart) -> None:
        """Let it count from now on; it is written with the next change that finds space on the
        disk.
        """
        self._unwritten[row.key] = row
        self._write_notes()

    def is_kept(self, key: tuple[str, str]) -> bool:
        """Whether the row that counts is one that is not written yet."""
        return key in self._unwritten

    def _write_notes(self) -> None:
        data = json.dumps([asdict(one) for one in self._unwritten.values()]).encode()
        try:
            files.write_whole(self._notes, data)
        except OSError as err:
            log.warning("note what was done by hand in %s: %s", self._notes, err.strerror)

    @property
    def is_behind(self) -> bool:
        """Whether something that was kept is not written."""
        return bool(self._unwritten)

    def drop(self, key: tuple[str, str]) -> None:
        """Forget what is unwritten about a container that is gone."""
        if self._unwritten.pop(key, None) is None:
            return
        if self._unwritten:
            self._write_notes()
        else:
            files.remove(self._notes)

    def put(self, tx: sqlite3.Connection, row: Restart) -> bool:
        """Write it in the place of the one before; False when its container is gone."""
        done = tx.execute(
            "INSERT INTO restarts(namespace, id, count, stopped, settled, exit_status, delay_ms,"
            " due_at, error, removal) SELECT ?,?,?,?,?,?,?,?,?,?"
            " WHERE EXISTS(SELECT 1 FROM containers WHERE namespace = ? AND id = ?)"
            " ON CONFLICT(namespace, id) DO UPDATE SET count = excluded.count,"
            " stopped = excluded.stopped, settled = excluded.settled,"
            " exit_status = excluded.exit_status, delay_ms = excluded.delay_ms,"
            " due_at = excluded.due_at, error = excluded.error,"
            " removal = excluded.removal",
            (
                row.namespace,
                row.id,
                row.count,
                int(row.stopped),
                row.settled,
                row.exit_status,
                row.delay_ms,
                row.due_at,
                row.error,
                row.removal,
                *row.key,
            ),
        )
        return done.rowcount > 0

    def definition(self, namespace: str, container_id: str) -> Definition | None:
        row = self._db.row(
            "SELECT namespace, id, labels, options, updated_at FROM containers"
            " WHERE namespace = ? AND id = ?",
            (namespace, container_id),
        )
        return None if row is None else _definition(row)

    def describe(self, namespace: str, container_id: str) -> dict[str, Any]:
        """What `inspect` shows: the policy, and what came of it."""
        definition = self.definition(namespace, container_id)
        row = self.get(namespace, container_id) or Restart(namespace, container_id)
        problem = row.error
        try:
            policy = definition.policy() if definition is not None else RestartPolicy()
        except InvalidArgument as err:
            policy, problem = RestartPolicy(), err.message
        return {
            "policy": policy.name,
            "max_retries": policy.max_retries,
            "count": row.count,
            "stopped": row.stopped,
            "due_at": row.due_at,
            "error": problem,
        }

    def labelled(self) -> list[Definition]:
        """Containers of all namespaces that have containerd's restart labels.

        An idle manager does not read them again: 3 ms for a thousand, whatever labels they have.
        """
        if (changes := self._db.changes) != self._labelled_at:
            rows = self._db.rows(
                "SELECT namespace, id, labels, options, updated_at FROM containers"
                " WHERE instr(labels, ?)",
                (labels.STATUS,),
            )
            self._labelled = [_definition(row) for row in rows]
            self._labelled_at = changes
        return self._labelled

    def set_count_label(self, tx: sqlite3.Connection, of: Definition, count: int) -> None:
        """Tell containerd's clients the count where they look for it."""
        changed = {**of.labels, labels.COUNT: str(count)}
        tx.execute(
            "UPDATE containers SET labels = ? WHERE namespace = ? AND id = ?",
            (json.dumps(changed), of.namespace, of.id),
        )


def _read_notes(path: str) -> list[Restart]:
    """Read what a manager has left there; what cannot be read is of another release, and is
    ignored.
    """
    try:
        data = files.read_capped(path, _MAX_NOTES_BYTES)
        return [Restart(**one) for one in json.loads(data)] if data else []
    except (OSError, ValueError, TypeError) as err:
        log.warning("read %s: %s", path, err)
        return []


def _restart(row: sqlite3.Row) -> Restart:
    return Restart(
        namespace=row["namespace"],
        id=row["id"],
        count=row["count"],
        stopped=bool(row["stopped"]),
        settled=row["settled"],
        exit_status=row["exit_status"],
        delay_ms=row["delay_ms"],
        due_at=row["due_at"],
        error=row["error"],
        removal=row["removal"],
    )


def _definition(row: sqlite3.Row) -> Definition:
    options = mapping(row["options"])
    return Definition(
        namespace=row["namespace"],
        id=row["id"],
        labels=texts(row["labels"]) or {},
        options=options or {},
        is_whole=options is not None,
        updated_at=row["updated_at"],
    )
