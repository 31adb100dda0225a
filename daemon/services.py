"""What front ends and the manager's own life work with: all services, once they are there."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lighter.daemon.checkpoints.service import Checkpoints
from lighter.daemon.config.schema import Config
from lighter.daemon.containers.changing import ContainerChanges
from lighter.daemon.containers.files import ContainerFiles
from lighter.daemon.containers.freezing import Freezing
from lighter.daemon.containers.maker import ContainerMaker
from lighter.daemon.containers.records import ContainerRecords
from lighter.daemon.containers.service import ContainerService
from lighter.daemon.content.housekeeping import Housekeeping
from lighter.daemon.content.ingests import Ingests
from lighter.daemon.content.scheduler import Scheduler
from lighter.daemon.content.store import ContentStore
from lighter.daemon.events.log import EventLog
from lighter.daemon.health.service import HealthService
from lighter.daemon.images.layers import Layers
from lighter.daemon.images.mounted import MountedImages
from lighter.daemon.images.pull import Puller
from lighter.daemon.images.push import Pusher
from lighter.daemon.images.service import ImageService
from lighter.daemon.images.store import ImageStore
from lighter.daemon.leases import Leases
from lighter.daemon.metadata.containers import ContainerStore
from lighter.daemon.metadata.db import Database
from lighter.daemon.namespaces import NamespaceService
from lighter.daemon.network.attachments import Attachments
from lighter.daemon.network.catalog import NetworkCatalog
from lighter.daemon.network.ending import Endings
from lighter.daemon.network.live import LiveNetworks
from lighter.daemon.oci.host import Host
from lighter.daemon.registry.registries import Registries
from lighter.daemon.reload import Reloader
from lighter.daemon.restarts.byhand import ByHand
from lighter.daemon.restarts.labelwatch import LabelWatch
from lighter.daemon.restarts.service import Restarts
from lighter.daemon.snapshots.service import SnapshotService
from lighter.daemon.snapshots.types import Snapshotter
from lighter.daemon.spawning.spawner import Spawner
from lighter.daemon.spawning.workers import Workers
from lighter.daemon.tasks.bundle import Bundle
from lighter.daemon.tasks.execs import ExecService
from lighter.daemon.tasks.followers import Followers, Settler
from lighter.daemon.tasks.service import TaskService
from lighter.daemon.tasks.shims import ShimRouter
from lighter.daemon.tasks.supervisor import Supervisor
from lighter.daemon.volumes.service import Volumes
from lighter.proto.paths import Root, State

if TYPE_CHECKING:
    from lighter.daemon.snapshots.proxy import ProxySnapshotter


@dataclass(frozen=True)
class Services:
    """One manager's; app.py makes them."""

    config: Config
    root: Root
    state: State
    generation: int
    db: Database
    spawner: Spawner
    workers: Workers
    event_log: EventLog
    namespaces: NamespaceService
    content: ContentStore
    ingests: Ingests
    leases: Leases
    snapshotters: Mapping[str, Snapshotter]
    proxies: "Sequence[ProxySnapshotter]"
    snapshots: SnapshotService
    image_store: ImageStore
    images: ImageService
    layers: Layers
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
    followers: Followers
    settler: Settler
    network_of: Callable[[str, str], dict[str, Any]]
    attachments: Attachments
    endings: Endings
    live_networks: LiveNetworks
    network_catalog: NetworkCatalog
    reloader: Reloader
    host: Host
