"""An image as a graph: from the descriptor it is named by, through indexes, to configs and layers.

    index ─┬─ manifest ─┬─ config
           │            └─ layer …
           └─ index …

Whoever made the graph may have made it huge, so each walk has a budget (SEC-21), and sees a digest
once. Which edges are kept in content labels, so that garbage collection need not read documents,
is containerd's convention (`containerd.io/gc.ref.content.*`). An index has a label for each of its
entries, here or not, by its place: so what one walk chooses of it never takes another's label.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from lighter.daemon.content.digest import Digest
from lighter.daemon.content.store import ContentStore
from lighter.daemon.images import platforms
from lighter.daemon.images.documents import (
    INDEXES,
    MANIFESTS,
    MAX_DOCUMENT_BYTES,
    Index,
    Manifest,
    load,
    parse,
)
from lighter.daemon.images.platforms import Platform
from lighter.daemon.types import Descriptor
from lighter.proto.errors import DataLoss, InvalidArgument, NotFound, ResourceExhausted

MAX_DEPTH = 8
MAX_NODES = 4096
MAX_TOTAL_BYTES = 64 << 20

REF_LABEL = "containerd.io/gc.ref.content."


class Documents(Protocol):
    """Where a walk finds content."""

    def size(self, digest: str) -> int | None:
        """How many bytes there are under the digest; None when there are none."""

    async def read(self, digest: str, max_bytes: int) -> bytes:
        """All of them, verified."""


class StoredDocuments:
    """What one namespace sees in the content store."""

    def __init__(self, content: ContentStore, namespace: str) -> None:
        self._content = content
        self._namespace = namespace

    def size(self, digest: str) -> int | None:
        try:
            return self._content.info(self._namespace, digest).size
        except NotFound:
            return None

    async def read(self, digest: str, max_bytes: int) -> bytes:
        return await self._content.read_document(self._namespace, digest, max_bytes)


@dataclass(frozen=True)
class Resolved:
    """The manifest of one platform and what it says. `assumed`: nothing says which platform."""

    descriptor: Descriptor
    manifest: Manifest
    config: bytes
    platform: Platform
    assumed: bool = False


@dataclass
class Graph:
    """What a walk has found: all content by digest, and the labels that keep children.

    `documents`: its indexes and manifests, children before what names them.
    """

    found: dict[Digest, Descriptor] = field(default_factory=dict)
    labels: dict[Digest, dict[str, str]] = field(default_factory=dict)
    manifests: list[Descriptor] = field(default_factory=list)
    documents: list[Descriptor] = field(default_factory=list)

    def add(self, other: "Graph") -> None:
        """Take what another walk has found; of one index both may have taken different images."""
        known = {document.digest for document in self.documents}
        self.documents += [one for one in other.documents if one.digest not in known]
        self.manifests += [one for one in other.manifests if one.digest not in known]
        self.found.update(other.found)
        self.labels.update(other.labels)

    @property
    def size_bytes(self) -> int:
        return sum(descriptor.size for descriptor in self.found.values())


class Walker:
    """Reads documents from `source` within one budget. `wanted` None means every platform.

    A walk does not look for the layers that `leave_out` is true for.
    """

    def __init__(
        self,
        source: Documents,
        wanted: Platform | None,
        leave_out: Callable[[Descriptor], bool] | None = None,
    ) -> None:
        self._source = source
        self._wanted = wanted
        self._leave_out = leave_out
        self._nodes = 0
        self._bytes = 0
        self._collected: set[str] = set()
        self._others: set[str] = set()  # platforms that indexes name and that are of no use

    async def walk(self, root: Descriptor) -> Graph:
        """All that `root` needs on the wanted platform.

        Raises NotFound with the digest that is missing, InvalidArgument for a document that is
        none, ResourceExhausted above the budget.
        """
        graph = Graph()
        await self._visit(root, graph, 1)
        return graph

    async def _visit(self, descriptor: Descriptor, graph: Graph, depth: int) -> None:
        if not self._enter(descriptor, graph):
            return
        if descriptor.media_type in INDEXES:
            index = await self._read_index(descriptor, depth)
            children = {f"m.{n}": child for n, child in enumerate(index.manifests)}
            graph.labels[Digest.parse(descriptor.digest)] = labels_for(children)
            for child in choose(index, self._wanted):
                await self._visit(child, graph, depth + 1)
            graph.documents.append(descriptor)
        elif descriptor.media_type in MANIFESTS:
            manifest = await self._read_manifest(descriptor)
            graph.manifests.append(descriptor)
            graph.documents.append(descriptor)
            children = {"config": manifest.config}
            children |= {f"l.{n}": layer for n, layer in enumerate(manifest.layers)}
            graph.labels[Digest.parse(descriptor.digest)] = labels_for(children)
            for child in children.values():
                if self._leave_out is None or not self._leave_out(child):
                    self._enter(child, graph)

    def _enter(self, descriptor: Descriptor, graph: Graph) -> bool:
        """Count a node; False when it has been seen."""
        self._count()
        digest = Digest.parse(descriptor.digest)
        before = graph.found.get(digest)
        if before is not None:
            kinds = {before.media_type, descriptor.media_type}
            if len(kinds) > 1 and kinds & (INDEXES | MANIFESTS):
                raise InvalidArgument(
                    f"read image: {digest} is ambiguous: it stands as {' and '.join(sorted(kinds))}"
                )
            return False
        size = self._source.size(digest)
        if size is None:
            raise NotFound(f"read image: content {digest} ({descriptor.media_type}) is missing")
        if size != descriptor.size:
            raise DataLoss(
                f"read image: content {digest} has {size} bytes, its descriptor says "
                f"{descriptor.size}"
            )
        graph.found[digest] = descriptor
        return True

    def _count(self) -> None:
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise ResourceExhausted(f"read image: over {MAX_NODES} pieces of content")

    async def resolve(self, root: Descriptor) -> Resolved:
        """The best manifest below `root` for the wanted platform. Raises NotFound and as `walk`.

        What says no platform is taken only where nothing else says one.
        """
        assert self._wanted is not None, "resolve needs a platform"
        seen = await self.images(root)
        ranked = [(platforms.rank(item.platform, self._wanted), item) for item in seen]
        named = self._others | {str(item.platform) for item in seen if not item.assumed}
        usable = [
            (rank, item)
            for rank, item in ranked
            if rank is not None and not (item.assumed and named)
        ]
        if not usable:
            others = ", ".join(sorted(named))
            raise NotFound(
                f"read image {root.digest}: it has no manifest for {self._wanted}"
                + (f", only for {others}" if others else "")
            )
        return min(usable, key=lambda pair: pair[0])[1]

    async def images(self, root: Descriptor) -> list[Resolved]:
        """The images below `root`: for the wanted platform the best ones, else all there are."""
        seen: list[Resolved] = []
        await self._collect(root, None, seen, 1)
        return seen

    async def platforms(self, root: Descriptor) -> tuple[str, ...]:
        """What platforms `root` says that it has images for, here or not; sorted."""
        if root.media_type not in INDEXES:
            return tuple(str(item.platform) for item in await self.images(root))
        said: set[str] = set()
        for entry in (await self._read_index(root, 1)).manifests:
            if entry.platform:
                said.add(str(platforms.of(entry.platform)))
            elif entry.media_type in INDEXES | MANIFESTS and self._source.size(entry.digest):
                said.update(str(item.platform) for item in await self.images(entry))
        return tuple(sorted(said - {"unknown/unknown"}))

    async def _collect(
        self, descriptor: Descriptor, stated: Platform | None, seen: list[Resolved], depth: int
    ) -> None:
        self._count()
        if descriptor.digest in self._collected:
            return
        self._collected.add(descriptor.digest)
        if descriptor.media_type in INDEXES:
            index = await self._read_index(descriptor, depth)
            self._others |= unusable(index, self._wanted)
            for child in choose(index, self._wanted):
                if child.media_type not in INDEXES | MANIFESTS:
                    continue  # an index may list what is no image
                of = platforms.of(child.platform) if child.platform else stated
                await self._collect(child, of, seen, depth + 1)
            return
        manifest = await self._read_manifest(descriptor)
        config = await self._document(manifest.config)
        platform, assumed = stated, False
        if platform is None:
            said = platforms.of(load(config, f"config {manifest.config.digest}"))
            # What does not say what it is for may be an artifact.
            assumed = not (said.os and said.architecture)
            platform = self._wanted or said if assumed else said
        seen.append(Resolved(descriptor, manifest, config, platform, assumed))

    async def _read_index(self, descriptor: Descriptor, depth: int) -> Index:
        if depth > MAX_DEPTH:
            raise ResourceExhausted(f"read image: indexes lie over {MAX_DEPTH} deep")
        document = await self._parsed(descriptor)
        assert isinstance(document, Index)
        return document

    async def _read_manifest(self, descriptor: Descriptor) -> Manifest:
        document = await self._parsed(descriptor)
        assert isinstance(document, Manifest)
        return document

    async def _parsed(self, descriptor: Descriptor) -> Manifest | Index:
        data = await self._document(descriptor)
        return parse(data, descriptor.media_type, f"document {descriptor.digest}")

    async def _document(self, descriptor: Descriptor) -> bytes:
        self._bytes += descriptor.size
        if descriptor.size > MAX_DOCUMENT_BYTES or self._bytes > MAX_TOTAL_BYTES:
            raise ResourceExhausted(
                f"read image: document {descriptor.digest} of {descriptor.size} bytes; at most "
                f"{MAX_DOCUMENT_BYTES} each and {MAX_TOTAL_BYTES} in all are read"
            )
        if self._source.size(descriptor.digest) is None:
            raise NotFound(
                f"read image: content {descriptor.digest} ({descriptor.media_type}) is missing"
            )
        return await self._source.read(descriptor.digest, MAX_DOCUMENT_BYTES)


def choose(index: Index, wanted: Platform | None) -> tuple[Descriptor, ...]:
    """The entries of an index that serve a platform best, with those that do not say theirs."""
    if wanted is None:
        return index.manifests
    ranks = [
        platforms.rank(platforms.of(entry.platform), wanted) if entry.platform else None
        for entry in index.manifests
    ]
    best = min((rank for rank in ranks if rank is not None), default=None)
    return tuple(
        entry
        for entry, rank in zip(index.manifests, ranks, strict=True)
        if entry.platform is None or (rank is not None and rank == best)
    )


def unusable(index: Index, wanted: Platform | None) -> set[str]:
    """The platforms that an index names and whose images do not run on the wanted one."""
    if wanted is None:
        return set()
    named = (platforms.of(entry.platform) for entry in index.manifests if entry.platform)
    found = {str(one) for one in named if platforms.rank(one, wanted) is None}
    return found - {"", "unknown/unknown"}  # the latter is an attestation's


def labels_for(children: Mapping[str, Descriptor]) -> dict[str, str]:
    """The labels that keep a document's children, by their place in it: config, l.0, m.0 …"""
    return {REF_LABEL + name: child.digest for name, child in children.items()}
