"""Pull: a name in a registry becomes content, snapshots and a name here.

    resolve ─► documents ─► configs ─► layers, some at a time ─┬─► content
                                                               └─► snapshots, as the bytes come
    and last, when all is whole, the name

Until then a lease keeps what has arrived, over a restart of the manager and for a day after a
failure, so that no finished blob is downloaded twice.
"""

import asyncio
import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from lighter.daemon.content.digest import Digest
from lighter.daemon.content.gc import Collector
from lighter.daemon.content.store import ContentStore
from lighter.daemon.images import platforms
from lighter.daemon.images.chain import chain_ids, layers_of
from lighter.daemon.images.documents import (
    INDEXES,
    MANIFESTS,
    Index,
    Manifest,
    parse,
)
from lighter.daemon.images.downloads import Downloads
from lighter.daemon.images.graph import Graph, Resolved, StoredDocuments, Walker
from lighter.daemon.images.platforms import Platform
from lighter.daemon.images.progress import Board, Report
from lighter.daemon.images.reference import Reference
from lighter.daemon.images.store import ImageStore
from lighter.daemon.images.together import all_of
from lighter.daemon.images.unpack import LayerSource, Unpacker
from lighter.daemon.leases import CONTENT, SNAPSHOTS, Leases
from lighter.daemon.registry.access import Access
from lighter.daemon.registry.client import Remote
from lighter.daemon.registry.registries import Registries
from lighter.daemon.types import Descriptor, Image
from lighter.proto.errors import (
    DataLoss,
    InvalidArgument,
    LighterError,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unavailable,
    from_wire,
)
from lighter.proto.faults import hit

AT_ONCE = 3
LEASE_S = 24 * 3600
SOURCE_LABEL = "containerd.io/distribution.source."
# No other bytes of a layer would end otherwise.
_FOR_GOOD = (ResourceExhausted, PermissionDenied, Unavailable)
MAX_SOURCE_BYTES = 2048  # labels have 4096 for key and value


@dataclass(frozen=True)
class PullOptions:
    """Without `platforms` it is this host's; `all_platforms` takes what the index has.

    `all_metadata` takes the manifests and configs of the other platforms too; `metadata_only` those
    alone, of all platforms and no layer. `names`: what it is called here instead of its full name.
    """

    platforms: tuple[Platform, ...] = ()
    all_platforms: bool = False
    unpack: bool = True
    all_metadata: bool = False
    metadata_only: bool = False
    snapshotter: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    at_once: int = AT_ONCE
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pulled:
    """What a pull has brought, and what that took."""

    image: Image
    downloaded_bytes: int
    download_s: float
    unpack_s: float


class RemoteDocuments:
    """A registry's documents for a walk: known by the descriptors that lead to them.

    What the namespace has is not asked for again; what is read is kept until it is stored.
    """

    def __init__(
        self, content: ContentStore, namespace: str, remote: Remote, target: Descriptor
    ) -> None:
        self._content = content
        self._stored = StoredDocuments(content, namespace)
        self._namespace = namespace
        self._remote = remote
        self._known = {target.digest: target}
        self.read_bytes: dict[str, bytes] = {}
        self.configs: dict[str, Descriptor] = {}
        self.layers: dict[str, Descriptor] = {}

    def size(self, digest: str) -> int | None:
        descriptor = self._known.get(digest)
        return None if descriptor is None else descriptor.size

    async def read(self, digest: str, max_bytes: int) -> bytes:
        descriptor = self._known[digest]
        data = self.read_bytes.get(digest)
        if data is None and self._content.has(self._namespace, digest):
            with suppress(DataLoss, NotFound):
                data = await self._stored.read(digest, max_bytes)
        if data is None:
            data = await self._remote.document(descriptor, max_bytes)
        self.read_bytes[digest] = data
        if descriptor.media_type in INDEXES | MANIFESTS:
            self._learn(parse(data, descriptor.media_type, f"document {digest}"))
        return data

    def _learn(self, document: Index | Manifest) -> None:
        if isinstance(document, Index):
            below = document.manifests
        else:
            below = (document.config, *document.layers)
            self.configs.setdefault(document.config.digest, document.config)
            for layer in document.layers:
                self.layers.setdefault(layer.digest, layer)
        for child in below:
            self._known.setdefault(child.digest, child)


class Puller:
    """Pulls images; `downloads` shares what several pulls want."""

    def __init__(
        self,
        *,
        content: ContentStore,
        images: ImageStore,
        collector: Collector,
        unpacker: Unpacker,
        leases: Leases,
        downloads: Downloads,
        registries: Registries,
        default_snapshotter: Callable[[str], str],
    ) -> None:
        self._content = content
        self._images = images
        self._collector = collector
        self._unpacker = unpacker
        self._leases = leases
        self._downloads = downloads
        self._registries = registries
        self._default_snapshotter = default_snapshotter
        self._holding: Counter[tuple[str, str]] = Counter()  # pulls by (namespace, lease)

    async def pull(
        self, namespace: str, name: str, options: PullOptions, access: Access, report: Report
    ) -> Pulled:
        """Make `name` stand for what its registry has, whole and unpacked if asked.

        Raises NotFound, Unauthenticated, PermissionDenied, Unavailable, DataLoss,
        ResourceExhausted and InvalidArgument, naming reference, digest and host. After an error
        the name stands for what it stood for before.
        """
        if options.metadata_only and options.unpack:
            raise InvalidArgument(f"pull {name}: without its layers it cannot be unpacked")
        reference = Reference.parse(name)
        ref = str(reference)
        snapshotter = options.snapshotter or self._default_snapshotter(namespace)
        if options.unpack:
            self._unpacker.snapshotter(snapshotter)
        lease = "pull-" + hashlib.sha256(ref.encode()).hexdigest()[:16]
        with (
            _naming(reference),
            self._one_of(namespace, lease),
            Board(report, ref) as board,
            self._collector.pin() as pin,
        ):
            board.say("resolving")
            async with self._registries.remote(reference, access) as remote:
                target = await remote.resolve()
                board.say("resolved", target.digest)
                hit("pull.resolved")
                work = _Work(namespace, reference, remote, options, board, lease)
                documents = RemoteDocuments(self._content, namespace, remote, target)
                graph = await _wanted_of(documents, target, work)
                for digest in graph.found:
                    pin.content(namespace, digest)
                self._hold(work, ((CONTENT, digest) for digest in graph.found))
                hit("pull.leased")
                await self._bring(work, target, graph, documents, snapshotter)
            names = options.names or (ref,)
            targets = dict.fromkeys(names, target)
            image, *_ = self._images.put_all(namespace, targets, labels=options.labels)
            hit("pull.named")
            self._let_go(namespace, lease)
            board.say("done", target.digest)
        return Pulled(image, work.downloaded_bytes, work.download_s, work.unpack_s)

    @contextmanager
    def _one_of(self, namespace: str, lease: str) -> Iterator[None]:
        """Count those that pull one name, and have one lease, at the same time."""
        key = namespace, lease
        self._holding[key] += 1
        try:
            yield
        finally:
            self._holding[key] -= 1
            if not self._holding[key]:
                del self._holding[key]

    def _let_go(self, namespace: str, lease: str) -> None:
        """The lease ends, unless others that pull the same name have put into it what they bring.

        The last of them ends it; when that one fails it stays for its day.
        """
        if self._holding[namespace, lease] > 1:
            return
        with suppress(NotFound):
            self._leases.delete(namespace, lease)

    def _hold(self, work: "_Work", resources: Iterable[tuple[str, str]]) -> None:
        until = time.time_ns() + LEASE_S * 10**9
        self._leases.hold(work.namespace, work.lease, until, resources)

    async def _bring(
        self,
        work: "_Work",
        target: Descriptor,
        graph: Graph,
        documents: RemoteDocuments,
        snapshotter: str,
    ) -> None:
        """All content that the graph names, and the snapshots; whatever fails ends the rest."""
        for digest, data in documents.read_bytes.items():
            descriptor = graph.found[Digest.parse(digest)]
            kind = "index" if descriptor.media_type in INDEXES else "manifest"
            labels = {
                **graph.labels.get(Digest.parse(digest), {}),
                **work.source_label(self._content, digest),
            }
            known = self._content.has(work.namespace, digest)
            await self._content.add(work.namespace, data, labels)
            size = descriptor.size
            work.board.piece(kind, digest, "exists" if known else "done", size, size)
        hit("pull.documents")
        blobs = {d: ("config", c) for d, c in documents.configs.items() if d in graph.found}
        blobs |= {d: ("layer", c) for d, c in documents.layers.items() if d in graph.found}
        others = graph.found.keys() - blobs.keys() - documents.read_bytes.keys()
        blobs |= {d: ("content", graph.found[d]) for d in others}
        slots = asyncio.Semaphore(max(1, work.options.at_once))
        fetching = {
            digest: asyncio.ensure_future(self._fetch(work, kind, descriptor, slots))
            for digest, (kind, descriptor) in blobs.items()
        }
        begun = time.monotonic()
        unpacking = []
        if work.options.unpack:
            configs = [fetching[digest] for digest in documents.configs if digest in fetching]
            unpacking = [
                asyncio.ensure_future(
                    self._unpack(work, target, documents, configs, fetching, snapshotter)
                )
            ]

        def downloaded(_: object) -> None:
            work.download_s = time.monotonic() - begun

        for task in fetching.values():
            task.add_done_callback(downloaded)
        await all_of([*fetching.values(), *unpacking])

    async def _fetch(
        self, work: "_Work", kind: str, descriptor: Descriptor, slots: asyncio.Semaphore
    ) -> None:
        digest, size = descriptor.digest, descriptor.size
        work.board.piece(kind, digest, "waiting", 0, size)
        async with slots:

            def on_progress(have_bytes: int) -> None:
                work.board.piece(kind, digest, "downloading", have_bytes, size)

            labels = work.source_label(self._content, digest)
            fetched = await self._downloads.fetch(
                work.namespace, descriptor, work.remote, labels, on_progress
            )
        work.downloaded_bytes += size if fetched else 0
        work.board.piece(kind, digest, "done" if fetched else "exists", size, size)

    async def _unpack(
        self,
        work: "_Work",
        target: Descriptor,
        documents: RemoteDocuments,
        configs: Iterable["asyncio.Future[None]"],
        fetching: Mapping[str, "asyncio.Future[None]"],
        snapshotter: str,
    ) -> None:
        for config in configs:
            await asyncio.shield(config)
        begun = time.monotonic()
        stored = StoredDocuments(self._content, work.namespace)
        if work.options.all_platforms:
            images = await Walker(stored, None).images(target)
            images = [image for image in images if image.platform.os == "linux"]
        else:
            images = [await Walker(stored, platform).resolve(target) for platform in work.wanted]
        sources: dict[str, LayerSource] = {
            digest: self._downloads.source(work.namespace, documents.layers[digest], task)
            for digest, task in fetching.items()
            if digest in documents.layers
        }
        for image in images:
            self._hold(work, ((SNAPSHOTS + snapshotter, name) for name in chain_of(image)))
            arriving = any(not task.done() for task in fetching.values())
            try:
                await self._unpack_one(work, image, snapshotter, sources)
            except LighterError as err:
                if not arriving or isinstance(err, _FOR_GOOD):
                    raise
                # The worker may have been given bytes that prove to be wrong: of an earlier,
                # broken download, or of a host that is not asked again.
                await asyncio.gather(*(asyncio.shield(task) for task in fetching.values()))
                await self._unpack_one(work, image, snapshotter, {})
        work.unpack_s = time.monotonic() - begun

    async def _unpack_one(
        self,
        work: "_Work",
        image: Resolved,
        snapshotter: str,
        sources: Mapping[str, LayerSource],
    ) -> None:
        await self._unpacker.unpack(
            work.namespace, image, snapshotter, str(work.reference), work.board.pass_on, sources
        )


class _Work:
    """One pull under way."""

    def __init__(
        self,
        namespace: str,
        reference: Reference,
        remote: Remote,
        options: PullOptions,
        board: Board,
        lease: str,
    ) -> None:
        self.namespace = namespace
        self.reference = reference
        self.remote = remote
        self.options = options
        self.board = board
        self.lease = lease
        self.downloaded_bytes = 0
        self.download_s = 0.0
        self.unpack_s = 0.0

    @property
    def wanted(self) -> tuple[Platform | None, ...]:
        return platforms.wanted(self.options.platforms, self.options.all_platforms)

    def source_label(self, content: ContentStore, digest: str) -> dict[str, str]:
        """Which repositories of the registry have it, for a push that can then mount it there."""
        key = SOURCE_LABEL + self.reference.host
        have: set[str] = set()
        with suppress(NotFound):
            have = repositories_in(content.info(self.namespace, digest).labels, self.reference)
        text = ",".join(sorted(have | {self.reference.repository}))
        return {key: text} if len(key) + len(text) <= MAX_SOURCE_BYTES else {}


def repositories_in(labels: Mapping[str, str], reference: Reference) -> set[str]:
    """The repositories of the reference's registry that the labels of content name. containerd's
    key is the host without its port; releases before this had the port in it too.
    """
    texts = (labels.get(SOURCE_LABEL + name, "") for name in (reference.host, reference.domain))
    return {repository for text in texts for repository in text.split(",") if repository}


async def _wanted_of(documents: RemoteDocuments, target: Descriptor, work: _Work) -> Graph:
    """What of the image is to be here at the end. Raises as Walker.walk."""
    options = work.options
    wanted = Graph()
    if not options.metadata_only:
        for platform in work.wanted:
            wanted.add(await Walker(documents, platform).walk(target))
    if not (options.all_metadata or options.metadata_only):
        return wanted
    graph = await Walker(documents, None).walk(target)
    for digest in documents.layers.keys() - wanted.found.keys():
        graph.found.pop(Digest.parse(digest), None)
    return graph


@contextmanager
def _naming(reference: Reference) -> Iterator[None]:
    """Errors from within name the reference, and with it the registry."""
    try:
        yield
    except LighterError as err:
        if str(reference) in err.message:
            raise
        message = f"pull {reference}: {err.message}"
        raise from_wire(err.code, message, err.details) from err


def chain_of(image: Resolved) -> tuple[str, ...]:
    """The names of the image's snapshots."""
    return chain_ids(diff for _, diff in layers_of(image))
