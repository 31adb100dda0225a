"""Every method of containerd's API, and that it is answered, or refused for a reason that is known.

methods.txt lists those of containerd 2.1; " stream" answers by a stream, " streams" takes one too.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from lighter.daemon.grpc import anys
from lighter.daemon.grpc.pb import (
    content_pb2,
    images_pb2,
    introspection_pb2,
    leases_pb2,
    sandbox_pb2,
    snapshots_pb2,
    types_pb2,
)
from tests.grpc.client import code
from tests.grpc.space import Space, descriptor

METHODS = Path(__file__).with_name("methods.txt")
ANSWER_S = 5.0

NOT_OURS = "spoken between containerd and its shims; ours speak another language"
NO_PODS = "nothing runs sandboxes before there are pods"
REFUSED = {
    **dict.fromkeys(
        (
            f"containerd.runtime.sandbox.v1.Sandbox/{method}"
            for method in (
                *("CreateSandbox", "StartSandbox", "Platform", "StopSandbox", "WaitSandbox"),
                *("SandboxStatus", "PingSandbox", "ShutdownSandbox", "SandboxMetrics"),
            )
        ),
        NOT_OURS,
    ),
    **dict.fromkeys(
        (
            f"containerd.services.sandbox.v1.Controller/{method}"
            for method in ("Create", "Start", "Update")
        ),
        NO_PODS,
    ),
}


def methods() -> list[tuple[str, str]]:
    """(full name, "", "stream" or "streams")."""
    found, service = [], ""
    for line in METHODS.read_text().splitlines():
        if not line.startswith(" "):
            service = line
            continue
        name, _, kind = line.strip().partition(" ")
        found.append((f"{service}/{name}", kind))
    return found


def test_each_method_is_answered_or_refused(space: Space) -> None:
    """SEC-82: a sandbox has no life cycle here that a container could be created into."""
    served, refused = [], []
    with grpc.insecure_channel(f"unix:{space.api.path}") as channel:
        for name, kind in methods():
            said = ask(channel, name, kind, space)
            (refused if said == "UNIMPLEMENTED" else served).append(name)
    assert sorted(refused) == sorted(REFUSED)
    assert len(served) == len(methods()) - len(REFUSED) > 70


def ask(channel: grpc.Channel, name: str, kind: str, space: Space) -> str:
    """How an empty request ends, in gRPC's words."""
    try:
        list(begin(channel, name, kind, space.api.metadata))
    except grpc.RpcError as err:
        assert isinstance(err, grpc.Call)
        # What an empty request asks to hold or to move, and not the method, is refused there.
        said = err.details() or ""
        return "OK" if "resource type" in said or "implemented for " in said else code(err)
    return "OK"


def begin(
    channel: grpc.Channel,
    name: str,
    kind: str,
    metadata: Sequence[tuple[str, str]],
    request: bytes = b"",
) -> Any:
    """A call under way; its one request is empty unless it is given."""
    if kind == "streams":
        return channel.stream_stream(f"/{name}")(
            iter([request]), metadata=metadata, timeout=ANSWER_S
        )
    return channel.unary_stream(f"/{name}")(request, metadata=metadata, timeout=ANSWER_S)


def test_a_plugin_tells_which_runtime_a_name_is(space: Space) -> None:
    def ask_of(**fields: object) -> introspection_pb2.PluginInfoResponse:
        found = space.api.call(introspection_pb2, "Introspection", "PluginInfo", **fields)
        assert isinstance(found, introspection_pb2.PluginInfoResponse)
        return found

    options = anys.pack(types_pb2.RuntimeRequest(runtime_path="io.containerd.runc.v2"))
    answer = ask_of(type="io.containerd.runtime.v2", id="task", options=options)
    runtime = types_pb2.RuntimeInfo()
    anys.unpack(answer.extra, runtime)
    assert (answer.plugin.id, runtime.name) == ("task", "io.containerd.runc.v2")
    with pytest.raises(grpc.RpcError) as caught:
        ask_of(type="io.containerd.none.v1", id="task")
    assert code(caught.value) == "NOT_FOUND"


# Those that are of no namespace, as at containerd.
_NEEDS_NONE = {
    *(f"containerd.services.namespaces.v1.Namespaces/{verb}" for verb in ("Get", "List", "Create")),
    *(f"containerd.services.namespaces.v1.Namespaces/{verb}" for verb in ("Update", "Delete")),
    *(f"containerd.services.events.v1.Events/{verb}" for verb in ("Forward", "Subscribe")),
    *(
        f"containerd.services.introspection.v1.Introspection/{verb}"
        for verb in ("Plugins", "Server", "PluginInfo")
    ),
    "containerd.services.sandbox.v1.Controller/Platform",
    "containerd.services.snapshots.v1.Snapshots/Cleanup",
    "containerd.services.version.v1.Version/Version",
}
# What is looked at before the namespace.
_FILLED: dict[str, Message] = {
    "Content/Write": content_pb2.WriteContentRequest(ref="r"),
    "Images/Create": images_pb2.CreateImageRequest(
        image=images_pb2.Image(name="i", target=descriptor(b"x"))
    ),
    "Leases/AddResource": leases_pb2.AddResourceRequest(
        id="l", resource=leases_pb2.Resource(id="i", type="images")
    ),
    "Leases/DeleteResource": leases_pb2.DeleteResourceRequest(
        id="l", resource=leases_pb2.Resource(id="i", type="images")
    ),
    "Store/Create": sandbox_pb2.StoreCreateRequest(sandbox={"sandbox_id": "s"}),
}
# All of its requests begin with that.
_SNAPSHOTTER = snapshots_pb2.ListSnapshotsRequest(snapshotter="overlayfs")


def test_sec_35_a_call_without_a_namespace_is_refused(space: Space) -> None:
    answered = set()
    with grpc.insecure_channel(f"unix:{space.api.path}") as channel:
        for name, kind in methods():
            service = name.rpartition(".")[2]
            empty = _SNAPSHOTTER if service.startswith("Snapshots/") else Empty()
            request = _FILLED.get(service, empty).SerializeToString()
            try:
                list(begin(channel, name, kind, (), request))
            except grpc.RpcError as err:
                assert isinstance(err, grpc.Call)
                if "namespace is required" in (err.details() or ""):
                    continue
            answered.add(name)
    assert answered - set(REFUSED) == _NEEDS_NONE
