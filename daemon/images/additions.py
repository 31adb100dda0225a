"""What a new image is written of: files that become content together, kept from the collector."""

import asyncio
import hashlib
import os
from collections.abc import Awaitable, Callable, Mapping

from lighter.daemon.content.blobs import Arrival
from lighter.daemon.content.digest import Digest
from lighter.daemon.content.gc import Pin
from lighter.daemon.content.ingest import Ingest
from lighter.daemon.content.store import ContentStore
from lighter.daemon.errors import from_os
from lighter.daemon.files import write_whole
from lighter.daemon.images.documents import MAX_DOCUMENT_BYTES
from lighter.daemon.images.layers import UNCOMPRESSED_LABEL
from lighter.daemon.snapshots.service import SnapshotService
from lighter.daemon.types import Container, Descriptor
from lighter.daemon.whole import whole
from lighter.proto.errors import FailedPrecondition, InvalidArgument

_CHUNK_BYTES = 1 << 20


class Additions:
    """`what` is the act that errors name. They become content by `adopt`, children first."""

    def __init__(
        self, what: str, content: ContentStore, namespace: str, ingest: Ingest, pin: Pin
    ) -> None:
        self._what = what
        self._content = content
        self._namespace = namespace
        self._ingest = ingest
        self._pin = pin
        self._arrivals: list[Arrival] = []

    async def adopt(self) -> None:
        await self._content.adopt_all(self._namespace, self._arrivals)

    async def document(
        self, media_type: str, data: bytes, labels: Mapping[str, str] | None = None
    ) -> Descriptor:
        """Raises InvalidArgument above what is read of one."""
        if len(data) > MAX_DOCUMENT_BYTES:
            raise InvalidArgument(f"{self._what}: its {media_type} becomes too large")
        digest = Digest.of(data)
        path = self._ingest.file(f"document-{digest.hex}")
        try:
            await whole(asyncio.to_thread(write_whole, path, data, 0o600, True))
        except OSError as err:
            raise from_os(self._what, err) from err
        return self._add(media_type, path, digest, len(data), labels or {})

    async def written(
        self, media_type: str, name: str, write: Callable[[int], Awaitable[object]]
    ) -> Descriptor:
        """What `write` writes to the descriptor that it gets, hashed afterwards."""
        path = self._ingest.file(name)
        await self._write(path, write)
        digest, size_bytes = await asyncio.to_thread(_hash, path)
        return self._add(media_type, path, Digest.parse(f"sha256:{digest}"), size_bytes, {})

    async def layer(
        self, snapshots: SnapshotService, container: Container, media_type: str
    ) -> tuple[Descriptor, str]:
        """What the container's snapshot has that its parent has not, gzipped, and its diff id."""
        where = (container.namespace, container.snapshotter)
        parent = await parent_of(snapshots, container, self._what)
        path = self._ingest.file("layer")
        made = {}

        async def write(fd: int) -> None:
            made.update(await snapshots.diff(*where, (parent, container.snapshot_key), fd, "gzip"))

        await self._write(path, write)
        digest, size_bytes = Digest.parse(made["digest"]), int(made["size_bytes"])
        labels = {UNCOMPRESSED_LABEL: str(made["diff_id"])}
        return self._add(media_type, path, digest, size_bytes, labels), str(made["diff_id"])

    async def _write(self, path: str, write: Callable[[int], Awaitable[object]]) -> None:
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                await write(fd)
                await asyncio.to_thread(os.fsync, fd)
            finally:
                os.close(fd)
        except OSError as err:
            raise from_os(self._what, err) from err

    def _add(
        self, media_type: str, path: str, digest: str, size_bytes: int, labels: Mapping[str, str]
    ) -> Descriptor:
        self._pin.content(self._namespace, digest)
        self._arrivals.append(Arrival(path, digest, size_bytes, labels))
        return Descriptor(media_type, digest, size_bytes)


async def parent_of(snapshots: SnapshotService, container: Container, what: str) -> str:
    """The snapshot that the container's own stands on. Raises FailedPrecondition without one."""
    if not container.snapshot_key:
        raise FailedPrecondition(f"{what}: its root is no snapshot of this manager")
    where = (container.namespace, container.snapshotter, container.snapshot_key)
    return (await snapshots.get(*where)).parent


def entry(one: Descriptor) -> dict[str, object]:
    """As it stands in a document."""
    platform = {"platform": dict(one.platform)} if one.platform else {}
    return {"mediaType": one.media_type, "digest": one.digest, "size": one.size, **platform}


def _hash(path: str) -> tuple[str, int]:
    hashed, size_bytes = hashlib.sha256(), 0
    with open(path, "rb", buffering=0) as file:
        while chunk := file.read(_CHUNK_BYTES):
            hashed.update(chunk)
            size_bytes += len(chunk)
    return hashed.hexdigest(), size_bytes
