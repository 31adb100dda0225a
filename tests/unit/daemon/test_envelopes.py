"""Events as containerd's messages: each topic has one, and all that it tells arrives."""

from typing import Any

import pytest
from google.protobuf import descriptor_pool
from google.protobuf.json_format import MessageToDict
from google.protobuf.message_factory import GetMessageClass

from lighter.daemon.events.log import Event
from lighter.daemon.grpc.envelopes import envelope, field
from lighter.proto import events

TASK = {"container_id": "c"}
IMAGE = {"name": "i", "labels": {"a": "b"}}
SNAPSHOT = {"key": "k", "snapshotter": "overlayfs"}
CONTAINER = {"id": "c", "image": "i", "labels": {"a": "b"}, "snapshot_key": "k"}
ENDED = {"pid": 7, "exit_status": 3, "exited_at": 1_500_000_000}
AT = {"exited_at": "1970-01-01T00:00:01.500Z"}

# topic -> the body that it has, and what of its message differs from that
TOPICS: dict[str, tuple[dict[str, Any], str, dict[str, Any]]] = {
    events.CREATE: (
        {
            **TASK,
            "pid": 7,
            "bundle": "/b",
            "terminal": True,
            "stdout": "/o",
            "stdin": "/proc/1/fd/2",
        },
        "TaskCreate",
        {**TASK, "pid": 7, "bundle": "/b", "io": {"stdout": "/o", "terminal": True}},
    ),
    events.START: ({**TASK, "pid": 7}, "TaskStart", {**TASK, "pid": 7}),
    events.EXIT: (
        {**TASK, **ENDED, "exec_id": "", "cause": "oom"},
        "TaskExit",
        {**TASK, **ENDED, **AT, "id": "c"},
    ),
    events.DELETE: ({**TASK, **ENDED}, "TaskDelete", {**TASK, **ENDED, **AT}),
    events.EXEC_ADDED: ({**TASK, "exec_id": "e"}, "TaskExecAdded", {**TASK, "exec_id": "e"}),
    events.EXEC_STARTED: (
        {**TASK, "exec_id": "e", "pid": 8},
        "TaskExecStarted",
        {**TASK, "exec_id": "e", "pid": 8},
    ),
    events.PAUSED: (TASK, "TaskPaused", TASK),
    events.RESUMED: (TASK, "TaskResumed", TASK),
    events.OOM: (TASK, "TaskOOM", TASK),
    events.CHECKPOINTED: (
        {**TASK, "checkpoint": "/d"},
        "TaskCheckpointed",
        {**TASK, "checkpoint": "/d"},
    ),
    events.CONTAINER_CREATE: (
        {"id": "c", "image": "i", "runtime": "r"},
        "ContainerCreate",
        {"id": "c", "image": "i", "runtime": {"name": "r"}},
    ),
    events.CONTAINER_UPDATE: (CONTAINER, "ContainerUpdate", CONTAINER),
    events.CONTAINER_DELETE: ({"id": "c"}, "ContainerDelete", {"id": "c"}),
    events.IMAGE_CREATE: (IMAGE, "ImageCreate", IMAGE),
    events.IMAGE_UPDATE: (IMAGE, "ImageUpdate", IMAGE),
    events.IMAGE_DELETE: ({"name": "i"}, "ImageDelete", {"name": "i"}),
    events.NAMESPACE_CREATE: (IMAGE, "NamespaceCreate", IMAGE),
    events.NAMESPACE_UPDATE: (IMAGE, "NamespaceUpdate", IMAGE),
    events.NAMESPACE_DELETE: ({"name": "n"}, "NamespaceDelete", {"name": "n"}),
    events.CONTENT_CREATE: (
        {"digest": "sha256:1", "size": 9},
        "ContentCreate",
        {"digest": "sha256:1", "size": "9"},
    ),
    events.CONTENT_DELETE: ({"digest": "sha256:1"}, "ContentDelete", {"digest": "sha256:1"}),
    events.SNAPSHOT_PREPARE: (
        {**SNAPSHOT, "parent": "p"},
        "SnapshotPrepare",
        {**SNAPSHOT, "parent": "p"},
    ),
    events.SNAPSHOT_COMMIT: (
        {**SNAPSHOT, "name": "n"},
        "SnapshotCommit",
        {**SNAPSHOT, "name": "n"},
    ),
    events.SNAPSHOT_REMOVE: (SNAPSHOT, "SnapshotRemove", SNAPSHOT),
}
# containerd has no message for these.
OURS_ALONE = {events.CONTAINER_RESTART, events.CONTAINER_RENAME, events.CONTAINER_HEALTH}


@pytest.mark.parametrize("topic", TOPICS)
def test_what_a_topic_tells(topic: str) -> None:
    body, kind, told = TOPICS[topic]
    message = envelope(Event(1, 2_000_000_003, "ns", topic, dict(body)))
    assert message is not None
    assert (message.namespace, message.topic) == ("ns", topic)
    assert (message.timestamp.seconds, message.timestamp.nanos) == (2, 3)
    name = message.event.type_url
    assert name.rpartition(".")[2] == kind
    of = GetMessageClass(descriptor_pool.Default().FindMessageTypeByName(name))
    arrived = of.FromString(message.event.value)
    assert MessageToDict(arrived, preserving_proto_field_name=True) == told


def test_what_a_filter_finds_in_an_event() -> None:
    """A text that is empty is not there, as in containerd's; a label and a flag may be."""
    body = {"container_id": "c", "pid": 7, "bundle": ""}
    message = envelope(Event(1, 0, "ns", events.CREATE, body))
    assert message is not None
    found = {
        ("namespace",): "ns",
        ("event", "container_id"): "c",
        ("event", "bundle"): None,
        ("event", "io", "stdout"): None,
        ("event", "io", "terminal"): "false",
        ("event", "nothing"): None,
    }
    assert {path: field(message, path) for path in found} == found
    labelled = envelope(Event(1, 0, "ns", events.IMAGE_CREATE, {"name": "i", "labels": {"a": ""}}))
    assert labelled is not None and field(labelled, ("event", "labels", "a")) == ""


def test_each_topic_is_here() -> None:
    known = {topic for name, topic in vars(events).items() if name.isupper()} - {events.CLOSED}
    assert known == TOPICS.keys() | OURS_ALONE
    for topic in OURS_ALONE:
        assert envelope(Event(1, 0, "ns", topic, {"id": "c"})) is None
