"""Named ingests: content on its way in, which a later writer of the same name goes on with.

    content/writes/<id>/about.json   namespace, ref, total, expected digest, when it was begun
    content/writes/<id>/data         what has arrived

The id is a hash of namespace and ref, so that a ref is never a path. Nothing here is synced before
the commit: what a crash or a power cut leaves is read and hashed again by whoever resumes it, and
only bytes of the right digest become content. A crash between the commit and the removal of the
directory leaves an `about.json` alone, which is no ingest and goes with the next expiry.
"""

import asyncio
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

from lighter.daemon.clock import Clock
from lighter.daemon.content.digest import Digest
from lighter.daemon.content.store import ContentStore
from lighter.daemon.content.writer import Writer
from lighter.daemon.errors import from_os
from lighter.daemon.files import read_capped, write_whole
from lighter.daemon.journal import Repeated
from lighter.daemon.whole import whole
from lighter.proto.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unavailable,
)
from lighter.proto.faults import hit

log = logging.getLogger("lighter.content")

MAX_REF_BYTES = 1024
MAX_ABOUT_BYTES = 64 << 10
EXPIRE_S = 24 * 3600


@dataclass(frozen=True)
class IngestStatus:
    """An ingest as it is listed. `total_bytes` is 0 and `expected` "" where they are not known."""

    ref: str
    offset: int
    total_bytes: int
    expected: str
    started_at: int
    updated_at: int


class Ingests:
    """The named ingests of one content store, in `directory` (made, mode 0700)."""

    def __init__(
        self, directory: str, content: ContentStore, now_ns: Callable[[], int] | None = None
    ) -> None:
        self.content = content
        self._directory = directory
        self._now_ns = now_ns or Clock().now_ns
        self._open: dict[str, Writer] = {}
        self._unreadable: dict[str, Repeated] = {}
        self._going: set[str] = set()  # being removed: nobody may open them until they are gone
        try:
            os.makedirs(directory, 0o700, exist_ok=True)
        except OSError as err:
            raise from_os("make ingest directory", err) from err

    async def open(
        self,
        namespace: str,
        ref: str,
        *,
        total_bytes: int = 0,
        expected: str = "",
        share: bool = True,
    ) -> Writer:
        """The writer of `ref`, at the offset where the last one stopped.

        Raises Unavailable while another one writes it, AlreadyExists when the expected digest is
        content of the namespace (or, with `share`, has become so without labels, see
        ContentStore.share), FailedPrecondition when it was begun for another digest.
        """
        if not ref or len(ref.encode(errors="replace")) > MAX_REF_BYTES or "\0" in ref:
            raise InvalidArgument(f"open ingest {ref[:60]!r}: a ref has 1 to {MAX_REF_BYTES} bytes")
        if expected:
            Digest.parse(expected)
            has = self.content.has(namespace, expected)
            if has or (share and self.content.share(namespace, expected)):
                raise AlreadyExists(f"open ingest {ref}: content {expected} exists")
        directory = self._path(namespace, ref)
        if directory in self._open or directory in self._going:
            raise Unavailable(f"open ingest {ref}: it is locked, somebody else writes it")
        writer = Writer(self, namespace, ref, directory)
        self._open[directory] = writer
        try:
            await self._begin(writer, total_bytes, expected)
        except BaseException:
            await writer.close()
            raise
        return writer

    async def _begin(self, writer: Writer, total_bytes: int, expected: str) -> None:
        directory = self._path(writer.namespace, writer.ref)
        try:
            about = _read_about(directory)
            if about is None:
                about = {
                    "namespace": writer.namespace,
                    "ref": writer.ref,
                    "total_bytes": total_bytes,
                    "expected": expected,
                    "started_at": time.time_ns(),
                }
                os.makedirs(directory, 0o700, exist_ok=True)
                write_whole(directory + "/about.json", json.dumps(about).encode(), 0o600)
                hit("ingest.begun")
        except OSError as err:
            raise from_os(f"open ingest {writer.ref}", err) from err
        if expected and about["expected"] and about["expected"] != expected:
            raise FailedPrecondition(
                f"open ingest {writer.ref}: it was begun for {about['expected']}, not {expected}"
            )
        await writer.begin()
        hit("ingest.opened")

    def status(self, namespace: str, ref: str) -> IngestStatus:
        """Raises NotFound; DataLoss and others for one that cannot be read."""
        try:
            found = _look(self._path(namespace, ref))
        except OSError as err:
            raise from_os(f"get ingest {ref}", err) from err
        if found is None or found[0] != namespace:
            raise NotFound(f"get ingest {ref}: there is none in namespace {namespace}")
        return found[1]

    def list(self, namespace: str) -> tuple[IngestStatus, ...]:
        """All of a namespace that can be read, by ref."""
        found = [one[1] for _directory, one in self._all() if one and one[0] == namespace]
        return tuple(sorted(found, key=lambda status: status.ref))

    def _all(self) -> Iterator[tuple[str, tuple[str, IngestStatus] | None]]:
        """(directory, what `_look` finds there). What cannot be read is told and left out."""
        try:
            names = os.listdir(self._directory)
        except OSError as err:
            raise from_os("list ingests", err) from err
        for name in self._unreadable.keys() - set(names):
            del self._unreadable[name]
        for name in names:
            directory = f"{self._directory}/{name}"
            try:
                found = _look(directory)
            except OSError as err:
                failures = Repeated(log, f"read ingest {directory}")
                self._unreadable.setdefault(name, failures).failed(err)
                continue
            if name in self._unreadable:
                self._unreadable.pop(name).ended()
            yield directory, found

    async def abort(self, namespace: str, ref: str) -> None:
        """Remove an ingest that nobody writes. Raises NotFound, Unavailable."""
        self.status(namespace, ref)
        directory = self._path(namespace, ref)
        if directory in self._open:
            raise Unavailable(f"abort ingest {ref}: it is locked, somebody writes it")
        if directory in self._going:
            raise Unavailable(f"abort ingest {ref}: it is being removed")
        await self._remove(directory)

    async def abort_all(self, namespace: str) -> None:
        """Remove all of a namespace that goes, but what is being written."""
        for status in self.list(namespace):
            directory = self._path(namespace, status.ref)
            if directory not in self._open and directory not in self._going:
                await self._remove(directory)

    def being_written(self, namespace: str) -> tuple[str, ...]:
        """The refs that have a writer now."""
        return tuple(w.ref for w in self._open.values() if w.namespace == namespace)

    def idle(
        self, leased: Collection[tuple[str, str]] = (), older_than_s: float = EXPIRE_S
    ) -> tuple[tuple[str, IngestStatus], ...]:
        """(namespace, status) of what nobody has written to for so long and no lease holds.

        `leased`: (namespace, ref) of ingests that are to stay.
        """
        limit_ns = self._limit_ns(older_than_s)
        return tuple(
            one
            for directory, one in self._all()
            if one and self._is_idle(directory, *one, leased, limit_ns)
        )

    def _limit_ns(self, older_than_s: float) -> int:
        return self._now_ns() - int(older_than_s * 1e9)

    def _is_idle(
        self,
        directory: str,
        namespace: str,
        status: IngestStatus,
        leased: Collection[tuple[str, str]],
        limit_ns: int,
    ) -> bool:
        return (
            directory not in self._open
            and status.updated_at < limit_ns
            and (namespace, status.ref) not in leased
        )

    async def expire(
        self, leased: Collection[tuple[str, str]] = (), older_than_s: float = EXPIRE_S
    ) -> int:
        """Remove what is idle, and what is no ingest; how many."""
        limit_ns = self._limit_ns(older_than_s)
        going = [
            directory
            for directory, one in self._all()
            if one is None or self._is_idle(directory, *one, leased, limit_ns)
        ]
        gone = 0
        for directory in going:
            # Opened since the look: then it is somebody's.
            if directory not in self._open and directory not in self._going:
                await self._remove(directory)
                gone += 1
        return gone

    async def _remove(self, directory: str) -> None:
        self._going.add(directory)
        try:
            await whole(asyncio.to_thread(shutil.rmtree, directory, True))
        finally:
            self._going.discard(directory)

    def _path(self, namespace: str, ref: str) -> str:
        name = hashlib.sha256(f"{namespace}\0{ref}".encode(errors="surrogateescape")).hexdigest()
        return f"{self._directory}/{name[:32]}"

    # --- for writers

    def closed(self, writer: Writer) -> None:
        directory = self._path(writer.namespace, writer.ref)
        if self._open.get(directory) is writer:
            del self._open[directory]

    async def drop(self, writer: Writer) -> None:
        """Remove what is left of an ingest that has become content."""
        await asyncio.to_thread(shutil.rmtree, self._path(writer.namespace, writer.ref), True)


def _look(directory: str) -> tuple[str, IngestStatus] | None:
    """(namespace, status) of an ingest; None for what is none. Raises OSError for what is there
    and cannot be read.
    """
    about = _read_about(directory)
    if about is None:
        return None
    try:
        data = os.stat(directory + "/data", follow_symlinks=False)
    except FileNotFoundError:
        return None
    return about["namespace"], IngestStatus(
        about["ref"],
        data.st_size,
        about["total_bytes"],
        about["expected"],
        about["started_at"],
        data.st_mtime_ns,
    )


def _read_about(directory: str) -> dict[str, Any] | None:
    """What an ingest is; None for what is none, or no whole one. Raises OSError."""
    data = read_capped(directory + "/about.json", MAX_ABOUT_BYTES)
    if data is None:
        return None
    try:
        about = json.loads(data)
        return {
            "namespace": str(about["namespace"]),
            "ref": str(about["ref"]),
            "total_bytes": int(about["total_bytes"]),
            "expected": str(about["expected"]),
            "started_at": int(about["started_at"]),
        }
    except (ValueError, KeyError, TypeError):
        return None
