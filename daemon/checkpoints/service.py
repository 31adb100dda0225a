"""Containers to images and back, with what their processes have in memory.

A checkpoint that this manager has made is marked on the content of its index, which covers all
below it by digests. Any other comes from outside: its specification may bind the host's files,
run hooks as root or have every capability, and CRIU makes whatever processes its files describe.
So it is used only by who says that its maker is trusted as root is.
"""

import contextlib
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

from lighter.daemon.checkpoints import document
from lighter.daemon.checkpoints.document import Checkpoint, Record
from lighter.daemon.containers.freezing import Freezing
from lighter.daemon.containers.maker import ContainerMaker, Definition
from lighter.daemon.content.gc import Collector
from lighter.daemon.content.ingest import Ingest
from lighter.daemon.content.store import ContentStore
from lighter.daemon.images import platforms
from lighter.daemon.images.additions import Additions, entry, parent_of
from lighter.daemon.images.documents import MAX_DOCUMENT_BYTES, OCI_INDEX
from lighter.daemon.images.graph import labels_for
from lighter.daemon.images.layers import Layers
from lighter.daemon.images.reference import normalise
from lighter.daemon.images.store import ImageStore
from lighter.daemon.images.worker import Worker
from lighter.daemon.metadata.containers import ContainerStore
from lighter.daemon.oci.given import read_spec
from lighter.daemon.snapshots.service import SnapshotService
from lighter.daemon.tasks import criu
from lighter.daemon.tasks.service import TaskService
from lighter.daemon.types import MAX_SPEC_BYTES, Container, Descriptor, Image, Mount
from lighter.proto.errors import FailedPrecondition, InvalidArgument, NotFound
from lighter.proto.faults import hit

MADE_LABEL = "io.lighter/checkpoint-made-by"  # of an index's content: the manager's uuid
ENDED_S = 10.0  # for what is killed once its checkpoint is there
_DUMP = "dump"


class Checkpoints:
    def __init__(
        self,
        *,
        uuid: str,
        containers: ContainerStore,
        maker: ContainerMaker,
        tasks: TaskService,
        freezing: Freezing,
        content: ContentStore,
        images: ImageStore,
        snapshots: SnapshotService,
        layers: Layers,
        collector: Collector,
        worker: Worker,
    ) -> None:
        self._uuid = uuid
        self._containers = containers
        self._maker = maker
        self._tasks = tasks
        self._freezing = freezing
        self._content = content
        self._images = images
        self._snapshots = snapshots
        self._layers = layers
        self._collector = collector
        self._worker = worker

    async def dump(
        self,
        namespace: str,
        container_id: str,
        directory: str,
        end: Callable[[], Awaitable[object]] | None = None,
        flags: Sequence[str] = (),
    ) -> None:
        """CRIU's files of its processes alone, in a directory of the caller's; `end` as in `write`.

        `flags` are the runtime's, which is never asked to end them: a restart policy would start
        them again.
        """
        if end is None:
            await self._tasks.checkpoint(namespace, container_id, directory, flags)
            return
        async with self._freezing.frozen(namespace, container_id):
            await self._tasks.checkpoint(namespace, container_id, directory, flags)
            await end()

    async def dump_content(
        self,
        namespace: str,
        container_id: str,
        hold: Callable[[str], None],
        end: Callable[[], Awaitable[object]] | None = None,
        flags: Sequence[str] = (),
    ) -> list[Descriptor]:
        """The same as content: CRIU's files in one archive, and the container's specification.

        No name keeps them: `hold` is called with each digest while they are pinned.
        """
        container = self._containers.get(namespace, container_id)
        what = f"checkpoint task {container_id}"
        with self._collector.pin() as pin:
            async with self._content.new_ingest() as ingest:
                new = Additions(what, self._content, namespace, ingest, pin)
                async with self._freezing.frozen(namespace, container_id):
                    made = [
                        await self._dumped(new, ingest, namespace, container_id, flags),
                        await new.document(document.CONFIG, document.pack_spec(container.spec)),
                    ]
                    await new.adopt()
                    for one in made:
                        hold(one.digest)
                    if end is not None:
                        await end()
        return made

    async def _dumped(
        self,
        new: Additions,
        ingest: Ingest,
        namespace: str,
        container_id: str,
        flags: Sequence[str] = (),
    ) -> Descriptor:
        dump = ingest.file(_DUMP)
        os.mkdir(dump, 0o700)
        await self._tasks.checkpoint(namespace, container_id, dump, flags)
        return await self._packed(new, dump)

    async def write(
        self,
        namespace: str,
        container_id: str,
        name: str,
        *,
        rw: bool,
        image: bool,
        task: bool,
        end: Callable[[], Awaitable[object]] | None = None,
    ) -> Image:
        """Make the image `name` of a container; one of that name is replaced.

        `rw`: with what it has written to its root. `image`: with the image that it was made from.
        `task`: with its processes, by CRIU. What runs stands still meanwhile. `end` ends it, called
        when the image is there and nothing has run on since it was taken.
        Raises FailedPrecondition where CRIU cannot do it, or the container's files are not ours.
        """
        what = f"checkpoint container {container_id}"
        container = self._containers.get(namespace, container_id)
        name = normalise(name)
        if end and not task:
            raise InvalidArgument(f"{what}: only with its task it ends with it")
        if rw and container.options.get("id_root"):
            raise FailedPrecondition(f"{what}: its ids are mapped, and so are its files' owners")
        parent = await parent_of(self._snapshots, container, what)
        base = self._images.get(namespace, container.image).target if image else None
        with self._collector.pin() as pin:
            async with self._content.new_ingest() as ingest:
                if base is not None:
                    pin.content(namespace, base.digest)
                new = Additions(what, self._content, namespace, ingest, pin)
                spec, record = (
                    document.pack_spec(container.spec),
                    document.record_of(container, parent),
                )
                entries = [
                    await new.document(document.CONFIG, spec),
                    await new.document(document.RECORD, record),
                ]
                async with self._freezing.frozen(namespace, container_id):
                    if task:
                        entries.append(await self._dumped(new, ingest, namespace, container_id))
                    if rw:
                        layer, _diff_id = await new.layer(
                            self._snapshots, container, document.LAYER
                        )
                        entries.append(
                            Descriptor(layer.media_type, layer.digest, layer.size, platform=_here())
                        )
                    hit("checkpoint.read")
                    if base is not None:
                        entries.append(base)
                    target = await self._index(new, container, entries)
                    await new.adopt()
                    (made,) = self._images.put_all(namespace, {name: target})
                    if end is not None:
                        await end()
        return made

    async def _packed(self, new: Additions, directory: str) -> Descriptor:
        async def write(fd: int) -> None:
            job = {"job": "pack", "path": b"/", "name": b".", "mounts": [_bind(directory)]}
            await self._worker.run(job, [fd])

        return await new.written(document.CRIU, "criu", write)

    async def _index(
        self, new: Additions, container: Container, entries: list[Descriptor]
    ) -> Descriptor:
        body = {
            "schemaVersion": 2,
            "mediaType": OCI_INDEX,
            "manifests": [entry(one) for one in entries],
            "annotations": document.annotations(container),
        }
        children = {f"m.{number}": one for number, one in enumerate(entries)}
        labels = {**labels_for(children), MADE_LABEL: self._uuid}
        return await new.document(OCI_INDEX, json.dumps(body).encode(), labels)

    async def restore(
        self, namespace: str, container_id: str, name: str, *, rw: bool, live: bool, trust: bool
    ) -> Container:
        """Make a container as the one was defined that the image `name` was made of.

        `rw`: with its files. `live`: that its processes are there is checked; `opened` has them.
        Raises FailedPrecondition for a checkpoint from outside without `trust`, or when the image
        of its container is another one by now; InvalidArgument for an image that is none.
        """
        found, checkpoint = await self._find(namespace, name, trust)
        missing = [
            part
            for part, asked, there in (
                ("files (checkpoint --rw)", rw, checkpoint.layer),
                ("processes (checkpoint --task)", live, checkpoint.criu),
            )
            if asked and there is None
        ]
        if missing:
            raise FailedPrecondition(f"restore {found.name}: it has no {' and no '.join(missing)}")
        spec = _spec(await self._read(namespace, checkpoint.config, MAX_SPEC_BYTES))
        record = Record(checkpoint.runtime, checkpoint.snapshotter)
        if checkpoint.record is not None:
            record = document.read_record(await self._read(namespace, checkpoint.record))
        with self._collector.pin() as pin:
            pin.content(namespace, found.target.digest)
            self._name_base(namespace, checkpoint)

            async def fill(mounts: tuple[Mount, ...], parent: str) -> None:
                # With mapped ids it is a copy of the image's, under a name that goes on from its.
                if record.parent and parent != record.parent.partition("-ids-")[0]:
                    raise FailedPrecondition(
                        f"restore {found.name}: the image {checkpoint.image} is another one now "
                        "than its container was made from"
                    )
                if rw and checkpoint.layer is not None:
                    await self._layers.apply(namespace, checkpoint.layer, mounts)

            definition = Definition(
                checkpoint.image,
                record.runtime,
                record.snapshotter,
                spec,
                record.labels,
                record.options,
            )
            return await self._maker.recreate(namespace, container_id, definition, fill)

    @contextlib.asynccontextmanager
    async def opened(self, namespace: str, name: str, *, trust: bool) -> AsyncIterator[str]:
        """A directory with CRIU's files of a checkpoint, for as long as it takes to use them."""
        found, checkpoint = await self._find(namespace, name, trust)
        if checkpoint.criu is None:
            raise FailedPrecondition(f"restore {found.name}: it has no processes")
        with self._collector.pin() as pin:
            pin.content(namespace, found.target.digest)
            async with self.extracted(namespace, checkpoint.criu.digest) as directory:
                yield directory

    @contextlib.asynccontextmanager
    async def extracted(self, namespace: str, digest: str) -> AsyncIterator[str]:
        """The same of an archive with CRIU's files, whoever made it: what is restored from it has
        any right that its maker gave it, so the caller has to trust that one as root.
        """
        with self._collector.pin() as pin:
            async with self._content.new_ingest() as ingest:
                pin.content(namespace, digest)
                directory = ingest.file(_DUMP)
                os.mkdir(directory, 0o700)
                fd = self._content.open(namespace, digest)
                try:
                    job = {"job": "extract", "path": b"/", "target": directory, "owner": (0, 0)}
                    await self._worker.run(job, [fd])
                finally:
                    os.close(fd)
                criu.check_written(directory)
                yield directory

    async def _find(self, namespace: str, name: str, trust: bool) -> tuple[Image, Checkpoint]:
        found = self._images.find(namespace, name, "restore")
        checkpoint = document.parse_index(await self._read(namespace, found.target), found.target)
        labels = self._content.info(namespace, found.target.digest).labels
        if labels.get(MADE_LABEL) != self._uuid and not trust:
            raise FailedPrecondition(
                f"restore {found.name}: this manager has not made it. Its specification and its "
                "processes can have any right on this host; --trust takes them as they are"
            )
        return found, checkpoint

    def _name_base(self, namespace: str, checkpoint: Checkpoint) -> None:
        """The image that came along gets its name, unless something has that."""
        if not checkpoint.image:
            raise InvalidArgument("restore container: the checkpoint names no image")
        if checkpoint.base is not None and not self._images.exists(namespace, checkpoint.image):
            self._images.put_all(namespace, {checkpoint.image: checkpoint.base})

    async def _read(
        self, namespace: str, one: Descriptor, max_bytes: int = MAX_DOCUMENT_BYTES
    ) -> bytes:
        try:
            return await self._content.read_document(namespace, one.digest, max_bytes)
        except NotFound as err:
            raise NotFound(f"restore container: content {one.digest} is missing") from err


def _spec(data: bytes) -> dict[str, Any]:
    """The specification of a checkpoint, on a root that is to be made."""
    try:
        spec = json.loads(document.unpack_spec(data))
        if isinstance(spec.get("root"), dict):
            spec["root"] = {**spec["root"], "path": "/rootfs"}  # which one it was is of no matter
    except (ValueError, AttributeError, RecursionError) as err:
        raise InvalidArgument("read specification of a checkpoint: it is none") from err
    spec = read_spec(json.dumps(spec))
    spec["root"]["path"] = "rootfs"
    return spec


def _bind(directory: str) -> list[Any]:
    return ["bind", directory, ["bind", "ro"]]


def _here() -> dict[str, str]:
    here = platforms.host()
    return {"os": here.os, "architecture": here.architecture}
