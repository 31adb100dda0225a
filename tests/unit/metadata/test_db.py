"""The database: transactions, migrations, what survives, what is refused."""

import os
import resource
import signal
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from lighter.daemon.metadata.db import Database
from lighter.daemon.metadata.schema import MIGRATIONS, version_of
from lighter.proto.errors import DataLoss, FailedPrecondition, Internal, Unavailable

NEXT = (*MIGRATIONS, "CREATE TABLE later(name TEXT)")


def test_the_file_and_its_log_are_private(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        db = Database(str(tmp_path / "lighter.db"))
    finally:
        os.umask(before)
    modes = {name: stat.S_IMODE(os.stat(tmp_path / name).st_mode) for name in os.listdir(tmp_path)}
    assert modes["lighter.db"] == modes["lighter.db-wal"] == 0o600
    assert set(modes.values()) == {0o600}
    db.close()


def test_an_open_file_mode_is_corrected(tmp_path: Path) -> None:
    (tmp_path / "lighter.db").touch(0o644)
    Database(str(tmp_path / "lighter.db")).close()
    assert stat.S_IMODE(os.stat(tmp_path / "lighter.db").st_mode) == 0o600


def test_the_connections_have_their_durability(tmp_path: Path) -> None:
    db = Database(str(tmp_path / "lighter.db"))
    for connection, synchronous in ((db.durable, 2), (db.fast, 1)):
        assert connection.execute("PRAGMA synchronous").fetchone()[0] == synchronous
        assert connection.execute("PRAGMA foreign_keys").fetchone()[0] == 1
        assert connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
    db.close()


def test_generation_rises_and_uuid_stays(tmp_path: Path) -> None:
    path = str(tmp_path / "lighter.db")
    first = Database(path)
    assert [first.raise_generation(), first.raise_generation()] == [1, 2]
    first.close()
    second = Database(path)
    assert second.uuid == first.uuid
    assert second.raise_generation() == 3
    second.close()


def test_a_loss_is_noted_with_the_first_generation_or_never(tmp_path: Path) -> None:
    """A manager that dies behind its first number has noted it; a later one would not."""
    db = Database(str(tmp_path / "lighter.db"))
    committed: list[str] = []
    db.durable.set_trace_callback(committed.append)
    assert (db.raise_generation(7, "lost"), db.loss) == (7, "lost")
    assert committed.count("COMMIT") == 1
    db.accept_loss()
    assert (db.raise_generation(9, "lost"), db.loss) == (8, "")
    db.close()


def test_f53_an_older_copy_goes_on_above_what_was_seen_and_is_noted(tmp_path: Path) -> None:
    db = Database(str(tmp_path / "lighter.db"))
    assert db.raise_generation(1, "lost", seen=0, older="older") == 1
    db.accept_loss()
    assert (db.raise_generation(1, "lost", seen=1, older="older"), db.loss) == (2, "")
    assert (db.raise_generation(1, "lost", seen=7, older="older"), db.loss) == (8, "older")
    db.accept_loss()
    assert (db.raise_generation(1, "lost", seen=3, older="older"), db.loss) == (9, "")
    db.close()


def test_an_error_undoes_the_transaction(db: Database) -> None:
    with pytest.raises(ZeroDivisionError):
        with db.durable_transaction() as tx:
            tx.execute("INSERT INTO meta VALUES('a', '1')")
            raise ZeroDivisionError
    assert db.row("SELECT * FROM meta WHERE key = 'a'") is None


def test_a_transaction_inside_another_is_refused_and_the_outer_one_stays(db: Database) -> None:
    with db.durable_transaction() as tx:
        tx.execute("INSERT INTO meta VALUES('a', '1')")
        with pytest.raises(Internal, match="begin fast transaction: a durable one is open"):
            with db.fast_transaction():
                pass
    assert db.row("SELECT * FROM meta WHERE key = 'a'") is not None
    with db.fast_transaction() as tx:
        tx.execute("DELETE FROM meta WHERE key = 'a'")
    assert db.row("SELECT * FROM meta WHERE key = 'a'") is None


def test_a_commit_survives_kill_9(tmp_path: Path) -> None:
    path = str(tmp_path / "lighter.db")
    Database(path).close()
    pid = os.fork()
    if pid == 0:
        db = Database(path)
        with db.durable_transaction() as tx:
            tx.execute("INSERT INTO meta VALUES('kept', '1')")
        with db.fast_transaction() as tx:
            tx.execute("INSERT INTO meta VALUES('kept-too', '1')")
        with db.durable_transaction() as tx:
            tx.execute("INSERT INTO meta VALUES('open', '1')")
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    db = Database(path)
    found = {row["key"] for row in db.rows("SELECT key FROM meta")}
    assert {"kept", "kept-too"} <= found
    assert "open" not in found
    assert db.check() == []
    db.close()


def test_f39_a_migration_keeps_a_copy_of_the_old_database(tmp_path: Path) -> None:
    path = str(tmp_path / "lighter.db")
    old = Database(path)
    with old.durable_transaction() as tx:
        tx.execute("INSERT INTO meta VALUES('a', '1')")
    old.close()
    new = Database(path, NEXT)
    assert version_of(new.durable) == len(NEXT)
    assert new.row("SELECT * FROM meta WHERE key = 'a'") is not None
    new.close()
    copy = sqlite3.connect(f"{path}.v{len(MIGRATIONS)}")
    assert version_of(copy) == len(MIGRATIONS)
    assert copy.execute("SELECT count(*) FROM meta WHERE key = 'a'").fetchone()[0] == 1
    copy.close()
    assert stat.S_IMODE(os.stat(f"{path}.v{len(MIGRATIONS)}").st_mode) == 0o600


def test_f39_a_copy_that_fails_is_named_and_removed(tmp_path: Path) -> None:
    path = str(tmp_path / "lighter.db")
    db = Database(path)
    with db.durable_transaction() as tx:
        tx.execute("INSERT INTO meta VALUES('large', ?)", ("x" * (4 << 20),))
    db.close()
    before = sorted(os.listdir(tmp_path))
    said = f"copy database {path} before its migration: disk I/O error"
    with files_end_at(1 << 20), pytest.raises(DataLoss, match=said):
        Database(path, NEXT)
    assert sorted(os.listdir(tmp_path)) == before


def test_f39_a_failed_migration_changes_nothing(tmp_path: Path) -> None:
    path = str(tmp_path / "lighter.db")
    Database(path).close()
    broken = (*MIGRATIONS, "CREATE TABLE later(name TEXT); CREATE TABLE meta(a)")
    with pytest.raises(FailedPrecondition, match="table meta already exists; it stays as it was"):
        Database(path, broken)
    db = Database(path)
    assert version_of(db.durable) == len(MIGRATIONS)
    assert db.row("SELECT 1 FROM sqlite_master WHERE name = 'later'") is None
    db.close()


def test_f39_one_release_back_works_two_are_refused(tmp_path: Path) -> None:
    path = str(tmp_path / "lighter.db")
    Database(path, NEXT).close()
    back = Database(path)
    back.raise_generation()
    assert version_of(back.durable) == len(NEXT)
    back.close()
    Database(path, (*NEXT, "CREATE TABLE latest(name TEXT)")).close()
    newer, known = len(NEXT) + 1, len(MIGRATIONS)
    said = f"schema is version {newer}, this release knows {known}"
    with pytest.raises(FailedPrecondition, match=said):
        Database(path)


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    path = tmp_path / "lighter.db"
    path.write_bytes(b"no database at all" * 100)
    with pytest.raises(DataLoss, match=f"open database {path}"):
        Database(str(path))


def test_check_finds_a_damaged_page(tmp_path: Path) -> None:
    path = tmp_path / "lighter.db"
    db = Database(str(path))
    with db.durable_transaction() as tx:
        tx.executemany(
            "INSERT INTO events(timestamp, namespace, topic, body) VALUES(0, 'n', 't', ?)",
            [(bytes(100),)] * 2000,
        )
    db.close()
    raw = bytearray(path.read_bytes())
    raw[-4096 * 20 : -4096 * 19] = b"\xff" * 4096
    path.write_bytes(raw)
    damaged = Database(str(path))
    assert damaged.check() != []
    damaged.close()


@contextmanager
def files_end_at(size_bytes: int) -> Iterator[None]:
    """Writes beyond it fail with an errno that SQLite has no word for (EFBIG): SQLITE_IOERR."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def fail_to_write(db: Database, *, durable: bool) -> None:
    begin = db.durable_transaction if durable else db.fast_transaction
    with files_end_at(1 << 20), pytest.raises(DataLoss, match="disk I/O error"):
        with begin() as tx:
            tx.execute("INSERT INTO meta VALUES('large', ?)", ("x" * (4 << 20),))


@pytest.mark.parametrize("durable", [True, False], ids=["durable", "fast"])
def test_f51_after_a_failed_write_nothing_is_put_behind_it_in_the_log(
    db: Database, durable: bool
) -> None:
    """The log may have a hole there: what it holds moves into the database first."""
    with db.fast_transaction() as tx:
        tx.execute("INSERT INTO meta VALUES('before', '1')")
    fail_to_write(db, durable=durable)
    log = Path(db.path + "-wal")
    assert log.stat().st_size > 0
    sizes: list[int] = []
    db.durable.set_trace_callback(lambda sql: sizes.append(log.stat().st_size))
    with db.durable_transaction() as tx:
        tx.execute("INSERT INTO meta VALUES('behind', '1')")
    assert 0 in sizes, "the log was not begun anew"
    db.durable.set_trace_callback(None)
    with closing(sqlite3.connect(f"file:{db.path}?immutable=1", uri=True)) as without_log:
        assert without_log.execute("SELECT 1 FROM meta WHERE key = 'before'").fetchone()
    assert db.row("SELECT 1 FROM meta WHERE key = 'behind'") is not None
    sizes.clear()
    with db.durable_transaction() as tx:
        tx.execute("INSERT INTO meta VALUES('later', '1')")
    assert log.stat().st_size > 0


def test_f51_while_the_log_cannot_be_begun_anew_nothing_is_promised(db: Database) -> None:
    with db.durable_transaction() as tx:
        tx.execute("INSERT INTO meta VALUES('before', '1')")
    fail_to_write(db, durable=True)
    db.durable.execute("PRAGMA busy_timeout = 10")
    with closing(sqlite3.connect(db.path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM meta").fetchall()
        with pytest.raises(Unavailable, match="its log had an error"):
            with db.durable_transaction() as tx:
                tx.execute("INSERT INTO meta VALUES('behind', '1')")
    with db.durable_transaction() as tx:
        tx.execute("INSERT INTO meta VALUES('behind', '1')")
