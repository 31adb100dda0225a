"""The manager's one database: SQLite in WAL mode, through two connections.

`durable` (synchronous=FULL) is for what must survive a power cut: a commit returns when the log
is on disk. `fast` (synchronous=NORMAL) is for events and running states: a power cut may take the
last commits, a crash of the manager takes none (https://www.sqlite.org/pragma.html#pragma_synchronous).

The kernel tells of lost pages once, to one fsync, and then counts them as written (fsync(2), EIO).
So after a failed write the log may have a hole before which nothing durable may be put: the next
transaction first moves what it holds into the database and begins it anew.

SQLite has one writer. Both connections belong to the loop's thread, so a transaction inside
another would wait for itself: it is refused, and no `await` may stand inside one.
"""

import logging
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from typing import Any

from lighter.daemon.files import full_disk, read_only_mount
from lighter.daemon.metadata import copies, index
from lighter.daemon.metadata.reserve import Reserve
from lighter.daemon.metadata.schema import MIGRATIONS, migrate, version_of
from lighter.daemon.metadata.texts import text_of
from lighter.proto.errors import (
    DataLoss,
    FailedPrecondition,
    Internal,
    LighterError,
    PermissionDenied,
    ResourceExhausted,
    Unavailable,
)
from lighter.proto.faults import hit

log = logging.getLogger("lighter.database")

PAGE_BYTES = 4 << 20  # of the 16 MiB of a message

# SQLite's primary result codes (https://www.sqlite.org/rescode.html); the others are Internal.
_ERRORS: dict[int, type[LighterError]] = {
    sqlite3.SQLITE_PERM: PermissionDenied,
    sqlite3.SQLITE_BUSY: Unavailable,
    sqlite3.SQLITE_READONLY: FailedPrecondition,
    sqlite3.SQLITE_IOERR: DataLoss,
    sqlite3.SQLITE_CORRUPT: DataLoss,
    sqlite3.SQLITE_FULL: ResourceExhausted,
    sqlite3.SQLITE_CANTOPEN: FailedPrecondition,
    sqlite3.SQLITE_NOTADB: DataLoss,
}
_OF_INDEX = (sqlite3.SQLITE_IOERR_SHMSIZE, sqlite3.SQLITE_IOERR_SHMMAP)
_MAY_BE_READ_ONLY = (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY)


def _translated(error: sqlite3.Error, attempt: str, path: str) -> LighterError:
    extended = getattr(error, "sqlite_errorcode", 0)
    code = extended & 0xFF
    # The index beside the log is a file too, and has no word for a full disk.
    if extended in _OF_INDEX and (full := full_disk(os.path.dirname(path))):
        return ResourceExhausted(f"{attempt}: the disk of {full} is full")
    # SQLite has one word for all that a write can meet, and Python does not tell the errno.
    if code in _MAY_BE_READ_ONLY and (mount := read_only_mount(os.path.dirname(path))):
        return FailedPrecondition(f"{attempt}: {mount} is read-only")
    return _ERRORS.get(code, Internal)(f"{attempt}: {error}")


class Database:
    """Open `path`, made with mode 0600 when it is missing, at the schema of this release.

    `migrations` is the schema's history; tests give another one. Raises FailedPrecondition for a
    schema from too new a release, DataLoss for a file that is no sound database.
    """

    def __init__(self, path: str, migrations: tuple[str, ...] = MIGRATIONS) -> None:
        self.path = path
        self._inside = ""
        self._is_log_suspect = False
        self._last: dict[str, int] = {}
        self.on_mutation: Callable[[], None] = lambda: None  # after each durable commit
        try:
            # SQLite gives its -wal and -shm files the mode of the database file.
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            os.fchmod(descriptor, 0o600)
            os.close(descriptor)
        except OSError as err:
            raise FailedPrecondition(f"open database {path}: {err.strerror}") from err
        self._reserve = Reserve(path + "-reserve")
        if not index.has_room(path):
            folder = os.path.dirname(path)
            raise ResourceExhausted(f"open database {path}: the disk of {folder} is full")
        with ExitStack() as undo:
            try:
                self.durable = undo.enter_context(closing(self._connect("FULL")))
                self._migrate(migrations)
                self.fast = undo.enter_context(closing(self._connect("NORMAL")))
            except sqlite3.Error as err:
                raise _translated(err, f"open database {path}", path) from err
            self.uuid = self._first_uuid()
            undo.pop_all()

    def next_number(self, series: str, above: int) -> int:
        """A number that this process has not given out in the series, higher than `above`."""
        number = self._last[series] = max(self._last.get(series, 0), above) + 1
        return number

    def _connect(self, synchronous: str) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=5, isolation_level=None)
        connection.row_factory = sqlite3.Row
        connection.text_factory = text_of
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA synchronous = {synchronous}")
        connection.execute("PRAGMA foreign_keys = ON")
        return connection

    def _migrate(self, migrations: tuple[str, ...]) -> None:
        version = version_of(self.durable)
        if 0 < version < len(migrations):
            attempt = f"copy database {self.path} before its migration"
            try:
                copies.need_room(attempt, self.path, self._size_bytes())
                self.copy(f"{self.path}.v{version}")
            except OSError as err:
                raise ResourceExhausted(f"{attempt}: {err.strerror}") from err
            except sqlite3.Error as err:
                raise _translated(err, attempt, self.path) from err
            hit("migrate.copied")
            log.info("migrate database from schema %d to %d", version, len(migrations))
        migrate(self.durable, migrations)
        if version < len(migrations):
            hit("migrate.committed")

    def _size_bytes(self) -> int:
        """The database's size, with what is only in the log so far."""
        pages, page_bytes = (
            int(self.durable.execute(f"PRAGMA {name}").fetchone()[0])
            for name in ("page_count", "page_size")
        )
        return pages * page_bytes

    def copy(self, target: str) -> None:
        """Write a whole copy to the file `target`, which appears only when it is complete."""
        part = copies.part_of(target)
        descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            into = sqlite3.connect(part)
            try:
                self.durable.backup(into)
            finally:
                into.close()
            os.fsync(descriptor)
            os.rename(part, target)
        except BaseException:
            copies.drop(part)
            raise
        finally:
            os.close(descriptor)
        folder = os.open(os.path.dirname(target), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    @contextmanager
    def _transaction(
        self, connection: sqlite3.Connection, name: str
    ) -> Iterator[sqlite3.Connection]:
        if self._inside:
            raise Internal(
                f"begin {name} transaction: a {self._inside} one is open, and SQLite has one writer"
            )
        self._inside = name
        self._reserve.check()
        try:
            if self._is_log_suspect:
                self._renew_log()
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                # SQLite has ended the transaction itself after some errors, a full disk for one.
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
        except sqlite3.Error as err:
            if getattr(err, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_IOERR:
                self._is_log_suspect = True
            raise _translated(err, f"write database {self.path}", self.path) from err
        finally:
            self._inside = ""

    def _renew_log(self) -> None:
        busy = self.durable.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
        if busy:
            raise Unavailable(
                f"write database {self.path}: its log had an error and cannot be begun anew, "
                "somebody reads it"
            )
        self._is_log_suspect = False

    @contextmanager
    def durable_transaction(self) -> Iterator[sqlite3.Connection]:
        """A write that survives power loss when the block has been left; an error undoes it."""
        with self._transaction(self.durable, "durable") as tx:
            yield tx
        self.on_mutation()

    @contextmanager
    def fast_transaction(self) -> Iterator[sqlite3.Connection]:
        """A write that survives the manager's death, not a power cut; an error undoes it."""
        with self._transaction(self.fast, "fast") as tx:
            yield tx

    @property
    def changes(self) -> int:
        """How many rows were changed since it was opened: while it stays the same, what was read is
        still true.
        """
        return self.durable.total_changes + self.fast.total_changes

    def rows(self, sql: str, parameters: Sequence[Any] = ()) -> list[sqlite3.Row]:
        """All rows of a query; inside a transaction, ask the transaction instead."""
        try:
            return self.durable.execute(sql, parameters).fetchall()
        except sqlite3.Error as err:
            raise _translated(err, f"read database {self.path}", self.path) from err

    def page(
        self, sql: str, parameters: Sequence[Any], limit: int
    ) -> tuple[list[sqlite3.Row], bool]:
        """The first rows of a query that ends in "LIMIT ?", and whether there are more.

        At most `limit`, and no more texts than PAGE_BYTES, or one row: a page must fit a message.
        """
        page: list[sqlite3.Row] = []
        size_bytes = 0
        try:
            with closing(self.durable.execute(sql, (*parameters, limit + 1))) as rows:
                for row in rows:
                    size_bytes += sum(len(value) for value in row if isinstance(value, str | bytes))
                    if page and (len(page) >= limit or size_bytes > PAGE_BYTES):
                        return page, True
                    page.append(row)
        except sqlite3.Error as err:
            raise _translated(err, f"read database {self.path}", self.path) from err
        return page, False

    def row(self, sql: str, parameters: Sequence[Any] = ()) -> sqlite3.Row | None:
        """The first row of a query, or None."""
        rows = self.rows(sql, parameters)
        return rows[0] if rows else None

    def raise_generation(
        self, first: int = 1, loss: str = "", *, seen: int = 0, older: str = ""
    ) -> int:
        """Count this start of a manager; the number is durable before it is returned.

        Of a database that has counted none: `first` is its number, and `loss` is noted with it.
        One that has counted less than has been `seen` is an older copy: `older` is noted.
        """
        with self.durable_transaction() as tx:
            row = tx.execute(
                "SELECT CAST(value AS INTEGER) FROM meta WHERE key = 'generation'"
            ).fetchone()
            counted = row[0] if row else first - 1
            if row:
                loss = older if counted < seen else ""
            if loss:
                tx.execute("INSERT OR IGNORE INTO meta(key, value) VALUES('loss', ?)", (loss,))
            generation = max(counted, seen) + 1
            tx.execute(
                "INSERT OR REPLACE INTO meta(key, value) VALUES('generation', ?)",
                (str(generation),),
            )
            return int(generation)

    @property
    def loss(self) -> str:
        """What rows are known to be missing; "" when none, or when that was accepted.

        While it is not, nothing is removed because no row needs it.
        """
        row = self.row("SELECT value FROM meta WHERE key = 'loss'")
        return str(row["value"]) if row else ""

    def note_loss(self, loss: str) -> None:
        with self.durable_transaction() as tx:
            tx.execute("INSERT OR REPLACE INTO meta(key, value) VALUES('loss', ?)", (loss,))

    def accept_loss(self) -> str:
        """An administrator has looked: what no row names is nobody's from now on."""
        loss = self.loss
        with self.durable_transaction() as tx:
            tx.execute("DELETE FROM meta WHERE key = 'loss'")
        return loss

    def _first_uuid(self) -> str:
        row = self.row("SELECT value FROM meta WHERE key = 'uuid'")
        if row is None:
            import uuid  # once in a database's life

            with self.durable_transaction() as tx:
                made = str(uuid.uuid4())
                tx.execute("INSERT INTO meta(key, value) VALUES('uuid', ?)", (made,))
                return made
        return str(row["value"])

    def check(self) -> list[str]:
        """What SQLite's quick_check finds wrong, at most 100 lines; empty when sound."""
        try:
            found = [str(row[0]) for row in self.durable.execute("PRAGMA quick_check(100)")]
        except sqlite3.Error as err:
            return [str(err)]
        return [] if found == ["ok"] else found

    def close(self) -> None:
        """Move the log into the database file and close both connections."""
        self.fast.close()
        try:
            self.durable.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except sqlite3.Error as err:  # a full disk: the log is whole, and is read at the next start
            log.warning("move the log into the database: %s", err)
        finally:
            self.durable.close()
