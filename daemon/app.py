"""The wiring: which object gets which. Nothing else in the manager builds services.

`build` makes the services; which of them the front ends get is in daemon/rpc/wiring.py (`ctl`) and
daemon/grpc/wiring.py (containerd's API). How a manager lives is manager.py.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from lighter.daemon.autoremoval import AutoRemoval
from lighter.daemon.checkpoints.service import Checkpoints
from lighter.daemon.config import Config
from lighter.daemon.containerfiles import ContainerFiles
from lighter.daemon.containers.changing import ContainerChanges
from lighter.daemon.containers.idpool import IdPool
from lighter.daemon.containers.maker import ContainerMaker
from lighter.daemon.containers.request import Defaults
from lighter.daemon.containers.service import ContainerService
from lighter.daemon.content.housekeeping import Housekeeping
from lighter.daemon.content.ingests import Ingests
from lighter.daemon.content.scheduler import Scheduler
from lighter.daemon.content.store import ContentStore
from lighter.daemon.events import EventLog
from lighter.daemon.freezing import Freezing
from lighter.daemon.health.probe import Prober
from lighter.daemon.health.service import HealthService
from lighter.daemon.health.store import HealthStore
from lighter.daemon.identity import IdentityService
from lighter.daemon.images.downloads import Downloads
from lighter.daemon.images.layers import Layers
from lighter.daemon.images.mounted import MountedImages
from lighter.daemon.images.pull import Puller
from lighter.daemon.images.push import Pusher
from lighter.daemon.images.service import ImageService
from lighter.daemon.images.store import ImageStore
from lighter.daemon.images.worker import tree_remover
from lighter.daemon.leases import Leases
from lighter.daemon.limits import DescriptorBudget
from lighter.daemon.metadata.containers import ContainerStore
from lighter.daemon.metadata.db import Database
from lighter.daemon.metadata.namespaces import NamespaceStore
from lighter.daemon.metadata.volumes import VolumeStore
from lighter.daemon.namespaces import NamespaceService
from lighter.daemon.network.attachments import Attachments
from lighter.daemon.network.catalog import NetworkCatalog
from lighter.daemon.network.chain import Chain
from lighter.daemon.network.configs import Configs
from lighter.daemon.network.ending import Endings
from lighter.daemon.network.live import LiveNetworks
from lighter.daemon.network.netns import NetworkNamespaces
from lighter.daemon.network.plugin import search_path
from lighter.daemon.network.records import Records
from lighter.daemon.network.service import NetworkService
from lighter.daemon.oci.host import Host, read_host
from lighter.daemon.placement import Placement
from lighter.daemon.records import ContainerRecords
from lighter.daemon.registry.registries import Registries
from lighter.daemon.reload import Reloader
from lighter.daemon.restarts.byhand import ByHand
from lighter.daemon.restarts.labelwatch import LabelWatch
from lighter.daemon.restarts.service import Restarts
from lighter.daemon.restarts.store import RestartStore
from lighter.daemon.runtimes import Runtimes
from lighter.daemon.snapshots.btrfs import BtrfsSnapshotter
from lighter.daemon.snapshots.erofs import ErofsSnapshotter
from lighter.daemon.snapshots.native import NativeSnapshotter
from lighter.daemon.snapshots.overlay import OverlaySnapshotter
from lighter.daemon.snapshots.service import SnapshotService
from lighter.daemon.snapshots.types import Snapshotter
from lighter.daemon.spawn import Inherited, Spawner
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
from lighter.daemon.volumes.service import Volumes
from lighter.proto import events
from lighter.proto.paths import Root, State


@dataclass(frozen=True)
class Services:
    """What front ends and the manager's own life work with."""

    config: Config
    root: Root
    state: State
    generation: int
    db: Database
    budget: DescriptorBudget
    spawner: Spawner
    event_log: EventLog
    namespaces: NamespaceService
    content: ContentStore
    ingests: Ingests
    leases: Leases
    snapshotters: Mapping[str, Snapshotter]
    snapshots: SnapshotService
    image_store: ImageStore
    images: ImageService
    mounted: MountedImages
    housekeeping: Housekeeping
    scheduler: Scheduler
    registries: Registries
    puller: Puller
    pusher: Pusher
    bundle_of: Callable[[str, str], Bundle]
    supervisor: Supervisor
    router: ShimRouter
    execs: ExecService
    tasks: TaskService
    containers: ContainerService
    container_store: ContainerStore
    maker: ContainerMaker
    volumes: Volumes
    files: ContainerFiles
    freezing: Freezing
    records: ContainerRecords
    changes: ContainerChanges
    checkpoints: Checkpoints
    restarts: Restarts
    by_hand: ByHand
    label_watch: LabelWatch
    health: HealthService
    recovery: Recovery
    attachments: Attachments
    endings: Endings
    live_networks: LiveNetworks
    network_catalog: NetworkCatalog
    reloader: Reloader
    host: Host


def build(
    config: Config,
    db: Database,
    generation: int,
    locks: Sequence[int],
    inherited: Inherited,
    spawner_argv: Sequence[str],
    registries: Registries,
    reloader: Reloader,
) -> Services:
    """Make all services of one manager. Nothing runs yet but reads of the database."""
    root, state = Root(config.root), State(config.state)
    budget = DescriptorBudget()
    runtimes = Runtimes({"runc": config.runc_path, "crun": config.crun_path})
    boot_id = read_boot_id()
    spawner = Spawner(
        root.instance,
        state.rehearsal,
        inherited,
        locks,
        spawner_argv,
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
        "btrfs": BtrfsSnapshotter(root.snapshots, db, remover),
        "erofs": ErofsSnapshotter(root.snapshots, db, remover),
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
    image_store = ImageStore(db)
    snapshots = SnapshotService(db, snapshotters, config.snapshotter, spawner, event_log)
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
        default_snapshotter=config.snapshotter,
    )
    pusher = Pusher(
        content=content,
        images=image_store,
        collector=images.collector,
        registries=registries,
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
    network_configs = Configs((config.network_conf_dir,))
    attachments = Attachments(
        instance=root.instance,
        boot_id=boot_id,
        chain=Chain(search_path(config.network_bin_dir, os.environ), config.network_timeout_s),
        store=Records(root, state),
        netns=NetworkNamespaces(state, spawner),
        bundle_of=bundle_of,
    )
    endings = Endings(attachments, network_configs)
    container_store = ContainerStore(db)
    networks = NetworkService(
        attachments, endings, network_configs, supervisor.find, container_store.get
    )
    supervisor.on_forgotten = endings.on_over
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
        router=router,
        spawner=spawner,
        bundle_of=bundle_of,
        generation=generation,
        boot_id=boot_id,
        runtimes=runtimes,
        has_room=budget.has_room,
        runtime_s=config.runc_timeout_s,
    )
    host = read_host()
    volumes = Volumes(root, VolumeStore(db), spawner, remover)
    identities = IdentityService(spawner)
    maker = ContainerMaker(
        root=root,
        store=container_store,
        images=images,
        snapshotters=snapshotters,
        identities=identities,
        volumes=volumes,
        has_task=tasks.exists,
        runtimes=runtimes,
        worker=spawner,
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
    )
    containers = ContainerService(
        root=root,
        store=container_store,
        maker=maker,
        images=images,
        snapshotters=snapshotters,
        identities=identities,
        volumes=volumes,
        tasks=tasks,
        creator=creator,
        events_log=event_log,
        networks=networks,
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
    restart_store = RestartStore(db)
    restarts = Restarts(
        store=restart_store,
        containers=containers,
        tasks=tasks,
        supervisor=supervisor,
        events_log=event_log,
    )
    removal = AutoRemoval(supervisor, containers, restarts.goes_on)
    health = HealthService(
        store=HealthStore(db),
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
        layers=Layers(content, snapshots, images.collector, spawner, config.layer_limits),
        collector=images.collector,
        worker=spawner,
    )
    changes = ContainerChanges(
        root=root,
        db=db,
        store=container_store,
        tasks=tasks,
        events_log=event_log,
        is_owner=maker.is_owner,
    )

    def on_closed(entry: Entry) -> None:
        endings.on_over(entry)
        removal.on_closed(entry)
        restarts.on_closed(entry)

    def on_started(entry: Entry) -> None:
        restarts.on_started(entry)
        health.on_started(entry)

    supervisor.on_exit = restarts.on_exit
    supervisor.on_closed = on_closed
    supervisor.on_started = on_started
    return Services(
        config=config,
        root=root,
        state=state,
        generation=generation,
        db=db,
        budget=budget,
        spawner=spawner,
        event_log=event_log,
        namespaces=NamespaceService(namespaces, ingests, images.collector, event_log),
        content=content,
        ingests=ingests,
        leases=leases,
        snapshotters=snapshotters,
        snapshots=snapshots,
        image_store=image_store,
        images=images,
        mounted=mounted,
        housekeeping=housekeeping,
        scheduler=scheduler,
        registries=registries,
        puller=puller,
        pusher=pusher,
        bundle_of=bundle_of,
        supervisor=supervisor,
        router=router,
        execs=execs,
        tasks=tasks,
        containers=containers,
        container_store=container_store,
        maker=maker,
        volumes=volumes,
        files=ContainerFiles(containers, tasks, snapshots, spawner),
        freezing=freezing,
        records=ContainerRecords(
            root=root, store=container_store, tasks=tasks, events_log=event_log
        ),
        changes=changes,
        checkpoints=checkpoints,
        restarts=restarts,
        by_hand=ByHand(
            restarts=restarts,
            store=restart_store,
            containers=containers,
            tasks=tasks,
            supervisor=supervisor,
        ),
        label_watch=LabelWatch(
            restarts=restarts, store=restart_store, tasks=tasks, supervisor=supervisor
        ),
        health=health,
        recovery=recovery,
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
