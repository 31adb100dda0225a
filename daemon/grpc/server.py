"""The server of containerd's API: its socket, and which method answers a call."""

import asyncio
import logging
import os
import re
import socket
import stat
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import grpc
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from lighter.daemon.grpc.calls import Answer, streaming, unary
from lighter.daemon.grpc.tls import Tls, credentials
from lighter.daemon.grpc.watching import Watcher, watched_stream, watched_unary
from lighter.daemon.limits import GRPC
from lighter.proto.errors import FailedPrecondition, InvalidArgument, words_of
from lighter.proto.socketpath import check_socket_path

log = logging.getLogger("lighter.grpc")

DEFAULT_MESSAGE_SIZE = 16 << 20  # containerd's
STOP_S = 1.0
LAST_CALLS_S = 0.02
PROBE_S = 2.0
MAX_STREAMS = 2048
HANDSHAKE_MS = 10_000
KEEPALIVE_MS = 30_000
MAX_PINGS = 100
MAX_METADATA = 16 << 10  # bytes of a call's headers


@dataclass(frozen=True)
class Settings:
    """containerd's `[grpc]`: sizes in bytes, 0 for 16 MiB."""

    uid: int
    gid: int
    max_recv_message_size: int
    max_send_message_size: int


class Service(Protocol):
    """A service of the API: an async method per rpc, named as the rpc in snake case.

    `async def get(self, call, request) -> Response`, or the Response's bytes; one that streams is
    an async generator, and takes an async iterator of requests where those stream. An rpc without
    a method is unimplemented.
    """

    @property
    def NAME(self) -> str:
        """The service's full name."""


class GrpcServer:
    """Serves by socket and by TCP; `close` ends what is under way and waits for its clean-up."""

    def __init__(
        self, services: Sequence[Service], settings: Settings, watchers: Sequence[Watcher] = ()
    ) -> None:
        self._services = services
        self._settings = settings
        self._servers: list[grpc.aio.Server] = []
        self._paths: dict[str, bool] = {}
        self._closing = False
        self._table = _Table(services, watchers)

    async def start(self, path: str, *, for_root: bool = False) -> None:
        """Listen at `path`, mode 0660, for those of the settings or for root alone.

        A directory that is missing is made, a stale socket replaced, anything else refused. Raises
        InvalidArgument for a path that no socket can have, FailedPrecondition.
        """
        check_socket_path(path)
        await asyncio.to_thread(_clear, path)
        self._check_open(path)
        server, healthy = self._made()
        # The file is there with its final mode from its first moment on.
        mask = os.umask(0o177)
        try:
            server.add_insecure_port(f"unix:{path}")
            if not for_root:
                os.chown(path, self._settings.uid, self._settings.gid)
            os.chmod(path, 0o660)
        except (RuntimeError, OSError) as err:
            attempt = f"bind {path}"
            raise FailedPrecondition(f"{attempt}: {words_of(err, attempt)}") from err
        finally:
            os.umask(mask)
        await self._serve(server, healthy)
        self._paths[path] = for_root
        log.info("containerd's API is served socket=%s services=%d", path, len(self._services))

    def listen_again(self) -> Awaitable[None] | None:
        """Put a socket's file back if somebody deleted it; what it returns is to be waited for,
        and raises FailedPrecondition.

        A server of grpc listens to what it was told before its start: those who are connected keep
        the one that they have, and new ones get another.
        """
        for path, for_root in self._paths.items():
            if not self._closing and not os.path.lexists(path):
                log.warning("socket %s was deleted; listening again", path)
                return self.start(path, for_root=for_root)
        return None

    async def start_tcp(self, tls: Tls) -> None:
        """Listen for clients with certificates too. Raises FailedPrecondition, and may be tried
        again then.
        """
        shown = await asyncio.to_thread(credentials, tls)
        self._check_open(tls.address)
        # A client whose host is gone says nothing, not even that; beside a path there is none such.
        server, healthy = self._made(
            ("grpc.keepalive_time_ms", KEEPALIVE_MS),
            ("grpc.keepalive_timeout_ms", KEEPALIVE_MS),
        )
        try:
            server.add_secure_port(tls.address, shown)
        except RuntimeError as err:
            await server.stop(None)
            raise FailedPrecondition(f"bind {tls.address}: {err}") from err
        await self._serve(server, healthy)
        log.info("containerd's API is served by TLS too address=%s", tls.address)

    def _check_open(self, where: str) -> None:
        """Raises FailedPrecondition after `close`: a bind that is retried may come while the
        process still ends.
        """
        if self._closing:
            raise FailedPrecondition(f"bind {where}: the manager is stopping")

    async def _serve(self, server: grpc.aio.Server, healthy: health.aio.HealthServicer) -> None:
        self._servers.append(server)
        await server.start()
        await healthy.set("", health_pb2.HealthCheckResponse.SERVING)

    def _made(
        self, *options: tuple[str, int]
    ) -> "tuple[grpc.aio.Server, health.aio.HealthServicer]":
        """A server of all services that listens nowhere yet."""
        settings = self._settings
        server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", _size(settings.max_recv_message_size)),
                ("grpc.max_send_message_length", _size(settings.max_send_message_size)),
                # dockerd waits for each process by a stream of one connection. With a limit, gRPC
                # counts streams that are reset before they were served as well.
                ("grpc.max_concurrent_streams", MAX_STREAMS),
                # Above these it cancels calls, whosever they are: more than one flooder has.
                ("grpc.server.max_pending_requests", 4 * MAX_STREAMS),
                ("grpc.server.max_pending_requests_hard_limit", 8 * MAX_STREAMS),
                # The soft limit refuses at random from there to the hard one.
                ("grpc.max_metadata_size", MAX_METADATA),
                ("grpc.absolute_max_metadata_size", MAX_METADATA),
                # Each is a descriptor, of which the manager must not run out (daemon/limits.py).
                ("grpc.max_allowed_incoming_connections", GRPC.places()),
                ("grpc.server_handshake_timeout_ms", HANDSHAKE_MS),
                # Two managers on one path would each get some of the calls.
                ("grpc.so_reuseport", 0),
                # Clients of containerd ping at their own pace, at most every 10 s; one that pings
                # faster, with nothing sent to it meanwhile, is cut off. 0 would mean never.
                ("grpc.http2.min_ping_interval_without_data_ms", 5000),
                ("grpc.http2.max_ping_strikes", MAX_PINGS),
                *options,
            ]
        )
        server.add_generic_rpc_handlers((self._table,))
        healthy = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(healthy, server)
        names = [service.NAME for service in self._services]
        reflection.enable_server_reflection(
            [*names, health.SERVICE_NAME, reflection.SERVICE_NAME], server
        )
        return server, healthy

    async def close(self) -> None:
        """Refuse new calls, cancel those under way, and let them release what they hold.

        No server begins after this, as one would whose socket's file goes now. A call that grpc has
        accepted and not handed on yet when a server stops ends with CANCELLED, which dockerd takes
        for its own wish and subscribes no more: such ones get a moment to hear UNAVAILABLE.
        """
        self._closing = self._table.closing = True
        await asyncio.sleep(LAST_CALLS_S)
        for server in self._servers:
            await server.stop(None)
        for server in self._servers:
            await server.wait_for_termination(STOP_S)


def _clear(path: str) -> None:
    """Remove a socket that nobody listens on, or make its directory, which the host's restart may
    have emptied away. Raises FailedPrecondition for anything else.
    """
    try:
        os.makedirs(os.path.dirname(path), 0o711, exist_ok=True)
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise FailedPrecondition(f"bind {path}: something that is not a socket stands there")
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(PROBE_S)
            try:
                probe.connect(path)
            except ConnectionRefusedError:
                os.unlink(path)
                return
        raise FailedPrecondition(f"bind {path}: another program serves there")
    except FileNotFoundError:
        pass
    except OSError as err:
        raise FailedPrecondition(f"bind {path}: {err.strerror or err}") from err


def _size(configured: int) -> int:
    return configured or DEFAULT_MESSAGE_SIZE


class _Table(grpc.GenericRpcHandler):
    """What grpc asks for a method, made from the descriptors of pb/.

    One for all services: grpc asks each that it is given, one after the other, at every call.
    """

    def __init__(self, services: Sequence[Service], watchers: Sequence[Watcher]) -> None:
        self.closing = False
        self._stopping: grpc.RpcMethodHandler[Any, Any] = grpc.unary_unary_rpc_method_handler(
            _refuse
        )
        self._handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
        for service in services:
            described: ServiceDescriptor = descriptor_pool.Default().FindServiceByName(service.NAME)
            for rpc in described.methods:
                method = getattr(service, _snake(rpc.name), None)
                if method is not None:
                    path = f"/{service.NAME}/{rpc.name}"
                    self._handlers[path] = _handler(rpc, method, watchers)

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> "grpc.RpcMethodHandler[Any, Any] | None":
        if self.closing:
            return self._stopping
        return self._handlers.get(handler_call_details.method)


async def _refuse(_request: bytes, context: "grpc.aio.ServicerContext[Any, Any]") -> bytes:
    await context.abort(grpc.StatusCode.UNAVAILABLE, "the manager is stopping")


def _handler(
    rpc: MethodDescriptor, method: Any, watchers: Sequence[Watcher]
) -> "grpc.RpcMethodHandler[Any, Any]":
    name = f"{rpc.containing_service.full_name}/{rpc.name}"
    read = GetMessageClass(rpc.input_type).FromString
    write = _encoder(GetMessageClass(rpc.output_type))
    if rpc.client_streaming and not rpc.server_streaming:
        raise InvalidArgument(f"serve {name}: no rpc of this API streams to one answer")
    if not rpc.server_streaming:
        answer = unary(name, method)
        if watchers:
            answer = watched_unary(answer, watchers, rpc)
        return grpc.unary_unary_rpc_method_handler(answer, read, write)
    make = (
        grpc.stream_stream_rpc_method_handler
        if rpc.client_streaming
        else grpc.unary_stream_rpc_method_handler
    )
    answers = streaming(name, method)
    if watchers:
        answers = watched_stream(answers, watchers, rpc)
    return make(answers, read, write)


def _encoder(kind: type[Message]) -> Callable[[Answer], bytes]:
    encode = kind.SerializeToString

    def encoded(answer: Answer) -> bytes:
        return answer if isinstance(answer, bytes) else encode(answer)

    return encoded


def _snake(name: str) -> str:
    """ListStream -> list_stream, ResizePty -> resize_pty, CloseIO -> close_io."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
