"""From an image and a caller's wishes to a recorded spec and a writable snapshot."""

import logging
import os
import secrets
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

from lighter.daemon.containers.request import CreateRequest, Defaults, options_of, signal_number
from lighter.daemon.events import EventLog, Telling
from lighter.daemon.identity import IdentityService
from lighter.daemon.images.service import ImageService
from lighter.daemon.metadata.containers import ContainerStore
from lighter.daemon.oci import spec as oci_spec
from lighter.daemon.oci.checks import encode
from lighter.daemon.oci.config import read_image_config
from lighter.daemon.oci.controls import read_controls
from lighter.daemon.oci.devices import granted
from lighter.daemon.oci.host import Host, read_devices
from lighter.daemon.oci.limits import NONE, Limits, resources
from lighter.daemon.oci.propagation import read_mountinfo, set_root_propagation
from lighter.daemon.orphans import OWNER_LABEL, Orphans
from lighter.daemon.snapshots.types import Snapshotter, find_snapshotter
from lighter.daemon.types import Container, ImageConfig, Mount
from lighter.daemon.volumes import Volumes
from lighter.proto import events
from lighter.proto.errors import AlreadyExists, InvalidArgument, LighterError, NotFound
from lighter.proto.faults import hit
from lighter.proto.names import check_labels, check_name
from lighter.proto.paths import Root, cgroup_path

log = logging.getLogger("lighter.containers")


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
        find_runtime: Callable[[str], str],
        events_log: EventLog,
        host: Host,
        defaults: Defaults,
    ) -> None:
        self._root = root
        self._store = store
        self._images = images
        self._snapshotters = snapshotters
        self._identities = identities
        self._volumes = volumes
        self._has_task = has_task
        self._find_runtime = find_runtime
        self._events = events_log
        self._host = host
        self._defaults = defaults
        self._making: set[tuple[str, str]] = set()
        self.orphans = Orphans(root, snapshotters, self.is_owner)

    async def create(
        self, namespace: str, request: CreateRequest
    ) -> tuple[Container, tuple[str, ...]]:
        """Record a container; returns it with warnings about the image. Undone if anything fails.

        Raises AlreadyExists, NotFound (image, user, snapshotter), InvalidArgument.
        """
        check_name(namespace, "namespace")
        id_ = secrets.token_hex(6) if request.id is None else check_name(request.id, "container")
        check_labels(dict(request.labels))
        if self.is_owner(namespace, id_):
            raise AlreadyExists(f"create container {id_}: it already exists")
        self._making.add((namespace, id_))
        try:
            return await self._create(namespace, id_, request)
        finally:
            self._making.discard((namespace, id_))

    async def _create(
        self, namespace: str, id_: str, request: CreateRequest
    ) -> tuple[Container, tuple[str, ...]]:
        snapshotter_name = request.snapshotter or self._defaults.snapshotter
        snapshotter = find_snapshotter(self._snapshotters, snapshotter_name)
        runtime = request.runtime or self._defaults.runtime
        self._find_runtime(runtime)
        options = options_of(request, self._defaults)
        resolved = await self._images.config(namespace, request.image)
        config, warnings = read_image_config(resolved.config)
        options["stop_signal"] = request.stop_signal or config.stop_signal or "SIGTERM"
        signal_number(options["stop_signal"])
        chain_id = await self._images.unpack(namespace, request.image, snapshotter_name)
        async with AsyncExitStack() as undo:
            await self.orphans.make_way(snapshotter, namespace, id_)
            mounts = await snapshotter.prepare(namespace, id_, chain_id, {OWNER_LABEL: id_})
            made = await undo.enter_async_context(AsyncExitStack())
            made.push_async_callback(remove_quietly, snapshotter, namespace, id_)
            hit("containers.snapshot-made")
            claim = await undo.enter_async_context(self._volumes.claim(namespace))
            asked = (*request.mounts, *request.volumes)
            request = replace(
                request, mounts=await claim.mounts(asked, config.volumes, mounts), volumes=()
            )
            if claim.rows:
                options["volumes"] = claim.rows
            spec = await self._spec(namespace, id_, request, config, chain_id, mounts)
            told = Telling(
                self._events,
                namespace,
                events.CONTAINER_CREATE,
                {"id": id_, "image": resolved.name, "runtime": runtime},
            )
            container = self._store.create(
                Container(
                    namespace=namespace,
                    id=id_,
                    image=resolved.name,
                    runtime=runtime,
                    snapshotter=snapshotter_name,
                    snapshot_key=id_,
                    spec=spec,
                    labels={**config.labels, **request.labels},
                    options=options,
                    created_at=0,
                    updated_at=0,
                ),
                told,
            )
            claim.keep()
            made.pop_all()
        hit("containers.row-committed")
        self._events.announce(*told.events)
        return container, warnings

    async def _spec(
        self,
        namespace: str,
        id_: str,
        request: CreateRequest,
        config: ImageConfig,
        chain_id: str,
        mounts: tuple[Mount, ...],
    ) -> bytes:
        user = config.user if request.user is None else request.user
        identity = await self._identities.of_image(user, chain_id, mounts, request.groups)
        spec = oci_spec.generate(
            oci_spec.SpecRequest(
                id=id_,
                namespace=namespace,
                cgroups_path=cgroup_path(self._root.instance, namespace, id_),
                image=config,
                identity=identity,
                host=self._host,
                args=request.args,
                entrypoint=request.entrypoint,
                env=request.env,
                cwd=request.cwd,
                terminal=request.terminal,
                mounts=request.mounts,
                net_host=request.net_host,
                read_only=request.read_only,
                hostname=request.hostname,
                privileged=request.privileged,
                host_devices=read_devices() if request.privileged else (),
                cap_add=request.cap_add,
                cap_drop=request.cap_drop,
                seccomp=request.seccomp,
                allow_new_privs=request.allow_new_privs,
                sharing=request.sharing,
                annotations=request.annotations,
                sysctls=request.sysctls,
                rlimits=request.rlimits,
                oom_score_adj=request.oom_score_adj,
                shm_bytes=request.shm_bytes,
                resources=_resources(request.limits),
                devices=granted(request.devices),
            )
        )
        _check_sources(spec)
        set_root_propagation(spec, read_mountinfo())
        return encode(spec)

    def is_owner(self, namespace: str, id_: str) -> bool:
        """Whether such a container is recorded, being made, or has a task."""
        if (namespace, id_) in self._making or self._has_task(namespace, id_):
            return True
        try:
            self._store.get(namespace, id_)
        except NotFound:
            return False
        return True


def _resources(limits: Limits) -> dict[str, Any]:
    return resources(limits, read_controls()) if limits != NONE else {}


def _check_sources(spec: Mapping[str, Any]) -> None:
    """Refuse what is missing on the host now: the runtime would blame the program for it."""
    binds = [m for m in spec["mounts"] if not {"bind", "rbind"}.isdisjoint(m.get("options") or ())]
    wanted = {mount["source"]: f"mount it at {mount['destination']}" for mount in binds}
    joined = [n for n in spec["linux"]["namespaces"] if n.get("path")]
    wanted.update({n["path"]: f"join it as {n['type']} namespace" for n in joined})
    for path, purpose in wanted.items():
        try:
            os.stat(path)
        except OSError as err:
            raise InvalidArgument(f"use {path} to {purpose}: {err.strerror}") from err


async def remove_quietly(snapshotter: Snapshotter, namespace: str, key: str) -> None:
    """Remove a snapshot of a container that is gone; what fails is logged, a sweep tries again."""
    try:
        await snapshotter.remove(namespace, key)
    except LighterError as err:
        log.warning("remove snapshot %s: %s", key, err)
