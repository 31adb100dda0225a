"""Every method of containerd's API, and that it is answered, or refused for a reason that is known.

methods.txt lists those of containerd 2.1; " stream" answers by a stream, " streams" takes one too.
"""

from pathlib import Path

import grpc
import pytest

from lighter.daemon.grpc import anys
from lighter.daemon.grpc.pb import introspection_pb2, types_pb2
from tests.grpc.client import code
from tests.grpc.space import Space

METHODS = Path(__file__).with_name("methods.txt")
ANSWER_S = 2.0

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
    "containerd.services.tasks.v1.Tasks/Checkpoint": "ctl makes checkpoints, by its own calls",
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
    if kind == "streams":
        call = channel.stream_stream(f"/{name}")(
            iter([b""]), metadata=space.api.metadata, timeout=ANSWER_S
        )
    else:
        call = channel.unary_stream(f"/{name}")(b"", metadata=space.api.metadata, timeout=ANSWER_S)
    try:
        list(call)
    except grpc.RpcError as err:
        assert isinstance(err, grpc.Call)
        # What an empty request asks to hold or to move, and not the method, is refused there.
        said = err.details() or ""
        return "OK" if "resource type" in said or "implemented for " in said else code(err)
    return "OK"


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
