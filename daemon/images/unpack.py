"""From layers to snapshots: each layer becomes a committed snapshot named by its chain id.

    chain id of the first layer   its diff id
    of each further one           sha256 of "<chain id below> <its diff id>"

(OCI image-spec, config.md, "Layer ChainID".) So images share the snapshots of layers they share.
A worker applies a layer to an active snapshot and checks its diff id; only what is whole and on
disk is committed. A label on the config says that the image is unpacked; it is set last.
"""

import asyncio
import hashlib
import os
import secrets
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Protocol
from weakref import WeakValueDictionary

from lighter.daemon.content.gc import SNAPSHOT_LABEL, Collector
from lighter.daemon.content.store import ContentStore
from lighter.daemon.images.documents import diff_ids, load
from lighter.daemon.images.graph import Resolved
from lighter.daemon.images.progress import Progress, Report, unreported
from lighter.daemon.images.worker import Worker
from lighter.daemon.snapshots.types import ACTIVE, Snapshotter
from lighter.daemon.types import Descriptor, Usage
from lighter.proto.errors import AlreadyExists, DataLoss, InvalidArgument, NotFound
from lighter.proto.faults import hit

# On the active snapshots that this module makes; the value tells one manager's from the next's.
UNPACKING_LABEL = "io.lighter/unpacking"

# A worker whose input was cut short fails a moment before the source says why.
SOURCE_SAYS_S = 2.0


class LayerSource(Protocol):
    """A layer whose compressed bytes are still on their way; at most once opened."""

    def open(self) -> int:
        """A descriptor, the caller's, that yields all of them from the first: a file, or a pipe
        whose reader may block until they come. It ends early when the source fails."""

    async def whole(self) -> None:
        """Returns when all bytes came and their digest was verified; raises when that cannot be
        any more. Cancelled when the layer is not wanted any longer."""


def chain_ids(diffs: Iterable[str]) -> tuple[str, ...]:
    """The chain id of each layer, lowest first."""
    chain: list[str] = []
    for diff in diffs:
        if chain:
            joined = f"{chain[-1]} {diff}".encode()
            chain.append("sha256:" + hashlib.sha256(joined).hexdigest())
        else:
            chain.append(diff)
    return tuple(chain)


def layers_of(image: Resolved) -> tuple[tuple[Descriptor, str], ...]:
    """(descriptor, diff id) of each layer, lowest first. Raises InvalidArgument."""
    what = f"config {image.manifest.config.digest}"
    diffs = diff_ids(load(image.config, what), what)
    if len(diffs) != len(image.manifest.layers):
        raise InvalidArgument(
            f"parse {what}: it has {len(diffs)} diff ids for {len(image.manifest.layers)} layers"
        )
    return tuple(zip(image.manifest.layers, diffs, strict=True))


def chain_id(image: Resolved) -> str:
    """The name of the image's top snapshot, "" for an image without layers."""
    chain = chain_ids(diff for _, diff in layers_of(image))
    return chain[-1] if chain else ""


class Unpacker:
    """Unpacks images; two callers that want the same layer share the work."""

    def __init__(
        self,
        content: ContentStore,
        snapshotters: Mapping[str, Snapshotter],
        worker: Worker,
        collector: Collector,
        limits: Mapping[str, int | None] | None = None,
    ) -> None:
        self._content = content
        self._snapshotters = snapshotters
        self._worker = worker
        self._collector = collector
        self._limits = dict(limits or {})
        self._mark = {UNPACKING_LABEL: secrets.token_hex(8)}
        self._locks: WeakValueDictionary[tuple[str, str, str], asyncio.Lock] = WeakValueDictionary()

    def snapshotter(self, name: str) -> Snapshotter:
        """Raises NotFound."""
        found = self._snapshotters.get(name)
        if found is None:
            known = ", ".join(sorted(self._snapshotters))
            raise NotFound(f"find snapshotter {name}: there are {known}")
        return found

    async def unpack(
        self,
        namespace: str,
        image: Resolved,
        snapshotter_name: str,
        ref: str = "",
        report: Report = unreported,
        sources: Mapping[str, LayerSource] | None = None,
    ) -> str:
        """Make the image's snapshots; returns the top one's name, "" for an image without layers.

        `sources`, by the layer's digest: applied while it arrives, committed when it is whole.
        The others are read from the content store. Raises NotFound (a layer's content), DataLoss
        (other bytes than promised), ResourceExhausted, what a source and the snapshotter raise.
        What was committed stays.
        """
        snapshotter = self.snapshotter(snapshotter_name)
        layers = layers_of(image)
        if not layers:
            return ""
        chain = chain_ids(diff for _, diff in layers)
        label = SNAPSHOT_LABEL + snapshotter_name
        config = image.manifest.config.digest
        labels = self._content.info(namespace, config).labels
        if labels.get(label) == chain[-1] and await _is_committed(
            snapshotter, namespace, chain[-1]
        ):
            return chain[-1]
        with self._collector.pin() as pin:
            pin.content(namespace, config)
            for (layer, _), name in zip(layers, chain, strict=True):
                pin.content(namespace, layer.digest)
                pin.snapshot(namespace, snapshotter_name, name)
            await self._make_all(
                namespace, snapshotter, layers, chain, _Scaled(ref, layers, report), sources or {}
            )
            if not await _is_committed(snapshotter, namespace, chain[-1]):
                raise DataLoss(f"unpack image {config}: snapshot {chain[-1]} has gone")
            self._content.label(namespace, config, {label: chain[-1]})
        hit("unpack.labelled")
        return chain[-1]

    async def _make_all(
        self,
        namespace: str,
        snapshotter: Snapshotter,
        layers: Sequence[tuple[Descriptor, str]],
        chain: Sequence[str],
        scaled: "_Scaled",
        sources: Mapping[str, LayerSource],
    ) -> None:
        parent = ""
        for (layer, diff), name in zip(layers, chain, strict=True):
            # The dictionary drops a lock when its last holder or waiter has left.
            lock = self._locks.setdefault((snapshotter.name, namespace, name), asyncio.Lock())
            async with lock:
                if not await _is_committed(snapshotter, namespace, name):
                    await self._make(
                        namespace, snapshotter, layer, diff, parent, name, scaled, sources
                    )
            scaled.layer_done(layer)
            parent = name

    async def _make(
        self,
        namespace: str,
        snapshotter: Snapshotter,
        layer: Descriptor,
        diff: str,
        parent: str,
        name: str,
        scaled: "_Scaled",
        sources: Mapping[str, LayerSource],
    ) -> None:
        """Apply one layer on `parent` and commit it as `name`; a failure leaves nothing."""
        key = f"extract-{secrets.token_hex(8)} {name}"
        try:
            await snapshotter.prepare(namespace, key, parent, self._mark)
            hit("unpack.prepared")
            usage = await self._apply(namespace, snapshotter, key, layer, diff, scaled, sources)
            hit("unpack.applied")
            await snapshotter.commit(namespace, name, key, usage=usage)
        except BaseException as err:
            with suppress(NotFound):
                await asyncio.shield(asyncio.ensure_future(snapshotter.remove(namespace, key)))
            if isinstance(err, AlreadyExists) and await _is_committed(snapshotter, namespace, name):
                return  # a client that unpacks by itself was faster
            raise
        hit("unpack.committed")

    async def _apply(
        self,
        namespace: str,
        snapshotter: Snapshotter,
        key: str,
        layer: Descriptor,
        diff: str,
        scaled: "_Scaled",
        sources: Mapping[str, LayerSource],
    ) -> Usage | None:
        target = await snapshotter.layer_target(namespace, key)
        job = {
            "job": "apply",
            "media_type": layer.media_type,
            "diff_id": diff,
            "target": target.dir,
            "whiteouts": target.whiteouts,
            "lowers": list(target.lowers),
            "sync": True,
            "limits": self._limits,
        }
        source = sources.get(layer.digest)
        fd = source.open() if source else self._content.open(namespace, layer.digest)
        try:
            work = self._worker.run(job, [fd], scaled.of(layer))
            done = await (_with_source(work, source) if source else work)
        finally:
            os.close(fd)
        if done["diff_id"] != diff:
            raise DataLoss(
                f"unpack layer {layer.digest}: its diff id is {done['diff_id']}, "
                f"the config says {diff}"
            )
        if target.whiteouts == "plain":
            return None  # the tree is more than the layer: the snapshotter measures it
        return Usage(int(done["size_bytes"]), int(done["entries"]))

    async def recover(self, namespaces: Iterable[str]) -> None:
        """Once after a start: remove the half-made snapshots of dead managers, not our own."""
        for snapshotter in self._snapshotters.values():
            for namespace in namespaces:
                cursor, more = "", True
                while more:
                    page, cursor = await snapshotter.walk(namespace, cursor)
                    for info in page:
                        mark = info.labels.get(UNPACKING_LABEL, "")
                        if info.kind == ACTIVE and mark not in ("", self._mark[UNPACKING_LABEL]):
                            await snapshotter.remove(namespace, info.key)
                    more = bool(cursor)


class _Scaled:
    """Progress of one layer as progress of the whole image, in compressed bytes."""

    def __init__(self, ref: str, layers: Iterable[tuple[Descriptor, str]], report: Report) -> None:
        self._ref = ref
        self._report = report
        self._total = sum(layer.size for layer, _ in layers)
        self._done = 0

    def of(self, layer: Descriptor) -> Any:
        """A progress callback for the worker that applies `layer`."""

        def progress(item: dict[str, Any]) -> None:
            now = min(int(item.get("done_bytes", 0)), layer.size)
            self._tell(layer, self._done + now)

        return progress

    def layer_done(self, layer: Descriptor) -> None:
        self._done += layer.size
        self._tell(layer, self._done)

    def _tell(self, layer: Descriptor, done_bytes: int) -> None:
        self._report(Progress("unpacking", self._ref, layer.digest, done_bytes, self._total))


async def _with_source(
    work: Coroutine[Any, Any, dict[str, Any]], source: LayerSource
) -> dict[str, Any]:
    """The worker's answer, once the source is whole too. The first failure ends both; a source's
    is told rather than the worker's, which may only follow from it."""
    working, arriving = asyncio.ensure_future(work), asyncio.ensure_future(source.whole())
    try:
        await asyncio.wait({working, arriving}, return_when=asyncio.FIRST_EXCEPTION)
        if not arriving.done():
            await asyncio.wait({arriving}, timeout=SOURCE_SAYS_S)
        if arriving.done():
            arriving.result()
        return working.result()
    finally:
        for task in (working, arriving):
            task.cancel()
        await asyncio.gather(working, arriving, return_exceptions=True)


async def _is_committed(snapshotter: Snapshotter, namespace: str, name: str) -> bool:
    try:
        return (await snapshotter.stat(namespace, name)).kind not in (ACTIVE, "view")
    except NotFound:
        return False
