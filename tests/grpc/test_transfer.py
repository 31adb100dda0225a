"""Transfer and Streaming as other clients than ctr use them, and as hostile ones do."""

import base64
import json
import os
import queue
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from lighter.daemon.grpc import anys
from lighter.daemon.grpc.pb import (
    images_pb2,
    streaming_pb2,
    transfer_pb2,
    types_pb2,
)
from lighter.daemon.grpc.pb import transfer_types_pb2 as ends
from tests import images
from tests.grpc.client import Api, code
from tests.grpc.space import LEASE, Space, digest_of, refused
from tests.harness import await_that
from tests.registries import (
    BASIC,
    OCI_INDEX,
    OCI_MANIFEST,
    PASSWORD,
    USER,
    Reply,
    Request,
    Scripted,
    small_image,
)

HOST = types_pb2.Platform(os="linux", architecture="amd64")
PIECE = 32 << 10


class Talk:
    """A stream as a client has it: it sends when it wants to, and reads what comes."""

    def __init__(self, api: Api, name: str) -> None:
        self.name = name
        self._requests: queue.SimpleQueue[AnyMessage | None] = queue.SimpleQueue()
        self.send(streaming_pb2.StreamInit(id=name))
        self.call = api.converse(
            streaming_pb2, "Streaming", "Stream", iter(self._requests.get, None)
        )
        anys.unpack(next(self.call), Empty())

    def send(self, message: Message) -> None:
        self._requests.put(anys.pack(message))

    def end(self) -> None:
        """Nothing more to say; what the other side says still comes."""
        self._requests.put(None)

    def read(self, message: Any) -> Any:
        anys.unpack(next(self.call), message)
        return message


@contextmanager
def talk(api: Api, name: str) -> Iterator[Talk]:
    made = Talk(api, name)
    try:
        yield made
    finally:
        made.end()
        made.call.cancel()


def transfer(api: Api, source: Message, destination: Message, progress: str = "") -> Any:
    """Under way: `result()` is its end."""
    return api.future(
        transfer_pb2,
        "Transfer",
        "Transfer",
        source=anys.pack(source),
        destination=anys.pack(destination),
        options=transfer_pb2.TransferOptions(progress_stream=progress),
    )


def import_into(name: str) -> ends.ImageStore:
    """Takes the archive's own names, and unpacks for this host."""
    prefix = ends.ImageReference(name=name, is_prefix=True, allow_overwrite=True)
    unpack = ends.UnpackConfiguration(platform=HOST)
    return ends.ImageStore(extra_references=[prefix], unpacks=[unpack], labels={"from": "test"})


def send_archive(stream: Talk, archive: bytes) -> None:
    """As much as is asked for, until all is sent."""
    room = 0
    while archive:
        if not room:
            room = stream.read(ends.WindowUpdate()).update
        piece = archive[: min(room, PIECE)]
        stream.send(ends.Data(data=piece))
        room -= len(piece)
        archive = archive[len(piece) :]
    stream.end()


def descriptors(space: Space) -> int:
    """Of the manager, and how many of them are pipes: what a transfer left open would be among."""
    folder = f"/proc/{space.lighterd.pid}/fd"
    return len([name for name in os.listdir(folder) if _is_pipe(f"{folder}/{name}")])


def _is_pipe(path: str) -> bool:
    try:
        return os.readlink(path).startswith("pipe:")
    except FileNotFoundError:
        return False


def test_an_archive_comes_and_goes_in_pieces_that_are_asked_for(space: Space) -> None:
    archive = images.busybox_archive().read_bytes()
    with talk(space.api, "in") as stream, talk(space.api, "told") as told:
        moving = transfer(
            space.api, ends.ImageImportStream(stream="in"), import_into("base"), "told"
        )
        send_archive(stream, archive)
        moving.result()
        with pytest.raises(StopIteration):
            next(stream.call)
        said = [told.read(ends.Progress()) for _ in range(2)]
        events = [said[0].event, *(message.event for message in _rest(told))]
        assert events[0] == "Importing" and events[-1] == "Completed import"
    (image,) = space.images("List").images
    assert (image.name, dict(image.labels)) == (images.REFERENCE, {"from": "test"})
    assert [info.kind for info in space.snapshot_infos("kind==committed")]

    with talk(space.api, "out") as stream:
        moving = transfer(
            space.api, ends.ImageStore(name=image.name), ends.ImageExportStream(stream="out")
        )
        stream.send(ends.WindowUpdate(update=10))
        first = stream.read(ends.Data()).data
        assert len(first) == 10 and not moving.done()  # no more than was asked for
        stream.send(ends.WindowUpdate(update=1 << 30))
        whole = first + b"".join(message.data for message in _rest(stream, ends.Data))
        moving.result()
    exported = Path(space.lighterd.state) / "exported.tar"
    space.lighterd.ctl(
        *("-n", space.namespace, "images", "export", str(exported), image.name), check=True
    )
    assert exported.read_bytes() == whole
    exported.unlink()


def _rest(stream: Talk, kind: Any = ends.Progress) -> Iterator[Any]:
    for message in stream.call:
        read = kind()
        anys.unpack(message, read)
        yield read


def test_a_client_that_goes_midway_leaves_nothing(space: Space) -> None:
    before = descriptors(space)
    with talk(space.api, "in") as stream:
        moving = transfer(space.api, ends.ImageImportStream(stream="in"), import_into("base"))
        stream.read(ends.WindowUpdate())
        stream.send(ends.Data(data=images.busybox_archive().read_bytes()[:PIECE]))
        stream.call.cancel()
        with pytest.raises(grpc.RpcError) as caught:
            moving.result()
    # It may look like the archive's end, which comes too early then.
    assert code(caught.value) in ("UNAVAILABLE", "INVALID_ARGUMENT")
    assert not space.images("List").images and not space.digests()

    with talk(space.api, "in2") as stream:
        moving = transfer(space.api, ends.ImageImportStream(stream="in2"), import_into("base"))
        stream.read(ends.WindowUpdate())
        moving.cancel()
        with pytest.raises(StopIteration):
            next(stream.call)
    await_that(lambda: descriptors(space) <= before, 30, "all pipes are closed")


def test_more_than_was_asked_for_is_refused(space: Space) -> None:
    with talk(space.api, "in") as stream:
        moving = transfer(space.api, ends.ImageImportStream(stream="in"), import_into("base"))
        room = stream.read(ends.WindowUpdate()).update
        stream.send(ends.Data(data=bytes(room + 1)))
        with pytest.raises(grpc.RpcError) as caught:
            moving.result()
    assert code(caught.value) == "INVALID_ARGUMENT"
    assert not space.images("List").images


def test_streams_that_are_none(space: Space) -> None:
    store, archive = import_into("base"), ends.ImageImportStream(stream="none")
    with refused("NOT_FOUND", "no such stream"):
        transfer(space.api, archive, store).result()
    with talk(space.api, "once") as stream:
        with refused("ALREADY_EXISTS"):
            Talk(space.api, "once")
        first = transfer(space.api, ends.ImageImportStream(stream="once"), store)
        stream.read(ends.WindowUpdate())
        with refused("ALREADY_EXISTS", "another call has it"):
            transfer(space.api, ends.ImageImportStream(stream="once"), store).result()
        first.cancel()
    with talk(space.api, "wrong") as stream:
        moving = transfer(space.api, ends.ImageImportStream(stream="wrong"), store)
        stream.send(ends.Progress(event="no data"))
        with refused("INVALID_ARGUMENT", "containerd.types.transfer.Data"):
            moving.result()
    with refused("INVALID_ARGUMENT"):
        next(space.api.converse(streaming_pb2, "Streaming", "Stream", [anys.pack(Empty())]))
    with Api(space.api.path, "") as nameless, refused("FAILED_PRECONDITION", "namespace"):
        Talk(nameless, "x")


def test_what_no_transfer_can_do(space: Space) -> None:
    store = ends.ImageStore(name="example.com/x:1")
    with refused("UNIMPLEMENTED", "method Transfer not implemented for"):
        transfer(space.api, ends.OCIRegistry(), ends.OCIRegistry()).result()
    with refused("UNIMPLEMENTED", "google.protobuf.Empty"):
        transfer(space.api, Empty(), store).result()
    with refused("NOT_FOUND", 'image "example.com/x:1": not found'):
        transfer(space.api, store, ends.ImageStore(name="example.com/y:1")).result()
    with refused("UNIMPLEMENTED", "limit"):
        transfer(
            space.api, ends.OCIRegistry(), ends.ImageStore(name="x", manifest_limit=1)
        ).result()


def test_a_pull_asks_for_credentials_once_and_when_it_needs_them(space: Space) -> None:
    image = small_image(1000, 2000)
    with Scripted() as registry:
        wanted = "Basic " + _basic(USER, PASSWORD)
        open_routes(registry, image, wanted)
        name = f"{registry.host}/app:1"
        source = ends.OCIRegistry(
            reference=name,
            resolver=ends.RegistryResolver(
                auth_stream="creds", default_scheme="http", headers={"X-From": "the test"}
            ),
        )
        store = ends.ImageStore(
            name="example.com/called:so",
            platforms=[HOST],
            all_metadata=True,
            unpacks=[ends.UnpackConfiguration(platform=HOST)],
            extra_references=[ends.ImageReference(name="example.com/by", add_digest=True)],
        )
        with talk(space.api, "creds") as stream, talk(space.api, "told") as told:
            moving = transfer(space.api, source, store, "told")
            asked = stream.read(ends.AuthRequest())
            assert (asked.host, asked.reference) == (registry.host, name)
            assert not registry.sent("authorization")
            stream.send(
                ends.AuthResponse(authType=ends.CREDENTIALS, username=USER, secret=PASSWORD)
            )
            moving.result()
            with pytest.raises(StopIteration):  # it was not asked again
                next(stream.call)
            pieces = {message.name: message for message in _rest(told) if message.parents}
        assert set(registry.sent("authorization")) == {wanted}
        assert set(registry.sent("x-from")) == {"the test"}
    digest = image.descriptor.digest
    names = [found.name for found in space.images("List").images]
    assert names == [f"example.com/by@{digest}", "example.com/called:so"]
    layer = pieces[f"layer-{image.layers[0].digest}"]
    assert list(layer.parents) == [f"manifest-{digest}"] and layer.event == "complete"
    assert list(pieces[f"manifest-{digest}"].parents) == ["example.com/called:so"]
    held = space.leases("ListResources", id=LEASE).resources
    assert {(one.type, one.id) for one in held} >= {("images", found) for found in names}


def open_routes(registry: Scripted, image: Any, authorization: str) -> None:
    """Everything of the image for who brings this header, 401 for others."""
    registry.serve(image, "app", "1")

    def guarded(answer: Any) -> Any:
        def reply(request: Request) -> Reply:
            if request.headers.get("authorization") != authorization:
                return BASIC
            return answer if isinstance(answer, Reply) else answer(request)

        return reply

    for key, answer in registry.routes.items():
        registry.routes[key] = guarded(answer)


def _basic(user: str, password: str) -> str:
    return base64.b64encode(f"{user}:{password}".encode()).decode()


def test_a_name_is_given_and_moved(space: Space) -> None:
    first, second = space.put(b"first"), space.put(b"second")
    for name, digest, size in (("example.com/a:1", first, 5), ("example.com/b:1", second, 6)):
        target = types_pb2.Descriptor(
            media_type="application/vnd.oci.image.manifest.v1+json", digest=digest, size=size
        )
        space.images("Create", image=images_pb2.Image(name=name, target=target))
    a, b = ends.ImageStore(name="example.com/a:1"), ends.ImageStore(name="example.com/b:1")
    transfer(space.api, a, b).result()
    assert {found.target.digest for found in space.images("List").images} == {first}
    with refused("NOT_FOUND", "lease does not exist"), space.leased("none") as leased:
        transfer(leased, a, b).result()


def test_a_stream_that_nobody_takes_costs_no_memory(space: Space) -> None:
    """What is sent before a call takes the stream waits with the client."""
    with talk(space.api, "waits") as stream:
        before = resident_kib(space)
        for _ in range(10):
            stream.send(ends.Data(data=bytes(15 << 20)))
        for _ in range(50):  # it has time enough to read them
            space.leases("List")
        assert resident_kib(space) < before + (32 << 10)
        moving = transfer(space.api, ends.ImageImportStream(stream="waits"), import_into("base"))
        with refused("INVALID_ARGUMENT", "more was sent"):
            moving.result()


def resident_kib(space: Space) -> int:
    with open(f"/proc/{space.lighterd.pid}/status", encoding="ascii") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))


def index_of(**by_architecture: Any) -> tuple[bytes, list[Any]]:
    """(an index, its images)."""
    entries = [
        {
            "mediaType": OCI_MANIFEST,
            "digest": image.descriptor.digest,
            "size": image.descriptor.size,
            "platform": {"os": "linux", "architecture": architecture},
        }
        for architecture, image in by_architecture.items()
    ]
    document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}
    return json.dumps(document).encode(), list(by_architecture.values())


@pytest.mark.parametrize(
    ("wanted", "all_metadata", "layers"),
    [
        (("amd64",), False, 1),
        (("amd64", "arm64"), False, 2),
        (("amd64",), True, 1),  # the others' manifests and configs come too
        ((), False, 3),
    ],
)
def test_platforms_of_a_pull(
    space: Space, wanted: tuple[str, ...], all_metadata: bool, layers: int
) -> None:
    index, each = index_of(
        amd64=small_image(1000, seed=1),
        arm64=small_image(1000, seed=2),
        s390x=small_image(1000, seed=3),
    )
    platforms = [types_pb2.Platform(os="linux", architecture=name) for name in wanted]
    with Scripted() as registry:
        for image in each:
            registry.serve(image, "app")
        reply = Reply(body=index, headers=(("Content-Type", OCI_INDEX),))
        registry.route("/v2/app/manifests/1", reply)
        registry.route(f"/v2/app/manifests/{digest_of(index)}", reply)
        source = ends.OCIRegistry(
            reference=f"{registry.host}/app:1",
            resolver=ends.RegistryResolver(default_scheme="http"),
        )
        store = ends.ImageStore(
            name="example.com/app:1",
            platforms=platforms,
            all_metadata=all_metadata,
            unpacks=[ends.UnpackConfiguration(platform=HOST)],
        )
        transfer(space.api, source, store).result()
    have = space.digests()
    assert digest_of(index) in have
    assert sum(image.layers[0].digest in have for image in each) == layers
    manifests = sum(image.descriptor.digest in have for image in each)
    assert manifests == (3 if all_metadata else layers)
    assert len(space.snapshot_infos("kind==committed")) == 1


def test_a_name_that_is_given_anew_has_no_old_labels(space: Space) -> None:
    space.image("one", b"1", of="one")
    space.image("two", b"2", of="two")
    for labels in ({"of": "the tag"}, {}):
        store = ends.ImageStore(name="two", labels=labels)
        transfer(space.api, ends.ImageStore(name="one"), store).result(60)
        made = space.images("Get", name="two").image
        assert (made.target.digest, dict(made.labels)) == (digest_of(b"1"), labels)


def test_a_tag_that_moves_amid_a_pull_of_several_platforms(space: Space) -> None:
    """All of them are of the image that it stood for first."""
    first, each = index_of(amd64=small_image(1000, seed=1), arm64=small_image(1000, seed=2))
    second, others = index_of(amd64=small_image(1000, seed=3), arm64=small_image(1000, seed=4))
    with Scripted() as registry:
        for image in each + others:
            registry.serve(image, "app")
        kind = ("Content-Type", OCI_INDEX)
        replies = {
            digest_of(index): Reply(body=index, headers=(kind,)) for index in (first, second)
        }
        for digest, reply in replies.items():
            registry.route(f"/v2/app/manifests/{digest}", reply)
        # HEAD and GET are counted alike: the tag moves once the first platform is there.
        brought = each[0].layers[0].digest

        def tag(_request: Request) -> Reply:
            return replies[digest_of(second if brought in space.digests() else first)]

        registry.route("/v2/app/manifests/1", tag)
        source = ends.OCIRegistry(
            reference=f"{registry.host}/app:1",
            resolver=ends.RegistryResolver(default_scheme="http"),
        )
        store = ends.ImageStore(
            name="example.com/app:1",
            platforms=[
                types_pb2.Platform(os="linux", architecture=name) for name in ("amd64", "arm64")
            ],
        )
        transfer(space.api, source, store).result()
    have = space.digests()
    assert {image.layers[0].digest for image in each} <= have
    assert digest_of(first) in have and digest_of(second) not in have


def test_an_export_that_cannot_begin_leaves_no_pipe(space: Space) -> None:
    before = descriptors(space)
    for number in range(8):
        with talk(space.api, f"out{number}") as stream, refused("INVALID_ARGUMENT"):
            to = ends.ImageExportStream(stream=stream.name)
            transfer(space.api, ends.ImageStore(), to).result()
    await_that(lambda: descriptors(space) <= before, 30, "all pipes are closed")
