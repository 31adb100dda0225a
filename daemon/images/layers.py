"""Layers for clients that unpack and commit by themselves: onto a snapshot, and from two of them.

Such a client knows a snapshot by the mounts it was given. Only what the namespace itself has is
worked on: a client's word is no way to other directories of the host.
"""

import asyncio
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lighter.daemon.content.digest import Digest
from lighter.daemon.content.gc import Collector, Pin
from lighter.daemon.content.store import ContentStore
from lighter.daemon.errors import from_os
from lighter.daemon.images.processors import Processors
from lighter.daemon.images.worker import Worker
from lighter.daemon.snapshots.service import SnapshotService
from lighter.daemon.snapshots.types import is_read_only
from lighter.daemon.types import Descriptor, Mount
from lighter.proto.errors import FailedPrecondition, InvalidArgument, Unimplemented
from lighter.proto.faults import hit

OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
WORKERS_AT_ONCE = 8  # of all clients; further ones wait

UNCOMPRESSED_LABEL = "containerd.io/uncompressed"

_COMPRESSION = {OCI_LAYER: "", OCI_LAYER + "+gzip": "gzip", OCI_LAYER + "+zstd": "zstd"}


@dataclass(frozen=True)
class Applied:
    """The tar that a layer was: its digest and its size, inflated."""

    diff_id: str
    size_bytes: int


class Layers:
    """Applies and makes layers, in the worker that unpacks images too."""

    def __init__(
        self,
        content: ContentStore,
        snapshots: SnapshotService,
        collector: Collector,
        worker: Worker,
        limits: Mapping[str, int | None],
        processors: Processors | None = None,
    ) -> None:
        self._content = content
        self._snapshots = snapshots
        self._collector = collector
        self._processors = processors or Processors(worker)
        self._limits = dict(limits)
        self._at_once = asyncio.Semaphore(WORKERS_AT_ONCE)

    async def apply(
        self,
        namespace: str,
        layer: Descriptor,
        mounts: Sequence[Mount],
        *,
        sync: bool = False,
        payloads: Mapping[str, bytes] | None = None,
    ) -> Applied:
        """Apply content to the namespace's active snapshot that has these mounts.

        `payloads`: what the stream processors of these ids get beside it, if they take part.
        Raises NotFound (content, snapshot), FailedPrecondition for what is read-only, and what a
        layer is refused with. On an error the snapshot holds what was written until then.
        """
        name, key = await self._snapshots.find(namespace, mounts)
        target = await self._snapshots.snapshotter(name).layer_target(namespace, key)
        if is_read_only(mounts):
            raise FailedPrecondition(f"apply to snapshot {key}: its mounts are given as read-only")
        order = {
            "job": "apply",
            "media_type": layer.media_type,
            **target.order(),
            "sync": sync,
            "limits": self._limits,
        }
        with self._collector.pin() as pin:
            pin.content(namespace, layer.digest)
            pin.snapshot(namespace, name, key)
            async with self._at_once:  # those that wait hold no descriptor
                fd = self._content.open(namespace, layer.digest)
                try:
                    done = await self._processors.apply(order, [fd], payloads=payloads)
                finally:
                    os.close(fd)
        hit("layers.applied")
        return Applied(str(Digest.parse(done["diff_id"])), int(done["plain_bytes"]))

    async def compare(
        self,
        namespace: str,
        lower: Sequence[Mount],
        upper: Sequence[Mount],
        media_type: str,
        labels: Mapping[str, str],
        pin: Pin,
    ) -> Descriptor:
        """Make content of the layer that makes `upper` of `lower` (without mounts: of nothing).

        The caller's pin keeps it from the moment it is content. Raises NotFound for mounts that
        are of no snapshot of the namespace, Unimplemented for a media type.
        """
        media_type = media_type or OCI_LAYER + "+gzip"
        if media_type not in _COMPRESSION:
            raise Unimplemented(f"unsupported diff media type: {media_type}: not implemented")
        if not upper:
            raise InvalidArgument("compare snapshots: no mounts of the upper one are given")
        name, key = await self._snapshots.find(namespace, upper)
        of, below = await self._snapshots.find(namespace, lower) if lower else (name, "")
        if of != name:
            raise FailedPrecondition(f"compare snapshots: one is of {of}, the other of {name}")
        compression = _COMPRESSION[media_type]
        async with self._at_once:
            return await self._make(
                namespace, name, (below, key), media_type, compression, labels, pin
            )

    async def _make(
        self,
        namespace: str,
        snapshotter: str,
        keys: tuple[str, str],
        media_type: str,
        compression: str,
        labels: Mapping[str, str],
        pin: Pin,
    ) -> Descriptor:
        async with self._content.new_ingest() as ingest:
            path = ingest.file("layer")
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                done = await self._snapshots.diff(namespace, snapshotter, keys, fd, compression)
                await asyncio.to_thread(os.fsync, fd)
            except OSError as err:
                raise from_os("write layer", err) from err
            finally:
                os.close(fd)
            digest, size_bytes = str(Digest.parse(done["digest"])), int(done["size_bytes"])
            pin.content(namespace, digest)
            hit("layers.made")
            told = {UNCOMPRESSED_LABEL: str(Digest.parse(done["diff_id"]))} if compression else {}
            await self._content.adopt(namespace, path, digest, size_bytes, {**labels, **told})
        return Descriptor(media_type, digest, size_bytes)
