"""From layers to snapshots: each layer becomes a committed snapshot, named by its chain id
(chain.py).

A worker applies a layer to an active snapshot and checks its diff id; only what is whole and on
disk is committed. A label on the config says that the image is unpacked; it is set last.

Where a layer's snapshot needs nothing of its parent's, some layers are applied at the same time:
all active snapshots are made first, without parents, so that each worker can be shown the
directories below its own; it is told when those are whole, and looks into them only then. Commits
follow in order, each giving the snapshot its parent.
"""

import asyncio
import os
import secrets
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from typing import Any, Protocol
from weakref import WeakValueDictionary

from lighter.daemon.content.gc import SNAPSHOT_LABEL, Collector
from lighter.daemon.content.store import ContentStore
from lighter.daemon.images.chain import chain_ids, layers_of
from lighter.daemon.images.graph import Resolved
from lighter.daemon.images.processors import Processors
from lighter.daemon.images.progress import Report, Scaled, unreported
from lighter.daemon.images.worker import Worker, naming_place
from lighter.daemon.snapshots.types import ACTIVE, VIEW, LayerTarget, Snapshotter
from lighter.daemon.types import Descriptor, Usage
from lighter.proto.errors import (
    AlreadyExists,
    DataLoss,
    FailedPrecondition,
    LighterError,
    NotFound,
    from_wire,
)
from lighter.proto.faults import hit

# On the active snapshots that this module makes; the value tells one manager's from the next's.
UNPACKING_LABEL = "io.lighter/unpacking"

LAYERS_AT_ONCE = 3

# A worker whose input was cut short fails a moment before the source says why.
SOURCE_SAYS_S = 2.0


class LayerSource(Protocol):
    """A layer whose compressed bytes are still on their way.

    Used more than once by an image that has the layer more than once.
    """

    def open(self) -> int:
        """A descriptor, the caller's, that yields all of them from the first: a file, or a pipe
        whose reader may block until they come. It ends early when the source fails."""

    async def whole(self) -> None:
        """Returns when all bytes came and their digest was verified; raises when that cannot be
        any more. Cancelled when the layer is not wanted any longer."""


class Unpacker:
    """Unpacks images; two callers that want the same layer share the work."""

    def __init__(
        self,
        content: ContentStore,
        snapshotters: Mapping[str, Snapshotter],
        worker: Worker,
        collector: Collector,
        limits: Mapping[str, int | None] | None = None,
        layers_at_once: int = LAYERS_AT_ONCE,
        processors: Processors | None = None,
    ) -> None:
        self._content = content
        self._snapshotters = snapshotters
        self._processors = processors or Processors(worker)
        self._collector = collector
        self._limits = dict(limits or {})
        self._layers_at_once = layers_at_once
        self.mark = secrets.token_hex(8)
        self._mark = {UNPACKING_LABEL: self.mark}
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
        (other bytes than promised), InvalidArgument (no layer at all), ResourceExhausted, what a
        source and the snapshotter raise. What was committed stays.
        """
        snapshotter = self.snapshotter(snapshotter_name)
        layers = layers_of(image)
        if not layers:
            return ""
        if snapshotter.max_layers and len(layers) > snapshotter.max_layers:
            raise FailedPrecondition(
                f"unpack image {image.descriptor.digest}: it has {len(layers)} layers, "
                f"{snapshotter.name} can mount {snapshotter.max_layers}"
            )
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
            job = _Job(namespace, snapshotter, Scaled(ref, layers, report), sources or {})
            await self._make_all(job, layers, chain)
            if not await _is_committed(snapshotter, namespace, chain[-1]):
                raise DataLoss(f"unpack image {config}: snapshot {chain[-1]} has gone")
            self._content.label(namespace, config, {label: chain[-1]})
        hit("unpack.labelled")
        return chain[-1]

    async def _make_all(
        self, job: "_Job", layers: Sequence[tuple[Descriptor, str]], chain: Sequence[str]
    ) -> None:
        steps = [
            _Step(layer, diff, name, below)
            for (layer, diff), name, below in zip(layers, chain, ("", *chain[:-1]), strict=True)
        ]
        done = await self._count_committed(job, steps)
        try:
            # Everybody takes them from the lowest up, so nobody waits in a circle. The dictionary
            # drops a lock when its last holder or waiter has left.
            for step in steps[done:]:
                key = (job.snapshotter.name, job.namespace, step.name)
                lock = self._locks.setdefault(key, asyncio.Lock())
                await lock.acquire()
                step.lock = lock
            done = await self._count_committed(job, steps)
            for step in steps[:done]:
                job.scaled.layer_done(step.layer)
                step.release()
            if job.snapshotter.layers_apart:
                await self._make_apart(job, steps[done:])
            else:
                for step in steps[done:]:
                    await self._make(job, step)
        finally:
            for step in steps:
                step.release()

    async def _count_committed(self, job: "_Job", steps: Sequence["_Step"]) -> int:
        """How many of the lowest layers have their snapshots: a committed one has its parents."""
        for count in range(len(steps), 0, -1):
            if await _is_committed(job.snapshotter, job.namespace, steps[count - 1].name):
                return count
        return 0

    async def _make(self, job: "_Job", step: "_Step") -> None:
        """Apply one layer on its parent and commit it; a failure leaves nothing."""
        try:
            await self._prepare(job, step, step.below)
            usage = await self._apply(job, step, None)
            await self._commit(job, step, usage, "")
        except BaseException as err:
            await self._undo(job, step, err)

    async def _make_apart(self, job: "_Job", steps: Sequence["_Step"]) -> None:
        """Apply some layers at a time, commit them in order; a failure leaves what was committed.

        The lowest is first to get a place, so that whoever waits for a lower one has not taken it.
        """
        if not steps:
            return
        places = asyncio.Semaphore(self._layers_at_once)
        tasks: list[asyncio.Task[None]] = []
        try:
            below: _Step | None = None
            for step in steps:
                await self._prepare(job, step, step.below if below is None else "")
                if below is not None:
                    lowers = (below.target.dir, *below.target.lowers)
                    step.target = replace(step.target, lowers=lowers)
                below = step
            for step, lower in zip(steps, [None, *steps], strict=False):
                tasks.append(asyncio.create_task(self._make_beside(job, step, lower, places)))
            await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            for task in tasks:
                if task.done():
                    task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for step in reversed(steps):
                await self._discard(job, step)

    async def _make_beside(
        self, job: "_Job", step: "_Step", lower: "_Step | None", places: asyncio.Semaphore
    ) -> None:
        async with places:
            usage = await self._apply(job, step, lower)
        step.applied.set()
        if lower is not None:
            await lower.committed.wait()
        try:
            await self._commit(job, step, usage, "" if lower is None else step.below)
        except AlreadyExists:
            if not await _is_committed(job.snapshotter, job.namespace, step.name):
                raise  # else a client that unpacks by itself was faster
        step.committed.set()

    async def _prepare(self, job: "_Job", step: "_Step", parent: str) -> None:
        key = f"extract-{secrets.token_hex(8)} {step.name}"
        step.key = key
        await job.snapshotter.prepare(job.namespace, key, parent, self._mark)
        step.target = await job.snapshotter.layer_target(job.namespace, key)
        hit("unpack.prepared")

    async def _commit(self, job: "_Job", step: "_Step", usage: Usage | None, parent: str) -> None:
        await job.snapshotter.commit(job.namespace, step.name, step.key, usage=usage, parent=parent)
        step.key = ""
        hit("unpack.committed")
        job.scaled.layer_done(step.layer)
        step.release()

    async def _undo(self, job: "_Job", step: "_Step", err: BaseException) -> None:
        await self._discard(job, step)
        if isinstance(err, AlreadyExists) and await _is_committed(
            job.snapshotter, job.namespace, step.name
        ):
            return  # a client that unpacks by itself was faster
        raise err

    async def _discard(self, job: "_Job", step: "_Step") -> None:
        """Remove the active snapshot of a layer that was not committed."""
        if step.key:
            removal = job.snapshotter.remove(job.namespace, step.key)
            with suppress(NotFound):
                await asyncio.shield(asyncio.ensure_future(removal))
            step.key = ""

    async def _apply(self, job: "_Job", step: "_Step", lower: "_Step | None") -> Usage | None:
        layer, target = step.layer, step.target
        order = {
            "job": "apply",
            "media_type": layer.media_type,
            "diff_id": step.diff,
            **target.order(),
            "sync": True,
            "limits": self._limits,
        }
        source = job.sources.get(layer.digest)
        if source and self._processors.chain(layer.media_type):
            await source.whole()  # a program gets what is verified, and all of it at once
        with ExitStack() as undo:
            fd = source.open() if source else self._content.open(job.namespace, layer.digest)
            undo.callback(os.close, fd)
            fds = [fd]
            if lower is not None:
                fds.append(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
                undo.callback(os.close, fds[1])
                undo.callback(asyncio.create_task(_tell(lower.applied, fds[1])).cancel)
            applying = self._processors.apply(order, fds, job.scaled.of(layer))
            work = _naming(layer, naming_place(target.dir, applying))
            done = await (_with_source(work, source) if source else work)
        if done["diff_id"] != step.diff:
            raise DataLoss(
                f"unpack layer {layer.digest}: its diff id is {done['diff_id']}, "
                f"the config says {step.diff}"
            )
        hit("unpack.applied")
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


@dataclass
class _Job:
    """One unpack: what is the same for all of its layers."""

    namespace: str
    snapshotter: Snapshotter
    scaled: "Scaled"
    sources: Mapping[str, LayerSource]


@dataclass
class _Step:
    """One layer on its way to the snapshot `name`, on the snapshot `below`.

    `key` is that of its active snapshot, "" when there is none (any more).
    """

    layer: Descriptor
    diff: str
    name: str
    below: str
    key: str = ""
    target: LayerTarget = field(default_factory=lambda: LayerTarget("", (), ""))
    applied: asyncio.Event = field(default_factory=asyncio.Event)
    committed: asyncio.Event = field(default_factory=asyncio.Event)
    lock: asyncio.Lock | None = None

    def release(self) -> None:
        """Let others who want the same snapshot go on. May be called again."""
        lock, self.lock = self.lock, None
        if lock is not None:
            lock.release()


async def _naming(layer: Descriptor, work: Coroutine[Any, Any, dict[str, Any]]) -> dict[str, Any]:
    """The worker's answer; its errors get the digest, which it does not know."""
    try:
        return await work
    except LighterError as err:
        cause = err.message.removeprefix("unpack layer: ")
        message = f"unpack layer {layer.digest}: {cause}"
        raise from_wire(err.code, message, err.details) from err


async def _tell(event: asyncio.Event, eventfd: int) -> None:
    """Make the descriptor readable once the event is set."""
    await event.wait()
    os.eventfd_write(eventfd, 1)


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
        return (await snapshotter.stat(namespace, name)).kind not in (ACTIVE, VIEW)
    except NotFound:
        return False
