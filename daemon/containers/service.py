"""Containers: from an image and a caller's wishes to a recorded spec and a writable snapshot."""

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from lighter.daemon.containers.identity import IdentityService
from lighter.daemon.containers.joining import Joins
from lighter.daemon.containers.maker import ContainerMaker
from lighter.daemon.containers.records import ContainerRecords
from lighter.daemon.containers.relabelling import Relabelling
from lighter.daemon.containers.request import CreateRequest, signal_number, stop_timeout
from lighter.daemon.metadata.containers import ContainerStore, check_whole
from lighter.daemon.metadata.namespaces import merge_labels
from lighter.daemon.network.request import from_option
from lighter.daemon.network.service import NetworkService
from lighter.daemon.network.specs import with_network
from lighter.daemon.oci.process import ExecRequest, exec_process
from lighter.daemon.oci.selinux import labelled, mount_label
from lighter.daemon.orphans import OWNER_LABEL
from lighter.daemon.snapshots.removal import remove_quietly
from lighter.daemon.snapshots.types import Snapshotter, find_snapshotter
from lighter.daemon.tasks.calling import from_record
from lighter.daemon.tasks.clientstdio import log_streams
from lighter.daemon.tasks.creation import TaskCreator
from lighter.daemon.tasks.service import TaskService
from lighter.daemon.tasks.types import Exit
from lighter.daemon.types import Container, Mount, RuntimeOptions
from lighter.daemon.volumes.service import Volumes
from lighter.daemon.whole import whole
from lighter.proto.errors import FailedPrecondition, InvalidArgument, NotFound, Unavailable

TURN_S = 300.0  # that one copy waits for another


class ContainerService:
    """Records of containers. Their running side is TaskService."""

    def __init__(
        self,
        *,
        store: ContainerStore,
        maker: ContainerMaker,
        snapshotters: Mapping[str, Snapshotter],
        identities: IdentityService,
        volumes: Volumes,
        tasks: TaskService,
        creator: TaskCreator,
        records: ContainerRecords,
        networks: NetworkService,
        relabelling: Relabelling,
    ) -> None:
        self._relabelling = relabelling
        self._networks = networks
        self._store = store
        self._maker = maker
        self._snapshotters = snapshotters
        self._identities = identities
        self._volumes = volumes
        self._tasks = tasks
        self._creator = creator
        self._records = records
        self._held: Counter[tuple[str, str]] = Counter()
        self._held_alone: set[tuple[str, str]] = set()
        self._waiting: dict[tuple[str, str], list[asyncio.Future[None]]] = {}
        self._starts: Counter[tuple[str, str]] = Counter()

    async def create(
        self, namespace: str, request: CreateRequest
    ) -> tuple[Container, tuple[str, ...]]:
        """Record a container; see ContainerMaker.create."""
        return await self._maker.create(namespace, request)

    async def get(self, namespace: str, container_id: str) -> Container:
        return self._store.get(namespace, container_id)

    def created_at(self, namespace: str, container_id: str) -> int:
        """By which one is told from a later one of its id (ns). Raises NotFound."""
        return self._store.get(namespace, container_id).created_at

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
        container = self._store.get(namespace, container_id)
        labels = merge_labels(container.labels, changes)
        return self._records.change(replace(container, labels=labels))

    async def mounts(self, container: Container) -> tuple[Mount, ...]:
        """The mounts of the container's root."""
        if not container.snapshot_key:
            return ()
        snapshotter = find_snapshotter(self._snapshotters, container.snapshotter)
        mounts = await snapshotter.mounts(container.namespace, container.snapshot_key)
        label = mount_label(container)
        return tuple(labelled(mount, label) for mount in mounts)

    @contextlib.contextmanager
    def held(self, namespace: str, container_id: str, *, alone: bool) -> Iterator[None]:
        """Keep tasks from being made of it while its files are written from outside.

        `alone`: who writes has mounted them, and nobody else may meanwhile. Raises Unavailable.
        """
        key = (namespace, container_id)
        if key in self._held_alone or (alone and self._held[key]):
            raise Unavailable(f"write files of {container_id}: others are being copied into it")
        self._held[key] += 1
        if alone:
            self._held_alone.add(key)
        try:
            yield
        finally:
            self._held_alone.discard(key)
            self._held[key] -= 1
            if not self._held[key]:
                del self._held[key]
            for waiter in self._waiting.pop(key, ()):
                if not waiter.done():
                    waiter.set_result(None)

    async def turn(self, namespace: str, container_id: str, alone: Callable[[], bool]) -> None:
        """Wait for as long as `held` would refuse. Raises Unavailable after TURN_S."""
        key = (namespace, container_id)
        try:
            async with asyncio.timeout(TURN_S):
                while key in self._held_alone or (self._held[key] and alone()):
                    waiter = asyncio.get_running_loop().create_future()
                    self._waiting.setdefault(key, []).append(waiter)
                    await waiter
        except TimeoutError as err:
            raise Unavailable(
                f"write files of {container_id}: others are being copied into it"
            ) from err

    def has_writer(self, namespace: str, container_id: str) -> bool:
        """Whether its files are written from outside."""
        return bool(self._held[namespace, container_id])

    def check_free(self, namespace: str, container_id: str) -> None:
        """Raises Unavailable while its files are written from outside."""
        if self.has_writer(namespace, container_id):
            raise Unavailable(f"start task {container_id}: files are being copied into it")

    def is_starting(self, namespace: str, container_id: str) -> bool:
        """Whether somebody is at creating its task. There may be no entry of that yet: networks
        come before it.
        """
        return bool(self._starts[namespace, container_id])

    @contextlib.contextmanager
    def _starting(self, namespace: str, container_id: str) -> Iterator[None]:
        self._starts[namespace, container_id] += 1
        try:
            yield
        finally:
            self._starts[namespace, container_id] -= 1
            if not self._starts[namespace, container_id]:
                del self._starts[namespace, container_id]

    async def start_task(
        self, namespace: str, container_id: str, stdio: Mapping[str, Any], log_uri: str = ""
    ) -> int:
        """Create the container's task; returns init's pid. `log_uri`: for this task, in place of
        the container's own.
        """
        with self._starting(namespace, container_id):
            return await self._start_task(namespace, container_id, stdio, log_uri)

    async def _start_task(
        self, namespace: str, container_id: str, stdio: Mapping[str, Any], log_uri: str
    ) -> int:
        container = self._store.get(namespace, container_id)
        check_whole("start", container)
        terminal = bool(container.options.get("terminal"))
        await self._relabelling.apply(container)
        mounts = await self.mounts(container)
        # It may have been deleted meanwhile; from here to the task's row nothing else runs.
        container = self._same(container, "start")
        self.check_free(namespace, container_id)
        options = from_record(container.options.get("runc") or {})
        # The record's URI comes from who made the container, never from its image or labels.
        if uri := log_uri or (container.options.get("log") or {}).get("uri"):
            stdio = {**stdio, **log_streams(uri)}
        return await self._create_joined(container, mounts, terminal, stdio, options)

    async def _create_joined(
        self,
        container: Container,
        mounts: tuple[Mount, ...],
        terminal: bool,
        stdio: Mapping[str, Any],
        options: RuntimeOptions,
    ) -> int:
        """In the namespaces of those that it names, and in no others."""
        with contextlib.closing(Joins(self._tasks.find)) as joins:
            joined = joins.joined(container)
            pid = await self._create_task(joined, mounts, terminal, stdio, options)
            try:
                joins.check(pid)
            except FailedPrecondition:
                namespace, id_ = container.namespace, container.id
                await asyncio.shield(self._tasks.delete(namespace, id_, force=True))
                raise
            return pid

    async def _create_task(
        self,
        container: Container,
        mounts: tuple[Mount, ...],
        terminal: bool,
        stdio: Mapping[str, Any],
        options: RuntimeOptions,
    ) -> int:
        """Create it with the networks of its definition, which are undone if the create fails."""
        namespace, id_ = container.namespace, container.id
        if "network" not in container.options or self._tasks.exists(namespace, id_):
            return await self._creator.create(container, mounts, terminal, stdio, options)
        request = from_option(container.options["network"])
        prepared = await self._networks.prepare(container, request)
        try:
            # Plugins took their time: what was looked at before may have changed.
            self._same(container, "start")
            self.check_free(namespace, id_)
            container = replace(container, spec=with_network(container.spec, prepared))
            pid = await self._creator.create(
                container, mounts, terminal, stdio, options, prepared.key
            )
            try:
                await self._networks.attach_created(prepared, container)
            except BaseException:
                await asyncio.shield(self._tasks.delete(namespace, id_, force=True))
                raise
            return pid
        except BaseException:
            await asyncio.shield(self._networks.released(prepared.key))
            raise

    def _same(self, container: Container, verb: str) -> Container:
        """Its record as it is now, asked again after a wait in which others had their turn.

        Raises NotFound when it is gone, also when another container has its name by now.
        """
        found = self._store.get(container.namespace, container.id)
        if found.created_at != container.created_at:
            raise NotFound(f"{verb} container {container.id}: it was deleted meanwhile")
        return found

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
        with self._starting(namespace, container_id):
            container = self._store.get(namespace, container_id)
            check_whole("start", container)
            if await self._relabelling.apply(container):
                container = self._same(container, "start")
            if options is None:
                options = from_record(container.options.get("runc") or {})
            if runtime:
                container = replace(container, runtime=runtime)
            self.check_free(namespace, container_id)
            return await self._create_joined(container, mounts, terminal, stdio, options)

    async def exec_spec(
        self, namespace: str, container_id: str, request: ExecRequest, user: str | None
    ) -> dict[str, Any]:
        """The OCI process of an exec in this container."""
        container = self._store.get(namespace, container_id)
        if user:
            mounts = await self.mounts(container) or _own_root(container)
            identity = await self._identities.of_container(user, mounts)
            request = ExecRequest(
                request.args,
                request.env,
                request.cwd,
                identity,
                request.terminal,
                request.console_size,
            )
        return exec_process(json.loads(container.spec), request)

    async def stop(
        self,
        namespace: str,
        container_id: str,
        timeout_s: float | None,
        signum: int | None = None,
    ) -> Exit:
        """Stop the task, with SIGKILL after `timeout_s`; None: the time, the signal, which the
        container names.
        """
        container = self._store.get(namespace, container_id)
        if signum is None:
            signum = signal_number(str(container.options.get("stop_signal") or "SIGTERM"))
        limit_s = stop_timeout(container.options) if timeout_s is None else timeout_s
        return await self._tasks.stop(namespace, container_id, signum, limit_s)

    async def delete(
        self, namespace: str, container_id: str, force: bool, *, volumes: bool = False
    ) -> None:
        """Remove record, snapshot and log. Refused while there is a task, unless `force`.

        `volumes`: those too that were made for it and that it did not name.
        """
        container = self._store.get(namespace, container_id)
        await self._end_task(container, force)
        self._records.forget(namespace, container_id)
        # A caller that goes leaves nothing behind that only the record has told of.
        await whole(self._clear_away(container, volumes))

    async def _clear_away(self, container: Container, volumes: bool) -> None:
        if container.snapshot_key:
            await remove_quietly(
                find_snapshotter(self._snapshotters, container.snapshotter),
                container.namespace,
                container.snapshot_key,
            )
        if volumes:
            await self._volumes.delete_anonymous(container.namespace, container.options)

    async def forget(self, namespace: str, container_id: str) -> None:
        """Remove record and log; the snapshot stays until somebody removes that.

        Raises FailedPrecondition while there is a task, InvalidArgument for one that goes with its
        task's end: its snapshot would be gone before it is asked for here.
        """
        container = self._store.get(namespace, container_id)
        if container.options.get("auto_remove"):
            raise InvalidArgument(
                f"delete container {container_id}: it was made with --rm, and goes with its "
                "snapshot when it ends"
            )
        await self._end_task(container, force=False)
        if container.snapshot_key:
            snapshotter = find_snapshotter(self._snapshotters, container.snapshotter)
            with contextlib.suppress(NotFound):
                # First: with its owner's name, but without the owner, it would be an orphan.
                await snapshotter.update(namespace, container.snapshot_key, {OWNER_LABEL: ""})
            await self._end_task(self._same(container, "delete"), force=False)
        self._records.forget(namespace, container_id)

    async def _end_task(self, container: Container, force: bool) -> None:
        """Return when it has none. Raises FailedPrecondition when it has, unless `force`."""
        namespace, container_id = container.namespace, container.id
        while True:
            await self._tasks.end_creation(namespace, container_id, force)
            self._same(container, "delete")
            if not self._tasks.exists(namespace, container_id):
                return
            task = self._tasks.find(namespace, container_id)
            if not force:
                raise FailedPrecondition(
                    f"delete container {container_id}: it has a {task.view().status} task; "
                    f"delete that first (ctl tasks delete {container_id})"
                )
            with contextlib.suppress(NotFound):  # somebody else was faster
                await self._tasks.delete(namespace, container_id, force=True)


def _own_root(container: Container) -> tuple[Mount, ...]:
    """The root of a container without a snapshot, for reading."""
    path = json.loads(container.spec).get("root", {}).get("path", "")
    return (Mount("bind", path, ("rbind", "ro")),) if path.startswith("/") else ()
