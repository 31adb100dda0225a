"""Killed before each statement of a change of tags, labels or leases: it was made or it was not."""

import os
import shutil
import signal
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lighter.daemon.content.store import SHAREABLE_LABEL, ContentStore
from lighter.daemon.events.log import EventLog
from lighter.daemon.images.store import ImageStore
from lighter.daemon.leases import CONTENT, IMAGES, Leases
from lighter.daemon.metadata.containers import ContainerStore
from lighter.daemon.metadata.db import Database
from lighter.daemon.metadata.namespaces import NamespaceStore
from lighter.daemon.snapshots.rows import SnapshotRows
from lighter.daemon.snapshots.types import ACTIVE
from lighter.daemon.types import Container, Descriptor

NS = "default"
OLD, NEW = ("sha256:" + sign * 64 for sign in "ab")
LATER_NS = (1 << 63) - 1
# What a change that is made again has another one of.
OF_THE_MOMENT = {"created_at", "updated_at", "timestamp"}


class Stores:
    """All that has tags, labels or leases, over one database."""

    def __init__(self, root: Path) -> None:
        self.db = Database(str(root / "lighter.db"))
        log = EventLog(self.db)
        self.namespaces = NamespaceStore(self.db)
        self.images = ImageStore(self.db, log)
        self.content = ContentStore(str(root / "content"), self.db, log)
        self.containers = ContainerStore(self.db)
        self.snapshots = SnapshotRows(self.db, log, "overlayfs")
        self.leases = Leases(self.db)

    def fill(self) -> None:
        self.images.put_all(NS, {name: image(OLD) for name in ("a", "b")}, labels={"k": "v"})
        with self.db.durable_transaction() as tx:
            tx.execute(
                "INSERT INTO content(namespace, digest, size_bytes, labels, created_at, updated_at)"
                " VALUES(?, ?, 0, '{}', 0, 0)",
                (NS, OLD),
            )
        self.namespaces.label(NS, {SHAREABLE_LABEL: "true"})
        self.containers.create(
            Container(
                namespace=NS,
                id="c",
                image="a",
                runtime="io.containerd.runc.v2",
                snapshotter="overlayfs",
                snapshot_key="of-c",
                spec=b"{}",
                labels={},
                options={},
                created_at=0,
                updated_at=0,
            )
        )
        for number, key in enumerate(("of-c", "one", "two"), 1):
            self.snapshots.insert(NS, key, number, None, ACTIVE, {})
        self.leases.create(NS, "mine", {"k": "v"})
        held = [(CONTENT, OLD), ("snapshots/overlayfs", "one"), ("snapshots/overlayfs", "two")]
        for type_, resource in held:
            self.leases.add(NS, "mine", type_, resource)


def image(digest: str) -> Descriptor:
    return Descriptor("application/vnd.oci.image.manifest.v1+json", digest, 1)


Change = Callable[[Stores], Any]
CHANGES: dict[str, Change] = {
    "tag": lambda at: at.images.put_all(
        "new", {"x": image(OLD), "y": image(OLD)}, labels={"l": "1"}
    ),
    "tag anew": lambda at: at.images.put_all(NS, {"a": image(NEW), "b": image(NEW)}),
    "create an image": lambda at: at.images.create("new", "x", image(OLD), {"l": "1"}),
    "change an image": lambda at: at.images.update(NS, "a", image(NEW), {"l": "1"}),
    "untag": lambda at: at.images.delete(NS, ["a", "b"]),
    "label an image": lambda at: at.images.label(NS, "a", {"k": "", "l": "1"}),
    "label content": lambda at: at.content.label(NS, OLD, {"l": "1"}),
    "label a container": lambda at: at.containers.update(NS, "c", labels={"l": "1"}),
    "label a snapshot": lambda at: at.snapshots.label(NS, "one", {"l": "1"}),
    "label a namespace": lambda at: at.namespaces.label(NS, {SHAREABLE_LABEL: "", "l": "1"}),
    "begin a lease": lambda at: at.leases.create("new", "other", {"l": "1"}),
    "hold": lambda at: at.leases.hold("new", "other", LATER_NS, [(CONTENT, OLD), (IMAGES, "a")]),
    "hold one more": lambda at: at.leases.add(NS, "mine", IMAGES, "a"),
    "hold one less": lambda at: at.leases.remove(NS, "mine", "snapshots/overlayfs", "one"),
    "end a lease": lambda at: at.leases.delete(NS, "mine"),
}


@dataclass(frozen=True)
class Whole:
    """A change that nothing has broken off: its statements, and what there is then."""

    statements: list[str]
    rows: dict[str, list[Any]]


def rows_of(root: Path) -> dict[str, list[Any]]:
    """Every table, as the next manager finds it."""
    with closing(sqlite3.connect(root / "lighter.db")) as db:
        db.row_factory = sqlite3.Row
        names = [
            row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        ]
        return {
            name: [
                {key: row[key] for key in dict(row) if key not in OF_THE_MOMENT}
                for row in db.execute(f"SELECT * FROM {name}")
            ]
            for name in names
        }


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("filled")
    stores = Stores(root)
    stores.fill()
    stores.db.close()
    return root


def made_whole(root: Path, change: Change) -> Whole:
    statements: list[str] = []
    stores = Stores(root)
    stores.db.durable.set_trace_callback(statements.append)
    change(stores)
    stores.db.close()
    return Whole(statements[: statements.index("PRAGMA wal_checkpoint(TRUNCATE)")], rows_of(root))


def killed_at(root: Path, change: Change, last: int) -> None:
    """In a process that is killed before its statement of that number, or once it has an answer."""
    pid = os.fork()
    if pid == 0:
        try:
            passed = 0

            def count(_statement: str) -> None:
                nonlocal passed
                if passed == last:
                    os.kill(os.getpid(), signal.SIGKILL)
                passed += 1

            stores = Stores(root)
            stores.db.durable.set_trace_callback(count)
            change(stores)
            if passed == last:
                os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(9)
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL


@pytest.mark.parametrize("name", CHANGES)
def test_f36_a_kill_in_a_change_of_tags_labels_or_leases_leaves_all_of_it_or_nothing(
    filled: Path, tmp_path: Path, name: str
) -> None:
    before = rows_of(filled)
    whole = made_whole(shutil.copytree(filled, tmp_path / "whole"), CHANGES[name])
    assert whole.statements.count("COMMIT") == 1 and whole.rows != before
    commit = whole.statements.index("COMMIT")
    for number in range(len(whole.statements) + 1):
        root = shutil.copytree(filled, tmp_path / str(number))
        killed_at(root, CHANGES[name], number)
        assert rows_of(root) == (before if number <= commit else whole.rows), number
    # The next manager makes it as if there had been none before.
    assert made_whole(tmp_path / str(commit), CHANGES[name]).rows == whole.rows
