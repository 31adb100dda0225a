"""Content by containerd's API: the rules of a write, reading, listing, what a vanished client
leaves, and what other namespaces see of it."""

import asyncio
import os
import queue
import resource
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace, TracebackType
from typing import Any, cast

import grpc
import pytest

from lighter.daemon.content.digest import Digest
from lighter.daemon.content.gc import Collector
from lighter.daemon.content.ingests import Ingests
from lighter.daemon.content.store import ContentStore
from lighter.daemon.events.log import EventLog
from lighter.daemon.grpc.content import ContentService
from lighter.daemon.grpc.pb import content_pb2 as pb
from lighter.daemon.grpc.pb import namespaces_pb2
from lighter.daemon.leases import Leases
from lighter.daemon.limits import BLOBS, FLOOR
from lighter.daemon.metadata.db import Database
from lighter.proto.errors import AlreadyExists
from tests.grpc.client import Api, code
from tests.grpc.space import Space, coroutines, digest_of, level, refused
from tests.harness import Lighterd, await_that

MIB = 1 << 20
MAX_THREADS = 64


class Writing:
    """A stream of Write that is spoken on message by message; leaving it ends it properly."""

    def __init__(self, api: Api) -> None:
        self._requests: queue.Queue[pb.WriteContentRequest | None] = queue.Queue()
        self._over = False
        self.call = api.converse(pb, "Content", "Write", iter(self._requests.get, None))

    def say(self, action: int, **fields: Any) -> Any:
        self._requests.put(pb.WriteContentRequest(action=action, **fields))
        try:
            return next(self.call)
        except grpc.RpcError:
            self._over = True
            raise

    def __enter__(self) -> "Writing":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._requests.put(None)
        if kind is None and not self._over:
            assert list(self.call) == []
        self.call.cancel()


def test_a_write_is_told_where_it_stands(space: Space) -> None:
    data = os.urandom(3 * MIB)
    with Writing(space.api) as writing:
        began = writing.say(pb.STAT, ref="r", total=len(data))
        assert (began.offset, began.total, began.digest) == (0, len(data), digest_of(b""))
        assert began.started_at.seconds > 0
        for offset in range(0, len(data), MIB):
            said = writing.say(pb.WRITE, offset=offset, data=data[offset : offset + MIB])
            assert (said.action, said.offset) == (pb.WRITE, offset + MIB)
            assert said.digest == digest_of(data[: offset + MIB])
        (status,) = space.content("ListStatuses").statuses
        assert (status.ref, status.offset, status.total) == ("r", len(data), len(data))
        assert space.content("Status", ref="r").status == status
        said = writing.say(pb.COMMIT, offset=len(data), expected=digest_of(data), labels={"a": "b"})
        assert (said.action, said.digest) == (pb.COMMIT, digest_of(data))
        assert list(writing.call) == []  # it ends there, though this side is not closed
        with Writing(space.api) as other:  # committed, the ref is free
            assert other.say(pb.STAT, ref="r").offset == 0
    with refused("NOT_FOUND", "reference nope: not found"):
        space.content("Status", ref="nope")

    info = space.content("Info", digest=digest_of(data)).info
    assert (info.size, dict(info.labels)) == (len(data), {"a": "b"})
    parts = list(space.api.stream(pb, "Content", "Read", digest=info.digest))
    assert [(part.offset, len(part.data)) for part in parts] == [
        (offset, MIB) for offset in range(0, len(data), MIB)
    ]
    assert b"".join(part.data for part in parts) == data
    space.content("Abort", ref="r")


def test_what_is_read_of_it(space: Space) -> None:
    data = bytes(range(100))
    digest = space.put(data)
    for offset, size, expected in (
        (0, 0, data),
        (10, 0, data[10:]),
        (10, 5, data[10:15]),
        (95, 50, data[95:]),
        (100, 0, b""),
        (-3, 4, data[:4]),
    ):
        assert space.read(digest, offset=offset, size=size) == expected
    with refused("OUT_OF_RANGE", "read past object length 100 bytes"):
        space.read(digest, offset=101)
    with refused("NOT_FOUND", f"content digest {digest_of(b'')}: not found"):
        space.read(digest_of(b""))
    empty = space.put(b"")
    assert space.read(empty) == b""
    with refused("INVALID_ARGUMENT"):
        space.content("Info", digest="sha256:../../etc/passwd")


def test_an_offset_must_be_where_the_ingest_stands(space: Space) -> None:
    with Writing(space.api) as writing:
        writing.say(pb.WRITE, ref="r", data=b"abc")
        with refused("OUT_OF_RANGE", "write @2 must occur at current offset 3"):
            writing.say(pb.WRITE, offset=2, data=b"d")
    with Writing(space.api) as writing:  # what was there waits for the next
        assert writing.say(pb.STAT, ref="r").offset == 3
        said = writing.say(pb.WRITE, offset=3, data=b"def")
        assert (said.offset, said.digest) == (6, digest_of(b"abcdef"))
        said = writing.say(pb.WRITE, data=b"new")  # without an offset it begins anew
        assert (said.offset, said.digest) == (3, digest_of(b"new"))
        writing.say(pb.COMMIT, offset=3)
    assert space.read(digest_of(b"new")) == b"new"


def test_a_commit_is_of_what_was_expected(space: Space) -> None:
    other = digest_of(b"other")
    for fields, said in (
        ({"total": 5}, "unexpected commit size 3, expected 5"),
        ({"expected": other}, f"unexpected commit digest {digest_of(b'abc')}, expected {other}"),
    ):
        with Writing(space.api) as writing:
            offset = writing.say(pb.STAT, ref="r").offset
            if not offset:
                writing.say(pb.WRITE, data=b"abc")
            with refused("FAILED_PRECONDITION", said):
                writing.say(pb.COMMIT, offset=3, **fields)
    with Writing(space.api) as writing:
        assert writing.say(pb.STAT, ref="r").offset == 3
        writing.say(pb.COMMIT, offset=3, total=3, expected=digest_of(b"abc"))
    assert space.digests() == {digest_of(b"abc")}
    for first in ([pb.WriteContentRequest(action=pb.STAT)], []):
        with refused("INVALID_ARGUMENT", "first message must have a reference"):
            list(space.api.converse(pb, "Content", "Write", first))
    with Api(space.api.path, "") as nowhere, refused("FAILED_PRECONDITION", "namespace"):
        list(nowhere.converse(pb, "Content", "Write", [pb.WriteContentRequest(ref="r")]))


def test_what_is_there_is_not_written_again(space: Space) -> None:
    digest = space.put(b"abc")
    told = f"content {digest}: already exists"
    with Writing(space.api) as writing, refused("ALREADY_EXISTS", told):
        writing.say(pb.STAT, ref="known before", expected=digest)
    with Writing(space.api) as writing, refused("ALREADY_EXISTS", told):
        writing.say(pb.COMMIT, ref="known by its bytes", data=b"abc")
    with Writing(space.api) as writing:
        writing.say(pb.WRITE, ref="known in between", data=b"a")
        with refused("ALREADY_EXISTS", f"blob with expected digest {digest} exists"):
            writing.say(pb.WRITE, offset=1, data=b"bc", expected=digest)
    assert not space.content("ListStatuses").statuses


def test_what_a_writer_is_told_to_be_there_is_held_before_a_collection_comes(
    tmp_path: Path,
) -> None:
    """Nothing names the content but the lease of who would have written it a second time."""

    class Collected(Ingests):
        async def abort(self, namespace: str, ref: str) -> None:
            await collector.collect(namespace)
            await super().abort(namespace, ref)

    db = Database(str(tmp_path / "lighter.db"))
    log = EventLog(db)
    content = ContentStore(str(tmp_path / "content"), db, log)
    ingests = Collected(str(tmp_path / "writes"), content)
    leases, collector = Leases(db), Collector(db, log, content, {})
    service = ContentService(content, ingests, leases, collector)
    digest = Digest.of(b"abc")

    async def requests() -> AsyncIterator[pb.WriteContentRequest]:
        yield pb.WriteContentRequest(action=pb.WRITE, ref="r", data=b"ab")
        await content.add("default", b"abc")
        yield pb.WriteContentRequest(action=pb.WRITE, offset=2, data=b"c", expected=digest)

    async def write() -> None:
        leases.create("default", "held")
        call = cast("Any", SimpleNamespace(namespace="default", lease="held"))
        with pytest.raises(AlreadyExists):
            async for answer in service.write(call, requests()):
                assert answer.offset == 2

    try:
        asyncio.run(write())
        assert content.has("default", digest)
        assert not ingests.list("default")
    finally:
        db.close()


def test_a_ref_has_one_writer(space: Space) -> None:
    with Space(space.lighterd, f"{space.namespace}-2") as elsewhere:
        with Writing(space.api) as writing:
            writing.say(pb.WRITE, ref="r", data=b"abc")
            with Writing(space.api) as other, refused("UNAVAILABLE", "/r locked"):
                other.say(pb.STAT, ref="r")
            with refused("UNAVAILABLE", "ref r locked"):
                space.content("Abort", ref="r")
            with Writing(elsewhere.api) as other:
                assert other.say(pb.STAT, ref="r").offset == 0
        elsewhere.content("Abort", ref="r")
    names = ("r", "s")
    with Writing(space.api) as writing:
        writing.say(pb.WRITE, ref="s", data=b"x")
    assert [one.ref for one in space.content("ListStatuses").statuses] == list(names)
    filtered = space.content("ListStatuses", filters=["ref~=^s"]).statuses
    assert [one.ref for one in filtered] == ["s"]
    for name in names:
        space.content("Abort", ref=name)
        with refused("NOT_FOUND", f"reference {name}: not found"):
            space.content("Abort", ref=name)


def open_ingests(lighterd: Lighterd) -> list[str]:
    """The files of ingests that the manager has open."""
    opened = []
    for descriptor in os.scandir(f"/proc/{lighterd.pid}/fd"):
        with suppress(FileNotFoundError):
            opened.append(os.readlink(descriptor.path))
    return [path for path in opened if path.startswith(f"{lighterd.root}/content/writes/")]


@pytest.fixture
def descriptors(space: Space) -> Iterator[Callable[[], int]]:
    """How many descriptors the manager has; at the end no more than at first, and no more
    coroutines. Threads are of a pool, which has a bound."""

    def count() -> int:
        return len(os.listdir(f"/proc/{space.lighterd.pid}/fd"))

    before, running = level(count), level(lambda: coroutines(space.lighterd))
    yield count
    await_that(lambda: count() <= before + 2, 20, "the manager has its descriptors back")
    await_that(lambda: coroutines(space.lighterd) <= running + 2, 20, "no coroutine is left")
    assert len(os.listdir(f"/proc/{space.lighterd.pid}/task")) < MAX_THREADS


def test_cancelled_writers_leave_no_lock_and_no_descriptor(
    space: Space, descriptors: Callable[[], int]
) -> None:
    before = descriptors()
    writers = [Writing(space.api) for _ in range(100)]
    try:
        for number, writing in enumerate(writers):
            writing.say(pb.WRITE, ref=f"r{number}", data=b"abc")
        # Not all descriptors are counted: a client that was there before may go meanwhile.
        assert len(open_ingests(space.lighterd)) == len(writers)
    finally:
        for writing in writers:
            writing.call.cancel()
    await_that(lambda: not open_ingests(space.lighterd), 20, "their ingests are closed")
    await_that(lambda: descriptors() <= before + 2, 20, "their descriptors are closed")
    for number in range(len(writers)):
        with Writing(space.api) as writing:
            assert writing.say(pb.STAT, ref=f"r{number}").offset == 3
        space.content("Abort", ref=f"r{number}")


def test_writers_take_no_descriptor_that_the_manager_needs(space: Space) -> None:
    pid, kind = space.lighterd.pid, resource.RLIMIT_NOFILE
    before = resource.prlimit(pid, kind)
    resource.prlimit(pid, kind, (FLOOR, before[1]))
    most = BLOBS.places(FLOOR)
    writers = []
    digest = space.put(b"abc")
    try:
        for number in range(most):
            writers.append(Writing(space.api))
            writers[-1].say(pb.STAT, ref=f"r{number}")
        told = f"{most} are under way already"
        with Writing(space.api) as writing, refused("RESOURCE_EXHAUSTED", told):
            writing.say(pb.STAT, ref="one more")
        with refused("RESOURCE_EXHAUSTED", told):
            space.read(digest)
        writers.pop().call.cancel()

        def is_free() -> bool:
            try:
                return space.read(digest) == b"abc"
            except grpc.RpcError as err:
                assert code(err) == "RESOURCE_EXHAUSTED"
                return False

        await_that(is_free, 20, "a place is free again")
    finally:
        resource.prlimit(pid, kind, before)
        for writing in writers:
            writing.call.cancel()


def test_a_killed_client_leaves_an_ingest_that_goes_on(space: Space) -> None:
    data = os.urandom(2 * MIB)
    program = f"""
import sys
from lighter.daemon.grpc.pb import content_pb2 as pb
from lighter.daemon.grpc.pb import namespaces_pb2
sys.path.insert(0, {str(os.getcwd())!r})
from tests.grpc.client import Api
def requests():
    yield pb.WriteContentRequest(action=pb.WRITE, ref="r", data=sys.stdin.buffer.read())
    while True:
        import time; time.sleep(60)
with Api({space.api.path!r}, {space.namespace!r}) as api:
    call = api.converse(pb, "Content", "Write", requests())
    print(next(call).offset, flush=True)
    next(call)
"""
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as client:
        assert client.stdin and client.stdout
        client.stdin.write(data[:MIB])
        client.stdin.close()
        assert client.stdout.readline() == b"%d\n" % MIB
        with Writing(space.api) as other, refused("UNAVAILABLE", "locked"):
            other.say(pb.STAT, ref="r")
        client.send_signal(signal.SIGKILL)
    goes_on: list[Writing] = []

    def is_free() -> bool:
        writing = Writing(space.api)
        try:
            assert writing.say(pb.STAT, ref="r").offset == MIB
        except grpc.RpcError as err:
            assert code(err) == "UNAVAILABLE"
            return False
        goes_on.append(writing)
        return True

    await_that(is_free, 20, "the ref is free")
    with goes_on[0] as writing:
        writing.say(pb.COMMIT, offset=MIB, data=data[MIB:], expected=digest_of(data))
    assert space.read(digest_of(data)) == data


def test_an_ingest_outlives_the_manager(lighterd: Lighterd) -> None:
    with Api(lighterd.grpc_address) as api, Writing(api) as writing:
        writing.say(pb.WRITE, ref="r", data=b"abc")
        lighterd.kill9()
        with pytest.raises(grpc.RpcError):
            writing.say(pb.STAT)
    lighterd.start()
    with Api(lighterd.grpc_address) as api, Writing(api) as writing:
        assert writing.say(pb.STAT, ref="r").offset == 3
        writing.say(pb.COMMIT, offset=3, data=b"def", expected=digest_of(b"abcdef"))


def test_many_write_the_same(space: Space) -> None:
    data = os.urandom(MIB)

    def write(number: int) -> str:
        with Api(space.api.path, space.namespace) as api, Writing(api) as writing:
            try:
                writing.say(pb.STAT, ref=f"r{number}", expected=digest_of(data))
                writing.say(pb.WRITE, data=data)
                writing.say(pb.COMMIT, offset=len(data))
            except grpc.RpcError as err:
                return code(err)
        return "OK"

    with ThreadPoolExecutor(8) as pool:
        ends = list(pool.map(write, range(16)))
    assert set(ends) == {"OK", "ALREADY_EXISTS"}
    assert space.read(digest_of(data)) == data
    assert not space.content("ListStatuses").statuses


def test_a_message_of_nearly_16_mib_is_written(space: Space) -> None:
    data = os.urandom(16 * MIB - 1024)
    assert space.read(space.put(data)) == data


def test_lists_labels_and_filters(space: Space) -> None:
    made = {space.put(b"%d" % number, {"n": str(number)}) for number in range(205)}
    pages = list(space.api.stream(pb, "Content", "List"))
    assert [len(page.info) for page in pages] == [100, 100, 5]
    assert space.digests() == made
    one = digest_of(b"7")
    assert space.digests("labels.n==7") == {one} == space.digests(f"digest=={one}")
    assert space.digests("labels.n==7", "labels.n==8") == {one, digest_of(b"8")}
    assert space.digests("labels.n~=^7,labels.n!=7") == {
        digest_of(b"7%d" % number) for number in range(10)
    }
    assert space.digests("") == made
    with refused("INVALID_ARGUMENT", "parse filter"):
        space.digests("labels.n=7")


def test_updates_go_by_their_mask(space: Space) -> None:
    digest = space.put(b"abc", {"a": "1", "b": "2"})

    def update(paths: list[str], **labels: str) -> dict[str, str]:
        info = pb.Info(digest=digest, labels=labels)
        answer = space.content("Update", info=info, update_mask={"paths": paths}).info
        assert space.content("Info", digest=digest).info == answer
        return dict(answer.labels)

    assert update(["labels.a"], a="3", b="4") == {"a": "3", "b": "2"}
    assert update(["labels.a"]) == {"b": "2"}
    assert update(["labels"], c="5") == {"c": "5"}
    assert update([], d="6", e="7") == {"d": "6", "e": "7"}
    with refused("INVALID_ARGUMENT", 'cannot update "size" field on content info'):
        update(["size"])
    with refused("NOT_FOUND", f"content digest {digest_of(b'')}: not found"):
        space.content("Update", info=pb.Info(digest=digest_of(b"")))
    space.content("Delete", digest=digest)
    with refused("NOT_FOUND", f"content digest {digest}: not found"):
        space.content("Delete", digest=digest)


def test_other_namespaces_get_it_when_it_is_shared(space: Space) -> None:
    digest = space.put(b"abc", {"a": "b"})
    shared = namespaces_pb2.Namespace(
        name=space.namespace, labels={"containerd.io/namespace.shareable": "true"}
    )
    space.api.call(namespaces_pb2, "Namespaces", "Update", namespace=shared)
    with Space(space.lighterd, f"{space.namespace}-2") as other:
        with refused("NOT_FOUND"):
            other.content("Info", digest=digest)
        # Who names the digest of what is there need not send it, but commits it: with its labels.
        with Writing(other.api) as writing:
            said = writing.say(pb.STAT, ref="r", total=3, expected=digest)
            assert (said.offset, said.total, said.digest) == (3, 3, digest)
            assert not other.digests()
            said = writing.say(pb.COMMIT, offset=3, total=3, expected=digest, labels={"c": "d"})
            assert (said.action, said.offset, said.digest) == (pb.COMMIT, 3, digest)
        assert other.read(digest) == b"abc"
        assert other.content("Info", digest=digest).info.labels == {"c": "d"}
        with Writing(other.api) as writing, refused("ALREADY_EXISTS"):
            writing.say(pb.STAT, ref="r", expected=digest)
        space.content("Delete", digest=digest)
        other.leases("Create", id="sync")
        other.leases("Delete", id="sync", sync=True)
        assert other.read(digest) == b"abc"  # its client's lease holds it


@pytest.mark.parametrize("total", [3, 4])
def test_who_sends_what_is_shared_writes_it(space: Space, total: int) -> None:
    """From its beginning, or as content of another size, which fails at its commit."""
    digest = space.put(b"abc")
    shared = namespaces_pb2.Namespace(
        name=space.namespace, labels={"containerd.io/namespace.shareable": "true"}
    )
    space.api.call(namespaces_pb2, "Namespaces", "Update", namespace=shared)
    with Space(space.lighterd, f"{space.namespace}-2") as other:
        with Writing(other.api) as writing:
            offset = 3 if total == 3 else 0
            assert writing.say(pb.STAT, ref="r", total=total, expected=digest).offset == offset
            assert writing.say(pb.WRITE, data=b"abc").offset == 3
            commit = {"offset": 3, "total": total, "expected": digest}
            if total == 3:
                writing.say(pb.COMMIT, **commit)
            else:
                with refused("FAILED_PRECONDITION", "unexpected commit size 3, expected 4"):
                    writing.say(pb.COMMIT, **commit)
        assert other.digests() == ({digest} if total == 3 else set())


def test_sec_35_to_know_a_digest_is_no_way_to_its_bytes(space: Space) -> None:
    digest = space.put(b"secret")
    with Space(space.lighterd, f"{space.namespace}-2") as other:
        with Writing(other.api) as writing:
            writing.say(pb.STAT, ref="r", total=6, expected=digest)
            with refused("FAILED_PRECONDITION"):
                writing.say(pb.COMMIT, total=6, expected=digest)
        with Writing(other.api) as writing, refused("FAILED_PRECONDITION"):
            writing.say(pb.COMMIT, ref="s", expected=digest)
        with refused("NOT_FOUND"):
            other.read(digest)
        assert not other.digests()
        assert other.put(b"secret") == digest  # who has the bytes has the content
        assert other.read(digest) == b"secret"


def test_the_native_front_end_shows_and_tells_the_same(space: Space) -> None:
    digest = space.put(b"abc", {"a": "b"})
    with space.lighterd.client(space.namespace) as client:
        found = client.call("content", "get", digest=digest)["content"]
        assert (found["size_bytes"], found["labels"]) == (3, {"a": "b"})
        with Writing(space.api) as writing:
            writing.say(pb.WRITE, ref="r", data=b"abc")
            (ingest,) = client.call("content", "active")["ingests"]
            assert (ingest["ref"], ingest["offset"]) == ("r", 3)
        client.call("content", "abort", ref="r")
        client.call("content", "delete", digest=digest)
    assert not space.digests()
    space.put(b"abc")
    with refused("ALREADY_EXISTS"):
        space.put(b"abc")
    space.content("Delete", digest=digest)
    told = [
        ("/content/create", {"digest": digest, "size": 3}),
        ("/content/delete", {"digest": digest}),
    ]
    assert space.told("/content/") == [*told, *told]


def test_a_reader_that_goes_leaves_nothing(space: Space, descriptors: Callable[[], int]) -> None:
    digest = space.put(os.urandom(8 * MIB))
    before = descriptors()
    for _ in range(20):
        call = space.api.stream(pb, "Content", "Read", digest=digest)
        next(call)
        call.cancel()
    end = time.monotonic() + 20
    while descriptors() > before + 2:
        assert time.monotonic() < end
        time.sleep(0.02)
