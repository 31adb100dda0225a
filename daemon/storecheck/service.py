"""A check of all that is kept, and its repair: records beside files, bytes beside digests.

It runs beside everything else. What it finds by reading for long is looked at again in the step of
the loop that acts on it. Nothing is repaired by guessing: what is damaged goes, so that the next
pull brings it again, and so does what no record knows; what something needs stays and is named.
"""

import asyncio
import os
import sqlite3
import stat
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, closing
from dataclasses import replace

from lighter.daemon.content.digest import Digest
from lighter.daemon.content.gc import Collector
from lighter.daemon.content.rows import TRASH, delete_rows
from lighter.daemon.content.store import ContentStore
from lighter.daemon.events.log import EventLog
from lighter.daemon.metadata.db import Database
from lighter.daemon.metadata.texts import Unreadable
from lighter.daemon.snapshots.rows import delete_rows as delete_snapshot_rows
from lighter.daemon.snapshots.rows import trash_owner
from lighter.daemon.snapshots.types import COMMITTED, Snapshotter
from lighter.daemon.storecheck import blobs, texts
from lighter.daemon.storecheck.found import (
    CONTENT,
    DATABASE,
    DIRECTORY,
    FILE,
    IMAGE,
    LEFT,
    REPAIRED,
    SNAPSHOT,
    Counted,
    Found,
)
from lighter.daemon.storecheck.snapshots import Recorded, Stock
from lighter.proto import events
from lighter.proto.errors import FailedPrecondition
from lighter.proto.faults import hit
from lighter.proto.paths import Root


class StoreCheck:
    """The stores of one instance."""

    def __init__(
        self,
        root: Root,
        db: Database,
        events_log: EventLog,
        content: ContentStore,
        collector: Collector,
        snapshotters: Mapping[str, Snapshotter],
    ) -> None:
        self._root = root
        self._db = db
        self._events = events_log
        self._content = content
        self._collector = collector
        self._snapshotters = snapshotters
        self._repairing = asyncio.Lock()

    async def run(self, counted: Counted, *, repair: bool) -> AsyncGenerator[Found, None]:
        """Each thing that is wrong, as it is found. A repair is one at a time.

        Raises FailedPrecondition for a repair while rows are known to be lost: what they named
        would be taken for nobody's.
        """
        if repair and (loss := self._db.loss):
            raise FailedPrecondition(
                f"repair stores: rows of the database were lost ({loss}); when nothing can be "
                "brought back, `ctl system accept-loss` comes first"
            )
        if repair and self._repairing.locked():
            raise FailedPrecondition("repair stores: a repair is under way")
        for found in await asyncio.to_thread(_database, self._db.path):
            yield found
        if not repair:
            async with aclosing(self._look(counted, repair=False)) as items:
                async for found in items:
                    yield found
            return
        async with self._repairing, aclosing(self._look(counted, repair=True)) as items:
            async for found in items:
                yield found
            await self._content.sweep()
            for snapshotter in self._snapshotters.values():
                await snapshotter.sweep()
            self._collector.on_deleted()

    async def _look(self, counted: Counted, *, repair: bool) -> AsyncGenerator[Found, None]:
        nameless = False
        for torn in await asyncio.to_thread(texts.torn, self._db.path):
            said = texts.repair(self._db, torn) if repair else texts.found(self._db, torn)
            nameless |= torn.table == "content" and said.outcome == LEFT
            yield said
        async with aclosing(blobs.look_at(self._blobs_dir, self._recorded())) as all_looked:
            async for looked in all_looked:
                counted.blobs += 1
                counted.bytes += looked.size_bytes
                if looked.problem and (found := await self._damaged(looked, repair=repair)):
                    yield found
        for name in self._content.unrecorded():
            found = self._unrecorded_file(name, repair=repair and not nameless)
            note = "a record of content cannot be read"
            yield replace(found, outcome=LEFT, note=note) if nameless else found
        for row in self._db.rows(
            "SELECT namespace, name, digest FROM images AS i WHERE NOT EXISTS (SELECT 1 FROM"
            " content WHERE namespace = i.namespace AND digest = i.digest) ORDER BY namespace, name"
        ):
            missing = f"its content {row['digest']} is missing"
            found = Found(IMAGE, row["name"], missing, row["namespace"], note="pull it again")
            yield replace(found, outcome=LEFT) if repair else found
        for snapshotter, of in self._snapshotters.items():
            if not of.has_directories:
                continue  # a plugin's: what it has is its own matter
            stock = Stock(self._db, self._root.snapshots, snapshotter)
            counted.snapshots += len(stock.rows)
            for row_ in stock.without_directory:
                yield self._lost_directory(snapshotter, stock, row_, repair=repair)
            for number in stock.without_record:
                yield self._unrecorded_directory(snapshotter, stock, number, repair=repair)

    # --- content

    @property
    def _blobs_dir(self) -> str:
        return os.path.dirname(self._content.path(Digest.of(b"")))

    def _recorded(self) -> list[tuple[Digest, int]]:
        rows = self._db.rows(
            "SELECT digest, max(size_bytes) AS size_bytes FROM content GROUP BY digest"
        )
        return [
            (Digest.parse(row["digest"]), row["size_bytes"])
            for row in rows
            if type(row["digest"]) is not Unreadable
        ]

    async def _damaged(self, looked: blobs.Looked, *, repair: bool) -> Found | None:
        """What is said of a damaged blob; None for one that has gone or come anew since."""
        digest = looked.digest
        async with self._content.still():
            owners = [
                row["namespace"]
                for row in self._db.rows(
                    "SELECT namespace FROM content WHERE digest = ? ORDER BY namespace", (digest,)
                )
            ]
            if not owners or blobs.identity_of(self._content.path(digest)) != looked.identity:
                return None
            found = Found(CONTENT, digest, looked.problem, ",".join(owners))
            if not repair:
                return found
            if self._collector.pins_content(digest):
                return replace(found, outcome=LEFT, note="work that is under way needs it")
            with self._db.durable_transaction() as tx:
                told = []
                for namespace in owners:
                    delete_rows(tx, namespace, [digest])
                    body = {"digest": digest}
                    told.append(self._events.append(tx, namespace, events.CONTENT_DELETE, body))
            self._events.announce(*told)
        hit("check.content-dropped")
        return replace(found, outcome=REPAIRED, note="removed; the next pull brings it again")

    def _unrecorded_file(self, name: str, *, repair: bool) -> Found:
        path = f"{self._blobs_dir}/{name}"
        found = Found(FILE, path, "no record knows it")
        if not repair:
            return found
        try:
            is_file = stat.S_ISREG(os.lstat(path).st_mode)
        except FileNotFoundError:
            return replace(found, outcome=REPAIRED, note="it is gone")
        if not is_file:
            return replace(found, outcome=LEFT, note="it is no file")
        self._note_trash(TRASH, name)
        return replace(found, outcome=REPAIRED, note="removed")

    def _note_trash(self, owner: str, name: str) -> None:
        with self._db.durable_transaction() as tx:
            tx.execute("INSERT OR IGNORE INTO trash(owner, name) VALUES(?, ?)", (owner, name))

    # --- snapshots

    def _lost_directory(
        self, snapshotter: str, stock: Stock, row: Recorded, *, repair: bool
    ) -> Found:
        name = f"{snapshotter}/{row.key}"
        found = Found(SNAPSHOT, name, f"directory {row.number} is missing", row.namespace)
        if row.kind != COMMITTED:
            note = "the next start of the manager makes it again, empty"
            return replace(found, outcome=LEFT if repair else found.outcome, note=note)
        if not repair:
            return found
        if children := stock.children(row.number):
            return replace(found, outcome=LEFT, note=f"it is the parent of {children[0]}")
        if self._collector.pins_snapshot(row.namespace, snapshotter, row.key):
            return replace(found, outcome=LEFT, note="work that is under way needs it")
        body = {"key": row.key, "snapshotter": snapshotter}
        with self._db.durable_transaction() as tx:
            delete_snapshot_rows(tx, snapshotter, [row.number])
            told = self._events.append(tx, row.namespace, events.SNAPSHOT_REMOVE, body)
        self._events.announce(told)
        return replace(found, outcome=REPAIRED, note="removed; it is unpacked again when needed")

    def _unrecorded_directory(
        self, snapshotter: str, stock: Stock, number: int, *, repair: bool
    ) -> Found:
        path = f"{self._root.snapshots}/{snapshotter}/{number}"
        found = Found(DIRECTORY, path, "no record knows it")
        if not repair:
            return found
        if why := stock.why_used(number):
            return replace(found, outcome=LEFT, note=why)
        self._note_trash(trash_owner(snapshotter), str(number))
        return replace(found, outcome=REPAIRED, note="removed")


def _database(path: str) -> list[Found]:
    """What SQLite finds wrong, by a connection of its own: for a thread."""
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5)) as opened:
            pages = [str(row[0]) for row in opened.execute("PRAGMA quick_check(100)")]
            broken = opened.execute("PRAGMA foreign_key_check").fetchall()
    except sqlite3.Error as err:
        pages, broken = [str(err)], []
    mended = "the next start of the manager mends it"
    return [
        *(Found(DATABASE, path, line, outcome=LEFT, note=mended) for line in pages if line != "ok"),
        *(
            Found(DATABASE, path, f"row {row[1]} of {row[0]} names none of {row[2]}", outcome=LEFT)
            for row in broken
        ),
    ]
