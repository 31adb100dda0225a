"""Spans of calls arrive at a collector, and one that is away or mute holds nobody up."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from lighter.daemon.grpc.pb import containers_pb2, version_pb2
from tests.grpc.client import Api
from tests.harness import Lighterd, await_that

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class Collector(ThreadingHTTPServer):
    """Takes OTLP as JSON; keeps what came, by path."""

    daemon_threads = True

    def __init__(self) -> None:
        self.came: list[tuple[str, str, dict[str, Any]]] = []
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def spans(self) -> list[dict[str, Any]]:
        return [
            span
            for _, _, body in self.came
            for resource in body["resourceSpans"]
            for scope in resource["scopeSpans"]
            for span in scope["spans"]
        ]


class Handler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.came.append((self.path, self.headers.get("X-Key", ""), json.loads(body)))
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as collector:
        thread = threading.Thread(target=collector.serve_forever, daemon=True)
        thread.start()
        yield collector
        collector.shutdown()
        thread.join()


def test_calls_become_spans(make_lighterd: Callable[..., Lighterd], collector: Collector) -> None:
    lighterd = make_lighterd().start(
        OTEL_EXPORTER_OTLP_ENDPOINT=collector.address,
        OTEL_EXPORTER_OTLP_HEADERS="X-Key=hunter2",
        OTEL_SERVICE_NAME="mine",
    )
    with Api(lighterd.grpc_address) as api:
        api.metadata = (*api.metadata, ("traceparent", f"00-{TRACE}-{SPAN}-01"))
        api.call(version_pb2, "Version", "Version")
        with pytest.raises(Exception, match="not found"):
            api.call(containers_pb2, "Containers", "Get", id="nobody")
    # What waits is sent when a manager ends, before its turn.
    assert lighterd.stop() == 0
    await_that(lambda: len(collector.spans()) == 2, 20, "both spans have come")
    (path, key, body), *_ = collector.came
    assert (path, key) == ("/v1/traces", "hunter2")
    told = {one["key"]: one["value"] for one in body["resourceSpans"][0]["resource"]["attributes"]}
    assert told["service.name"] == {"stringValue": "mine"}
    first, second = collector.spans()
    assert first["name"] == "containerd.services.version.v1.Version/Version"
    assert (first["traceId"], first["parentSpanId"], first["kind"]) == (TRACE, SPAN, 2)
    assert 0 < int(first["startTimeUnixNano"]) <= int(first["endTimeUnixNano"])
    said = {one["key"]: one["value"]["stringValue"] for one in second["attributes"]}
    assert said == {
        "rpc.system": "grpc",
        "rpc.service": "containerd.services.containers.v1.Containers",
        "rpc.method": "Get",
        "rpc.grpc.status": "NotFound",
        "containerd.namespace": "default",
    }
    assert "hunter2" not in lighterd.log.read_text()


def test_a_collector_that_is_away_holds_nobody_up(make_lighterd: Callable[..., Lighterd]) -> None:
    lighterd = make_lighterd(
        config='[plugins."io.containerd.tracing.processor.v1.otlp"]\n'
        'endpoint = "http://user:hunter2@127.0.0.1:9"\n'
    ).start()
    with Api(lighterd.grpc_address) as api:
        api.call(version_pb2, "Version", "Version")
        await_that(
            lambda: "send traces to http://<hidden>@127.0.0.1:9/v1/traces: " in lighterd.log_end(),
            30,
            "it is said",
        )
        api.call(version_pb2, "Version", "Version")
    assert lighterd.stop() == 0
    assert lighterd.log_end().count("send traces to") == 1
    assert "hunter2" not in lighterd.log.read_text()
