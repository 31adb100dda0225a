"""How many calls there were and how they ended, by the names of go-grpc-prometheus."""

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, cast

import grpc
from google.protobuf.descriptor import MethodDescriptor

from lighter.daemon.prometheus import Family, Sample

Context = grpc.aio.ServicerContext[Any, Any]
Unary = Callable[[Any, Context], Awaitable[Any]]
Streaming = Callable[[Any, Context], AsyncIterator[Any]]
Method = tuple[str, str, str]  # type, service, method

_BY_NUMBER = {code.value[0]: code for code in grpc.StatusCode}


class CallCounts:
    """Since this manager's start."""

    def __init__(self) -> None:
        self.started: Counter[Method] = Counter()
        self.handled: Counter[tuple[Method, str]] = Counter()

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


def counted_unary(handle: Unary, counts: CallCounts, rpc: MethodDescriptor) -> Unary:
    method = _method(rpc)

    async def counted(request: Any, context: Context) -> Any:
        counts.started[method] += 1
        code = "Canceled"
        try:
            answer = await handle(request, context)
            code = "OK"
            return answer
        except grpc.aio.AbortError:
            code = _spelled(context)
            raise
        finally:
            counts.handled[method, code] += 1

    return counted


def counted_stream(handle: Streaming, counts: CallCounts, rpc: MethodDescriptor) -> Streaming:
    method = _method(rpc)

    async def counted(request: Any, context: Context) -> AsyncIterator[Any]:
        counts.started[method] += 1
        code = "Canceled"
        try:
            async with aclosing(cast("Any", handle(request, context))) as answers:
                async for answer in answers:
                    yield answer
            code = "OK"
        except grpc.aio.AbortError:
            code = _spelled(context)
            raise
        finally:
            counts.handled[method, code] += 1

    return counted


def _spelled(context: Context) -> str:
    """As Go writes it: NotFound, and Canceled with one l."""
    found: Any = context.code()
    code = found if isinstance(found, grpc.StatusCode) else _BY_NUMBER.get(found)
    if code is None:
        return "Unknown"
    name = "".join(word.capitalize() for word in code.name.split("_"))
    return {"Ok": "OK", "Cancelled": "Canceled"}.get(name, name)


def _method(rpc: MethodDescriptor) -> Method:
    kind = "unary"
    if rpc.server_streaming:
        kind = "bidi_stream" if rpc.client_streaming else "server_stream"
    return kind, rpc.containing_service.full_name, rpc.name


def _labels(method: Method) -> dict[str, str]:
    kind, service, name = method
    return {"grpc_method": name, "grpc_service": service, "grpc_type": kind}
