"""containerd.services.events.v1.Events."""

from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from functools import partial

from google.protobuf.any_pb2 import Any
from google.protobuf.empty_pb2 import Empty

from lighter.daemon.events.log import Event, EventLog
from lighter.daemon.filters import any_of
from lighter.daemon.grpc.calls import Call
from lighter.daemon.grpc.envelopes import envelope, field, published
from lighter.daemon.grpc.pb import event_service_pb2 as pb
from lighter.daemon.grpc.pb.types_pb2 import Envelope
from lighter.daemon.grpc.translate import nanoseconds
from lighter.daemon.grpc.words import identifier, quoted
from lighter.daemon.tasks.entry import Entry
from lighter.daemon.tasks.service import TaskService
from lighter.proto import states
from lighter.proto.errors import InvalidArgument
from lighter.proto.events import EXEC_STARTED, EXIT, OOM, PAUSED, RESUMED, START

MAX_EVENT_BYTES = 64 << 10
MAX_TOPIC = 1024
_OF_PROCESSES = (START, EXIT, EXEC_STARTED, PAUSED, RESUMED, OOM)


class EventsService:
    NAME = "containerd.services.events.v1.Events"

    def __init__(self, log: EventLog, tasks: TaskService) -> None:
        self._log = log
        self._tasks = tasks

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
        """New events of all namespaces; soon after a start of the manager, first what a stream
        that broke with the manager before may have missed, and nobody has acted on.
        """
        wanted = any_of(request.filters)
        since, newest = self._log.since_start(), self._log.newest()
        if since is not None:
            for event in self._unsettled(since):
                message = envelope(event)
                if message is not None and wanted(partial(field, message)):
                    yield message
        async with aclosing(self._log.subscribe("", since, True)) as events:
            async for event in events:
                if event.sequence <= newest and self._is_settled(event):
                    continue
                message = envelope(event)
                if message is not None and wanted(partial(field, message)):
                    yield message

    def _unsettled(self, until: int) -> list[Event]:
        """Exits of processes that nobody has deleted yet, told before event `until`.

        The manager may have been killed when these were recorded and not sent, or before its
        clients were back. dockerd deletes what it knows to have ended.
        """
        ended = {
            (entry.namespace, entry.id, exec_id, pid)
            for entry in self._tasks.all_entries()
            for exec_id, pid, state in _processes(entry)
            if state == states.STOPPED
        }
        if not ended:
            return []
        told = self._log.of_topic(EXIT, until)
        return [event for event in told if _process(event) in ended]

    def _is_settled(self, event: Event) -> bool:
        """Whether it tells of a process that was deleted since: a client that is told of it again
        may take it for the container's next one, and one that is told of a start alone, whose end
        is settled, for one that runs.
        """
        if event.topic not in _OF_PROCESSES or "type_url" in event.body:
            return False
        namespace, id_, exec_id, pid = _process(event)
        entry = self._tasks.look_up(namespace, id_)
        if entry is None or event.timestamp < entry.created_at:
            return True
        if event.topic not in (EXIT, START):
            return False
        return all(process[:2] != (exec_id, pid) for process in _processes(entry))


def _processes(entry: Entry) -> Iterator[tuple[str, int, str]]:
    """(exec id, pid, state) of init, whose exec id is "", and of what was added to it."""
    yield "", entry.pid, entry.state
    for exec_ in entry.execs.values():
        yield exec_.exec_id, exec_.pid, exec_.state


def _process(event: Event) -> tuple[str, str, str, int]:
    """(namespace, task, exec id, pid) of the process that a /tasks/exit event is about."""
    body = event.body
    id_ = body.get("container_id", "")
    return event.namespace, id_, body.get("exec_id") or "", body.get("pid", 0)


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
