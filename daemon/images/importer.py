"""Import: an image archive becomes content and names, as `ctr images import` does it.

    archive ─worker→ ingest directory ─walk→ what the images need ─adopt→ content ─→ names

Read are OCI image layouts (index.json) and what `docker save` writes (manifest.json; where both
are, the layout). Names are what the caller's request makes of the annotations (SEC-33):

    io.containerd.image.name              is a whole name
    org.opencontainers.image.ref.name     is one when it has '/', ':' or '@', else a tag of the
                                          base name, which is import-<date> unless it is given
    a base name that is given             also keeps out every name that does not begin with it
    digests                               adds <base name>@<digest> for each image;
                                          skip_digest_for_named: for those without a name
    index_name                            names the whole index
    names off                             leaves it at that: the archive's own names are not taken

A name that is here and stands for something else moves, as with ctr and `docker load`; it is told.
"""

import json
import os
import time
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial

from lighter.daemon.content.blobs import Arrival
from lighter.daemon.content.digest import Digest
from lighter.daemon.content.gc import Collector
from lighter.daemon.content.store import ContentStore
from lighter.daemon.images import dockersave, platforms
from lighter.daemon.images.arrived import Arrived
from lighter.daemon.images.dockersave import NAME_ANNOTATION, REF_ANNOTATION
from lighter.daemon.images.documents import (
    INDEXES,
    MANIFESTS,
    MAX_DOCUMENT_BYTES,
    OCI_INDEX,
    Index,
    load,
    parse,
)
from lighter.daemon.images.graph import Graph, StoredDocuments, Walker
from lighter.daemon.images.platforms import Platform
from lighter.daemon.images.progress import Progress, Report
from lighter.daemon.images.store import ImageStore
from lighter.daemon.images.worker import Worker, naming_place
from lighter.daemon.types import Descriptor, Image
from lighter.proto.errors import InvalidArgument, NotFound
from lighter.proto.faults import hit


@dataclass(frozen=True)
class ImportOptions:
    """What the caller of an import chooses; the meaning of names is at the module's head.

    Without `platforms` it is this host's. `compress_blobs`: layers of docker archives become gzip.
    `any_name`: a base name that is given keeps no other name out.
    """

    names: bool = True
    base_name: str = ""
    any_name: bool = False
    index_name: str = ""
    digests: bool = False
    skip_digest_for_named: bool = False
    platforms: tuple[Platform, ...] = ()
    all_platforms: bool = False
    unpack: bool = True
    compress_blobs: bool = False
    snapshotter: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)


class Importer:
    """Takes archives into one content store. `limits` go to the worker: max_bytes, max_entries."""

    def __init__(
        self,
        content: ContentStore,
        images: ImageStore,
        collector: Collector,
        worker: Worker,
        limits: Mapping[str, int | None] | None = None,
    ) -> None:
        self._content = content
        self._images = images
        self._collector = collector
        self._worker = worker
        self._limits = dict(limits or {})

    async def run(
        self,
        namespace: str,
        archive_fd: int,
        archive_bytes: int,
        options: ImportOptions,
        report: Report,
    ) -> tuple[Image, ...]:
        """Import all images of the archive: their content first, then all names at once.

        `archive_bytes` is the archive's size, 0 when it is not known. Raises InvalidArgument for
        an archive that is none or names no image, NotFound with the digest that is missing,
        DataLoss, ResourceExhausted. After an error no name has changed.
        """

        def reading(item: dict[str, object]) -> None:
            done = item.get("done_bytes")
            if isinstance(done, int):
                report(Progress("reading", done_bytes=done, total_bytes=archive_bytes))

        with self._collector.pin() as pin:
            async with self._content.new_ingest() as ingest:
                hit("import.ingest-open")
                job = {"job": "import", "limits": self._limits}
                work = self._worker.run(job, [archive_fd, ingest.fd], reading)
                kinds = await naming_place(ingest.path, work)
                hit("import.blobs-written")
                arrived = Arrived(ingest, StoredDocuments(self._content, namespace))
                await arrived.load()
                is_layout = bool(kinds.get("index"))
                targets = await self._targets(arrived, is_layout, options)
                names = names_of(targets, options) if options.names else {}
                if options.index_name:
                    names[options.index_name] = await _add_index(arrived, targets)
                if not names:
                    raise InvalidArgument(
                        "import archive: it holds no image of a name that was asked for; "
                        "digests or index_name would name what it holds"
                    )
                graph = await self._walk(arrived, names.values(), options)
                for digest in graph.found:
                    pin.content(namespace, digest)
                self._check_there(namespace, arrived, graph)
                report(Progress("importing", total_bytes=graph.size_bytes))
                await self._adopt(namespace, arrived, graph)
                hit("import.adopted")
                moved = self._images.targets(namespace, names)
                images = self._images.put_all(namespace, names, labels=options.labels)
                hit("import.named")
                for name, before in moved.items():
                    if before.digest != names[name].digest:
                        report(Progress("moved", name, before.digest))
                report(Progress("importing", "", "", graph.size_bytes, graph.size_bytes))
                return images

    async def _targets(
        self, arrived: Arrived, is_layout: bool, options: ImportOptions
    ) -> tuple[Descriptor, ...]:
        """The images that the archive lists."""
        if not is_layout:
            data = await arrived.document("manifest.json", MAX_DOCUMENT_BYTES)
            compress = partial(self._compress, arrived, {}) if options.compress_blobs else None
            return await dockersave.targets(arrived, data, compress)
        data = await arrived.document("index.json", MAX_DOCUMENT_BYTES)
        said = load(data, "index.json").get("mediaType", OCI_INDEX)
        media_type = said if isinstance(said, str) else OCI_INDEX
        index = parse(data, media_type, "index.json")
        if not isinstance(index, Index):
            raise InvalidArgument("parse index.json: it is no index")
        return tuple(entry for entry in index.manifests if entry.media_type in INDEXES | MANIFESTS)

    async def _compress(
        self, arrived: Arrived, done_before: dict[Digest, Digest], digest: Digest
    ) -> Digest:
        """Put a gzip of a layer beside it, once, however many images have it."""
        if digest in done_before:
            return done_before[digest]
        found = arrived.file(digest)
        if found is None:
            raise NotFound(f"import archive: content {digest} is missing")
        path = arrived.new_file(f"gzip-{digest.hex}")
        job = {"job": "recompress", "to": "gzip", "limits": self._limits}
        with ExitStack() as undo:
            source = os.open(found[0], os.O_RDONLY | os.O_CLOEXEC)
            undo.callback(os.close, source)
            target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            undo.callback(os.close, target)
            done = await self._worker.run(job, [source, target])
        made = Digest.parse(done["new_digest"])
        arrived.put(path, made, int(done["size_bytes"]))
        done_before[digest] = made
        return made

    async def _walk(
        self, arrived: Arrived, targets: Iterable[Descriptor], options: ImportOptions
    ) -> Graph:
        distinct = {target.digest: target for target in targets}.values()
        wanted: tuple[Platform | None, ...] = options.platforms or (platforms.host(),)
        whole = Graph()
        for platform in (None,) if options.all_platforms else wanted:
            walker = Walker(arrived, platform)
            for target in distinct:
                whole.add(await walker.walk(target))
        return whole

    def _check_there(self, namespace: str, arrived: Arrived, graph: Graph) -> None:
        """Raises NotFound for what was in the store when it was looked for, and not yet pinned."""
        for digest in graph.found:
            if arrived.file(digest) is None and not self._content.has(namespace, digest):
                raise NotFound(f"import archive: content {digest} is missing")

    async def _adopt(self, namespace: str, arrived: Arrived, graph: Graph) -> None:
        arrivals = []
        for digest in graph.found:
            labels = graph.labels.get(digest, {})
            file = arrived.file(digest)
            if file is not None:
                arrivals.append(Arrival(file[0], digest, file[1], labels))
            elif labels:
                self._content.label(namespace, digest, labels)
        await self._content.adopt_all(namespace, arrivals)


def names_of(targets: Iterable[Descriptor], options: ImportOptions) -> dict[str, Descriptor]:
    """Name -> image, by the rules at the module's head."""
    base = options.base_name or time.strftime("import-%Y-%m-%d", time.gmtime())
    names: dict[str, Descriptor] = {}
    for target in targets:
        name = target.annotations.get(NAME_ANNOTATION, "")
        if not name and (ref := target.annotations.get(REF_ANNOTATION, "")):
            name = ref if set(ref) & set("/:@") else f"{base}:{ref}"
        keeps_out = options.base_name and not options.any_name
        is_named = bool(name) and (not keeps_out or _is_within(name, options.base_name))
        if is_named:
            names[name] = target
        if options.digests and not (is_named and options.skip_digest_for_named):
            names[f"{base}@{target.digest}"] = target
    return names


def _is_within(name: str, base: str) -> bool:
    """Whether `name` is `base`, or goes on after it with a path, a tag or a digest."""
    return name == base or (name.startswith(base) and name[len(base)] in "/:@")


async def _add_index(arrived: Arrived, targets: Iterable[Descriptor]) -> Descriptor:
    """An index of ours over all images of the archive."""
    entries = []
    for target in targets:
        entry = {"mediaType": target.media_type, "digest": target.digest, "size": target.size}
        if target.annotations:
            entry["annotations"] = dict(target.annotations)
        if target.platform:
            entry["platform"] = dict(target.platform)
        entries.append(entry)
    document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}
    data = json.dumps(document, separators=(",", ":")).encode()
    return Descriptor(OCI_INDEX, await arrived.add(data), len(data))
