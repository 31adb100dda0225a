"""How many calls there were and how they ended, by the names of go-grpc-prometheus."""

from collections import Counter

from google.protobuf.descriptor import MethodDescriptor

from lighter.daemon.grpc.watching import Context, Ended
from lighter.daemon.metrics.prometheus import Family, Sample

Method = tuple[str, str, str]  # type, service, method


class CallCounts:
    """Since this manager's start."""

    def __init__(self) -> None:
        self.started: Counter[Method] = Counter()
        self.handled: Counter[tuple[Method, str]] = Counter()

    def begin(self, rpc: MethodDescriptor, _context: Context) -> Ended:
        method = _method(rpc)
        self.started[method] += 1

        def ended(code: str) -> None:
            self.handled[method, code] += 1

        return ended

    def families(self) -> list[Family]:
        return [
            Family(
                "grpc_server_started_total",
                "counter",
                [Sample(_labels(method), count) for method, count in self.started.items()],
            ),
            Family(
                "grpc_server_handled_total",
                "counter",
                [
                    Sample({"grpc_code": code, **_labels(method)}, count)
                    for (method, code), count in self.handled.items()
                ],
            ),
        ]


def _method(rpc: MethodDescriptor) -> Method:
    kind = "unary"
    if rpc.server_streaming:
        kind = "bidi_stream" if rpc.client_streaming else "server_stream"
    return kind, rpc.containing_service.full_name, rpc.name


def _labels(method: Method) -> dict[str, str]:
    kind, service, name = method
    return {"grpc_method": name, "grpc_service": service, "grpc_type": kind}
