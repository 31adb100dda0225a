"""Containers: from an image and a caller's wishes to a recorded spec and a writable snapshot."""

import json
import logging
import os
import secrets
import shutil
import signal
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from typing import Any

from lighter.daemon.events import EventLog, Telling
from lighter.daemon.identity import IdentityService
from lighter.daemon.images.service import ImageService
from lighter.daemon.metadata.containers import ContainerStore
from lighter.daemon.oci import spec as oci_spec
from lighter.daemon.oci.checks import encode
from lighter.daemon.oci.config import read_image_config
from lighter.daemon.oci.host import Host, read_devices
from lighter.daemon.oci.process import ExecRequest, exec_process
from lighter.daemon.orphans import OWNER_LABEL, Orphans
from lighter.daemon.snapshots.types import Snapshotter
from lighter.daemon.tasks.calling import from_record
from lighter.daemon.tasks.creation import TaskCreator
from lighter.daemon.tasks.service import TaskService
from lighter.daemon.types import Container, Exit, ImageConfig, Mount, RuntimeOptions
from lighter.proto import events
from lighter.proto.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    LighterError,
    NotFound,
)
from lighter.proto.faults import hit
from lighter.proto.names import check_labels, check_name
from lighter.proto.paths import Root, cgroup_path

log = logging.getLogger("lighter.containers")

LOG_DRIVERS = ("file", "none")


@dataclass(frozen=True)
class CreateRequest:
    """What a caller asks for; the fields are those of `containers.create` in proto/daemon_api."""

    image: str
    id: str | None = None
    args: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] | None = None
    env: tuple[str, ...] = ()
    cwd: str | None = None
    user: str | None = None
    terminal: bool = False
    mounts: tuple[Mapping[str, Any], ...] = ()
    net_host: bool = False
    read_only: bool = False
    hostname: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    snapshotter: str = ""
    privileged: bool = False
    cap_add: tuple[str, ...] = ()
    cap_drop: tuple[str, ...] = ()
    seccomp: str = "default"
    allow_new_privs: bool = False
    runtime: str = ""
    with_ns: Mapping[str, str] = field(default_factory=dict)
    auto_remove: bool = False
    stdin_open: bool = False
    stop_signal: str = ""
    log: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Defaults:
    """What the configuration says for requests that leave it open."""

    snapshotter: str
    runtime: str
    log_max_size: int
    log_max_file: int


class ContainerService:
    """Records of containers. Their running side is TaskService."""

    def __init__(
        self,
        *,
        root: Root,
        store: ContainerStore,
        images: ImageService,
        snapshotters: Mapping[str, Snapshotter],
        identities: IdentityService,
        tasks: TaskService,
        creator: TaskCreator,
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
        self._tasks = tasks
        self._creator = creator
        self._find_runtime = find_runtime
        self._events = events_log
        self._host = host
        self._defaults = defaults
        self._making: set[tuple[str, str]] = set()
        self.orphans = Orphans(root, snapshotters, self._is_owner)

    async def create(
        self, namespace: str, request: CreateRequest
    ) -> tuple[Container, tuple[str, ...]]:
        """Record a container; returns it with warnings about the image. Undone if anything fails.

        Raises AlreadyExists, NotFound (image, user, snapshotter), InvalidArgument.
        """
        check_name(namespace, "namespace")
        id_ = secrets.token_hex(6) if request.id is None else check_name(request.id, "container")
        check_labels(dict(request.labels))
        if self._is_owner(namespace, id_):
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
        snapshotter = self._snapshotter(snapshotter_name)
        runtime = request.runtime or self._defaults.runtime
        self._find_runtime(runtime)
        options = self._options(request)
        resolved = await self._images.config(namespace, request.image)
        config, warnings = read_image_config(resolved.config)
        options["stop_signal"] = request.stop_signal or config.stop_signal or "SIGTERM"
        signal_number(options["stop_signal"])
        chain_id = await self._images.unpack(namespace, request.image, snapshotter_name)
        async with AsyncExitStack() as undo:
            await self.orphans.make_way(snapshotter, namespace, id_)
            mounts = await snapshotter.prepare(namespace, id_, chain_id, {OWNER_LABEL: id_})
            undo.push_async_callback(_quietly, snapshotter, namespace, id_)
            hit("containers.snapshot-made")
            spec = await self._spec(namespace, id_, request, config, chain_id, mounts)
            told = self._telling(
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
            undo.pop_all()
        hit("containers.row-committed")
        self._events.announce(*told.events)
        return container, warnings

    def _telling(self, namespace: str, topic: str, body: dict[str, Any]) -> "Telling":
        return Telling(self._events, namespace, topic, body)

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
        identity = await self._identities.of_image(user, chain_id, mounts)
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
                with_ns=request.with_ns,
            )
        )
        _check_sources(spec)
        return encode(spec)

    def _options(self, request: CreateRequest) -> dict[str, Any]:
        driver = request.log.get("driver")
        driver = LOG_DRIVERS[0] if driver in (None, "") else driver
        if driver not in LOG_DRIVERS:
            raise InvalidArgument(
                f"choose log driver {driver!r}: there are {' and '.join(LOG_DRIVERS)}"
            )
        max_size = request.log.get("max_size")
        max_file = request.log.get("max_file")
        sizes = {
            "max_size": self._defaults.log_max_size if max_size is None else max_size,
            "max_file": self._defaults.log_max_file if max_file is None else max_file,
        }
        for name, value in sizes.items():
            if type(value) is not int or not 0 <= value < 1 << 63:
                raise InvalidArgument(
                    f"choose log {name} {value!r}: expected a whole number, 0 for no limit"
                )
        return {
            "log": {"driver": driver, **sizes},
            "auto_remove": request.auto_remove,
            "stdin_open": request.stdin_open,
            "terminal": request.terminal,
        }

    def _is_owner(self, namespace: str, id_: str) -> bool:
        """Whether such a container is recorded, being made, or has a task."""
        if (namespace, id_) in self._making or self._tasks.exists(namespace, id_):
            return True
        try:
            self._store.get(namespace, id_)
        except NotFound:
            return False
        return True

    def _snapshotter(self, name: str) -> Snapshotter:
        snapshotter = self._snapshotters.get(name)
        if snapshotter is None:
            known = ", ".join(sorted(self._snapshotters))
            raise NotFound(f"find snapshotter {name}: this manager has {known}")
        return snapshotter

    async def get(self, namespace: str, container_id: str) -> Container:
        return self._store.get(namespace, container_id)

    async def list(
        self, namespace: str, cursor: str, limit: int
    ) -> tuple[tuple[Container, ...], str]:
        return self._store.list(namespace, cursor, limit)

    async def resolve(self, namespace: str, ref: str) -> str:
        return self._store.resolve(namespace, ref)

    async def label(
        self, namespace: str, container_id: str, changes: Mapping[str, str]
    ) -> Container:
        """Set labels; the value "" removes one. Raises NotFound, InvalidArgument."""
        changed = self._store.update(namespace, container_id, labels=changes)
        body = {
            "id": container_id,
            "image": changed.image,
            "labels": dict(changed.labels),
            "snapshot_key": changed.snapshot_key,
        }
        self._events.publish(namespace, events.CONTAINER_UPDATE, body)
        return changed

    async def mounts(self, container: Container) -> tuple[Mount, ...]:
        """The mounts of the container's root."""
        if not container.snapshot_key:
            return ()
        snapshotter = self._snapshotter(container.snapshotter)
        return await snapshotter.mounts(container.namespace, container.snapshot_key)

    async def start_task(self, namespace: str, container_id: str, stdio: Mapping[str, Any]) -> int:
        """Create the container's task; returns init's pid."""
        container = self._store.get(namespace, container_id)
        terminal = bool(container.options.get("terminal"))
        mounts = await self.mounts(container)
        # It may have been deleted meanwhile; from here to the task's row nothing else runs.
        container = self._store.get(namespace, container_id)
        options = from_record(container.options.get("runc") or {})
        return await self._creator.create(container, mounts, terminal, stdio, options)

    async def start_recorded(
        self,
        namespace: str,
        container_id: str,
        mounts: tuple[Mount, ...],
        terminal: bool,
        stdio: Mapping[str, Any],
        runtime: str = "",
        options: RuntimeOptions | None = None,
    ) -> int:
        """Create the container's task on mounts that the caller names; returns init's pid.

        `runtime` and `options` stand in for what is recorded.
        """
        container = self._store.get(namespace, container_id)
        if options is None:
            options = from_record(container.options.get("runc") or {})
        if runtime:
            container = replace(container, runtime=runtime)
        return await self._creator.create(container, mounts, terminal, stdio, options)

    async def exec_spec(
        self, namespace: str, container_id: str, request: ExecRequest, user: str | None
    ) -> dict[str, Any]:
        """The OCI process of an exec in this container."""
        container = self._store.get(namespace, container_id)
        if user:
            identity = await self._identities.of_container(user, await self.mounts(container))
            request = ExecRequest(
                request.args,
                request.env,
                request.cwd,
                identity,
                request.terminal,
                request.console_size,
            )
        return exec_process(json.loads(container.spec), request)

    async def stop(self, namespace: str, container_id: str, timeout_s: float) -> Exit:
        """Stop the task with the signal that the container names."""
        container = self._store.get(namespace, container_id)
        number = signal_number(str(container.options.get("stop_signal") or "SIGTERM"))
        return await self._tasks.stop(namespace, container_id, number, timeout_s)

    async def delete(self, namespace: str, container_id: str, force: bool) -> None:
        """Remove record, snapshot and log. Refused while there is a task, unless `force`."""
        container = self._store.get(namespace, container_id)
        await self._tasks.end_creation(namespace, container_id, force)
        if self._tasks.exists(namespace, container_id):
            task = self._tasks.find(namespace, container_id)
            if not force:
                raise FailedPrecondition(
                    f"delete container {container_id}: it has a {task.view().status} task; "
                    f"delete that first (ctl tasks delete {container_id})"
                )
            try:
                await self._tasks.delete(namespace, container_id, force=True)
            except NotFound:
                pass  # somebody else was faster
        told = self._telling(namespace, events.CONTAINER_DELETE, {"id": container_id})
        self._store.delete(namespace, container_id, told)
        hit("containers.row-gone")
        if container.snapshot_key:
            await _quietly(
                self._snapshotter(container.snapshotter), namespace, container.snapshot_key
            )
        shutil.rmtree(self._root.logs(namespace, container_id), ignore_errors=True)
        self._events.announce(*told.events)
        self._images.collector.on_deleted()  # its image may have gone before it


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


async def _quietly(snapshotter: Snapshotter, namespace: str, key: str) -> None:
    try:
        await snapshotter.remove(namespace, key)
    except LighterError as err:
        log.warning("remove snapshot %s: %s", key, err)


def signal_number(name: str) -> int:
    """Of "SIGTERM", "TERM", "term" or "15". Raises InvalidArgument."""
    if name.isascii() and name.isdigit() and 1 <= int(name) <= 64:
        return int(name)
    upper = name.upper()
    try:
        return signal.Signals[upper if upper.startswith("SIG") else f"SIG{upper}"].value
    except KeyError as err:
        raise InvalidArgument(f"choose stop signal {name!r}: there is no such signal") from err
