"""Convert: an image of other media types, or with its layers compressed in another way.

    oci            docker's media types become OCI's
    compression    "none", "gzip" or "zstd" for every layer that is a tar; "" leaves them

The config stays, byte for byte, since it names the layers by the digests of their plain tars; so
the new image shares its snapshots with the old one. Only documents and layers that differ are
written. Of an index the images of the wanted platforms are kept (without a choice: this host's),
an image that stands alone stays alone.
"""

import asyncio
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lighter.daemon.content.blobs import Arrival
from lighter.daemon.content.digest import Digest
from lighter.daemon.content.gc import Collector, Pin
from lighter.daemon.content.ingest import Ingest
from lighter.daemon.content.store import ContentStore
from lighter.daemon.errors import from_os
from lighter.daemon.files import write_whole
from lighter.daemon.images import platforms
from lighter.daemon.images.documents import (
    DOCKER_CONFIG,
    DOCKER_INDEX,
    DOCKER_MANIFEST,
    INDEXES,
    MANIFESTS,
    MAX_DOCUMENT_BYTES,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_MANIFEST,
    Index,
    descriptor,
    diff_ids,
    load,
    parse,
)
from lighter.daemon.images.graph import MAX_DEPTH, StoredDocuments, Walker, choose, labels_for
from lighter.daemon.images.platforms import Platform
from lighter.daemon.images.progress import Progress, Report, unreported
from lighter.daemon.images.store import ImageStore
from lighter.daemon.images.worker import Worker
from lighter.daemon.types import Descriptor, Image
from lighter.daemon.whole import whole
from lighter.proto.errors import DataLoss, InvalidArgument, LighterError, ResourceExhausted
from lighter.proto.faults import hit

COMPRESSIONS = ("", "none", "gzip", "zstd")

_OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
_DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"
_SUFFIXES = {"none": "", "gzip": "gzip", "zstd": "zstd"}
_HEAD_BYTES = 4
_SKIPPABLE = [bytes([first]) for first in range(0x50, 0x60)]  # a zstd frame, RFC 8878
_TO_OCI = {
    DOCKER_INDEX: OCI_INDEX,
    DOCKER_MANIFEST: OCI_MANIFEST,
    DOCKER_CONFIG: OCI_CONFIG,
}


@dataclass(frozen=True)
class ConvertOptions:
    """The meaning of `oci` and `compression` is at the module's head."""

    oci: bool = False
    compression: str = ""
    platforms: tuple[Platform, ...] = ()
    all_platforms: bool = False


class Converter:
    """Makes images of images, in one content store. `limits` go to the worker: max_bytes."""

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
        source: str,
        name: str,
        options: ConvertOptions,
        report: Report = unreported,
    ) -> Image:
        """Make the image `name` of `source`; one of that name is replaced.

        Raises NotFound for an image or content that is missing, InvalidArgument, DataLoss for
        content that is not what its digest says. After an error nothing has changed.
        """
        if options.compression not in COMPRESSIONS:
            raise InvalidArgument(
                f"convert image {source}: {options.compression!r} is no compression"
            )
        if not options.oci and not options.compression:
            raise InvalidArgument(f"convert image {source}: nothing to convert is asked for")
        image = self._images.find(namespace, source, "convert")
        with self._collector.pin() as pin:
            async with self._content.new_ingest() as ingest:
                hit("convert.ingest-open")
                pin.content(namespace, image.target.digest)
                work = _Conversion(
                    self._content,
                    self._worker,
                    namespace,
                    options,
                    ingest,
                    pin,
                    self._limits,
                    report,
                )
                await work.measure(image.target)
                target = await work.convert(image.target, 1)
                hit("convert.made")
                await self._content.adopt_all(namespace, work.arrivals.values())
                for digest, labels in work.labels.items():
                    self._content.label(namespace, digest, labels)
                hit("convert.adopted")
                (made,) = self._images.put_all(namespace, {name: target})
                hit("convert.named")
        report(Progress("done", made.name, target.digest))
        return made


@dataclass
class _Conversion:
    """One conversion under way: `arrivals` is what is new, `labels` what old content gets."""

    content: ContentStore
    worker: Worker
    namespace: str
    options: ConvertOptions
    ingest: Ingest
    pin: Pin
    limits: Mapping[str, int | None]
    report: Report
    arrivals: dict[str, Arrival] = field(default_factory=dict)
    labels: dict[str, dict[str, str]] = field(default_factory=dict)
    _layers: dict[str, tuple[str, int]] = field(default_factory=dict)
    _total_bytes: int = 0
    _done_bytes: int = 0

    async def measure(self, target: Descriptor) -> None:
        """Find that everything is here, and keep it. Raises NotFound."""
        documents = StoredDocuments(self.content, self.namespace)
        for wanted in self._wanted():
            if wanted is not None:
                await Walker(documents, wanted).resolve(target)
            graph = await Walker(documents, wanted).walk(target)
            for digest in graph.found:
                self.pin.content(self.namespace, digest)
            self._total_bytes += graph.size_bytes

    def _wanted(self) -> tuple[Platform | None, ...]:
        return platforms.wanted(self.options.platforms, self.options.all_platforms)

    async def convert(self, old: Descriptor, depth: int) -> Descriptor:
        """The descriptor of what `old` becomes."""
        if depth > MAX_DEPTH:
            raise ResourceExhausted(f"convert image: indexes lie over {MAX_DEPTH} deep")
        if old.media_type not in INDEXES | MANIFESTS:
            return old
        data = await self.content.read_document(self.namespace, old.digest, MAX_DOCUMENT_BYTES)
        what = f"document {old.digest}"
        parsed = parse(data, old.media_type, what)
        raw = load(data, what)
        if isinstance(parsed, Index):
            kept = self._kept(parsed)
            children = [await self.convert(child, depth + 1) for child in kept.values()]
            entries = [
                _described(raw["manifests"][number], child)
                for number, child in zip(kept, children, strict=True)
            ]
            labels = labels_for({f"m.{number}": child for number, child in enumerate(children)})
            return await self._document(old, {**raw, "manifests": entries}, labels)
        config = descriptor(raw["config"], what)
        layers = await self._convert_layers(config, parsed.layers)
        named = {"config": config, **{f"l.{n}": layer for n, layer in enumerate(layers)}}
        changed = {
            **raw,
            "config": _described(raw["config"], self._retyped(config)),
            "layers": [
                _described(entry, layer)
                for entry, layer in zip(raw["layers"] or (), layers, strict=True)
            ],
        }
        return await self._document(old, changed, labels_for(named))

    def _kept(self, index: Index) -> dict[int, Descriptor]:
        """The entries of an index that are wanted, by their place."""
        chosen = [entry for wanted in self._wanted() for entry in choose(index, wanted)]
        return {number: entry for number, entry in enumerate(index.manifests) if entry in chosen}

    def _retyped(self, old: Descriptor) -> Descriptor:
        media_type = _TO_OCI.get(old.media_type, old.media_type) if self.options.oci else ""
        return _with_type(old, media_type or old.media_type)

    async def _convert_layers(
        self, config: Descriptor, layers: Iterable[Descriptor]
    ) -> list[Descriptor]:
        what = f"config {config.digest}"
        data = await self.content.read_document(self.namespace, config.digest, MAX_DOCUMENT_BYTES)
        listed = tuple(layers)
        # An artifact has a config of its own kind, and layers that are no file systems.
        is_image = config.media_type in (OCI_CONFIG, DOCKER_CONFIG)
        diffs = diff_ids(load(data, what), what) if is_image else ()
        if is_image and len(diffs) != len(listed):
            raise InvalidArgument(
                f"parse {what}: it has {len(diffs)} diff ids for {len(listed)} layers"
            )
        made = []
        for number, layer in enumerate(listed):
            made.append(await self._layer(layer, diffs[number]) if is_image else layer)
        return made

    async def _layer(self, old: Descriptor, diff_id: str) -> Descriptor:
        base, how = _taken_apart(old.media_type)
        if not base:
            return old  # no tar that we know
        if old.media_type != _OCI_LAYER:
            how = await self._told(old)
        if self.options.oci:
            base = base.replace(_DOCKER_LAYER, _OCI_LAYER)
        wanted = self.options.compression or how
        media_type = _put_together(base, wanted)
        if wanted == how:
            return _with_type(old, media_type)
        if old.digest not in self._layers:
            self._layers[old.digest] = await self._recompress(old, diff_id, wanted)
        digest, size_bytes = self._layers[old.digest]
        return Descriptor(media_type, digest, size_bytes, old.annotations, old.platform)

    async def _told(self, layer: Descriptor) -> str:
        """The compression by the first bytes, which count, for all types but OCI's plain tar: that
        one would be taken for a tar although it is none."""
        source = self.content.open(self.namespace, layer.digest)
        try:
            return _compression(await asyncio.to_thread(os.pread, source, _HEAD_BYTES, 0))
        except OSError as err:
            raise from_os(f"convert layer {layer.digest}", err) from err
        finally:
            os.close(source)

    async def _recompress(self, old: Descriptor, diff_id: str, wanted: str) -> tuple[str, int]:
        path = self.ingest.file(f"layer-{Digest.parse(old.digest).hex}")
        job = {
            "job": "recompress",
            "to": wanted,
            # OCI's plain tar is taken as it is; docker's may be compressed all the same.
            "compressed": old.media_type != _OCI_LAYER,
            "limits": dict(self.limits),
        }
        source = self.content.open(self.namespace, old.digest)
        try:
            target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                done = await self.worker.run(job, [source, target], self._progress(old))
            finally:
                os.close(target)
        except OSError as err:
            raise from_os(f"convert layer {old.digest}", err) from err
        except LighterError as err:
            raise type(err)(f"convert layer {old.digest}: {err.message}") from err
        finally:
            os.close(source)
        for name, found, expected in (
            ("digest", done["digest"], old.digest),
            ("diff id", done["diff_id"], diff_id),
        ):
            if found != expected:
                raise DataLoss(f"convert layer {old.digest}: its {name} is {found}, not {expected}")
        self._done_bytes += old.size
        hit("convert.layer")
        digest = str(Digest.parse(done["new_digest"]))
        self.pin.content(self.namespace, digest)
        size_bytes = int(done["size_bytes"])
        self.arrivals[digest] = Arrival(
            path, digest, size_bytes, {"containerd.io/uncompressed": diff_id}
        )
        return digest, size_bytes

    def _progress(self, layer: Descriptor) -> Any:
        def tell(item: Mapping[str, Any]) -> None:
            done = self._done_bytes + min(int(item.get("done_bytes", 0)), layer.size)
            self.report(Progress("converting", "", layer.digest, done, self._total_bytes))

        return tell

    async def _document(
        self, old: Descriptor, document: dict[str, Any], labels: dict[str, str]
    ) -> Descriptor:
        media_type = self._retyped(old).media_type
        if "mediaType" in document or media_type != old.media_type:
            document = {**document, "mediaType": media_type}
        data = json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()
        digest = Digest.of(data)
        self.pin.content(self.namespace, digest)
        if self.content.has(self.namespace, digest):
            self.labels[digest] = labels
        else:
            path = self.ingest.file(f"document-{digest.hex}")
            try:
                await whole(asyncio.to_thread(write_whole, path, data, 0o600, True))
            except OSError as err:
                raise from_os(f"convert document {old.digest}", err) from err
            self.arrivals[digest] = Arrival(path, digest, len(data), labels)
        return Descriptor(media_type, digest, len(data), old.annotations, old.platform)


def _described(entry: Mapping[str, Any], new: Descriptor) -> dict[str, Any]:
    """An entry of a document, now of `new`; what else stands there stays."""
    return {**entry, "mediaType": new.media_type, "digest": str(new.digest), "size": new.size}


def _with_type(old: Descriptor, media_type: str) -> Descriptor:
    return Descriptor(media_type, old.digest, old.size, old.annotations, old.platform)


def _compression(head: bytes) -> str:
    """What a worker takes it for (shim/worker/inflate.py)."""
    if head.startswith(b"\x1f\x8b\x08"):
        return "gzip"
    may_be_skipped = head[:1] in _SKIPPABLE and head[1:] == b"\x2a\x4d\x18"
    return "zstd" if may_be_skipped or head == b"\x28\xb5\x2f\xfd" else "none"


def _taken_apart(media_type: str) -> tuple[str, str]:
    """(base, compression) of a layer's media type; ("", "") for what is no tar of ours."""
    for base, joint in ((_OCI_LAYER, "+"), (_DOCKER_LAYER, ".")):
        rest = media_type.removeprefix(base)
        if rest == media_type:
            continue
        for how, suffix in _SUFFIXES.items():
            if rest == (joint + suffix if suffix else ""):
                return base, how
    return "", ""


def _put_together(base: str, how: str) -> str:
    suffix = _SUFFIXES[how]
    return base + ("+" if base == _OCI_LAYER else ".") + suffix if suffix else base
