"""The wiring: which object gets which. Nothing else in the manager builds services.

The order of a start: limits and locks, directories, database and generation, recovery from rows,
the shims' socket, the spawner, the clients' socket, READY. Adoption goes on behind that.
"""

import asyncio
import contextlib
import grp
import logging
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from functools import partial

from lighter.daemon import files
from lighter.daemon.config import Config
from lighter.daemon.containers import ContainerService, Defaults
from lighter.daemon.content.housekeeping import Housekeeping
from lighter.daemon.content.ingests import Ingests
from lighter.daemon.content.scheduler import Scheduler
from lighter.daemon.content.store import ContentStore
from lighter.daemon.events import EventLog
from lighter.daemon.identity import IdentityService
from lighter.daemon.images.convert import Converter
from lighter.daemon.images.downloads import Downloads
from lighter.daemon.images.exporter import Exporter
from lighter.daemon.images.inspection import Inspection
from lighter.daemon.images.mounted import MountedImages
from lighter.daemon.images.pull import Puller
from lighter.daemon.images.push import Pusher
from lighter.daemon.images.service import ImageService
from lighter.daemon.images.store import ImageStore
from lighter.daemon.images.worker import tree_remover
from lighter.daemon.leases import Leases
from lighter.daemon.limits import DescriptorBudget, raise_descriptor_limit
from lighter.daemon.locks import take_lock
from lighter.daemon.metadata.containers import ContainerStore
from lighter.daemon.metadata.db import Database
from lighter.daemon.metadata.mend import open_database
from lighter.daemon.metadata.namespaces import NamespaceStore
from lighter.daemon.notify import Notifier
from lighter.daemon.oci.host import read_host
from lighter.daemon.placement import Placement, remove_empty
from lighter.daemon.registry.registries import Registries
from lighter.daemon.reload import Reloader
from lighter.daemon.rpc import (
    archive_handlers,
    content_handlers,
    disk_handlers,
    handlers,
    image_handlers,
    registry_handlers,
    shim_handlers,
    snapshot_handlers,
    system_handlers,
    transfer_handlers,
)
from lighter.daemon.rpc.server import ClientServer
from lighter.daemon.runtimes import Runtimes
from lighter.daemon.snapshots.native import NativeSnapshotter
from lighter.daemon.snapshots.overlay import OverlaySnapshotter
from lighter.daemon.snapshots.service import SnapshotService
from lighter.daemon.snapshots.types import Snapshotter
from lighter.daemon.sockets import context
from lighter.daemon.spawn import Inherited, Spawner
from lighter.daemon.stopping import StopAll
from lighter.daemon.tasks.bundle import Bundle
from lighter.daemon.tasks.creation import TaskCreator
from lighter.daemon.tasks.entry import Entry
from lighter.daemon.tasks.execs import ExecService
from lighter.daemon.tasks.recovery import Recovery, read_boot_id
from lighter.daemon.tasks.service import TaskService
from lighter.daemon.tasks.settle import WorkerSettler
from lighter.daemon.tasks.shims import ShimRouter
from lighter.daemon.tasks.store import TaskStore
from lighter.daemon.tasks.supervisor import Supervisor
from lighter.daemon.version import NAME, REVISION
from lighter.proto import events
from lighter.proto.errors import (
    FailedPrecondition,
    InvalidArgument,
    LighterError,
    NotFound,
    PermissionDenied,
)
from lighter.proto.faults import hit
from lighter.proto.paths import Root, State, check_socket_path
from lighter.proto.version import VERSION

log = logging.getLogger("lighter.app")

SWEEP_S = 2.0

LOOK_AT_SOCKETS_S = 1.0


class Manager:
    """One running manager. `run` returns when it was told to stop.

    `spawner`: the command line that starts a spawner of this same version; its settings follow.
    `reread` reads the configuration again, as it was read for `config`. `stands_in`: for which
    version this one serves, and why; "" when it is the one that was meant.
    """

    def __init__(
        self,
        config: Config,
        inherited: Inherited,
        notifier: Notifier,
        spawner: Sequence[str],
        reread: Callable[[], Config],
        stands_in: str = "",
    ) -> None:
        self._config = config
        self._inherited = inherited
        self._notifier = notifier
        self._spawner = spawner
        self._stands_in = stands_in
        self._registries = Registries(config.registry)
        self._reloader = Reloader(config, reread, notifier, self._registries)
        self._root = Root(config.root)
        self._state = State(config.state)
        self._stopping = asyncio.Event()

    async def run(self) -> None:
        """Start, serve until SIGTERM or SIGINT, and leave every container running."""
        if os.geteuid() != 0:
            raise PermissionDenied("start manager: it must run as root")
        raise_descriptor_limit()
        # What is made below gets its mode by name, directories above it this mask's.
        os.umask(0o022)
        self._check_directories()
        async with AsyncExitStack() as undo:
            locks = [take_lock(self._root.lock), take_lock(self._state.lock)]
            undo.callback(remove_empty, self._root.instance)
            files.write_whole(self._state.pid_file, f"{os.getpid()}\n".encode(), 0o644)
            undo.callback(files.remove, self._state.pid_file)
            hit("start.locked")
            db = open_database(self._root.database)
            undo.callback(db.close)
            first = self._first_generation()
            generation = db.raise_generation(first)
            if generation == first > 1 and not db.loss:
                db.note_loss("the database was not there, and containers were")
            log.info("manager starts version=%s generation=%d", VERSION, generation)
            if self._stands_in:
                log.warning("stands in for version %s", self._stands_in)
            await self._serve(undo, db, generation, locks)

    def _first_generation(self) -> int:
        """A shim heeds no lower one than it has seen, and outlives a database that is lost."""
        has_tasks = any(os.scandir(self._state.tasks))
        return int(time.time()) if has_tasks else 1

    async def _serve(
        self,
        undo: AsyncExitStack,
        db: Database,
        generation: int,
        locks: list[int],
    ) -> None:
        root, state, config = self._root, self._state, self._config
        budget = DescriptorBudget()
        runtime_of = Runtimes({"runc": config.runc_path}).find
        boot_id = read_boot_id()
        spawner = Spawner(
            root.instance,
            state.rehearsal,
            self._inherited,
            locks,
            self._spawner,
            Placement.of_this_process(root.instance, generation),
        )
        event_log = EventLog(db)
        namespaces = NamespaceStore(db)
        namespaces.ensure("default")
        content = ContentStore(root.content, db, share_all=config.content_sharing == "shared")
        ingests = Ingests(root.content + "/writes", content)
        leases = Leases(db)
        remover = tree_remover(spawner)
        snapshotters: dict[str, Snapshotter] = {
            "overlayfs": OverlaySnapshotter(root.snapshots, db, remover),
            "native": NativeSnapshotter(root.snapshots, db, remover),
        }
        images = ImageService(
            db,
            content,
            snapshotters,
            spawner,
            config.snapshotter,
            config.layer_limits,
            config.layers_at_once,
        )
        mounted = MountedImages(images, snapshotters, spawner)
        housekeeping = Housekeeping(
            root,
            db,
            namespaces,
            images.collector,
            ingests,
            leases,
            lambda of, name: event_log.publish(of, events.IMAGE_DELETE, {"name": name}),
        )
        scheduler = Scheduler(config.gc, housekeeping.collect)
        self._reloader.scheduler = scheduler
        db.on_mutation = scheduler.mutated
        images.collector.on_deleted = scheduler.deleted
        puller = Puller(
            content=content,
            images=ImageStore(db),
            collector=images.collector,
            unpacker=images.unpacker,
            leases=leases,
            downloads=Downloads(content, ingests),
            registries=self._registries,
            default_snapshotter=config.snapshotter,
        )
        pusher = Pusher(
            content=content,
            images=ImageStore(db),
            collector=images.collector,
            registries=self._registries,
        )

        # Tasks.
        store = TaskStore(db)
        bundle_of = partial(Bundle, state, root)
        supervisor = Supervisor(
            db,
            store,
            event_log,
            WorkerSettler(spawner, state, boot_id, config.runc_timeout_s),
            bundle_of,
            lambda entry: self._on_closed(entry, supervisor, containers),
        )
        router = ShimRouter(
            generation,
            supervisor.on_hello,
            supervisor.on_event,
            runtime_s=config.runc_timeout_s,
        )
        supervisor.router = router
        execs = ExecService(
            db=db, store=store, log=event_log, supervisor=supervisor, bundle_of=bundle_of
        )
        tasks = TaskService(
            db=db,
            store=store,
            log=event_log,
            supervisor=supervisor,
            execs=execs,
            bundle_of=bundle_of,
        )
        creator = TaskCreator(
            root=root,
            state=state,
            db=db,
            store=store,
            supervisor=supervisor,
            router=router,
            spawner=spawner,
            bundle_of=bundle_of,
            generation=generation,
            boot_id=boot_id,
            find_runtime=runtime_of,
            has_room=budget.has_room,
            runtime_s=config.runc_timeout_s,
        )
        containers = ContainerService(
            root=root,
            store=ContainerStore(db),
            images=images,
            snapshotters=snapshotters,
            identities=IdentityService(spawner),
            tasks=tasks,
            creator=creator,
            find_runtime=runtime_of,
            events_log=event_log,
            host=read_host(),
            defaults=Defaults(
                config.snapshotter,
                config.default_runtime,
                config.log_max_size,
                config.log_max_file,
            ),
        )
        recovery = Recovery(
            db=db,
            store=store,
            supervisor=supervisor,
            bundle_of=bundle_of,
            state=state,
            boot_id=boot_id,
        )
        supervisor.on_stranger = recovery.on_stranger
        undo.callback(supervisor.close)

        # The clients' front end.
        facts = {
            "name": NAME,
            "version": VERSION,
            "revision": REVISION,
            "uuid": db.uuid,
            "generation": generation,
            "instance": root.instance,
            "root": root.dir,
            "state": state.dir,
        }
        server = ClientServer(
            generation,
            {
                **handlers.version_method(facts),
                **handlers.namespace_methods(namespaces, ingests, images.collector),
                **handlers.container_methods(containers),
                **handlers.task_methods(tasks, execs, containers),
                **handlers.event_methods(event_log),
                **handlers.log_methods(root, tasks, containers),
                **image_handlers.image_methods(
                    images, Inspection(images, content), mounted, event_log
                ),
                **archive_handlers.archive_methods(
                    images,
                    Exporter(content, ImageStore(db), images.collector),
                    Converter(content, ImageStore(db), images.collector, spawner),
                    event_log,
                ),
                **transfer_handlers.transfer_methods(puller, pusher, event_log),
                **snapshot_handlers.snapshot_methods(
                    SnapshotService(db, snapshotters, config.snapshotter, spawner), images
                ),
                **registry_handlers.registry_methods(self._registries),
                **shim_handlers.shim_methods(supervisor, bundle_of, root, state),
                **content_handlers.content_methods(content, ingests, leases, images.collector),
                **content_handlers.lease_methods(leases, images.collector),
                **disk_handlers.disk_methods(housekeeping),
                **system_handlers.system_methods(
                    lambda: self._health(db, generation, server, router, budget),
                    self._reloader,
                    StopAll(supervisor, containers, tasks),
                    db.accept_loss,
                ),
            },
        )

        # From here on things happen.
        spawner.start()
        undo.push_async_callback(spawner.close)
        found = recovery.run()
        hit("start.recovered")
        zmq_context = context()
        undo.callback(zmq_context.destroy, 0)
        router.bind(zmq_context, check_socket_path(state.shims_socket))
        undo.callback(router.close)
        gid, mode = self._client_access()
        server.bind(zmq_context, check_socket_path(state.client_socket), gid, mode)
        undo.callback(server.close)
        self._handle_signals()
        self._notifier.ready()
        log.info("manager is ready tasks=%d socket=%s", found, state.client_socket)
        status = partial(_status, supervisor, self._stands_in)
        supervisor.in_background(self._notifier.keep_telling(status))
        supervisor.in_background(self._tidy(db, images, mounted, containers, namespaces, scheduler))
        supervisor.in_background(_keep_listening(server.listen_again, router.listen_again))
        await self._stopping.wait()
        await self._finish_removals(snapshotters)
        self._notifier.stopping()
        log.info("manager stops; containers go on")

    async def _finish_removals(self, snapshotters: Mapping[str, Snapshotter]) -> None:
        """Let removals end while the database is open; the next start does the rest."""
        for name, snapshotter in snapshotters.items():
            try:
                async with asyncio.timeout(SWEEP_S):
                    await snapshotter.sweep()
            except (TimeoutError, LighterError):
                log.info("removed snapshots of %s are swept at the next start", name)

    async def _tidy(
        self,
        db: Database,
        images: ImageService,
        mounted: MountedImages,
        containers: ContainerService,
        namespaces: NamespaceStore,
        scheduler: Scheduler,
    ) -> None:
        """Finish or undo what the manager before left half done on disk, then keep it tidy."""
        await mounted.recover()
        await images.recover()
        if not db.loss:
            await containers.orphans.remove_all([known.name for known in namespaces.list()])
        hit("start.tidied")
        await scheduler.run()

    def _on_closed(
        self, entry: Entry, supervisor: Supervisor, containers: ContainerService
    ) -> None:
        """A task is over and cleaned up: one that was to be removed then, is."""
        if entry.options.get("auto_remove"):
            supervisor.in_background(self._auto_remove(entry, containers))

    async def _auto_remove(self, entry: Entry, containers: ContainerService) -> None:
        try:
            await containers.delete(entry.namespace, entry.id, force=True)
        except NotFound:
            pass  # the caller was faster
        except LighterError as err:
            log.warning("remove container %s: %s", entry.id, err)
        finally:
            entry.removed.set()

    def _health(
        self,
        db: Database,
        generation: int,
        server: ClientServer,
        router: ShimRouter,
        budget: DescriptorBudget,
    ) -> "dict[str, object]":
        return {
            "status": "serving",
            "generation": generation,
            "clients": server.client_count,
            "shims": len(router.peers),
            "fds": budget.used,
            "dropped": server.dropped + router.dropped,
            "stands_in": self._stands_in,
            "loss": db.loss,
        }

    def _handle_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signum, self._stopping.set)
        loop.add_signal_handler(signal.SIGHUP, self._on_hangup)

    def _on_hangup(self) -> None:
        with contextlib.suppress(LighterError):  # the log says it
            self._reloader.reload()

    def _check_directories(self) -> None:
        """Make the instance's directories with their modes; older ones are corrected."""
        for socket in (self._state.shims_socket, self._state.client_socket):
            check_socket_path(socket)
        root = self._root.dir
        with contextlib.suppress(FileNotFoundError):
            foreign = [name for name in os.listdir(root) if name.startswith("io.containerd.")]
            if foreign:
                raise FailedPrecondition(
                    f"use root {root}: it holds containerd's data ({foreign[0]}); "
                    "choose another with --root, and see docs/migration.md"
                )
        if os.path.realpath(root) == os.path.realpath(self._state.dir):
            raise InvalidArgument(
                f"use state {self._state.dir}: it is the root too, and must be another directory"
            )
        try:
            # The two that an administrator may have put elsewhere with a link.
            files.make_directory(root, 0o700, follow=True)
            files.make_directory(self._state.dir, 0o711, follow=True)
            for path in (
                self._root.content,
                self._root.snapshots,
                root + "/exits",
                root + "/logs",
                self._state.tasks,
                self._state.runc,
                self._state.short_sockets,
            ):
                files.make_directory(path, 0o700)
        except OSError as err:
            raise FailedPrecondition(f"make directory {err.filename}: {err.strerror}") from err

    def _client_access(self) -> "tuple[int, int]":
        """(gid, mode) of the clients' socket: root alone, or root and the configured group."""
        group = self._config.group
        if not group:
            return -1, 0o600
        try:
            return grp.getgrnam(group).gr_gid, 0o660
        except KeyError as err:
            raise InvalidArgument(f"use group {group}: there is no such group") from err


def _status(supervisor: Supervisor, stands_in: str) -> str:
    """One line for `systemctl status`."""
    shims = [entry for entry in supervisor.entries.values() if entry.pidfd >= 0]
    adopted = sum(entry.peer is not None and entry.peer.version > 0 for entry in shims)
    instead = f"; stands in for version {stands_in}" if stands_in else ""
    return f"version {VERSION}, tasks adopted {adopted}/{len(shims)}{instead}"


async def _keep_listening(*listen_again: Callable[[], None]) -> None:
    """A socket's file can be deleted under a server, which the kernel does not tell it."""
    while True:
        await asyncio.sleep(LOOK_AT_SOCKETS_S)
        for act in listen_again:
            try:
                act()
            except (LighterError, OSError) as err:
                log.error("listen again: %s", err)
