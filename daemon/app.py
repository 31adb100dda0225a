"""The wiring: which object gets which.

`build` makes the services on top of the core (core.py), which serves already when this module is
loaded. daemon/rpc/wiring.py (`ctl`) and daemon/grpc/wiring.py (containerd's API) give them to the
front ends, and make only what a front end has for itself. A store without state of its own over
the database is made wherever it is used. How a manager lives is manager.py.
"""

import sqlite3
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lighter.daemon.checkpoints.service import Checkpoints
from lighter.daemon.config.schema import Config
from lighter.daemon.containers.autoremoval import AutoRemoval
from lighter.daemon.containers.changing import ContainerChanges
from lighter.daemon.containers.files import ContainerFiles
from lighter.daemon.containers.freezing import Freezing
from lighter.daemon.containers.identity import IdentityService
from lighter.daemon.containers.idpool import IdPool
from lighter.daemon.containers.maker import ContainerMaker
from lighter.daemon.containers.records import ContainerRecords
from lighter.daemon.containers.relabelling import Relabelling
from lighter.daemon.containers.request import Defaults
from lighter.daemon.containers.service import ContainerService
from lighter.daemon.content.housekeeping import Housekeeping
from lighter.daemon.content.ingests import Ingests
from lighter.daemon.content.scheduler import Scheduler
from lighter.daemon.content.store import ContentStore
from lighter.daemon.core import Core
from lighter.daemon.health.probe import Prober
from lighter.daemon.health.service import HealthService
from lighter.daemon.images.downloads import Downloads
from lighter.daemon.images.layers import Layers
from lighter.daemon.images.mounted import MountedImages
from lighter.daemon.images.processors import Processors
from lighter.daemon.images.pull import Puller
from lighter.daemon.images.push import Pusher
from lighter.daemon.images.service import ImageService
from lighter.daemon.images.store import ImageStore
from lighter.daemon.images.worker import tree_remover
from lighter.daemon.leases import Leases
from lighter.daemon.metadata.containers import ContainerStore
from lighter.daemon.metadata.namespaces import NamespaceStore
from lighter.daemon.metadata.volumes import VolumeStore
from lighter.daemon.namespaces import NamespaceService
from lighter.daemon.network.catalog import NetworkCatalog
from lighter.daemon.network.configs import Configs
from lighter.daemon.network.ending import Endings
from lighter.daemon.network.live import LiveNetworks
from lighter.daemon.network.names import Names
from lighter.daemon.network.service import NetworkService
from lighter.daemon.notify import Notifier
from lighter.daemon.oci.host import read_host
from lighter.daemon.oci.selinux import SELinux
from lighter.daemon.registry.registries import Registries
from lighter.daemon.reload import Reloader
from lighter.daemon.restarts.byhand import ByHand
from lighter.daemon.restarts.labelwatch import LabelWatch
from lighter.daemon.restarts.service import Restarts
from lighter.daemon.services import Services
from lighter.daemon.snapshots.btrfs import BtrfsSnapshotter
from lighter.daemon.snapshots.erofs import ErofsSnapshotter
from lighter.daemon.snapshots.native import NativeSnapshotter
from lighter.daemon.snapshots.overlay import OverlaySnapshotter
from lighter.daemon.snapshots.service import SnapshotService
from lighter.daemon.snapshots.types import Snapshotter
from lighter.daemon.spawning.workers import Workers
from lighter.daemon.tasks.cgrouplock import CgroupLock
from lighter.daemon.tasks.creation import TaskCreator
from lighter.daemon.tasks.entry import Entry
from lighter.daemon.tasks.execs import ExecService
from lighter.daemon.tasks.freeing import WorkerFreer
from lighter.daemon.tasks.lost import LostTasks
from lighter.daemon.tasks.runtimes import Runtimes
from lighter.daemon.tasks.service import TaskService
from lighter.daemon.volumes.service import Volumes

if TYPE_CHECKING:
    from lighter.daemon.snapshots.proxy import ProxySnapshotter


@dataclass(frozen=True)
class _Followers:
    """Who hears of the tasks' steps, in which order: each, whatever those before it raise."""

    restarts: Restarts
    health: HealthService
    endings: Endings
    removal: AutoRemoval

    def on_started(self, entry: Entry) -> None:
        _tell_each(entry, self.restarts.on_started, self.health.on_started)

    def on_exit(self, entry: Entry) -> None:
        self.restarts.on_exit(entry)

    def on_closed(self, entry: Entry) -> None:
        _tell_each(entry, self.endings.on_over, self.removal.on_closed, self.restarts.on_closed)

    def on_forgetting(self, tx: sqlite3.Connection, entry: Entry) -> None:
        self.removal.on_forgetting(tx, entry)

    def on_forgotten(self, entry: Entry) -> None:
        self.endings.on_over(entry)


def _tell_each(entry: Entry, *tellings: Callable[[Entry], None]) -> None:
    """Raises what one of them has raised, once all have been told."""
    with ExitStack() as all_of_them:
        for telling in reversed(tellings):
            all_of_them.callback(telling, entry)


def _proxies(core: Core) -> "tuple[ProxySnapshotter, ...]":
    """The snapshotters of the configuration's plugins; gRPC is loaded for them alone."""
    if not core.config.proxy_plugins:
        return ()
    from lighter.daemon.grpc.snapshotclient import SnapshotClient
    from lighter.daemon.snapshots.proxy import ProxySnapshotter

    return tuple(
        ProxySnapshotter(
            plugin.name,
            SnapshotClient(plugin.name, plugin.address),
            core.db,
            core.event_log,
            core.root.dir,
        )
        for plugin in core.config.proxy_plugins
    )


def build(core: Core, reread: Callable[[], Config], notifier: Notifier) -> Services:
    """Make all services of one manager. Nothing runs yet but reads of the database.

    `reread` reads the configuration again, as it was read for the core.
    """
    config, root, state, db = core.config, core.root, core.state, core.db
    spawner, event_log, supervisor = core.spawner, core.event_log, core.supervisor
    workers = Workers(spawner)
    attachments, store, bundle_of = core.attachments, core.task_store, core.bundle_of
    container_store = ContainerStore(db)
    namespaces = NamespaceStore(db)
    namespaces.ensure("default")
    registries = Registries(config.registry)
    reloader = Reloader(config, reread, notifier, registries)
    runtimes = Runtimes({"runc": config.runc_path, "crun": config.crun_path})
    content = ContentStore(
        root.content, db, event_log, share_all=config.content_sharing == "shared"
    )
    ingests = Ingests(root.content + "/writes", content)
    leases = Leases(db)
    remover = tree_remover(workers)
    snapshotters: dict[str, Snapshotter] = {
        "overlayfs": OverlaySnapshotter(root.snapshots, db, event_log, remover),
        "native": NativeSnapshotter(root.snapshots, db, event_log, remover),
        "btrfs": BtrfsSnapshotter(root.snapshots, db, event_log, remover),
        "erofs": ErofsSnapshotter(root.snapshots, db, event_log, remover),
    }
    selinux = SELinux(config.selinux)
    selinux.label_snapshots(root.snapshots)
    proxies = _proxies(core)
    snapshotters.update((proxy.name, proxy) for proxy in proxies)
    processors = Processors(
        workers,
        config.stream_processors,
        lambda path: runtimes.find_program(path, "stream processor"),
    )
    images = ImageService(
        db,
        event_log,
        content,
        snapshotters,
        workers,
        config.snapshotter,
        config.layer_limits,
        config.layers_at_once,
        processors,
    )
    image_store = ImageStore(db, event_log)
    snapshots = SnapshotService(db, snapshotters, config.snapshotter, workers)
    layers = Layers(content, snapshots, images.collector, workers, config.layer_limits, processors)
    mounted = MountedImages(images, snapshotters, workers)
    housekeeping = Housekeeping(root, db, namespaces, images.collector, ingests, leases)
    scheduler = Scheduler(config.gc, housekeeping.collect)
    reloader.scheduler = scheduler
    db.on_mutation = scheduler.mutated
    images.collector.on_deleted = scheduler.deleted
    puller = Puller(
        content=content,
        images=image_store,
        collector=images.collector,
        unpacker=images.unpacker,
        leases=leases,
        downloads=Downloads(content, ingests),
        registries=registries,
        default_snapshotter=images.default_snapshotter,
    )
    pusher = Pusher(
        content=content,
        images=image_store,
        collector=images.collector,
        registries=registries,
    )

    # Tasks.
    cgroup_lock = CgroupLock()
    execs = ExecService(
        db=db,
        store=store,
        log=event_log,
        supervisor=supervisor,
        bundle_of=bundle_of,
        cgroup_lock=cgroup_lock,
    )
    network_configs = Configs((config.network_conf_dir,))
    names = Names(attachments, root.addresses)
    endings = Endings(attachments, network_configs, names)
    networks = NetworkService(
        attachments, endings, network_configs, supervisor.find, container_store.get, names
    )
    tasks = TaskService(
        db=db,
        store=store,
        log=event_log,
        supervisor=supervisor,
        execs=execs,
        bundle_of=bundle_of,
        network_released=endings.task_released,
        network_ready=networks.before_start,
    )
    creator = TaskCreator(
        root=root,
        state=state,
        db=db,
        store=store,
        supervisor=supervisor,
        router=core.router,
        spawner=spawner,
        bundle_of=bundle_of,
        generation=core.generation,
        boot_id=core.boot_id,
        runtimes=runtimes,
        has_room=core.budget.has_room,
        most_tasks=core.budget.most_tasks,
        runtime_s=config.runc_timeout_s,
        cgroup_lock=cgroup_lock,
    )
    host = read_host()
    volumes = Volumes(root, VolumeStore(db), workers, remover)
    identities = IdentityService(workers)
    relabelling = Relabelling(workers, root, state)
    maker = ContainerMaker(
        root=root,
        store=container_store,
        images=images,
        snapshotters=snapshotters,
        identities=identities,
        volumes=volumes,
        has_task=tasks.exists,
        runtimes=runtimes,
        worker=workers,
        events_log=event_log,
        host=host,
        defaults=Defaults(
            config.snapshotter,
            config.default_runtime,
            config.log_max_size,
            config.log_max_file,
        ),
        check_network=networks.check,
        labels_of=namespaces.labels,
        id_pool=IdPool(container_store, config.userns_ids),
        selinux=selinux,
        relabelling=relabelling,
    )
    records = ContainerRecords(
        root=root,
        store=container_store,
        tasks=tasks,
        events_log=event_log,
        collector=images.collector,
    )
    containers = ContainerService(
        store=container_store,
        records=records,
        maker=maker,
        snapshotters=snapshotters,
        identities=identities,
        volumes=volumes,
        tasks=tasks,
        creator=creator,
        networks=networks,
        relabelling=relabelling,
    )
    restarts = Restarts(
        store=core.restart_store,
        containers=containers,
        tasks=tasks,
        supervisor=supervisor,
        events_log=event_log,
    )
    removal = AutoRemoval(
        supervisor=supervisor,
        containers=containers,
        store=core.restart_store,
        goes_on=restarts.goes_on,
    )
    health = HealthService(
        store=core.health_store,
        containers=container_store,
        prober=Prober(containers, tasks, execs),
        supervisor=supervisor,
        events_log=event_log,
    )

    freezing = Freezing(db, tasks)
    checkpoints = Checkpoints(
        uuid=db.uuid,
        containers=container_store,
        maker=maker,
        tasks=tasks,
        freezing=freezing,
        content=content,
        images=image_store,
        snapshots=snapshots,
        layers=layers,
        collector=images.collector,
        worker=workers,
    )
    changes = ContainerChanges(
        root=root,
        db=db,
        store=container_store,
        records=records,
        tasks=tasks,
        events_log=event_log,
        is_owner=maker.is_owner,
        has_writer=containers.has_writer,
    )

    freer = WorkerFreer(workers, root.instance, state, core.boot_id, config.runc_timeout_s)
    return Services(
        config=config,
        root=root,
        state=state,
        generation=core.generation,
        db=db,
        spawner=spawner,
        workers=workers,
        event_log=event_log,
        namespaces=NamespaceService(namespaces, ingests, images.collector, event_log),
        content=content,
        ingests=ingests,
        leases=leases,
        snapshotters=snapshotters,
        proxies=proxies,
        snapshots=snapshots,
        image_store=image_store,
        images=images,
        layers=layers,
        mounted=mounted,
        housekeeping=housekeeping,
        scheduler=scheduler,
        registries=registries,
        puller=puller,
        pusher=pusher,
        bundle_of=bundle_of,
        supervisor=supervisor,
        router=core.router,
        execs=execs,
        tasks=tasks,
        containers=containers,
        container_store=container_store,
        maker=maker,
        volumes=volumes,
        files=ContainerFiles(containers, tasks, snapshots, workers),
        freezing=freezing,
        records=records,
        changes=changes,
        checkpoints=checkpoints,
        restarts=restarts,
        by_hand=ByHand(
            restarts=restarts,
            store=core.restart_store,
            containers=containers,
            tasks=tasks,
            supervisor=supervisor,
        ),
        label_watch=LabelWatch(
            restarts=restarts, store=core.restart_store, tasks=tasks, supervisor=supervisor
        ),
        health=health,
        followers=_Followers(restarts, health, endings, removal),
        settler=LostTasks(supervisor, bundle_of, freer),
        network_of=core.network_of,
        attachments=attachments,
        endings=endings,
        live_networks=LiveNetworks(
            networks, attachments, network_configs, container_store, supervisor.entry
        ),
        network_catalog=NetworkCatalog(
            attachments,
            network_configs,
            db,
            pool=config.network_subnet,
            addresses=root.addresses,
        ),
        reloader=reloader,
        host=host,
    )
