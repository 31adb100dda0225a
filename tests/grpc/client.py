"""A client of containerd's API in few lines: methods by name, messages of daemon/grpc/pb.

with Api(path) as api:
    api.call(namespaces_pb2, "Namespaces", "Get", name="default").namespace
    list(api.stream(content_pb2, "Content", "Read", digest=digest))
"""

from collections.abc import Iterable, Iterator
from types import ModuleType, TracebackType
from typing import Any

import grpc
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message_factory import GetMessageClass

TIMEOUT_S = 60.0


class Api:
    """One channel. `namespace` and `lease` travel as headers unless they are ""."""

    def __init__(self, path: str, namespace: str = "default", lease: str = "") -> None:
        self.path = path
        self.metadata = [
            (key, value)
            for key, value in (("containerd-namespace", namespace), ("containerd-lease", lease))
            if value
        ]
        self._channel = grpc.insecure_channel(
            f"unix:{path}",
            options=[
                ("grpc.max_receive_message_length", 16 << 20),
                ("grpc.max_send_message_length", 64 << 20),
                ("grpc.use_local_subchannel_pool", 1),
            ],
        )

    def __enter__(self) -> "Api":
        grpc.channel_ready_future(self._channel).result(TIMEOUT_S)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self._channel.close()

    def call(self, module: ModuleType, service: str, method: str, **fields: Any) -> Any:
        """A unary call; the answer. Raises grpc.RpcError."""
        rpc = _rpc(module, service, method)
        request = GetMessageClass(rpc.input_type)(**fields)
        return self._bind(rpc, "unary_unary")(request, metadata=self.metadata, timeout=TIMEOUT_S)

    def future(self, module: ModuleType, service: str, method: str, **fields: Any) -> Any:
        """A unary call under way: `result()`, `cancel()`."""
        rpc = _rpc(module, service, method)
        request = GetMessageClass(rpc.input_type)(**fields)
        return self._bind(rpc, "unary_unary").future(
            request, metadata=self.metadata, timeout=TIMEOUT_S
        )

    def stream(self, module: ModuleType, service: str, method: str, **fields: Any) -> Any:
        """A call that is answered by a stream: iterate, or `cancel()`."""
        rpc = _rpc(module, service, method)
        request = GetMessageClass(rpc.input_type)(**fields)
        return self._bind(rpc, "unary_stream")(request, metadata=self.metadata, timeout=TIMEOUT_S)

    def converse(
        self, module: ModuleType, service: str, method: str, requests: Iterable[Any]
    ) -> Any:
        """A call that streams both ways."""
        rpc = _rpc(module, service, method)
        return self._bind(rpc, "stream_stream")(
            iter(requests), metadata=self.metadata, timeout=TIMEOUT_S
        )

    def _bind(self, rpc: MethodDescriptor, kind: str) -> Any:
        return getattr(self._channel, kind)(
            f"/{rpc.containing_service.full_name}/{rpc.name}",
            request_serializer=GetMessageClass(rpc.input_type).SerializeToString,
            response_deserializer=GetMessageClass(rpc.output_type).FromString,
        )


def _rpc(module: ModuleType, service: str, method: str) -> MethodDescriptor:
    found: MethodDescriptor = module.DESCRIPTOR.services_by_name[service].methods_by_name[method]
    return found


def code(error: BaseException) -> str:
    """The status code of a grpc.RpcError, as "NOT_FOUND"."""
    assert isinstance(error, grpc.Call)
    return str(error.code().name)


def messages(*made: Any) -> Iterator[Any]:
    """Requests of a stream that has them all from the start."""
    return iter(made)
