"""Which service of the API gets which of the manager's."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from lighter.daemon.config.listening import tcp_address
from lighter.daemon.config.schema import Config
from lighter.daemon.grpc.callcounts import CallCounts
from lighter.daemon.grpc.checkpoints import TaskCheckpoints
from lighter.daemon.grpc.containers import ContainersService
from lighter.daemon.grpc.content import ContentService
from lighter.daemon.grpc.diff import DiffService
from lighter.daemon.grpc.events import EventsService
from lighter.daemon.grpc.images import ImagesService
from lighter.daemon.grpc.introspection import IntrospectionService
from lighter.daemon.grpc.leases import LeasesService
from lighter.daemon.grpc.namespaces import NamespacesService
from lighter.daemon.grpc.sandboxes import SandboxControllerService, SandboxesService
from lighter.daemon.grpc.server import GrpcServer, Service, Settings
from lighter.daemon.grpc.snapshots import SnapshotsService
from lighter.daemon.grpc.streams import StreamingService, Streams
from lighter.daemon.grpc.tasks import TasksService
from lighter.daemon.grpc.tls import Tls
from lighter.daemon.grpc.transfer import Parts, TransferService
from lighter.daemon.grpc.version import VersionService
from lighter.daemon.grpc.watching import Watcher
from lighter.daemon.images.exporter import Exporter
from lighter.daemon.images.imposed import ImposedLabels
from lighter.daemon.metadata.sandboxes import SandboxStore
from lighter.daemon.services import Services
from lighter.daemon.version import REVISION
from lighter.proto.version import VERSION

if TYPE_CHECKING:
    from lighter.daemon.grpc.tracing import Traces
    from lighter.daemon.metrics.server import MetricServer


def grpc_server(s: Services, watchers: Sequence[Watcher] = ()) -> GrpcServer:
    """The front end, not started yet; `watchers` hear of its calls."""
    streams, sandboxes = Streams(), SandboxStore(s.db)
    services: list[Service] = [
        VersionService(VERSION, REVISION),
        NamespacesService(s.namespaces),
        ContentService(s.content, s.ingests, s.leases, s.images.collector),
        ImagesService(s.images, s.leases),
        LeasesService(s.leases, s.images.collector),
        SnapshotsService(s.snapshots, s.leases, s.images.collector),
        DiffService(
            s.layers,
            s.leases,
            s.images.collector,
        ),
        ContainersService(s.records, ImposedLabels(s.images, s.content)),
        TasksService(
            s.records,
            s.containers,
            s.tasks,
            s.execs,
            s.by_hand,
            TaskCheckpoints(s.checkpoints, s.by_hand, s.leases),
        ),
        EventsService(s.event_log, s.tasks),
        StreamingService(streams),
        TransferService(
            streams,
            Parts(
                content=s.content,
                images=s.images,
                puller=s.puller,
                pusher=s.pusher,
                exporter=Exporter(s.content, s.image_store, s.images.collector),
                leases=s.leases,
            ),
        ),
        SandboxesService(sandboxes),
        SandboxControllerService(sandboxes),
    ]
    services.append(IntrospectionService(s.db.uuid, services, s.snapshotters))
    return GrpcServer(
        services,
        Settings(
            s.config.grpc_uid,
            s.config.grpc_gid,
            s.config.max_recv_message_size,
            s.config.max_send_message_size,
        ),
        watchers,
    )


def traces(s: Services, environ: Mapping[str, str]) -> "Traces | None":
    """Who sends a span for each call; None where nobody asked for it."""
    by_environment = any(name.startswith("OTEL_EXPORTER_OTLP") for name in environ)
    if not by_environment and not s.config.tracing_endpoint:
        return None
    from lighter.daemon.grpc.tracing import Traces, settings_of

    wanted = settings_of(environ, s.config)
    return Traces(wanted, VERSION, s.db.uuid) if wanted else None


def tls(config: Config) -> Tls | None:
    """Where and how the API is served by TCP; None where nobody asked for it."""
    if not config.tcp_address:
        return None
    address = str(tcp_address(config.tcp_address))
    return Tls(address, config.tcp_tls_cert, config.tcp_tls_key, config.tcp_tls_ca)


def metric_server(s: Services, counts: CallCounts) -> "MetricServer":
    """The page for Prometheus, not started yet. An HTTP server is loaded for it."""
    from lighter.daemon.metrics.server import MetricServer

    return MetricServer(tcp_address(s.config.metrics_address), s.supervisor, counts.families)
