"""containerd's Containers by a Python client: records as they were written, masks, filters."""

from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.any_pb2 import Any as Any_
from google.protobuf.field_mask_pb2 import FieldMask

from lighter.daemon.grpc.pb import (
    containers_pb2,
    leases_pb2,
    namespaces_pb2,
    sandbox_pb2,
    snapshots_pb2,
)
from tests.grpc.client import code
from tests.grpc.workshop import Workshop
from tests.images import REFERENCE
from tests.variants import NAME, variant

SPEC = Any_(
    type_url="types.containerd.io/opencontainers/runtime-spec/1/Spec",
    value=b'{"ociVersion": "1.0.2",  "process": {"args": ["x"]}, "linux": {}}',
)


def _container(id_: str, **fields: Any) -> Any:
    runtime = containers_pb2.Container.Runtime(name="io.containerd.runc.v2")
    return containers_pb2.Container(**{"id": id_, "runtime": runtime, "spec": SPEC, **fields})


def _refused(workshop: Workshop, method: str, **fields: Any) -> tuple[str, str]:
    with pytest.raises(grpc.RpcError) as refused:
        workshop.containers(method, **fields)
    return code(refused.value), refused.value.details()


def test_a_new_object_has_no_label_without_a_value(workshop: Workshop) -> None:
    """As at containerd. The other one keeps what was committed."""
    kept = {"containerd.io/gc.root": "1"}
    given = {**kept, "b": ""}

    def call(module: Any, service: str, method: str, **fields: Any) -> Any:
        return workshop.api.call(module, service, method, **fields)

    made = workshop.containers("Create", container=_container("c", labels=given)).container
    assert made.labels == kept == workshop.containers("Get", id="c").container.labels
    workshop.containers("Delete", id="c")
    sandbox = {"sandbox_id": "s", "labels": given}
    assert call(sandbox_pb2, "Store", "Create", sandbox=sandbox).sandbox.labels == kept
    call(sandbox_pb2, "Store", "Delete", sandbox_id="s")
    assert call(leases_pb2, "Leases", "Create", id="l", labels=given).lease.labels == kept
    call(leases_pb2, "Leases", "Delete", id="l")
    of = {"snapshotter": "overlayfs"}
    call(snapshots_pb2, "Snapshots", "Prepare", key="k", labels=given, **of)
    assert call(snapshots_pb2, "Snapshots", "Stat", key="k", **of).info.labels == kept
    call(snapshots_pb2, "Snapshots", "Commit", key="k", name="n", labels=given, **of)
    call(snapshots_pb2, "Snapshots", "View", key="v", parent="n", labels=given, **of)
    for key in ("v", "n"):
        assert call(snapshots_pb2, "Snapshots", "Stat", key=key, **of).info.labels == kept
        call(snapshots_pb2, "Snapshots", "Remove", key=key, **of)


def test_a_record_is_kept_as_it_was_written(workshop: Workshop) -> None:
    given = _container(
        "c",
        image="some/image:x",
        labels={"a": "b"},
        snapshotter="overlayfs",
        snapshot_key="key",
        extensions={"x.y/z": Any_(type_url="some.Type", value=b"\0\xff")},
        sandbox="box",
    )
    given.runtime.options.CopyFrom(Any_(type_url="unknown.Options", value=b"\x01\x02"))
    made = workshop.containers("Create", container=given).container
    assert made.HasField("created_at") and made.created_at == made.updated_at
    assert workshop.containers("Get", id="c").container == made
    made.ClearField("created_at")
    made.ClearField("updated_at")
    assert made == given
    again = _refused(workshop, "Create", container=given)
    assert again == ("ALREADY_EXISTS", 'container "c": already exists')
    workshop.containers("Delete", id="c")
    missing = (f'container "c" in namespace "{workshop.namespace}": not found',)
    for method, fields in (
        ("Get", {"id": "c"}),
        ("Delete", {"id": "c"}),
        ("Update", {"container": given}),
    ):
        assert _refused(workshop, method, **fields) == ("NOT_FOUND", *missing)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"id_": ""}, "container.ID: identifier must not be empty"),
        *(
            ({"id_": name}, f'container.ID: identifier "{name}" must match ^[A-Za-z0-9]+(')
            for name in ("a/b", "a--b", "a.", "a_", "-a")
        ),
        ({"runtime": None}, "container.Runtime.Name must be set"),
        ({"spec": None}, "container.Spec must be set"),
        ({"snapshot_key": "k"}, "container.Snapshotter must be set"),
        ({"labels": {"a": "x" * 5000}}, "containers.Labels"),
        ({"extensions": {"": Any_(type_url="x")}}, "keys must not be zero-length"),
    ],
)
def test_what_is_no_container(workshop: Workshop, fields: dict[str, Any], words: str) -> None:
    refused = _refused(workshop, "Create", container=_container(**{"id_": "c", **fields}))
    assert refused[0] == "INVALID_ARGUMENT"
    assert refused[1].startswith("create container failed validation: "), refused
    assert words in refused[1]


def test_sec_73_no_name_by_containerds_api_is_a_path(workshop: Workshop) -> None:
    workshop.create("there", "sleep", "1000")
    workshop.tasks("Start", container_id="there")
    api = workshop.api
    for name in ("..", ".", "a/b", "../b", "a" * 77, "a\0", "ü", "", "a\n", "-", "%2e%2e"):
        for refused in (
            lambda name: api.call(namespaces_pb2, "Namespaces", "Create", namespace={"name": name}),
            lambda name: workshop.containers("Create", container=_container(name)),
            lambda name: api.call(sandbox_pb2, "Store", "Create", sandbox={"sandbox_id": name}),
            lambda name: workshop.exec("there", name, "true"),
        ):
            with pytest.raises(grpc.RpcError) as caught:
                refused(name)
            assert code(caught.value) == "INVALID_ARGUMENT", (name, caught.value.details())


def test_masks(workshop: Workshop) -> None:
    workshop.containers("Create", container=_container("c", image="old", labels={"a": "1"}))

    def update(*paths: str, **fields: Any) -> Any:
        return workshop.containers(
            "Update", container=_container("c", **fields), update_mask=FieldMask(paths=paths)
        ).container

    changed = update("labels.b", labels={"a": "9", "b": "2"}, image="ignored")
    assert (dict(changed.labels), changed.image) == ({"a": "1", "b": "2"}, "old")
    assert changed.updated_at != changed.created_at
    assert dict(update("labels.a").labels) == {"b": "2"}
    assert dict(update("labels", labels={"c": "3"}).labels) == {"c": "3"}
    assert update("image", image="new").image == "new"
    value = Any_(type_url="some.Type", value=b"x")
    assert update("extensions.e", extensions={"e": value}).extensions["e"] == value
    assert dict(update("extensions").extensions) == {}
    other = Any_(type_url=SPEC.type_url, value=b'{"process": {}}')
    assert update("spec", spec=other).spec == other
    whole = update(labels={"all": "1"}, image="all", extensions={"e": value})
    assert (dict(whole.labels), whole.image, whole.spec) == ({"all": "1"}, "all", SPEC)
    with pytest.raises(grpc.RpcError) as refused:
        update("snapshotter")
    assert refused.value.details() == 'cannot update "snapshotter" field on "c": invalid argument'


def test_a_change_of_all_that_forgets_something_changes_nothing(workshop: Workshop) -> None:
    """Without a mask all fields are meant: one that is left out would be emptied."""
    given = _container("c", image="i", snapshotter="overlayfs", snapshot_key="k")
    made = workshop.containers("Create", container=given).container
    of_runc = given.runtime
    for fields, cause in (
        ({}, "container.Snapshotter field is immutable"),
        ({"snapshotter": "other"}, "container.Snapshotter field is immutable"),
        ({"snapshotter": "overlayfs"}, "container.Runtime.Name field is immutable"),
        (
            {"snapshotter": "overlayfs", "runtime": of_runc},
            "update failed validation: container.Spec must be set",
        ),
    ):
        change = containers_pb2.Container(id="c", labels={"a": "b"}, **fields)
        refused = _refused(workshop, "Update", container=change)
        assert refused == ("INVALID_ARGUMENT", f"{cause}: invalid argument")
    for mask, fields, cause in (
        ("spec", {"spec": None}, "container.Spec must be set"),
        ("extensions", {"extensions": {"": Any_(type_url="x")}}, "keys must not be zero-length"),
        ("labels", {"labels": {"a": "x" * 5000}}, "containers.Labels"),
    ):
        change = _container("c", **fields)
        masked = {"container": change, "update_mask": FieldMask(paths=[mask])}
        refused = _refused(workshop, "Update", **masked)
        assert refused[0] == "INVALID_ARGUMENT", refused
        assert refused[1].startswith("update failed validation: ") and cause in refused[1], refused
    assert workshop.containers("Get", id="c").container == made
    without = workshop.containers("Create", container=_container("d")).container
    no_snapshotter = {"container": _container("d", snapshot_key="k")}
    assert "container.Snapshotter must be set" in _refused(workshop, "Update", **no_snapshotter)[1]
    assert workshop.containers("Get", id="d").container == without


def test_lists(workshop: Workshop) -> None:
    for number in range(30):
        labels = {"odd": str(number % 2), "k.x/y": "v"}
        workshop.containers("Create", container=_container(f"c{number:02}", labels=labels))

    def ids(*filters: str) -> list[str]:
        listed = [c.id for c in workshop.containers("List", filters=filters).containers]
        streamed = workshop.api.stream(containers_pb2, "Containers", "ListStream", filters=filters)
        assert [message.container.id for message in streamed] == listed
        return listed

    assert ids() == [f"c{number:02}" for number in range(30)]
    assert len(ids("labels.odd==1")) == 15
    assert ids('labels."k.x/y"==v,id~=^c2,labels.odd==0') == ["c20", "c22", "c24", "c26", "c28"]
    assert ids("id==c01", "id==c02") == ["c01", "c02"]
    assert ids("image==x") == ids("image") == ids("image==") == []
    assert len(ids("image!=x")) == len(ids("runtime.name")) == 30
    assert _refused(workshop, "List", filters=['id~="\\ud800"'])[0] == "INVALID_ARGUMENT"


def test_a_list_that_no_message_holds_comes_by_a_stream(workshop: Workshop) -> None:
    spec = Any_(type_url=SPEC.type_url, value=b'{"x": "%s"}' % (b"y" * (6 << 20)))
    for name in ("a", "b", "c"):
        workshop.containers("Create", container=_container(name, spec=spec))
    assert _refused(workshop, "List")[0] == "RESOURCE_EXHAUSTED"
    streamed = workshop.api.stream(containers_pb2, "Containers", "ListStream")
    assert [(one.container.id, one.container.spec == spec) for one in streamed] == [
        ("a", True),
        ("b", True),
        ("c", True),
    ]
    assert [c.id for c in workshop.containers("List", filters=["id==b"]).containers] == ["b"]


def test_what_ctl_has_chosen_outlives_a_change_by_ctr(workshop: Workshop) -> None:
    place = ("--cgroup-parent", f"/{workshop.namespace}")
    workshop.ctl(
        *("create", "--name", "n", "--stop-signal", "SIGINT", *place, REFERENCE, "sleep", "1000")
    )
    with workshop.lighterd.client(workshop.namespace) as client:

        def options() -> Any:
            return client.call("containers", "get", id="n")["container"]["options"]

        before = options()
        assert before["stop_signal"] == "SIGINT" and before["cgroup"]
        workshop.ctr("containers", "label", "n", "a=b")
        assert options() == before


def test_a_container_with_a_task_is_kept(workshop: Workshop) -> None:
    workshop.create("c", "sleep", "1000")
    refused = _refused(workshop, "Delete", id="c")
    assert refused[0] == "FAILED_PRECONDITION" and "cannot delete running task c" in refused[1]
    workshop.tasks("Delete", container_id="c")
    workshop.ctr("snapshots", "rm", "c")
    workshop.containers("Delete", id="c")
    assert workshop.ctl("ls", "-q") == ""


def test_sec_44_reserved_labels_of_the_image_are_left_out(
    workshop: Workshop, tmp_path: Path
) -> None:
    """With a client that is no ctr: in create, and in update with and without a mask."""
    status, policy = "containerd.io/restart.status", "containerd.io/restart.policy"
    archive = tmp_path / "image.tar"
    archive.write_bytes(variant(Labels={status: "running", "io.lighter/x": "y", "plain": "kept"}))
    workshop.ctr("images", "import", str(archive))
    given = {status: "running", policy: "always", "io.lighter/x": "y", "plain": "kept"}
    left = {policy: "always", "plain": "kept"}
    made = workshop.containers("Create", container=_container("c", image=NAME, labels=given))
    assert dict(made.container.labels) == left
    for mask in (None, FieldMask(paths=["labels"]), FieldMask(paths=[f"labels.{status}"])):
        changed = _container("c", image=NAME, labels=given)
        made = workshop.containers("Update", container=changed, update_mask=mask)
        assert dict(made.container.labels) == left, mask
    # Of another image they are the caller's own, and stay when the record has had them.
    workshop.containers("Create", container=_container("own", image=REFERENCE, labels=given))
    changed = _container("own", image=NAME, labels=given)
    made = workshop.containers("Update", container=changed)
    assert dict(made.container.labels) == given
