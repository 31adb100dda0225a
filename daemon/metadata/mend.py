"""A damaged database is read as far as it can be, into a new one; nothing of it is thrown away.

    lighter.db                    from then on: every row that could be read
    lighter.db.damaged-<seconds>  what was found, with its -wal

Rows that are gone would make whatever they named look like nobody's. So after a loss nothing is
removed for that reason (see Database.loss) until an administrator has looked and accepted it. The
new database says itself what is lost, from before it has its name. A mending that was broken off
is begun anew, from what was set aside.
"""

import logging
import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress

from lighter.daemon import files
from lighter.daemon.metadata import copies, index
from lighter.daemon.metadata.db import Database
from lighter.daemon.metadata.reserve import Reserve
from lighter.daemon.metadata.texts import Unreadable, text_of
from lighter.proto.errors import FailedPrecondition, words_of
from lighter.proto.faults import hit

log = logging.getLogger("lighter.database")

# Numbers that were given out and can no longer be read are never given out again.
_SKIPPED = 1_000_000


def damage(path: str) -> str:
    """What is wrong with the database at `path`, one line; "" when it is sound or not there."""
    if not os.path.exists(path) or not index.has_room(path):
        return ""
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5)) as opened:
            found = [str(row[0]) for row in opened.execute("PRAGMA quick_check(1)")]
    except sqlite3.DatabaseError as err:
        if _code(err) in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            return str(err)
        return ""  # not readable for another reason: who opens it next says which
    return "" if found == ["ok"] else " ".join(found[0].split())


def open_database(path: str) -> Database:
    """The database at `path`, mended when it is damaged; with the instance's lock alone.

    Raises what Database raises.
    """
    copies.remove_parts(path)
    if os.path.exists(path):
        Reserve(path + "-reserve")  # gives up its space where there is no other
    set_aside = _set_aside(path)
    wrong = "its log was set aside" if set_aside else damage(path)
    loss = ""
    if wrong:
        log.error("database %s is damaged: %s", path, wrong)
        loss = mend(path, set_aside)
        log.error("database %s is mended; %s", path, loss or "nothing is lost")
    db = Database(path)
    if loss and not db.loss:  # of nothing that could be read there was no table to note it in
        db.note_loss(loss)
    return db


def _set_aside(path: str) -> str:
    """The copy that has the log which `path` lost to a mending that was broken off; or ""."""
    log_is_there = os.path.exists(path + "-wal") and os.path.getsize(path + "-wal")
    if log_is_there or not os.path.exists(path):
        return ""
    folder, name = os.path.split(path)
    for other in os.listdir(folder):
        if other.startswith(name + ".damaged-") and other.endswith("-wal"):
            aside = f"{folder}/{other.removesuffix('-wal')}"
            if os.path.exists(aside) and os.path.samefile(aside, path):
                return aside
    return ""


def mend(path: str, set_aside: str = "") -> str:
    """Put a sound database in place of a damaged one; what was lost, "" when all could be read.

    `set_aside`: what an earlier try has moved away, to be read instead. Raises FailedPrecondition
    when it cannot be done, ResourceExhausted when there is no room; then all is as it was.
    """
    attempt = f"mend database {path}"
    aside = set_aside or f"{path}.damaged-{int(time.time())}"
    made = copies.part_of(path)
    try:
        copies.need_room(attempt, path, copies.size_of(set_aside or path))
        os.close(os.open(made, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        with closing(sqlite3.connect(made, isolation_level=None)) as new:
            loss = _read_into(new, set_aside or path, aside)
        if not set_aside:
            for suffix in ("", "-wal"):
                with suppress(FileNotFoundError):
                    os.link(path + suffix, aside + suffix)
            files.sync_directory(os.path.dirname(path))
        for suffix in ("-wal", "-shm"):
            files.remove(path + suffix)
        hit("mend.set-aside")
        os.rename(made, path)
        files.sync_directory(os.path.dirname(path))
        hit("mend.renamed")
    except (OSError, sqlite3.Error) as err:
        copies.drop(made)
        raise FailedPrecondition(f"{attempt}: {words_of(err, attempt)}") from err
    return loss


def _read_into(new: sqlite3.Connection, path: str, aside: str) -> str:
    """Copy what can be read, and note there what was lost. Returns what was lost."""
    where = f"; the damaged file is {aside}"
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5)) as old:
        old.text_factory = text_of
        try:
            version = int(old.execute("PRAGMA user_version").fetchone()[0])
            made_by = old.execute(
                "SELECT name, type, sql FROM sqlite_master WHERE sql IS NOT NULL"
                " AND name NOT LIKE 'sqlite_%' ORDER BY type = 'index'"
            ).fetchall()
        except sqlite3.DatabaseError as err:
            return f"nothing of it can be read ({err}){where}"
        new.execute("BEGIN")
        for _name, _type, sql in made_by:
            new.execute(sql)
        tables = [name for name, type_, _sql in made_by if type_ == "table"]
        torn = [name for name in tables if not _copy(old, new, name)]
        whole_numbers = _copy_numbers(old, new)
        dangling = _drop_dangling(new, tables)
        new.execute(f"PRAGMA user_version = {version}")
        lost = [f"rows of {', '.join(torn)}"] if torn else []
        lost += [f"{dangling} rows that name a lost one"] if dangling else []
        lost += ["numbers were skipped"] if not whole_numbers else []
        loss = f"lost: {'; '.join(lost)}{where}" if lost else ""
        if loss and "meta" in tables:
            new.execute("INSERT OR REPLACE INTO meta(key, value) VALUES('loss', ?)", (loss,))
        new.execute("COMMIT")
    return loss


def _code(error: sqlite3.DatabaseError) -> int:
    """SQLite's code of the error. What Python itself finds wrong with a value has none, and counts
    as damage.
    """
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF


def _copy(old: sqlite3.Connection, new: sqlite3.Connection, table: str) -> bool:
    """Copy what can be read, from both ends of the table. Returns whether that was everything."""
    for order in ("ASC", "DESC"):
        try:
            for row in _rows(old, table, order):
                torn = [type(value) is Unreadable for value in row]
                values = ",".join("CAST(? AS TEXT)" if is_torn else "?" for is_torn in torn)
                new.execute(
                    f"INSERT OR IGNORE INTO {table} VALUES({values})",
                    [value.raw if type(value) is Unreadable else value for value in row],
                )
        except sqlite3.DatabaseError as err:
            if _code(err) != sqlite3.SQLITE_CORRUPT:
                raise
            log.error("read table %s of the damaged database (%s): %s", table, order, err)
        else:
            return order == "ASC"
    return False


def _rows(old: sqlite3.Connection, table: str, order: str) -> Iterator[tuple[object, ...]]:
    """The rows in the order that they are stored in, or the opposite one."""
    columns = old.execute(f"PRAGMA table_info({table})").fetchall()
    key = sorted((column[5], column[1]) for column in columns if column[5])
    by = ", ".join(f"{name} {order}" for _position, name in key)
    try:
        # An index that says so is no reason to miss rows: this reads the table itself.
        yield from old.execute(f"SELECT * FROM {table} NOT INDEXED ORDER BY rowid {order}")  # noqa: S608
    except sqlite3.OperationalError:  # a table without rowids
        yield from old.execute(f"SELECT * FROM {table} ORDER BY {by}")  # noqa: S608


def _copy_numbers(old: sqlite3.Connection, new: sqlite3.Connection) -> bool:
    """Keep what AUTOINCREMENT has given out; whether it could be read."""
    try:
        known = dict(old.execute("SELECT name, seq FROM sqlite_sequence").fetchall())
    except sqlite3.DatabaseError:
        new.execute("UPDATE sqlite_sequence SET seq = seq + ?", (_SKIPPED,))
        return False
    for name, number in known.items():
        new.execute("DELETE FROM sqlite_sequence WHERE name = ?", (name,))
        new.execute("INSERT INTO sqlite_sequence(name, seq) VALUES(?, ?)", (name, number))
    return True


def _drop_dangling(new: sqlite3.Connection, tables: Sequence[str]) -> int:
    """Make lost namespaces again, for they are but a name; drop rows whose other parent is lost."""
    for table in tables:
        parents = {row[2] for row in new.execute(f"PRAGMA foreign_key_list({table})")}
        if "namespaces" in parents:
            new.execute(
                "INSERT OR IGNORE INTO namespaces(name, labels, created_at)"  # noqa: S608
                f" SELECT DISTINCT namespace, '{{}}', ? FROM {table}",
                (time.time_ns(),),
            )
    dropped = 0
    while found := [row for row in new.execute("PRAGMA foreign_key_check") if row[1] is not None]:
        for table, rowid in {(row[0], row[1]) for row in found}:
            new.execute(f"DELETE FROM {table} WHERE rowid = ?", (rowid,))  # noqa: S608
            dropped += 1
    return dropped
