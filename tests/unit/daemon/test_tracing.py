"""What environment and configuration make of tracing; where a span is among its caller's."""

import tomllib
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest

from lighter.daemon.config.schema import Config, parse
from lighter.daemon.config.view import shown
from lighter.daemon.grpc.pb import version_pb2
from lighter.daemon.grpc.tracing import MOST_SPANS, Settings, Traces, settings_of

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
WHOLE = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.mark.parametrize(
    ("environ", "wanted"),
    [
        ({}, None),
        ({ENDPOINT: "http://c:4318"}, Settings("http://c:4318/v1/traces")),
        (
            {ENDPOINT: "http://c:4318/", "OTEL_SERVICE_NAME": "n"},
            Settings("http://c:4318/v1/traces", "n"),
        ),
        ({WHOLE: "https://c/x", ENDPOINT: "http://other"}, Settings("https://c/x")),
        (
            {WHOLE: "https://c/x", "OTEL_TRACES_SAMPLER_ARG": "0.25"},
            Settings("https://c/x", share=0.25),
        ),
        (
            {WHOLE: "https://c/x", "OTEL_EXPORTER_OTLP_HEADERS": "a=b,key=x%3Dy%20z"},
            Settings("https://c/x", headers={"a": "b", "key": "x=y z"}),
        ),
        ({WHOLE: "https://c/x", "OTEL_EXPORTER_OTLP_HEADERS": "a=b%0Ac"}, None),
        ({WHOLE: "https://c/x", "OTEL_SDK_DISABLED": "true"}, None),
        ({ENDPOINT: "c:4318"}, None),
        ({ENDPOINT: "file:///etc/passwd"}, None),
        ({ENDPOINT: "http://[::1"}, None),
        ({WHOLE: "https://c/x", "OTEL_TRACES_SAMPLER_ARG": "2"}, None),
        ({WHOLE: "https://c/x", "OTEL_TRACES_SAMPLER_ARG": "many"}, None),
    ],
)
def test_the_environment_switches_it_on(environ: dict[str, str], wanted: Settings | None) -> None:
    assert settings_of(environ, Config()) == wanted


CONFIGURED = """
[plugins."io.containerd.tracing.processor.v1.otlp"]
  endpoint = "http://configured:4318"
  protocol = "http/protobuf"
[plugins."io.containerd.internal.v1.tracing"]
  service_name = "named"
  sampling_ratio = 0.5
"""


def test_the_configuration_counts_where_the_environment_says_nothing() -> None:
    config = parse(tomllib.loads(CONFIGURED), "config.toml")
    configured = Settings("http://configured:4318/v1/traces", "named", 0.5)
    assert settings_of({}, config) == configured
    for ending in ("/", "/v1/traces", "/v1/traces/"):
        again = replace(config, tracing_endpoint=config.tracing_endpoint + ending)
        assert settings_of({}, again) == configured
    environ = {ENDPOINT: "http://c", "OTEL_SERVICE_NAME": "n", "OTEL_TRACES_SAMPLER_ARG": "1"}
    assert settings_of(environ, config) == Settings("http://c/v1/traces", "n", 1.0)
    assert settings_of({"OTEL_SDK_DISABLED": "true"}, config) is None


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"tracing_protocol": "grpc"}, "the protocol grpc is not spoken here"),
        ({"tracing_ratio": 1.5}, "the share of traces is 1.5, not between 0 and 1"),
        ({"tracing_endpoint": "user:hunter2@c:4318"}, "it is no http or https address"),
        ({"tracing_endpoint": "ftp://user:hunter2@c"}, "it is no http or https address"),
    ],
)
def test_a_configuration_that_cannot_be_used_is_told(
    wrong: dict[str, Any], why: str, caplog: pytest.LogCaptureFixture
) -> None:
    config = replace(Config(tracing_endpoint="http://user:hunter2@c"), **wrong)
    assert settings_of({}, config) is None
    assert why in caplog.text and "hunter2" not in caplog.text


def test_what_may_be_a_secret_is_in_no_text_of_the_settings() -> None:
    environ = {WHOLE: "https://u:hunter3@c/x", "OTEL_EXPORTER_OTLP_HEADERS": "key=hunter2"}
    assert "hunter" not in repr(settings_of(environ, Config()))
    assert "hunter" not in shown(Config(tracing_endpoint="http://u:hunter2@c"))


class Context:
    def __init__(self, *headers: tuple[str, str | bytes]) -> None:
        self._headers = headers

    def invocation_metadata(self) -> Iterable[tuple[str, str | bytes]]:
        return self._headers


RPC = version_pb2.DESCRIPTOR.services_by_name["Version"].methods_by_name["Version"]


def spans(traces: Traces) -> list[dict[str, object]]:
    return list(traces._spans)


@pytest.mark.parametrize(
    ("parent", "kept"),
    [
        (f"00-{TRACE}-{SPAN}-01", True),
        (f"00-{TRACE}-{SPAN}-00", False),
        (f"01-{TRACE}-{SPAN}-01-of-a-later-version", True),
    ],
)
def test_a_callers_trace_goes_on_as_the_caller_says(parent: str, kept: bool) -> None:
    traces = Traces(Settings("http://c"), "1", "i")
    traces.begin(RPC, Context(("traceparent", parent), ("bin-bin", b"x")))("OK")  # type: ignore[arg-type]
    found = [(span["traceId"], span["parentSpanId"]) for span in spans(traces)]
    assert found == ([(TRACE, SPAN)] if kept else [])


@pytest.mark.parametrize(
    "parent",
    ["", "nonsense", f"00-{'0' * 32}-{SPAN}-01", f"00-{TRACE}-{'0' * 16}-01", f"00-{TRACE}"],
)
def test_without_a_sound_parent_a_trace_begins(parent: str) -> None:
    traces = Traces(Settings("http://c"), "1", "i")
    for _ in range(2):
        traces.begin(RPC, Context(("traceparent", parent)))("NotFound")  # type: ignore[arg-type]
    one, other = spans(traces)
    assert one["parentSpanId"] == "" and one["traceId"] != other["traceId"]
    assert one["status"] == {}  # the caller's mistake, not ours
    none = Traces(Settings("http://c", share=0.0), "1", "i")
    none.begin(RPC, Context(("traceparent", parent)))("OK")  # type: ignore[arg-type]
    assert spans(none) == []


def test_what_nobody_takes_is_bounded() -> None:
    traces = Traces(Settings("http://c"), "1", "i")
    for _ in range(MOST_SPANS + 7):
        traces.begin(RPC, Context())("Internal")  # type: ignore[arg-type]
    assert (len(spans(traces)), traces.dropped) == (MOST_SPANS, 7)
    assert spans(traces)[0]["status"] == {"code": 2}
