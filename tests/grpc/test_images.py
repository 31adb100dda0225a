"""Image names by containerd's API."""

from google.protobuf.timestamp_pb2 import Timestamp

from lighter.daemon.grpc.pb import images_pb2 as pb
from lighter.daemon.grpc.pb import types_pb2
from tests.grpc.space import LEASE, Space, descriptor, digest_of, refused
from tests.harness import await_that


def test_life_of_a_name(space: Space) -> None:
    made = space.image("i", b"one", a="b")
    assert (made.name, dict(made.labels), made.target) == ("i", {"a": "b"}, descriptor(b"one"))
    assert made.created_at.seconds > 0 and made.updated_at == made.created_at
    assert space.images("Get", name="i").image == made
    with refused("ALREADY_EXISTS", 'image "i": already exists'):
        space.image("i", b"two")
    with Space(space.lighterd, f"{space.namespace}-2") as other, refused("NOT_FOUND"):
        other.images("Get", name="i")
    space.images("Delete", name="i")
    for method in ("Get", "Delete"):
        with refused("NOT_FOUND", 'image "i": not found'):
            space.images(method, name="i")
    with refused("NOT_FOUND", 'image "i": not found'):
        space.images("Update", image=pb.Image(name="i", target=descriptor(b"one")))


def test_a_name_is_taken_as_it_is(space: Space) -> None:
    space.image("busybox", b"one")
    with refused("NOT_FOUND", 'image "docker.io/library/busybox:latest": not found'):
        space.images("Get", name="docker.io/library/busybox:latest")
    space.image("docker.io/library/busybox:latest", b"two")
    space.images("Delete", name="busybox")
    with refused("NOT_FOUND"):
        space.images("Delete", name="busybox")
    assert [image.name for image in space.images("List").images] == [
        "docker.io/library/busybox:latest"
    ]


def test_what_is_no_image(space: Space) -> None:
    good = {"media_type": "x/y", "digest": digest_of(b""), "size": 1}
    for name, target, text in (
        ("", good, "image name must not be empty"),
        ("i", {**good, "size": 0}, "Target.Size must be greater than zero"),
        ("i", {**good, "media_type": ""}, "Target.MediaType must be set"),
        ("i", {**good, "digest": "sha256:1"}, "digest"),
    ):
        image = pb.Image(name=name, target=types_pb2.Descriptor(**target))
        with refused("INVALID_ARGUMENT", text):
            space.images("Create", image=image)
    assert not space.images("List").images


def test_a_record_has_the_time_of_a_reproducible_build(space: Space) -> None:
    made = {"name": "i", "target": descriptor(b"one")}
    first, second = {"seconds": 1_000_000_000, "nanos": 5}, {"seconds": 0}
    old = space.images("Create", image=made, source_date_epoch=first).image
    assert old.created_at == old.updated_at == Timestamp(**first)
    for mask in ({}, {"update_mask": {"paths": ["labels.a"]}}):
        new = space.images("Update", image=made, source_date_epoch=second, **mask).image
        assert (new.created_at, new.updated_at) == (old.created_at, Timestamp(**second))
    assert space.images("Update", image=made).image.updated_at.seconds > first["seconds"]
    with refused("INVALID_ARGUMENT", "source_date_epoch is too far"):
        space.images("Update", image=made, source_date_epoch={"seconds": 1 << 40})


def test_updates_go_by_their_mask(space: Space) -> None:
    made = space.image("i", b"one", a="1", b="2")

    def update(paths: list[str], data: bytes, **labels: str) -> tuple[str, dict[str, str]]:
        image = pb.Image(name="i", target=descriptor(data), labels=labels)
        answer = space.images("Update", image=image, update_mask={"paths": paths}).image
        assert space.images("Get", name="i").image == answer
        assert answer.created_at == made.created_at
        return answer.target.digest, dict(answer.labels)

    one, two = digest_of(b"one"), digest_of(b"two")
    assert update(["labels.a"], b"two", a="3", b="4") == (one, {"a": "3", "b": "2"})
    assert update(["labels.a"], b"two") == (one, {"b": "2"})
    assert update(["target"], b"two", c="5") == (two, {"b": "2"})
    assert update(["labels"], b"one", c="5") == (two, {"c": "5"})
    assert update(["target", "labels.c"], b"one") == (one, {})
    assert update([], b"two", d="6") == (two, {"d": "6"})
    target = descriptor(b"two")
    target.annotations["k"] = "v"
    image = pb.Image(name="i", target=target)
    changed = space.images("Update", image=image, update_mask={"paths": ["annotations"]}).image
    assert dict(changed.target.annotations) == {"k": "v"} and dict(changed.labels) == {"d": "6"}
    target.annotations.update({"k": "w", "other": "x"})
    for paths, given, left in (
        (["annotations.k"], target, {"k": "w"}),
        (["annotations.other", "labels.d"], target, {"k": "w", "other": "x"}),
        (["annotations.k"], descriptor(b"two"), {"other": "x"}),
    ):
        image = pb.Image(name="i", target=given)
        changed = space.images("Update", image=image, update_mask={"paths": paths}).image
        assert dict(changed.target.annotations) == left, paths
        assert space.images("Get", name="i").image == changed
    with refused("INVALID_ARGUMENT", 'cannot update "name" field on image "i"'):
        update(["name"], b"one")


def test_lists_and_filters(space: Space) -> None:
    for number in range(30):
        space.image(f"i{number:02}", b"%d" % (number % 3), n=str(number))

    def names(*filters: str) -> list[str]:
        return [image.name for image in space.images("List", filters=filters).images]

    assert names() == names("") == [f"i{number:02}" for number in range(30)]
    assert names("name==i07") == names("labels.n==7") == ["i07"]
    assert names("name~=^i0[12]") == ["i01", "i02"]
    assert names("name==i01", "name==i02") == ["i01", "i02"]
    assert len(names(f"target.digest=={digest_of(b'1')}")) == 10
    assert len(names("target.mediatype~=manifest")) == 30
    with refused("INVALID_ARGUMENT", "parse filter"):
        names("name=i01")


def test_a_name_keeps_its_content_until_it_goes(space: Space) -> None:
    digest = space.put(b"manifest")
    space.image("i", b"manifest")
    space.leases("Delete", id=LEASE, sync=True)
    assert space.digests() == {digest}
    other = descriptor(b"other")
    with refused("NOT_FOUND", 'image "i": not found'):
        space.images("Delete", name="i", target=other)
    space.images("Delete", name="i", target=descriptor(b"manifest"), sync=True)
    assert not space.digests()

    space.leases("Create", id="l1")
    with space.leased("l1") as api:
        space.put(b"again", api=api)
    space.bare.call(pb, "Images", "Create", image=pb.Image(name="i", target=descriptor(b"again")))
    space.leases("Delete", id="l1", sync=True)
    assert space.digests()
    space.images("Delete", name="i")
    await_that(lambda: not space.digests(), 30, "what nobody needs is collected")


def test_the_native_front_end_shows_and_tells_the_same(space: Space) -> None:
    with space.lighterd.client(space.namespace) as client:
        space.image("i", b"one", a="b")
        listed = client.call("images", "list")["images"]
        assert [(row["name"], row["labels"]) for row in listed] == [("i", {"a": "b"})]
        client.call("images", "tag", source="i", name="j", force=False)
        client.call("images", "tag", source="i", name="j", force=True)
        client.call("images", "label", name="j", labels={"x": "y"}, replace_all=False)
        client.call("images", "delete", name="j")
        image = pb.Image(name="i", labels={"a": "c"})
        space.images("Update", image=image, update_mask={"paths": ["labels.a"]})
        space.images("Delete", name="i")
    assert space.told("/images/") == [
        ("/images/create", {"name": "i", "labels": {"a": "b"}}),
        ("/images/create", {"name": "j", "labels": {}}),
        ("/images/update", {"name": "j", "labels": {}}),
        ("/images/update", {"name": "j", "labels": {"x": "y"}}),
        ("/images/delete", {"name": "j"}),
        ("/images/update", {"name": "i", "labels": {"a": "c"}}),
        ("/images/delete", {"name": "i"}),
    ]


def test_what_expires_is_told_whoever_collects(space: Space) -> None:
    over = {"containerd.io/gc.expire": "2001-01-01T00:00:00Z"}
    image = pb.Image(name="i", target=descriptor(b"one"), labels=over)
    space.bare.call(pb, "Images", "Create", image=image)
    space.collect()
    assert [topic for topic, _ in space.told("/images/")] == ["/images/create", "/images/delete"]
