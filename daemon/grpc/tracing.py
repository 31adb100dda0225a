"""Traces of containerd's API for OpenTelemetry: a span for each call, sent to a collector.

Switched on by the environment, as the specification of its SDKs says, or by the configuration,
whose endpoint, name and share count where the environment names none:

    OTEL_EXPORTER_OTLP_TRACES_ENDPOINT      where to, or
    OTEL_EXPORTER_OTLP_ENDPOINT             where to, without /v1/traces
    OTEL_EXPORTER_OTLP_HEADERS              name=value,… with each request
    OTEL_SERVICE_NAME                       "lighterd"
    OTEL_TRACES_SAMPLER_ARG                 which share of traces that begin here is kept: 1.0
    OTEL_SDK_DISABLED                       true: off

What is sent is OTLP as JSON over HTTP (opentelemetry.io/docs/specs/otlp), which a collector takes
on the same port as protobuf. A caller's `traceparent` (w3.org/TR/trace-context) makes its span the
parent, and its word on sampling counts. Nobody waits for a collector: what it does not take in time
is dropped and counted.
"""

import asyncio
import json
import logging
import random
import re
import secrets
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit

from google.protobuf.descriptor import MethodDescriptor

from lighter.daemon.config.schema import Config
from lighter.daemon.grpc.calls import NAMESPACE
from lighter.daemon.grpc.watching import Context, Ended
from lighter.daemon.registry import redact

log = logging.getLogger("lighter.tracing")

MOST_SPANS = 4096  # that wait to be sent
BATCH = 512
EVERY_S = 5.0
SEND_S = 10.0
LAST_S = 2.0  # for what is left when the manager ends
COMPLAIN_S = 60.0
_PATH = "/v1/traces"
_PARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.ASCII)
_SERVER = 2  # SPAN_KIND_SERVER
_ERROR = 2  # STATUS_CODE_ERROR
# gRPC's codes that are a server's fault (OpenTelemetry's conventions for gRPC).
_FAULTS = {"Unknown", "DeadlineExceeded", "Unimplemented", "Internal", "Unavailable", "DataLoss"}


@dataclass(frozen=True)
class Settings:
    """Where spans go, and which. `endpoint` and `headers` may hold a secret."""

    endpoint: str = field(repr=False)
    service: str = "lighterd"
    share: float = 1.0
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)


def settings_of(environ: Mapping[str, str], config: Config) -> Settings | None:
    """None when no endpoint is set, or what is set cannot be used, which is logged."""
    endpoint = environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "")
    base = environ.get("OTEL_EXPORTER_OTLP_ENDPOINT", "") or config.tracing_endpoint
    if not endpoint and base:
        endpoint = base.rstrip("/").removesuffix(_PATH) + _PATH
    if not endpoint or environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    try:
        if config.tracing_protocol not in ("", "http/protobuf"):
            raise ValueError(f"the protocol {config.tracing_protocol} is not spoken here")
        parts = urlsplit(endpoint)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("it is no http or https address")
        share = float(environ.get("OTEL_TRACES_SAMPLER_ARG") or config.tracing_ratio)
        if not 0.0 <= share <= 1.0:
            raise ValueError(f"the share of traces is {share}, not between 0 and 1")
    except ValueError as err:
        log.warning("no traces are sent to %s: %s", _shown(endpoint), err)
        return None
    pairs = environ.get("OTEL_EXPORTER_OTLP_HEADERS", "").split(",")
    named = (pair.partition("=") for pair in pairs if "=" in pair)
    headers = {unquote(name).strip(): unquote(value).strip() for name, _, value in named}
    if not all(text.isprintable() for pair in headers.items() for text in pair):
        log.warning("no traces go to %s: a header holds a control character", _shown(endpoint))
        return None
    service = environ.get("OTEL_SERVICE_NAME") or config.tracing_service
    return Settings(endpoint, service, share, headers)


def _shown(endpoint: str) -> str:
    """For a log: what is before an "@" may be a password."""
    return redact.url(endpoint) if "://" in endpoint else endpoint.rpartition("@")[2]


class Traces:
    """Watches calls, and sends what they were while `run` runs."""

    def __init__(self, settings: Settings, version: str, instance: str) -> None:
        self.settings = settings
        self.dropped = 0
        self._resource = {
            "service.name": settings.service,
            "service.version": version,
            "service.instance.id": instance,
        }
        self._version = version
        self._spans: deque[dict[str, Any]] = deque()
        self._full = asyncio.Event()
        self._complained = -COMPLAIN_S

    def begin(self, rpc: MethodDescriptor, context: Context) -> Ended:
        headers = {
            key: value
            for key, value in context.invocation_metadata() or ()
            if isinstance(value, str)
        }
        trace, parent, sampled = self._place(headers.get("traceparent", ""))
        if not sampled:
            return _ignored
        begun = time.time_ns()

        def ended(code: str) -> None:
            service = rpc.containing_service.full_name
            self._keep(
                {
                    "traceId": trace,
                    "spanId": secrets.token_hex(8),
                    "parentSpanId": parent,
                    "name": f"{service}/{rpc.name}",
                    "kind": _SERVER,
                    "startTimeUnixNano": str(begun),
                    "endTimeUnixNano": str(time.time_ns()),
                    "attributes": _attributes(
                        {
                            "rpc.system": "grpc",
                            "rpc.service": service,
                            "rpc.method": rpc.name,
                            "rpc.grpc.status": code,
                            "containerd.namespace": headers.get(NAMESPACE, ""),
                        }
                    ),
                    "status": {"code": _ERROR} if code in _FAULTS else {},
                }
            )

        return ended

    def _place(self, parent: str) -> tuple[str, str, bool]:
        """(trace, span above, whether it is kept)"""
        found = _PARENT.fullmatch(parent)
        if found and set(found[1]) != {"0"} and set(found[2]) != {"0"}:
            return found[1], found[2], bool(int(found[3], 16) & 1)
        return secrets.token_hex(16), "", random.random() < self.settings.share  # noqa: S311

    def _keep(self, span: dict[str, Any]) -> None:
        if len(self._spans) >= MOST_SPANS:
            self.dropped += 1
            return
        self._spans.append(span)
        if len(self._spans) >= BATCH:
            self._full.set()

    async def run(self) -> None:
        """Send every few seconds, until it is cancelled; then what is left, for a moment."""
        import aiohttp

        async with aiohttp.ClientSession(headers=self.settings.headers) as session:
            try:
                while True:
                    try:
                        async with asyncio.timeout(EVERY_S):
                            await self._full.wait()
                    except TimeoutError:
                        pass
                    self._full.clear()
                    await self._send_all(session)
            except asyncio.CancelledError:
                try:
                    async with asyncio.timeout(LAST_S):
                        await self._send_all(session)
                except TimeoutError:
                    pass
                raise

    async def _send_all(self, session: Any) -> None:
        import aiohttp

        while self._spans:
            batch = [self._spans.popleft() for _ in range(min(BATCH, len(self._spans)))]
            why = ""
            try:
                async with asyncio.timeout(SEND_S):
                    async with session.post(
                        self.settings.endpoint,
                        data=self._encoded(batch),
                        headers={"Content-Type": "application/json"},
                        allow_redirects=False,
                    ) as answer:
                        if answer.status // 100 != 2:
                            why = f"HTTP status {answer.status}"
            except (TimeoutError, OSError, aiohttp.ClientError) as err:
                why = str(err) or type(err).__name__
            if why:
                self.dropped += len(batch)
                self._complain(why)
                return

    def _encoded(self, spans: list[dict[str, Any]]) -> bytes:
        scope = {"name": "lighter.grpc", "version": self._version}
        scoped = [{"scope": scope, "spans": spans}]
        resource = {"attributes": _attributes(self._resource)}
        return json.dumps(
            {"resourceSpans": [{"resource": resource, "scopeSpans": scoped}]}
        ).encode()

    def _complain(self, why: str) -> None:
        """Once in a while: a collector may be away for days."""
        if time.monotonic() - self._complained >= COMPLAIN_S:
            self._complained = time.monotonic()
            shown = _shown(self.settings.endpoint)
            why = redact.Redactor().clean(why)
            log.warning("send traces to %s: %s; %d are dropped", shown, why, self.dropped)


def _ignored(_code: str) -> None:
    """The end of a call that is not traced."""


def _attributes(values: Mapping[str, str]) -> list[dict[str, Any]]:
    return [{"key": key, "value": {"stringValue": value}} for key, value in values.items() if value]
