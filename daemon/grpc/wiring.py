"""Which service of the API gets which of the manager's."""

from lighter.daemon.app import Services
from lighter.daemon.grpc.introspection import IntrospectionService
from lighter.daemon.grpc.namespaces import NamespacesService
from lighter.daemon.grpc.server import GrpcServer, Service, Settings
from lighter.daemon.grpc.version import VersionService
from lighter.daemon.version import REVISION
from lighter.proto.version import VERSION


def grpc_server(s: Services) -> GrpcServer:
    """The front end, not started yet."""
    services: list[Service] = [
        VersionService(VERSION, REVISION),
        NamespacesService(s.namespaces),
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
    )
