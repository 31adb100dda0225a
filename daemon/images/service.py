"""The image service: names, what they stand for here, and how they come and go."""

import os
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from lighter.daemon.content.gc import Collected, Collector
from lighter.daemon.content.store import ContentStore
from lighter.daemon.events.log import EventLog
from lighter.daemon.filters import any_of, label_path
from lighter.daemon.images import platforms
from lighter.daemon.images.chain import chain_id
from lighter.daemon.images.documents import MAX_DOCUMENT_BYTES, load
from lighter.daemon.images.graph import Resolved, StoredDocuments, Walker
from lighter.daemon.images.importer import Importer, ImportOptions
from lighter.daemon.images.platforms import Platform
from lighter.daemon.images.processors import Processors
from lighter.daemon.images.progress import Progress, Report, unreported
from lighter.daemon.images.store import ImageStore
from lighter.daemon.images.unpack import LAYERS_AT_ONCE, Unpacker
from lighter.daemon.images.worker import Worker
from lighter.daemon.metadata.db import Database
from lighter.daemon.metadata.namespaces import DEFAULT_SNAPSHOTTER_LABEL, NamespaceStore
from lighter.daemon.snapshots.types import COMMITTED, Snapshotter
from lighter.daemon.types import Descriptor, Image
from lighter.proto.daemon_api import PAGE_ROWS
from lighter.proto.errors import LighterError, NotFound

DEFAULT_SNAPSHOTTER = "overlayfs"
_KEPT = 256
_KEPT_CONFIG_BYTES = 64 << 10


@dataclass(frozen=True)
class ImageSummary:
    """An image as it is listed. `size_bytes`: all content that this host's platform needs.

    An image whose content is damaged or missing is listed too, with `problem` saying what it is.
    """

    image: Image
    size_bytes: int
    platforms: tuple[str, ...]
    problem: str = ""


@dataclass(frozen=True)
class ImageDetails:
    """The manifest and config of this host's platform, as parsed JSON."""

    image: Image
    manifest: dict[str, Any]
    config: dict[str, Any]


@dataclass(frozen=True)
class ResolvedImage:
    """What a container is made from. `name` is the image's as it is stored."""

    name: str
    manifest: Descriptor
    config: bytes
    chain_id: str


class ImageService:
    """All of an instance's images; the one owner of importer, unpacker and collector."""

    def __init__(
        self,
        db: Database,
        events_log: EventLog,
        content: ContentStore,
        snapshotters: Mapping[str, Snapshotter],
        worker: Worker,
        default_snapshotter: str = DEFAULT_SNAPSHOTTER,
        limits: Mapping[str, int | None] | None = None,
        layers_at_once: int = LAYERS_AT_ONCE,
        processors: Processors | None = None,
    ) -> None:
        self._content = content
        self._snapshotters = snapshotters
        self._default_snapshotter = default_snapshotter
        self._namespaces = NamespaceStore(db)
        self._store = ImageStore(db, events_log)
        self._host = platforms.host()
        self.collector = Collector(db, events_log, content, snapshotters)
        self.unpacker = Unpacker(
            content, snapshotters, worker, self.collector, limits, layers_at_once, processors
        )
        self._importer = Importer(content, self._store, self.collector, worker)
        # Content never changes under its digest, so what was read of it is kept: an image that
        # many containers are made from is parsed once.
        self._resolved: OrderedDict[tuple[str, str, str], Resolved] = OrderedDict()
        self._summaries: OrderedDict[tuple[str, str], tuple[int, tuple[str, ...]]] = OrderedDict()

    # --- looking

    async def list(
        self,
        namespace: str,
        cursor: str = "",
        limit: int = PAGE_ROWS,
        filters: Sequence[str] = (),
    ) -> tuple[tuple[ImageSummary, ...], str]:
        """One page by name, after the name `cursor`, and the next cursor ("" at the end).

        `filters`: as in daemon/filters.py, over name, target.digest, target.mediatype and labels.
        """
        page, after = self.page(namespace, filters, cursor, limit)
        return tuple([await self._summary(image) for image in page]), after

    def page(
        self, namespace: str, filters: Sequence[str], cursor: str, limit: int
    ) -> tuple[tuple[Image, ...], str]:
        """As `list`, the records alone. Raises InvalidArgument for a filter that is none."""
        wanted = any_of(filters)
        page, after = self._store.list(namespace, cursor, limit)
        return tuple(image for image in page if wanted(partial(_field, image))), after

    def namespaces(self) -> tuple[str, ...]:
        """The names of all namespaces."""
        return tuple(namespace.name for namespace in self._namespaces.list())

    def default_snapshotter(self, namespace: str) -> str:
        """The snapshotter for a request that names none: by the namespace's labels, else by the
        configuration.
        """
        labels = self._namespaces.labels(namespace)
        return labels.get(DEFAULT_SNAPSHOTTER_LABEL) or self._default_snapshotter

    def snapshotter(self, namespace: str, name: str = "") -> Snapshotter:
        """The snapshotter of this name, the namespace's default one for "". Raises NotFound."""
        return self.unpacker.snapshotter(name or self.default_snapshotter(namespace))

    async def has_snapshot(self, namespace: str, key: str, snapshotter: str = "") -> bool:
        """Whether there is a committed snapshot of this name."""
        try:
            return (
                await self.snapshotter(namespace, snapshotter).stat(namespace, key)
            ).kind == COMMITTED
        except NotFound:
            return False

    async def _summary(self, image: Image) -> ImageSummary:
        key = (image.namespace, image.target.digest)
        if key not in self._summaries:
            documents = StoredDocuments(self._content, image.namespace)
            try:
                graph = await Walker(documents, self._host).walk(image.target)
                named = await Walker(documents, None).platforms(image.target)
            except LighterError as err:
                return ImageSummary(image, 0, (), err.message)
            _keep(self._summaries, key, (graph.size_bytes, named))
        return ImageSummary(image, *self._summaries[key])

    def record(self, namespace: str, name: str) -> Image:
        """The image of exactly this name. Raises NotFound."""
        return self._store.get(namespace, name)

    def find(self, namespace: str, name: str, verb: str = "find") -> Image:
        """The image of this name, as given or in its full form. Raises NotFound."""
        return self._store.find(namespace, name, verb)

    async def get(self, namespace: str, name: str) -> ImageDetails:
        """An image with its documents. Raises NotFound, DataLoss, InvalidArgument."""
        image = self.find(namespace, name)
        resolved = await self._resolve(image, self._host)
        manifest = await self._content.read_document(
            namespace, resolved.descriptor.digest, MAX_DOCUMENT_BYTES
        )
        return ImageDetails(
            image,
            load(manifest, f"manifest {resolved.descriptor.digest}"),
            load(resolved.config, f"config {resolved.manifest.config.digest}"),
        )

    async def config(
        self, namespace: str, name: str, platform: Platform | None = None
    ) -> ResolvedImage:
        """What an image is for one platform, this host's by default.

        Raises NotFound: no such image, or none for that platform.
        """
        image = self.find(namespace, name)
        resolved = await self._resolve(image, platform or self._host)
        return ResolvedImage(image.name, resolved.descriptor, resolved.config, chain_id(resolved))

    async def _resolve(self, image: Image, platform: Platform) -> Resolved:
        key = (image.namespace, image.target.digest, str(platform))
        if key not in self._resolved:
            documents = StoredDocuments(self._content, image.namespace)
            resolved = await Walker(documents, platform).resolve(image.target)
            if len(resolved.config) > _KEPT_CONFIG_BYTES:
                return resolved
            _keep(self._resolved, key, resolved)
        return self._resolved[key]

    # --- coming

    async def import_archive(
        self,
        namespace: str,
        archive_fd: int,
        options: ImportOptions | None = None,
        report: Report = unreported,
    ) -> tuple[Image, ...]:
        """Import what `archive_fd` (a file or a pipe, the caller's) holds, and unpack it if asked.

        Errors are those of `Importer.run` and `Unpacker.unpack`; names that are written before an
        unpack fails stay, as with ctr.
        """
        options = options or ImportOptions()
        snapshotter = options.snapshotter or self.default_snapshotter(namespace)
        if options.unpack:
            self.unpacker.snapshotter(snapshotter)  # says at once that there is no such one
        size_bytes = os.fstat(archive_fd).st_size
        images = await self._importer.run(namespace, archive_fd, size_bytes, options, report)
        for image in images:
            if options.unpack:
                report(Progress("unpacking", image.name, image.target.digest))
                await self._unpack_all(image, snapshotter, options, report)
            report(Progress("done", image.name, image.target.digest, size_bytes, size_bytes))
        return images

    async def _unpack_all(
        self, image: Image, snapshotter: str, options: ImportOptions, report: Report
    ) -> None:
        if options.all_platforms:
            documents = StoredDocuments(self._content, image.namespace)
            wanted = [
                resolved
                for resolved in await Walker(documents, None).images(image.target)
                if resolved.platform.os == self._host.os
            ]
        else:
            wanted = [
                await self._resolve(image, platform)
                for platform in options.platforms or (self._host,)
            ]
        for resolved in wanted:
            await self.unpacker.unpack(image.namespace, resolved, snapshotter, image.name, report)

    async def unpack(
        self,
        namespace: str,
        name: str,
        snapshotter: str = "",
        report: Report = unreported,
        *,
        platform: Platform | None = None,
    ) -> str:
        """Make sure of the image's snapshots, for this host unless another platform is named;
        returns the top one's name."""
        image = self.find(namespace, name)
        resolved = await self._resolve(image, platform or self._host)
        return await self.unpacker.unpack(
            namespace,
            resolved,
            snapshotter or self.default_snapshotter(namespace),
            image.name,
            report,
        )

    def tag(
        self,
        namespace: str,
        source: str,
        name: str,
        labels: Mapping[str, str] | None = None,
        *,
        force: bool = False,
    ) -> Image:
        """Give the image `source` a further name. Raises NotFound, AlreadyExists."""
        target = self.find(namespace, source).target
        (image,) = self._store.put_all(namespace, {name: target}, replace=force, labels=labels)
        return image

    def create(
        self,
        namespace: str,
        name: str,
        target: Descriptor,
        labels: Mapping[str, str],
        at_ns: int | None = None,
    ) -> Image:
        """Name a tree of content, there or not; `at_ns` is the record's time, else now.

        Raises AlreadyExists, InvalidArgument.
        """
        return self._store.create(namespace, name, target, labels, at_ns)

    def update(
        self,
        namespace: str,
        name: str,
        target: Descriptor,
        labels: Mapping[str, str],
        at_ns: int | None = None,
    ) -> Image:
        """Let exactly this name have this target and these labels. Raises NotFound."""
        return self._store.update(namespace, name, target, labels, at_ns)

    def label(
        self, namespace: str, name: str, changes: Mapping[str, str], *, replace_all: bool = False
    ) -> Image:
        """Set labels; the value "" removes one, `replace_all` all others. Raises NotFound."""
        stored = self.find(namespace, name).name
        return self._store.label(namespace, stored, changes, replace_all=replace_all)

    # --- going

    async def delete(self, namespace: str, name: str) -> Collected:
        """Remove a name, then what nothing needs any more. Raises NotFound."""
        self._store.delete(namespace, [self.find(namespace, name, "delete").name])
        return await self.collector.collect(namespace)

    async def forget(self, namespace: str, name: str, *, sync: bool) -> None:
        """Remove exactly this name. What it alone needed goes before this returns with `sync`,
        else when the schedule has its turn. Raises NotFound."""
        self._store.delete(namespace, [name])
        if sync:
            await self.collector.collect(namespace)
        else:
            self.collector.on_deleted()

    async def recover(self) -> None:
        """Once after a start: finish or undo what dead managers left half done, on disk too.

        Requests may be served meanwhile: what this manager makes is left alone. A step that fails
        keeps no other from its turn; the first error is raised last.
        """
        names = [namespace.name for namespace in self._namespaces.list()]
        failure = None
        steps: list[Callable[[], Awaitable[object]]] = [
            self._content.recover,
            *(snapshotter.recover for snapshotter in self._snapshotters.values()),
            partial(self.unpacker.recover, names),
            *(partial(self.collector.collect, name) for name in names),
        ]
        for step in steps:
            try:
                await step()
            except (LighterError, OSError) as err:
                failure = failure or err
        if failure:
            raise failure


def _field(image: Image, path: tuple[str, ...]) -> str | None:
    """What a filter asks of an image (containerd's adaptImage): empty texts are not there."""
    match path:
        case ("name",):
            return image.name or None
        case ("target", "digest"):
            return image.target.digest or None
        case ("target", "mediatype"):
            return image.target.media_type or None
        case ("labels", *label) | ("annotations", *label):
            labels = image.labels if path[0] == "labels" else image.target.annotations
            return labels.get(label_path(label))
    return None


def _keep(kept: "OrderedDict[Any, Any]", key: object, value: object) -> None:
    kept[key] = value
    while len(kept) > _KEPT:
        kept.popitem(last=False)
