"""Rows of tasks, execs and tombstones."""

import logging
import sqlite3
import time
from typing import Any

import msgpack

from lighter.daemon.metadata.columns import unreadable
from lighter.daemon.metadata.db import Database
from lighter.daemon.tasks.entry import Entry, Exec
from lighter.daemon.tasks.types import Exit
from lighter.proto import states

log = logging.getLogger("lighter.tasks")

_EVER = (1 << 63) - 1


class TaskStore:
    """Reads and writes the rows; transactions are the caller's, so that events join them."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def load(self) -> list[Entry]:
        """All recorded tasks with their execs, oldest first.

        One that cannot be read is left out, as if its row were lost: its shim tells what it is.
        """
        entries = [
            Entry(
                namespace=r["namespace"],
                id=r["id"],
                incarnation=r["incarnation"],
                state=r["state"],
                image=(options := _options(r)).get("image", ""),
                boot_id=r["boot_id"],
                created_at=r["created_at"],
                terminal=bool(r["terminal"]),
                options=options,
                pid=r["pid"],
                shim_pid=r["shim_pid"],
                shim_start=r["shim_start"],
                started_at=r["started_at"],
                exit=_exit(r),
                closed=bool(r["closed"]),
                last_sequence=r["last_sequence"],
            )
            for r in self._db.rows("SELECT * FROM tasks ORDER BY created_at")
            if _is_readable(r, "task")
        ]
        by_key = {(entry.namespace, entry.id): entry for entry in entries}
        # One that was only asked for may never have been run: if it was, its shim tells it again.
        for r in self._db.rows("SELECT * FROM execs WHERE state != ?", (states.CREATING,)):
            entry = by_key.get((r["namespace"], r["id"]))
            if entry is not None and _is_readable(r, "exec"):
                entry.execs[r["exec_id"]] = Exec(
                    exec_id=r["exec_id"],
                    state=r["state"],
                    terminal=bool(r["terminal"]),
                    created_at=r["created_at"],
                    pid=r["pid"],
                    started_at=r["started_at"],
                    exit=_exit(r),
                )
        for entry in entries:
            if entry.state == states.STOPPED:
                entry.ended.set()
            if entry.closed:
                entry.cleaned.set()
            for exec_ in entry.execs.values():
                if exec_.state == states.STOPPED:
                    exec_.ended.set()
        return entries

    def save(self, tx: sqlite3.Connection, entry: Entry) -> None:
        """Insert or overwrite the task's row with what the entry says."""
        status, at, cause = _columns(entry.exit)
        tx.execute(
            "INSERT OR REPLACE INTO tasks(namespace, id, incarnation, state, pid, pid_start,"
            " shim_pid, shim_start, boot_id, terminal, created_at, started_at, exit_status,"
            " exited_at, cause, closed, last_sequence, options)"
            " VALUES(?,?,?,?,?,0,?,?,?,?,?,?,?,?,?,?,?,?)",
            (
                entry.namespace,
                entry.id,
                entry.incarnation,
                entry.state,
                entry.pid,
                entry.shim_pid,
                entry.shim_start,
                entry.boot_id,
                int(entry.terminal),
                entry.created_at,
                entry.started_at,
                status,
                at,
                cause,
                int(entry.closed),
                entry.last_sequence,
                msgpack.packb(dict(entry.options)),
            ),
        )

    def save_exec(self, tx: sqlite3.Connection, entry: Entry, exec_: Exec) -> None:
        status, at, cause = _columns(exec_.exit)
        tx.execute(
            "INSERT OR REPLACE INTO execs(namespace, id, exec_id, state, pid, terminal,"
            " created_at, started_at, exit_status, exited_at, cause)"
            " VALUES(?,?,?,?,?,?,?,?,?,?,?)",
            (
                entry.namespace,
                entry.id,
                exec_.exec_id,
                exec_.state,
                exec_.pid,
                int(exec_.terminal),
                exec_.created_at,
                exec_.started_at,
                status,
                at,
                cause,
            ),
        )

    def delete(self, tx: sqlite3.Connection, entry: Entry) -> None:
        """Remove the task; its incarnation stays as a tombstone until its shim is gone."""
        key = (entry.namespace, entry.id)
        tx.execute("DELETE FROM execs WHERE namespace = ? AND id = ?", key)
        tx.execute("DELETE FROM tasks WHERE namespace = ? AND id = ?", key)
        tx.execute(
            "INSERT OR REPLACE INTO tombstones(incarnation, namespace, id, at) VALUES(?, ?, ?, ?)",
            (entry.incarnation, *key, time.time_ns()),
        )

    def delete_execs(self, tx: sqlite3.Connection, entry: Entry) -> None:
        tx.execute("DELETE FROM execs WHERE namespace = ? AND id = ?", (entry.namespace, entry.id))

    def delete_exec(self, tx: sqlite3.Connection, entry: Entry, exec_id: str) -> None:
        tx.execute(
            "DELETE FROM execs WHERE namespace = ? AND id = ? AND exec_id = ?",
            (entry.namespace, entry.id, exec_id),
        )

    def prune_tombstones(self, before_ns: int = _EVER) -> None:
        """Drop those from before a time, of which no shim is left: that of the boot, or all."""
        with self._db.fast_transaction() as tx:
            tx.execute("DELETE FROM tombstones WHERE at < ?", (before_ns,))

    def tombstones(self) -> set[str]:
        return {row[0] for row in self._db.rows("SELECT incarnation FROM tombstones")}

    def drop_tombstone(self, tx: sqlite3.Connection, incarnation: str) -> None:
        tx.execute("DELETE FROM tombstones WHERE incarnation = ?", (incarnation,))


def _is_readable(row: sqlite3.Row, what: str) -> bool:
    broken = [name for name in unreadable(row.keys(), row) if name != "cause"]
    if broken:
        log.error(
            "read row of %s %s/%s: its %s cannot be read; it is left out",
            *(what, row["namespace"], row["id"], " and ".join(broken)),
        )
    return not broken


def _options(row: sqlite3.Row) -> dict[str, Any]:
    """The options of a row; those that cannot be read are left out, since no start fails for one
    task.
    """
    try:
        options = msgpack.unpackb(row["options"])
    except (ValueError, TypeError, msgpack.UnpackException):
        options = None
    if not isinstance(options, dict):
        log.error("read options of task %s: they are damaged", row["id"])
        return {}
    return options


def _exit(row: sqlite3.Row) -> Exit | None:
    if row["exited_at"] is None:
        return None
    return Exit(row["exit_status"], row["exited_at"], row["cause"] or "")


def _columns(exit_: Exit | None) -> tuple[int | None, int | None, str]:
    return (exit_.exit_status, exit_.exited_at, exit_.cause) if exit_ else (None, None, "")
