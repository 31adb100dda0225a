"""Content store: immutable bytes, named by their digest.

    content/ingest/<random>/     being written, never read by a client; a start empties it
    content/writes/<id>/         a named ingest, which a later writer goes on with (ingests.py)
    content/blobs/sha256/<hex>   complete, mode 0400; never changed

A file is shared by all namespaces; a row gives one namespace the sight of it, which it gets with
the bytes alone, unless content is shared: by a label of the namespace that has it
(`containerd.io/namespace.shareable=true`), or by the configuration for all. The order that makes
every crash harmless: the bytes are on disk, their name is noted in `trash`, the file is renamed,
the directory is on disk, and one transaction records the row and takes the note back. Removal
runs the other way: one transaction takes the row and notes the name, then the file goes. So
whatever `trash` names without a row is nobody's, and nothing else is ever removed.
"""

import asyncio
import json
import logging
import os
import shutil
import sqlite3
import time
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial

from lighter.daemon.content.blobs import Arrival, check_file, open_blob, read_blob
from lighter.daemon.content.digest import Digest
from lighter.daemon.content.ingest import Ingest
from lighter.daemon.content.references import REF_LABEL
from lighter.daemon.content.rows import (
    SHAREABLE_LABEL,
    TRASH,
    delete_rows,
    field_of,
    info_of,
    record,
    record_seen,
    row_to_share,
)
from lighter.daemon.errors import from_os
from lighter.daemon.events.log import Event, EventLog
from lighter.daemon.files import sync_directory, write_whole
from lighter.daemon.filters import any_of
from lighter.daemon.journal import Repeated
from lighter.daemon.metadata.columns import texts
from lighter.daemon.metadata.db import Database
from lighter.daemon.metadata.namespaces import ensure_in, merge_labels
from lighter.daemon.types import ContentInfo
from lighter.daemon.whole import whole
from lighter.proto import events
from lighter.proto.daemon_api import PAGE_ROWS
from lighter.proto.errors import FailedPrecondition, LighterError, NotFound, ResourceExhausted
from lighter.proto.faults import hit
from lighter.proto.names import BROKEN_LABEL, check_labels

logger = logging.getLogger(__name__)


class ContentStore:
    """The content of one instance, below `content_dir` (which it makes, mode 0700).

    `share_all`: every namespace shares what it has, as containerd does by default. What a
    namespace gets and what is deleted from it is told; what is collected is not, as there.
    """

    def __init__(
        self, content_dir: str, db: Database, events_log: EventLog, *, share_all: bool = False
    ) -> None:
        self._db = db
        self._events = events_log
        self._share_all = share_all
        self._ingest_dir = content_dir + "/ingest"
        self._blobs_dir = content_dir + "/blobs/sha256"
        # Held from a rename to its row, and from a look at the rows to an unlink: otherwise a
        # sweep could remove a file that is just arriving again.
        self._files = asyncio.Lock()
        self._removing = Repeated(logger, "remove content")
        try:
            for path in (content_dir, self._ingest_dir, content_dir + "/blobs", self._blobs_dir):
                os.makedirs(path, 0o700, exist_ok=True)
                os.chmod(path, 0o700)
            self._left_behind = os.listdir(self._ingest_dir)
        except OSError as err:
            raise from_os("make content directory", err) from err

    # --- arriving

    def new_ingest(self) -> Ingest:
        """A new directory to write into; its owner closes it."""
        return Ingest(self._ingest_dir)

    async def adopt(
        self,
        namespace: str,
        path: str,
        digest: str,
        size_bytes: int,
        labels: Mapping[str, str] | None = None,
    ) -> None:
        """Take one file. See `adopt_all`."""
        await self.adopt_all(namespace, [Arrival(path, digest, size_bytes, labels or {})])

    async def adopt_all(self, namespace: str, arrivals: Iterable[Arrival]) -> None:
        """Take files whose bytes were hashed and synced by their writer: all of them or none.

        The files leave their place. Content that is there already gets the new bytes (which
        mends a damaged file) and the new labels beside its own. Raises DataLoss when a file is
        missing, no regular file, or of another size; nothing is recorded then.
        """
        found = {Digest.parse(arrival.digest): arrival for arrival in arrivals}
        for digest, arrival in found.items():
            check_labels(dict(arrival.labels))
            check_file(digest, arrival)
        if found:
            await whole(self._take(namespace, found))

    async def _take(self, namespace: str, found: Mapping[Digest, Arrival]) -> None:
        async with self._files:
            with self._db.durable_transaction() as tx:
                ensure_in(tx, namespace)
                tx.executemany(
                    "INSERT OR IGNORE INTO trash(owner, name) VALUES(?, ?)",
                    [(TRASH, digest.hex) for digest in found],
                )
            hit("content.noted")
            try:
                await asyncio.to_thread(self._rename_all, found)
            except OSError as err:
                raise from_os("adopt content", err) from err
            hit("import.blob-renamed")
            told = []
            with self._db.durable_transaction() as tx:
                for digest, arrival in found.items():
                    if record(tx, namespace, digest, arrival):
                        told.append(self._created(tx, namespace, digest, arrival.size_bytes))
            self._events.announce(*told)

    def _created(
        self, tx: sqlite3.Connection, namespace: str, digest: str, size_bytes: int
    ) -> Event:
        body = {"digest": digest, "size": size_bytes}
        return self._events.append(tx, namespace, events.CONTENT_CREATE, body)

    def _rename_all(self, found: Mapping[Digest, Arrival]) -> None:
        for digest, arrival in found.items():
            if not arrival.shared:
                os.chmod(arrival.path, 0o400, follow_symlinks=False)
            os.rename(arrival.path, self.path(digest))
        sync_directory(self._blobs_dir)

    async def add(
        self, namespace: str, data: bytes, labels: Mapping[str, str] | None = None
    ) -> Digest:
        """Store a document of ours; returns its digest."""
        digest = Digest.of(data)
        async with self.new_ingest() as ingest:
            path = ingest.file("document")
            try:
                await whole(asyncio.to_thread(write_whole, path, data, 0o600, True))
            except OSError as err:
                raise from_os(f"add content {digest}", err) from err
            await self.adopt(namespace, path, digest, len(data), labels)
        return digest

    def shared_size(self, digest: str) -> int:
        """The bytes of content that a namespace shares with all; 0 when none does."""
        digest = Digest.parse(digest)
        row = self._db.row(*row_to_share(digest))
        return int(row["size_bytes"]) if row is not None and self._is_shared(digest, row) else 0

    def share(self, namespace: str, digest: str, labels: Mapping[str, str] | None = None) -> bool:
        """Give the namespace the sight of content that another one shares; whether it has it now.

        With these labels if it is new to it: those of others do not come along. Content whose file
        is damaged is not shared.
        """
        digest = Digest.parse(digest)
        with self._db.durable_transaction() as tx:
            row = tx.execute(*row_to_share(digest)).fetchone()
            if row is None or not self._is_shared(digest, row):
                return False
            ensure_in(tx, namespace)
            told = []
            if record_seen(tx, namespace, digest, row["size_bytes"], labels or {}):
                told.append(self._created(tx, namespace, digest, row["size_bytes"]))
        self._events.announce(*told)
        return True

    def _is_shared(self, digest: Digest, row: sqlite3.Row) -> bool:
        if not self._share_all and (texts(row["labels"]) or {}).get(SHAREABLE_LABEL) != "true":
            return False
        try:
            os.close(open_blob(self.path(digest), digest, row["size_bytes"]))
        except LighterError:
            return False
        return True

    # --- reading

    def path(self, digest: Digest) -> str:
        """Where the bytes are, whether they are there or not."""
        return f"{self._blobs_dir}/{digest.hex}"

    def has(self, namespace: str, digest: str) -> bool:
        """Whether this namespace sees the content."""
        return (
            self._db.row(
                "SELECT 1 FROM content WHERE namespace = ? AND digest = ?",
                (namespace, Digest.parse(digest)),
            )
            is not None
        )

    def info(self, namespace: str, digest: str) -> ContentInfo:
        """Raises NotFound when this namespace does not see the content."""
        row = self._db.row(
            "SELECT * FROM content WHERE namespace = ? AND digest = ?",
            (namespace, Digest.parse(digest)),
        )
        if row is None:
            raise NotFound(f"get content {digest}: there is none in namespace {namespace}")
        return info_of(row)

    def list(
        self,
        namespace: str,
        cursor: str = "",
        limit: int = PAGE_ROWS,
        filters: Sequence[str] = (),
    ) -> tuple[tuple[ContentInfo, ...], str]:
        """One page by digest, after the digest `cursor`, and the next cursor ("" at the end).

        `filters`: as in daemon/filters.py, over digest and labels. Raises InvalidArgument.
        """
        wanted = any_of(filters)
        limit = max(1, min(limit, PAGE_ROWS))
        rows, more = self._db.page(
            "SELECT * FROM content WHERE namespace = ? AND digest > ? ORDER BY digest LIMIT ?",
            (namespace, cursor),
            limit,
        )
        page = tuple(map(info_of, rows))
        cursor = page[-1].digest if more else ""
        return tuple(info for info in page if wanted(partial(field_of, info))), cursor

    def open(self, namespace: str, digest: str) -> int:
        """A read-only descriptor that the caller owns. Raises NotFound, DataLoss."""
        return self.open_known(digest, self.info(namespace, digest).size)

    def open_known(self, digest: str, size_bytes: int) -> int:
        """The same for content whose record was looked up before; from any thread."""
        return open_blob(self.path(Digest.parse(digest)), digest, size_bytes)

    async def read_document(self, namespace: str, digest: str, max_bytes: int) -> bytes:
        """All bytes of a small piece of content, checked against its digest.

        Raises NotFound, ResourceExhausted above `max_bytes`, DataLoss for bytes that differ.
        """
        size = self.info(namespace, digest).size
        if size > max_bytes:
            raise ResourceExhausted(
                f"read content {digest}: {size} bytes, at most {max_bytes} are read as a document"
            )
        return await asyncio.to_thread(read_blob, self.path(Digest.parse(digest)), digest, size)

    # --- changing

    def label(self, namespace: str, digest: str, changes: Mapping[str, str]) -> ContentInfo:
        """Set labels; the value "" removes one. Raises NotFound, InvalidArgument.

        FailedPrecondition for content whose labels cannot be read, unless they say what it needs:
        written anew without that, it would be kept and what it needs would not.
        """
        info = self.info(namespace, digest)
        if BROKEN_LABEL in info.labels and not any(key.startswith(REF_LABEL) for key in changes):
            raise FailedPrecondition(
                f"label content {digest}: its labels cannot be read; pull or import its image again"
            )
        labels = merge_labels(info.labels, changes)
        now = time.time_ns()
        with self._db.durable_transaction() as tx:
            tx.execute(
                "UPDATE content SET labels = ?, updated_at = ? WHERE namespace = ? AND digest = ?",
                (json.dumps(labels), now, namespace, digest),
            )
        return ContentInfo(info.digest, info.size, labels, info.created_at, now)

    def note(self, namespace: str, digest: str, changes: Mapping[str, str]) -> None:
        """The same of what is only good to know: nothing for content that cannot have it."""
        with suppress(FailedPrecondition):
            self.label(namespace, digest, changes)

    async def delete(self, namespace: str, digest: str) -> None:
        """Take the content from this namespace; the bytes go with the last one. Raises NotFound."""
        with self._db.durable_transaction() as tx:
            if not delete_rows(tx, namespace, [Digest.parse(digest)]):
                raise NotFound(f"delete content {digest}: there is none in namespace {namespace}")
            told = self._events.append(tx, namespace, events.CONTENT_DELETE, {"digest": digest})
        self._events.announce(told)
        await self.sweep()

    # --- removing

    @asynccontextmanager
    async def still(self) -> AsyncGenerator[None, None]:
        """Within the block no file is added or removed."""
        async with self._files:
            yield

    async def sweep(self) -> int:
        """Remove files that `trash` names and no row wants; returns how many are gone.

        One that cannot be removed is told of, and stays noted for the next sweep.
        """
        return await whole(self._sweep())

    async def _sweep(self) -> int:
        async with self._files:
            noted = [
                row["name"]
                for row in self._db.rows("SELECT name FROM trash WHERE owner = ?", (TRASH,))
            ]
            unwanted = {
                name
                for name in noted
                if self._db.row("SELECT 1 FROM content WHERE digest = ?", (f"sha256:{name}",))
                is None
            }
            if not noted:
                return 0
            stuck = await asyncio.to_thread(self._unlink_all, unwanted)
            unwanted -= stuck.keys()
            hit("gc.files-removed")
            # A note that a power cut brings back names a file that is gone, or one with a row. What
            # has lost its last row since the look keeps its note, for the next sweep.
            with self._db.fast_transaction() as tx:
                tx.executemany(
                    "DELETE FROM trash WHERE owner = ? AND name = ? AND (? OR EXISTS"
                    " (SELECT 1 FROM content WHERE digest = 'sha256:' || trash.name))",
                    [(TRASH, name, name in unwanted) for name in noted if name not in stuck],
                )
            for err in stuck.values():
                self._removing.failed(err)
            if not stuck:
                self._removing.ended()
            return len(unwanted)

    def _unlink_all(self, names: Iterable[str]) -> dict[str, OSError]:
        """Returns those that stay, with the reason."""
        stuck = {}
        for name in names:
            try:
                os.unlink(f"{self._blobs_dir}/{name}")
            except FileNotFoundError:
                pass
            except OSError as err:
                stuck[name] = err
        return stuck

    async def recover(self) -> None:
        """Once after a start: remove the ingests of dead managers, finish removals.

        What is left behind was listed when the store was opened, so new work may go on meanwhile.
        """
        while self._left_behind:
            path = f"{self._ingest_dir}/{self._left_behind.pop()}"
            await asyncio.to_thread(shutil.rmtree, path, True)
        await self.sweep()
        if unknown := self.unrecorded():
            logger.warning(
                "%d files of %s have no record: they are kept; the first is %s",
                len(unknown),
                self._blobs_dir,
                unknown[0],
            )

    def unrecorded(self) -> tuple[str, ...]:
        """Names of files that neither a row nor `trash` knows, as after an old backup's return.

        They are kept: what is not known is not removed.
        """
        known = {row["digest"][7:] for row in self._db.rows("SELECT digest FROM content")}
        known |= {
            row["name"] for row in self._db.rows("SELECT name FROM trash WHERE owner = ?", (TRASH,))
        }
        return tuple(sorted(set(os.listdir(self._blobs_dir)) - known))
