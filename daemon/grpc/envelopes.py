"""Events as containerd sends them: an envelope with a typed message for each topic."""

import base64
from collections.abc import Callable, Mapping
from typing import Any

from google.protobuf import any_pb2, descriptor_pool
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from lighter.daemon.events.log import Event
from lighter.daemon.filters import label_path
from lighter.daemon.grpc import anys
from lighter.daemon.grpc.pb import events_pb2 as ev
from lighter.daemon.grpc.pb import image_events_pb2 as image_ev
from lighter.daemon.grpc.pb.types_pb2 import Envelope
from lighter.daemon.grpc.translate import timestamp
from lighter.proto import events

Body = Mapping[str, Any]


def envelope(event: Event) -> Envelope | None:
    """None for a topic that containerd has no message for."""
    message = Envelope(
        timestamp=timestamp(event.timestamp), namespace=event.namespace, topic=event.topic
    )
    body = event.body
    if "type_url" in body:  # as a client has published it
        message.event.type_url = body["type_url"]
        message.event.value = base64.b64decode(body["value"])
        return message
    make = _MESSAGES.get(event.topic)
    if make is None:
        return None
    message.event.CopyFrom(anys.pack(make(body)))
    return message


def published(value: any_pb2.Any) -> dict[str, Any]:
    """The body of an event that a client publishes."""
    return {"type_url": value.type_url, "value": base64.b64encode(value.value).decode()}


def field(message: Envelope, path: tuple[str, ...]) -> str | None:
    """What a filter asks of an envelope (containerd's adaptor): texts, also within the event.

    One that is empty is not there; a label may be.
    """
    match path:
        case ("namespace",):
            return message.namespace or None
        case ("topic",):
            return message.topic or None
        case ("event", *rest) if rest:
            return _field_of(_decoded(message.event), rest)
        case _:
            return None


def _decoded(value: any_pb2.Any) -> Message | None:
    try:
        kind = descriptor_pool.Default().FindMessageTypeByName(anys.name_of(value))
        return GetMessageClass(kind).FromString(value.value)
    except (KeyError, DecodeError):
        return None


def _field_of(message: Message | None, path: list[str]) -> str | None:
    if message is None:
        return None
    name, *rest = path
    known = message.DESCRIPTOR.fields_by_name.get(name)
    if known is None:
        return None
    value = getattr(message, name)
    if isinstance(value, str):
        return (value or None) if not rest else None
    if isinstance(value, Message):
        return _field_of(value, rest) if rest else None
    if isinstance(value, Mapping) and rest:
        found = value.get(label_path(rest))
        return found if isinstance(found, str) else None
    return str(value).lower() if isinstance(value, bool) else None


def _task_create(body: Body) -> Message:
    io = ev.TaskIO(
        stdin=_path(body, "stdin"),
        stdout=_path(body, "stdout"),
        stderr=_path(body, "stderr"),
        terminal=bool(body.get("terminal")),
    )
    return ev.TaskCreate(
        container_id=body["container_id"], bundle=body["bundle"], io=io, pid=body["pid"]
    )


def _path(body: Body, name: str) -> str:
    """A path that others can use; those of ctl are its own descriptors."""
    path = str(body.get(name) or "")
    return "" if path.startswith("/proc/") else path


def _task_exit(body: Body) -> Message:
    return ev.TaskExit(
        container_id=body["container_id"],
        id=body.get("exec_id") or body["container_id"],
        pid=body["pid"],
        exit_status=body["exit_status"],
        exited_at=timestamp(body["exited_at"]),
    )


def _task_delete(body: Body) -> Message:
    return ev.TaskDelete(
        container_id=body["container_id"],
        pid=body["pid"],
        exit_status=body["exit_status"],
        exited_at=timestamp(body["exited_at"]),
    )


def _container_create(body: Body) -> Message:
    runtime = ev.ContainerCreate.Runtime(name=body["runtime"])
    if body.get("runtime_options"):
        anys.fill(runtime.options, body["runtime_options"])
    return ev.ContainerCreate(id=body["id"], image=body["image"], runtime=runtime)


def _same(kind: Callable[..., Message]) -> Callable[[Body], Message]:
    """A message whose fields are the body's by name."""
    names: set[str] = set(kind.DESCRIPTOR.fields_by_name)  # type: ignore[attr-defined]

    def make(body: Body) -> Message:
        return kind(**{name: value for name, value in body.items() if name in names})

    return make


_MESSAGES: dict[str, Callable[[Body], Message]] = {
    events.CREATE: _task_create,
    events.START: _same(ev.TaskStart),
    events.EXIT: _task_exit,
    events.DELETE: _task_delete,
    events.EXEC_ADDED: _same(ev.TaskExecAdded),
    events.EXEC_STARTED: _same(ev.TaskExecStarted),
    events.PAUSED: _same(ev.TaskPaused),
    events.CHECKPOINTED: _same(ev.TaskCheckpointed),
    events.RESUMED: _same(ev.TaskResumed),
    events.OOM: _same(ev.TaskOOM),
    events.CONTAINER_CREATE: _container_create,
    events.CONTAINER_UPDATE: _same(ev.ContainerUpdate),
    events.CONTAINER_DELETE: _same(ev.ContainerDelete),
    events.IMAGE_CREATE: _same(image_ev.ImageCreate),
    events.IMAGE_UPDATE: _same(image_ev.ImageUpdate),
    events.IMAGE_DELETE: _same(image_ev.ImageDelete),
    events.NAMESPACE_CREATE: _same(ev.NamespaceCreate),
    events.NAMESPACE_UPDATE: _same(ev.NamespaceUpdate),
    events.NAMESPACE_DELETE: _same(ev.NamespaceDelete),
    events.SNAPSHOT_PREPARE: _same(ev.SnapshotPrepare),
    events.SNAPSHOT_COMMIT: _same(ev.SnapshotCommit),
    events.SNAPSHOT_REMOVE: _same(ev.SnapshotRemove),
    events.CONTENT_CREATE: _same(ev.ContentCreate),
    events.CONTENT_DELETE: _same(ev.ContentDelete),
}
