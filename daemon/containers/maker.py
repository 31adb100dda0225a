"""From an image and a caller's wishes to a recorded spec and a writable snapshot."""

import contextlib
import secrets
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from lighter.daemon.containers import idpool, relabelling
from lighter.daemon.containers.identity import IdentityService
from lighter.daemon.containers.idpool import IdPool
from lighter.daemon.containers.levels import Levels
from lighter.daemon.containers.placing import cgroups_path, check_programs, record
from lighter.daemon.containers.relabelling import Relabelling
from lighter.daemon.containers.request import (
    CreateRequest,
    Defaults,
    of_given_spec,
    of_id_maps,
    options_of,
    signal_number,
)
from lighter.daemon.containers.roots import MadeRoot, RootMaker, RootWish
from lighter.daemon.containers.specs import SpecMaker
from lighter.daemon.events.log import EventLog, Telling
from lighter.daemon.health import check as health_check
from lighter.daemon.images.service import ImageService
from lighter.daemon.images.worker import Worker
from lighter.daemon.looks import Looks
from lighter.daemon.metadata.containers import ContainerStore
from lighter.daemon.metadata.namespaces import DEFAULT_RUNTIME_LABEL, DEFAULT_SNAPSHOTTER_LABEL
from lighter.daemon.network.request import NetworkRequest
from lighter.daemon.oci import idmaps, selinux
from lighter.daemon.oci.checks import encode
from lighter.daemon.oci.given import read_spec
from lighter.daemon.oci.host import Host
from lighter.daemon.oci.propagation import (
    asks_propagation,
    read_mountinfo,
    set_root_propagation,
)
from lighter.daemon.oci.selinux import SELinux
from lighter.daemon.orphans import Orphans
from lighter.daemon.snapshots.types import Snapshotter
from lighter.daemon.tasks.runtimes import NAMES, Runtimes
from lighter.daemon.types import Container, ImageConfig, Mount, RuntimeOptions
from lighter.daemon.volumes.claim import Claim
from lighter.daemon.volumes.service import Volumes
from lighter.proto import events
from lighter.proto.errors import AlreadyExists, InvalidArgument, NotFound
from lighter.proto.faults import hit
from lighter.proto.names import check_labels, check_name
from lighter.proto.paths import Root, cgroup_path

# Fills the snapshot that has these mounts and stands on this parent.
Fill = Callable[[tuple[Mount, ...], str], Awaitable[None]]


@dataclass(frozen=True)
class Definition:
    """A container as it was recorded elsewhere; `runtime` and `snapshotter` may be ""."""

    image: str
    runtime: str
    snapshotter: str
    spec: dict[str, Any]
    labels: Mapping[str, str]
    options: Mapping[str, Any]


class ContainerMaker:
    """Makes containers. Its orphans are what a making that was cut short left."""

    def __init__(
        self,
        *,
        root: Root,
        store: ContainerStore,
        images: ImageService,
        snapshotters: Mapping[str, Snapshotter],
        identities: IdentityService,
        volumes: Volumes,
        has_task: Callable[[str, str], bool],
        runtimes: Runtimes,
        worker: Worker,
        events_log: EventLog,
        host: Host,
        defaults: Defaults,
        check_network: Callable[[NetworkRequest], Awaitable[None]],
        labels_of: Callable[[str], Mapping[str, str]],
        id_pool: IdPool,
        selinux: SELinux,
        relabelling: Relabelling,
    ) -> None:
        self._relabelling = relabelling
        self._levels = Levels(store, selinux)
        self._id_pool = id_pool
        self._labels_of = labels_of
        self._check_network = check_network
        self._root = root
        self._store = store
        self._volumes = volumes
        self._has_task = has_task
        self._runtimes = runtimes
        self._events = events_log
        self._defaults = defaults
        self._making: set[tuple[str, str]] = set()
        self._looks = Looks()
        self._specs = SpecMaker(identities, host, self._looks)
        self.orphans = Orphans(root, snapshotters, self.is_owner)
        self._roots = RootMaker(images, snapshotters, worker, self.orphans)

    async def create(
        self, namespace: str, request: CreateRequest
    ) -> tuple[Container, tuple[str, ...]]:
        """Record a container; returns it with warnings about the image. Undone if anything fails.

        Raises AlreadyExists, NotFound (image, user, snapshotter), InvalidArgument.
        """
        check_name(namespace, "namespace")
        id_ = secrets.token_hex(6) if request.id is None else check_name(request.id, "container")
        check_labels(dict(request.labels))
        with self._claimed(namespace, id_):
            return await self._create(namespace, id_, request)

    @contextlib.contextmanager
    def _claimed(self, namespace: str, id_: str) -> Iterator[None]:
        """Raises AlreadyExists."""
        if self.is_owner(namespace, id_):
            raise AlreadyExists(f"create container {id_}: it already exists")
        self._making.add((namespace, id_))
        try:
            yield
        finally:
            self._making.discard((namespace, id_))

    async def recreate(
        self, namespace: str, id_: str, definition: Definition, fill: Fill
    ) -> Container:
        """Record a container as another one was defined, on a new snapshot that `fill` fills.

        Its cgroup is its own, and so are its networks when it starts. Raises as `create`.
        """
        check_name(id_, "container")
        check_labels(dict(definition.labels))
        with self._claimed(namespace, id_):
            return await self._recreate(namespace, id_, definition, fill)

    async def _recreate(
        self, namespace: str, id_: str, definition: Definition, fill: Fill
    ) -> Container:
        runtime, snapshotter = self._defaults_in(namespace)
        runtime = definition.runtime or runtime
        check_programs(runtime, RuntimeOptions(), self._runtimes)
        spec = definition.spec
        spec["linux"]["cgroupsPath"] = cgroup_path(self._root.instance, namespace, id_)
        maps = idmaps.from_spec(spec)
        plain = CreateRequest(
            image=definition.image, terminal=spec["process"].get("terminal") is True
        )
        options = {**options_of(plain, self._defaults), **definition.options}
        options |= of_id_maps(maps, options)
        async with AsyncExitStack() as claims, AsyncExitStack() as undo:
            if ids := options.get(idpool.OPTION):
                claims.enter_context(self._id_pool.keep(ids))
            claim = await claims.enter_async_context(Claim(self._volumes, namespace))
            claim.hold(options.get("volumes") or ())
            made = await self._roots.snapshot(
                namespace,
                id_,
                definition.image,
                definition.snapshotter or snapshotter,
                RootWish(id_maps=maps),
                undo,
            )
            await fill(made.mounts, made.chain_id)
            await self._specs.check_sources(spec)
            labels = definition.labels
            container, told = self._record(namespace, id_, made, runtime, spec, labels, options)
            undo.pop_all()
        hit("containers.row-committed")
        self._events.announce(*told.events)
        return container

    async def _create(
        self, namespace: str, id_: str, request: CreateRequest
    ) -> tuple[Container, tuple[str, ...]]:
        runtime, snapshotter = self._defaults_in(namespace)
        runtime, snapshotter = request.runtime or runtime, request.snapshotter or snapshotter
        request = replace(request, runtime=runtime, snapshotter=snapshotter)
        placing = request.placing
        check_programs(runtime, placing.options, self._runtimes)
        options = options_of(request, self._defaults)
        if "joins" in options:
            options["joins"] = {
                kind: self._store.resolve(namespace, other)
                for kind, other in options["joins"].items()
            }
        if "network" in options:
            await self._check_network(request.network)
        own = cgroup_path(self._root.instance, namespace, id_)
        async with AsyncExitStack() as undo:
            if request.free_ids:
                if request.root.id_maps or request.spec:
                    raise InvalidArgument("map ids: both free ones and given ones were asked for")
                maps, noted = undo.enter_context(self._id_pool.claim(request.free_ids))
                request = replace(request, root=replace(request.root, id_maps=maps))
                options |= noted
            root_undo = await undo.enter_async_context(AsyncExitStack())
            made = await self._make_root(namespace, id_, request, root_undo)
            hit("containers.snapshot-made")
            options["stop_signal"] = request.stop_signal or made.config.stop_signal or "SIGTERM"
            signal_number(options["stop_signal"])
            if health := health_check.chosen(request.health, made.config.health, made.config.shell):
                options["health"] = health
            claim = await undo.enter_async_context(Claim(self._volumes, namespace))
            if request.spec:
                spec = read_spec(request.spec)
                options |= of_given_spec(spec)
                options |= record(placing, str(spec["linux"].get("cgroupsPath") or ""), own)
            else:
                asked = (*request.mounts, *request.volumes)
                maps = request.root.id_maps
                owner = maps.root if maps else (0, 0)
                mounts = await claim.mounts(asked, made.config.volumes, made.mounts, owner)
                mounts, wishes = relabelling.asked(mounts, claim.paths)
                request = replace(request, mounts=mounts, volumes=())
                if claim.rows:
                    options["volumes"] = claim.rows
                cgroup = cgroups_path(placing, namespace, id_, own)
                confined = undo.enter_context(
                    self._levels.claim(request.selinux, privileged=request.privileged)
                )
                if confined.level:
                    options[selinux.OPTION] = {"level": confined.level}
                options |= await self._relabelling.prepare(wishes, claim.paths, confined.mount)
                spec = await self._specs.make(namespace, id_, request, made, cgroup, confined)
                if asks_propagation(spec):
                    set_it = partial(set_root_propagation, spec, read_mountinfo())
                    await self._looks.at("look at what is mounted", set_it)
                options |= record(placing, cgroup, own)
            options |= of_id_maps(idmaps.from_spec(spec), options)
            await self._specs.check_sources(spec)
            labels = {**made.config.labels, **request.labels}
            container, told = self._record(namespace, id_, made, runtime, spec, labels, options)
            claim.keep()
            root_undo.pop_all()
        hit("containers.row-committed")
        self._events.announce(*told.events)
        return container, made.warnings

    def _record(
        self,
        namespace: str,
        id_: str,
        made: MadeRoot,
        runtime: str,
        spec: dict[str, Any],
        labels: Mapping[str, str],
        options: Mapping[str, Any],
    ) -> tuple[Container, Telling]:
        body = {"id": id_, "image": made.image, "runtime": runtime}
        told = Telling(self._events, namespace, events.CONTAINER_CREATE, body)
        container = self._store.create(
            Container(
                namespace=namespace,
                id=id_,
                image=made.image,
                runtime=runtime,
                snapshotter=made.snapshotter,
                snapshot_key=made.key,
                spec=encode(spec),
                labels=labels,
                options=options,
                created_at=0,
                updated_at=0,
            ),
            told,
        )
        return container, told

    def _defaults_in(self, namespace: str) -> tuple[str, str]:
        """Runtime and snapshotter for who leaves them open: the namespace's labels', then ours."""
        labels = self._labels_of(namespace)
        runtime = labels.get(DEFAULT_RUNTIME_LABEL, "")
        if NAMES.get(runtime) == "runc":  # which means whatever runs containers here
            runtime = ""
        snapshotter = labels.get(DEFAULT_SNAPSHOTTER_LABEL, "")
        return runtime or self._defaults.runtime, snapshotter or self._defaults.snapshotter

    async def _make_root(
        self, namespace: str, id_: str, request: CreateRequest, undo: AsyncExitStack
    ) -> MadeRoot:
        if request.spec:
            return MadeRoot("", ImageConfig(), (), ())
        if request.root.directory:
            what = f"use root directory {request.root.directory}"
            return await self._looks.at(what, partial(self._roots.directory, request.root))
        if not request.image:
            raise InvalidArgument(f"create container {id_}: no image is named")
        return await self._roots.snapshot(
            namespace, id_, request.image, request.snapshotter, request.root, undo
        )

    def is_owner(self, namespace: str, id_: str) -> bool:
        """Whether such a container is recorded, being made, or has a task."""
        if (namespace, id_) in self._making or self._has_task(namespace, id_):
            return True
        try:
            self._store.get(namespace, id_)
        except NotFound:
            return False
        return True
