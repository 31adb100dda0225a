"""Mending a damaged database, broken off at any step."""

import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from lighter.daemon.metadata import copies
from lighter.daemon.metadata.db import Database
from lighter.daemon.metadata.mend import open_database
from lighter.daemon.metadata.namespaces import NamespaceStore
from lighter.proto.names import BROKEN_LABEL

OPEN = (
    "import sys; from lighter.daemon.metadata.mend import open_database; open_database(sys.argv[1])"
)


def damage(path: Path, in_the_log: str) -> None:
    """A database whose page of events is none, with a namespace that stands in its log alone."""
    db = Database(str(path))
    db.raise_generation()
    with db.durable_transaction() as tx:
        tx.execute("INSERT INTO events(timestamp, namespace, topic, body) VALUES(0, 'n', 't', '')")
    page_bytes = db.row("PRAGMA page_size")[0]  # type: ignore[index]
    page = db.row("SELECT rootpage FROM sqlite_master WHERE name = 'events'")[0]  # type: ignore[index]
    db.close()
    with path.open("r+b") as file:
        file.seek((page - 1) * page_bytes)
        file.write(b"\xff" * page_bytes)
    pid = os.fork()
    if pid == 0:
        NamespaceStore(Database(str(path))).create(in_the_log)
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    assert Path(f"{path}-wal").stat().st_size


def test_f53_a_text_that_is_none_is_mended_as_it_is(tmp_path: Path) -> None:
    """Its row is copied like any other, and nothing that names it is lost."""
    path = tmp_path / "lighter.db"
    damage(path, "in-the-log")
    torn = b'{"a": "\xe2"}'
    with closing(sqlite3.connect(path)) as opened, opened:
        opened.execute("UPDATE namespaces SET labels = CAST(? AS TEXT)", (torn,))
        opened.execute(
            "INSERT INTO images(namespace, name, media_type, digest, size_bytes, annotations,"
            " labels, created_at, updated_at)"
            " VALUES(CAST(? AS TEXT), 'i', 't', 'd', 1, '{}', '{}', 0, 0)",
            (b"n\xe2",),
        )
    db = open_database(str(path))
    assert db.loss.startswith("lost: rows of events; the damaged file is ")
    listed = {one.name: one.labels for one in NamespaceStore(db).list()}
    assert listed.keys() >= {"in-the-log", "n\ufffd"}
    assert listed["in-the-log"] == {BROKEN_LABEL: "labels"}
    query = "SELECT typeof(labels), CAST(labels AS BLOB) FROM namespaces WHERE name = 'in-the-log'"
    assert tuple(db.rows(query)[0]) == ("text", torn)
    assert db.durable.execute("PRAGMA foreign_key_check").fetchall() == []
    db.close()


def open_until(path: Path, point: str) -> None:
    """A process that opens it, and is killed there."""
    environ = {**os.environ, "FAULT": f"{point}:abort"}
    done = subprocess.run([sys.executable, "-c", OPEN, path], env=environ)
    assert done.returncode == -signal.SIGKILL


def test_copies_that_a_kill_has_left_unfinished_are_removed_and_no_other(tmp_path: Path) -> None:
    path = str(tmp_path / "lighter.db")
    parts = [copies.part_of(path), copies.part_of(f"{path}.v1")]
    kept = [f"{path}.v1", f"{path}.damaged-1", f"{path}.20260131", f"{path}.v1.20260131"]
    for made in (*parts, f"{parts[0]}-journal", *kept):
        Path(made).touch()
    open_database(path).close()
    own = [path, f"{path}-reserve"]
    assert sorted(str(found) for found in tmp_path.iterdir()) == sorted(kept + own)


@pytest.mark.parametrize("point", ["mend.set-aside", "mend.renamed"])
def test_f53_a_mending_that_is_broken_off_loses_nothing_more(tmp_path: Path, point: str) -> None:
    """Neither what stood in the log alone, nor the word that rows are lost."""
    path = tmp_path / "lighter.db"
    damage(path, "in-the-log")
    open_until(path, point)
    db = open_database(str(path))
    assert db.loss.startswith("lost: rows of events; the damaged file is ")
    assert "in-the-log" in {one.name for one in NamespaceStore(db).list()}
    assert db.check() == []
    db.close()
    aside = Path(db_aside := str(next(tmp_path.glob("lighter.db.damaged-*[0-9]"))))
    assert aside.exists() and Path(f"{db_aside}-wal").exists()
    again = open_database(str(path))
    assert again.loss and len(list(tmp_path.glob("lighter.db.damaged-*[0-9]"))) == 1
    again.close()
