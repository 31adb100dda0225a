"""containerd.services.events.v1.Events."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from functools import partial

from google.protobuf.any_pb2 import Any
from google.protobuf.empty_pb2 import Empty

from lighter.daemon.events import EventLog
from lighter.daemon.filters import any_of
from lighter.daemon.grpc.calls import Call
from lighter.daemon.grpc.envelopes import envelope, field, published
from lighter.daemon.grpc.pb import event_service_pb2 as pb
from lighter.daemon.grpc.pb.types_pb2 import Envelope
from lighter.daemon.grpc.translate import nanoseconds
from lighter.daemon.grpc.words import identifier, quoted
from lighter.proto.errors import InvalidArgument

MAX_EVENT_BYTES = 64 << 10
MAX_TOPIC = 1024


class EventsService:
    NAME = "containerd.services.events.v1.Events"

    def __init__(self, log: EventLog) -> None:
        self._log = log

    async def publish(self, call: Call, request: pb.PublishRequest) -> Empty:
        namespace = call.namespace
        _check_topic(request.topic)
        self._log.publish(namespace, request.topic, _checked(request.event))
        return Empty()

    async def forward(self, _call: Call, request: pb.ForwardRequest) -> Empty:
        given = request.envelope
        identifier(given.namespace)
        _check_topic(given.topic)
        at = nanoseconds(given.timestamp)
        if not 0 < at < 1 << 63:
            raise InvalidArgument("timestamp must be set on forwarded event: invalid argument")
        self._log.publish(given.namespace, given.topic, _checked(given.event), at)
        return Empty()

    async def subscribe(self, _call: Call, request: pb.SubscribeRequest) -> AsyncIterator[Envelope]:
        """New events of all namespaces, and what a start of the manager has brought just now."""
        wanted = any_of(request.filters)
        async with aclosing(self._log.subscribe("", self._log.since_start(), True)) as events:
            async for event in events:
                message = envelope(event)
                if message is not None and wanted(partial(field, message)):
                    yield message


def _checked(event: Any) -> dict[str, str]:
    size = len(event.value) + len(event.type_url)
    if size > MAX_EVENT_BYTES:
        raise InvalidArgument(f"publish event: it has {size} bytes, {MAX_EVENT_BYTES} are allowed")
    return published(event)


def _check_topic(topic: str) -> None:
    """containerd's rule: identifiers after slashes. Raises InvalidArgument."""
    cause = ""
    if len(topic) > MAX_TOPIC:
        raise InvalidArgument(
            f"envelope topic {quoted(topic[:80])}…: it has more than {MAX_TOPIC} characters: "
            "invalid argument"
        )
    if not topic:
        cause = "must not be empty"
    elif not topic.startswith("/"):
        cause = "must start with '/'"
    elif topic == "/":
        cause = "must have at least one component"
    if cause:
        raise InvalidArgument(f"envelope topic {quoted(topic)}: {cause}: invalid argument")
    for component in topic[1:].split("/"):
        try:
            identifier(component)
        except InvalidArgument as err:
            raise InvalidArgument(
                f"envelope topic {quoted(topic)}: failed validation on component "
                f"{quoted(component)}: {err.message}"
            ) from err
