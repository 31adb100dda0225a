"""Leases by containerd's API, and what a call's lease header keeps from the collector."""

from collections.abc import Callable

from google.protobuf.any_pb2 import Any as Any_

from lighter.daemon.grpc.pb import (
    containers_pb2,
    content_pb2,
    diff_pb2,
    images_pb2,
    leases_pb2,
    snapshots_pb2,
)
from tests.grpc.space import LEASE, SNAPSHOTTER, Space, descriptor, digest_of, refused
from tests.grpc.test_content import Writing
from tests.harness import Lighterd, await_that

NEVER = {"containerd.io/gc.expire": "2999-01-01T00:00:00Z"}
OVER = {"containerd.io/gc.expire": "2001-01-01T00:00:00Z"}


def resources(space: Space, lease: str) -> set[tuple[str, str]]:
    held = space.leases("ListResources", id=lease).resources
    return {(one.type, one.id) for one in held}


def test_life_of_a_lease(space: Space) -> None:
    made = space.leases("Create", id="l1", labels={"a": "b"}).lease
    assert (made.id, dict(made.labels)) == ("l1", {"a": "b"})
    assert made.created_at.seconds > 0
    named = space.leases("Create").lease.id
    assert named
    with refused("ALREADY_EXISTS", 'lease "l1": already exists'):
        space.leases("Create", id="l1")
    assert [one.id for one in space.leases("List").leases] == sorted([LEASE, "l1", named])
    for filters in (["id==l1"], ["labels.a==b"], ["labels.a"], ["id==none", "id==l1"]):
        assert list(space.leases("List", filters=filters).leases) == [made]
    with Space(space.lighterd, f"{space.namespace}-2") as other:
        assert [one.id for one in other.leases("List").leases] == [LEASE]
    space.leases("Delete", id="l1")
    for method, fields in (
        ("Delete", {}),
        ("ListResources", {}),
        ("AddResource", {"resource": leases_pb2.Resource(id="x", type="images")}),
        ("DeleteResource", {"resource": leases_pb2.Resource(id="x", type="images")}),
    ):
        with refused("NOT_FOUND", 'lease "l1": not found'):
            space.leases(method, id="l1", **fields)


def test_resources_of_a_lease(space: Space) -> None:
    space.leases("Create", id="l1")
    held = [
        (digest_of(b"x"), "content"),
        ("a key", "snapshots/overlayfs"),
        ("a ref", "ingests"),
    ]
    for name, type_ in held * 2:  # a second time is nothing
        space.leases("AddResource", id="l1", resource=leases_pb2.Resource(id=name, type=type_))
    assert resources(space, "l1") == {(type_, name) for name, type_ in held}
    for _ in range(2):
        gone = leases_pb2.Resource(id="a ref", type="ingests")
        space.leases("DeleteResource", id="l1", resource=gone)
    assert resources(space, "l1") == {(type_, name) for name, type_ in held[:2]}
    for name, type_, code, text in (
        ("x", "content", "INVALID_ARGUMENT", "digest"),
        ("x", "content/y", "INVALID_ARGUMENT", "invalid resource type content/y"),
        ("x", "snapshots", "INVALID_ARGUMENT", "invalid snapshot resource type snapshots"),
        ("x", "tasks", "UNIMPLEMENTED", "resource type tasks not supported yet"),
    ):
        with refused(code, text):
            space.leases("AddResource", id="l1", resource=leases_pb2.Resource(id=name, type=type_))


def test_a_lease_holds_what_is_made_under_it(space: Space) -> None:
    kept, dropped = space.put(b"kept"), space.put(b"dropped", api=space.bare)
    assert ("content", kept) in resources(space, LEASE)
    with Writing(space.api) as writing:
        writing.say(content_pb2.WRITE, ref="r", data=b"abc")
        assert ("ingests", "r") in resources(space, LEASE)
        writing.say(content_pb2.COMMIT, offset=3)
    assert ("ingests", "r") not in resources(space, LEASE)
    for method, fields in (("Prepare", {"key": "active"}), ("View", {"key": "view"})):
        space.snapshots(method, **fields)
    space.snapshots("Commit", key="active", name="committed")
    # What was active has another name now; containerd's lists have the old one as well.
    for key in ("view", "committed"):
        assert (f"snapshots/{SNAPSHOTTER}", key) in resources(space, LEASE)
    space.image("i", b"kept")
    assert ("images", "i") in resources(space, LEASE)

    space.collect()
    assert space.digests() == {kept, digest_of(b"abc")} and dropped not in space.digests()
    assert space.keys() == ["committed", "view"]
    space.images("Delete", name="i")
    space.leases("Delete", id=LEASE, sync=True)
    assert not space.digests()
    assert not space.keys()


def test_the_first_of_several_headers_counts(space: Space) -> None:
    """containerd's client puts what it has set last before what it was called with."""
    space.leases("Create", id="inner")
    with space.leased("inner") as api:
        api.metadata += [("containerd-namespace", "elsewhere"), ("containerd-lease", LEASE)]
        data = space.put(b"data", api=api)
    assert space.digests() == {data}
    assert resources(space, "inner") == {("content", data)}
    assert not resources(space, LEASE)


def test_what_a_dead_client_unpacked_to_goes_with_its_lease(space: Space) -> None:
    chain = digest_of(b"chain")
    space.leases("Create", id="l1")
    with space.leased("l1") as api:
        for key, labels in (
            (f"extract-1-x {chain}", {}),
            ("mine", {"containerd.io/snapshot.ref": chain}),
        ):
            api.call(
                snapshots_pb2,
                "Snapshots",
                "Prepare",
                snapshotter=SNAPSHOTTER,
                key=key,
                labels=labels,
            )
    unleased = f"extract-2-x {chain}"
    space.bare.call(snapshots_pb2, "Snapshots", "Prepare", snapshotter=SNAPSHOTTER, key=unleased)
    space.collect()
    assert len(space.keys()) == 3
    space.leases("Delete", id="l1", sync=True)
    assert space.keys() == [unleased]


def test_a_root_file_system_goes_with_its_lease_once_no_container_has_it(space: Space) -> None:
    """dockerd removes those of its containers so. A lease that expires takes none away."""

    def prepare(lease: str, *keys: str, **labels: str) -> None:
        space.leases("Create", id=lease, labels=labels)
        with space.leased(lease) as api:
            for key in keys:
                snapshot = {"snapshotter": SNAPSHOTTER, "key": key}
                api.call(snapshots_pb2, "Snapshots", "Prepare", **snapshot)

    prepare("over", "of a dead client", **OVER)
    prepare("l1", "root", "twice")
    held = leases_pb2.Resource(id="twice", type=f"snapshots/{SNAPSHOTTER}")
    space.leases("AddResource", id=LEASE, resource=held)
    container = containers_pb2.Container(
        id="c", spec=Any_(value=b"{}"), snapshotter=SNAPSHOTTER, snapshot_key="root"
    )
    container.runtime.name = "io.containerd.runc.v2"
    space.api.call(containers_pb2, "Containers", "Create", container=container)
    space.leases("Delete", id="l1", sync=True)
    assert space.keys() == ["of a dead client", "root", "twice"]
    space.api.call(containers_pb2, "Containers", "Delete", id="c")
    space.collect()
    assert space.keys() == ["of a dead client", "root", "twice"]

    prepare("l2")
    held.id = "root"
    space.leases("AddResource", id="l2", resource=held)
    space.leases("Delete", id="l2", sync=True)
    assert space.keys() == ["of a dead client", "twice"]
    held.id = "twice"
    space.leases("DeleteResource", id=LEASE, resource=held)
    space.collect()
    assert space.keys() == ["of a dead client"]


def test_what_exists_is_held_too(space: Space) -> None:
    digest = space.put(b"abc")
    space.leases("Create", id="l1")
    with space.leased("l1") as api, Writing(api) as writing, refused("ALREADY_EXISTS"):
        writing.say(content_pb2.STAT, ref="r", expected=digest)
    space.leases("Delete", id=LEASE, sync=True)
    assert space.digests() == {digest}
    space.leases("Delete", id="l1", sync=True)
    assert not space.digests()


def test_a_lease_that_is_not_there_is_told_before_anything_is_made(space: Space) -> None:
    told = ("NOT_FOUND", "lease does not exist: not found")
    with space.leased("nope") as api:
        with Writing(api) as writing, refused(*told):
            writing.say(content_pb2.COMMIT, ref="r", data=b"abc")
        for method in ("Prepare", "View"):
            with refused(*told):
                api.call(snapshots_pb2, "Snapshots", method, snapshotter=SNAPSHOTTER, key="k")
        with refused(*told):
            api.call(diff_pb2, "Diff", "Diff")
        assert not space.digests() and not space.keys()
        image = images_pb2.Image(name="i", target=descriptor(b"abc"))
        api.call(images_pb2, "Images", "Create", image=image)  # a name needs none
        assert [made.name for made in space.images("List").images] == ["i"]
    assert not space.content("ListStatuses").statuses


def test_a_lease_ends_by_itself(space: Space) -> None:
    for name, labels in (("never", NEVER), ("over", OVER)):
        space.leases("Create", id=name, labels=labels)
        with space.leased(name) as api:
            space.put(name.encode(), api=api)
    space.collect()
    assert space.digests() == {digest_of(b"never")}
    assert "over" not in [one.id for one in space.leases("List").leases]


def test_without_sync_a_collection_follows(space: Space) -> None:
    space.put(b"abc")
    space.leases("Delete", id=LEASE)
    await_that(lambda: not space.digests(), 30, "what nobody holds is collected")


def test_sync_means_that_it_is_over(make_lighterd: Callable[..., Lighterd]) -> None:
    lighterd = make_lighterd(
        config='[plugins."io.containerd.gc.v1.scheduler"]\n'
        'schedule_delay = "1h"\nstartup_delay = "1h"\n'
    ).start()
    with Space(lighterd, "sync") as space:

        def named(data: bytes) -> str:
            digest = space.put(data, api=space.bare)
            image = images_pb2.Image(name="i", target=descriptor(data))
            space.bare.call(images_pb2, "Images", "Create", image=image)
            return digest

        one = named(b"one")
        space.images("Delete", name="i")
        assert space.digests() == {one}
        named(b"two")
        space.images("Delete", name="i", sync=True)
        assert not space.digests()
        three = space.put(b"three")
        space.leases("Delete", id=LEASE)
        assert space.digests() == {three}
        space.leases("Create", id=LEASE)
        space.leases("Delete", id=LEASE, sync=True)
        assert not space.digests()
        space.leases("Create", id=LEASE)


def test_a_lease_says_nothing_of_what_has_a_names_next_bearer(space: Space) -> None:
    """It was given a snapshot that is gone; another client has made one of the same name."""
    space.leases("Create", id="old")
    snapshot = {"snapshotter": SNAPSHOTTER, "key": "web"}
    with space.leased("old") as api:
        api.call(snapshots_pb2, "Snapshots", "Prepare", **snapshot)
    space.api.call(snapshots_pb2, "Snapshots", "Remove", **snapshot)
    assert resources(space, "old") == set()
    space.bare.call(snapshots_pb2, "Snapshots", "Prepare", **snapshot)
    space.leases("Delete", id="old", sync=True)
    assert space.keys() == ["web"]


def test_a_resource_of_another_kind_is_another(space: Space) -> None:
    space.leases("Create", id="l1")
    snapshot = {"snapshotter": SNAPSHOTTER, "key": "x"}
    with space.leased("l1") as api:
        api.call(snapshots_pb2, "Snapshots", "Prepare", **snapshot)
    image = leases_pb2.Resource(id="x", type="images")
    space.leases("AddResource", id="l1", resource=image)
    space.leases("DeleteResource", id="l1", resource=image)
    infos = space.snapshot_infos()
    assert [dict(info.labels) for info in infos if info.name == "x"] == [{}]


def test_labels_that_keep(space: Space) -> None:
    """gc.root, gc.ref.content, gc.ref.snapshot, and gc.flat of a lease."""
    gc = "containerd.io/gc."
    child, other = space.put(b"child"), space.put(b"other")
    space.snapshots("Prepare", key="a")
    space.snapshots("Commit", key="a", name="base")
    kept = {f"{gc}ref.content.0": child, f"{gc}ref.snapshot.{SNAPSHOTTER}": "base"}
    root = space.put(b"root", {f"{gc}root": "now", **kept})
    flat = space.put(b"flat", {f"{gc}ref.content.0": other})
    space.leases("Create", id="flat", labels={f"{gc}flat": "now"})
    space.leases("AddResource", id="flat", resource=leases_pb2.Resource(id=flat, type="content"))
    space.leases("Delete", id=LEASE, sync=True)
    assert space.digests() == {root, child, flat}
    assert space.keys() == ["base"]
    # Nobody asks for a collection: a label that goes may have kept more.
    info = content_pb2.Info(digest=root)
    space.content("Update", info=info, update_mask={"paths": [f"labels.{gc}root"]})
    await_that(lambda: space.digests() == {flat}, 30, "what the root has kept is collected")
    await_that(lambda: space.keys() == [], 30, "its snapshot too")


def test_what_a_container_kept_goes_after_it(space: Space) -> None:
    digest = space.put(b"kept")
    container = containers_pb2.Container(
        id="c",
        runtime={"name": "io.containerd.runc.v2"},
        spec=Any_(type_url="x", value=b"{}"),
        labels={"containerd.io/gc.ref.content.0": digest},
    )
    space.api.call(containers_pb2, "Containers", "Create", container=container)
    space.leases("Delete", id=LEASE, sync=True)
    assert space.digests() == {digest}
    space.api.metadata.pop()  # the lease's header: it has gone
    space.api.call(containers_pb2, "Containers", "Delete", id="c")
    await_that(lambda: not space.digests(), 30, "nobody had to ask for that")
