"""Sandboxes as records: written, changed, found, kept over a restart, removed."""

from google.protobuf.any_pb2 import Any as AnyMessage

from lighter.daemon.grpc.pb import namespaces_pb2, sandbox_pb2
from lighter.daemon.grpc.pb.sandbox_types_pb2 import Sandbox
from tests.grpc.client import Api
from tests.grpc.space import refused
from tests.harness import Lighterd

RUNTIME = Sandbox.Runtime(
    name="io.containerd.runc.v2", options=AnyMessage(type_url="o", value=b"\0")
)


def test_a_record_is_kept_as_it_was_written(lighterd: Lighterd) -> None:
    given = Sandbox(
        sandbox_id="pod",
        runtime=RUNTIME,
        sandboxer="shim",
        labels={"tier": "web", "gone": "soon"},
        spec=AnyMessage(type_url="spec", value=b"{}"),
        extensions={"one": AnyMessage(type_url="x", value=b"1")},
    )
    with Api(lighterd.grpc_address, "pods") as api:
        made = api.call(sandbox_pb2, "Store", "Create", sandbox=given).sandbox
        assert made.created_at.seconds and made.created_at == made.updated_at
        with refused("ALREADY_EXISTS"):
            api.call(sandbox_pb2, "Store", "Create", sandbox=given)
        with refused("INVALID_ARGUMENT"):
            api.call(sandbox_pb2, "Store", "Create", sandbox=Sandbox(sandbox_id="../x"))
        with refused("FAILED_PRECONDITION", "sandboxes"):
            api.call(namespaces_pb2, "Namespaces", "Delete", name="pods")
    lighterd.kill9()
    lighterd.start()
    with Api(lighterd.grpc_address, "pods") as api:
        assert api.call(sandbox_pb2, "Store", "Get", sandbox_id="pod").sandbox == made
        update(api, Sandbox(labels={"tier": "db"}), "labels.tier", "labels.gone", "extensions.one")
        changed = api.call(sandbox_pb2, "Store", "Get", sandbox_id="pod").sandbox
        assert (dict(changed.labels), dict(changed.extensions)) == ({"tier": "db"}, {})
        assert changed.spec == given.spec and changed.runtime == RUNTIME
        with refused("INVALID_ARGUMENT", "cannot update"):
            update(api, Sandbox(), "sandboxer")
        with refused("INVALID_ARGUMENT", "immutable"):
            update(api, Sandbox(runtime=Sandbox.Runtime(name="other")))
        assert listed(api, "labels.tier==db", "id==none") == ["pod"]
        assert listed(api, "runtime.name==none") == []
        status = api.call(sandbox_pb2, "Controller", "Status", sandbox_id="pod")
        assert (status.state, status.pid) == ("SANDBOX_NOTREADY", 0)
        for method in ("Stop", "Shutdown"):
            api.call(sandbox_pb2, "Controller", method, sandbox_id="pod")
        for method in ("Wait", "Metrics", "Status"):
            with refused("NOT_FOUND"):
                api.call(sandbox_pb2, "Controller", method, sandbox_id="none")
        api.call(sandbox_pb2, "Store", "Delete", sandbox_id="pod")
        with refused("NOT_FOUND", 'sandbox "pod": not found'):
            api.call(sandbox_pb2, "Store", "Delete", sandbox_id="pod")
        api.call(namespaces_pb2, "Namespaces", "Delete", name="pods")


def update(api: Api, changes: Sandbox, *fields: str) -> None:
    changes.sandbox_id = "pod"
    api.call(sandbox_pb2, "Store", "Update", sandbox=changes, fields=fields)


def listed(api: Api, *filters: str) -> list[str]:
    found = api.call(sandbox_pb2, "Store", "List", filters=filters).list
    return [sandbox.sandbox_id for sandbox in found]
