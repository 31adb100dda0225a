"""Named ingests: one writer at a time, going on where the last one stopped, whole or nothing."""

import asyncio
import errno
import hashlib
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from lighter.daemon.clock import Clock
from lighter.daemon.content.digest import Digest
from lighter.daemon.content.gc import Collector
from lighter.daemon.content.housekeeping import Housekeeping
from lighter.daemon.content.ingests import EXPIRE_S, Ingests
from lighter.daemon.content.rows import SHAREABLE_LABEL
from lighter.daemon.content.store import ContentStore
from lighter.daemon.content.writer import Writer
from lighter.daemon.events.log import EventLog
from lighter.daemon.leases import INGESTS, Leases
from lighter.daemon.metadata.db import Database
from lighter.daemon.metadata.namespaces import NamespaceStore
from lighter.daemon.rpc.content_handlers import content_methods
from lighter.daemon.rpc.methods import Call
from lighter.proto import faults
from lighter.proto.errors import (
    AlreadyExists,
    DataLoss,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
    Unavailable,
)
from lighter.proto.paths import Root
from tests.unit.daemon.test_recovery import unreadable

NS = "default"
DATA = b"first half, second half"
HALF = 12
DIGEST = Digest.of(DATA)
# All that is passed between an open and the end of a commit, in order.
POINTS = [
    *("file.written", "ingest.begun", "ingest.opened", "ingest.written", "ingest.synced"),
    *("content.noted", "import.blob-renamed", "ingest.adopted"),
]


class Place:
    """Store and ingests on disk, which can be opened again as a next manager does."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.open()

    def open(self, *, share_all: bool = False) -> None:
        self.db = Database(str(self.root / "lighter.db"))
        self.namespaces = NamespaceStore(self.db)
        self.log = EventLog(self.db)
        content_dir = str(self.root / "content")
        self.content = ContentStore(content_dir, self.db, self.log, share_all=share_all)
        self.ingests = Ingests(str(self.root / "content/writes"), self.content)

    def reopen(self, *, share_all: bool = False) -> None:
        self.db.close()
        self.open(share_all=share_all)
        asyncio.run(self.content.recover())

    def directories(self) -> list[Path]:
        return sorted((self.root / "content/writes").iterdir())

    def blobs(self) -> list[str]:
        return sorted(os.listdir(self.root / "content/blobs/sha256"))

    def read(self, namespace: str = NS) -> bytes:
        with open(self.content.open(namespace, DIGEST), "rb") as file:
            return file.read()

    async def write(
        self, data: bytes = DATA, ref: str = "r", namespace: str = NS, **options: Any
    ) -> None:
        """Append to an ingest and leave it."""
        async with await self.ingests.open(namespace, ref, **options) as writer:
            await writer.write(data)

    async def commit(self, ref: str = "r", namespace: str = NS) -> str:
        """What is missing of DATA, and the commit."""
        async with await self.ingests.open(namespace, ref, expected=DIGEST) as writer:
            await writer.write(DATA[writer.offset :])
            return await writer.commit(len(DATA), DIGEST)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    place = Place(tmp_path)
    yield place
    place.db.close()


def run(steps: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(steps)


def in_child(steps: Callable[[], object]) -> int:
    """Run `steps` in a forked process; returns its wait status."""
    pid = os.fork()
    if pid == 0:
        try:
            steps()
        finally:
            os._exit(9)
    return os.waitpid(pid, 0)[1]


def test_what_was_left_is_gone_on_with(place: Place) -> None:
    async def steps() -> None:
        await place.write(DATA[:HALF], total_bytes=len(DATA), expected=DIGEST)
        status = place.ingests.status(NS, "r")
        assert (status.offset, status.total_bytes, status.expected) == (HALF, len(DATA), DIGEST)
        assert status.started_at <= status.updated_at
        async with await place.ingests.open(NS, "r") as writer:
            assert writer.offset == HALF
            assert writer.digest == Digest.of(DATA[:HALF])
            assert os.pread(writer.fd, 100, 0) == DATA[:HALF]  # readable while it grows
            await writer.write(DATA[HALF:])
            assert await writer.commit(len(DATA), DIGEST, {"a": "1"}) == DIGEST

    run(steps())
    assert place.read() == DATA
    assert place.content.info(NS, DIGEST).labels == {"a": "1"}
    assert place.directories() == []
    with pytest.raises(NotFound, match="get ingest r: there is none in namespace default"):
        place.ingests.status(NS, "r")


def test_the_next_manager_goes_on_and_its_recovery_removes_no_named_ingest(place: Place) -> None:
    run(place.write(DATA[:HALF], expected=DIGEST))
    place.reopen()
    assert [status.ref for status in place.ingests.list(NS)] == ["r"]
    run(place.commit())
    assert place.read() == DATA


def test_a_ref_has_one_writer_among_fifty(place: Place) -> None:
    async def steps() -> list[Any]:
        async def contend(number: int) -> int:
            async with await place.ingests.open(NS, "r", expected=DIGEST) as writer:
                await asyncio.sleep(0)
                await writer.write(DATA[:HALF])
                await asyncio.sleep(0)
                await writer.write(DATA[HALF:])
                await writer.commit(len(DATA), DIGEST)
            return number

        return await asyncio.gather(*map(contend, range(50)), return_exceptions=True)

    results = run(steps())
    assert [kind for kind in results if isinstance(kind, int)] == [0]
    assert all(isinstance(kind, int | Unavailable) for kind in results), results
    assert "somebody else writes it" in str(results[1])
    assert place.read() == DATA
    run(place.write(b"x", ref="r"))  # the lock is free again


def test_fifty_refs_with_the_same_bytes_end_as_one_file(place: Place) -> None:
    async def steps() -> list[Any]:
        return await asyncio.gather(
            *(place.commit(f"r{number}") for number in range(50)), return_exceptions=True
        )

    results = run(steps())
    assert DIGEST in results
    assert all(result == DIGEST or isinstance(result, AlreadyExists) for result in results)
    assert place.blobs() == [DIGEST.hex]
    assert place.directories() == []
    assert place.db.rows("SELECT * FROM trash") == []


def test_a_cancelled_writer_frees_its_ref_and_leaves_its_bytes(place: Place) -> None:
    async def steps() -> None:
        began = asyncio.Event()

        async def hang() -> None:
            async with await place.ingests.open(NS, "r") as writer:
                await writer.write(DATA[:HALF])
                began.set()
                await asyncio.Event().wait()

        task = asyncio.ensure_future(hang())
        await began.wait()
        with pytest.raises(Unavailable):
            await place.ingests.abort(NS, "r")
        task.cancel()
        began_at = time.monotonic()
        await asyncio.wait([task])
        assert time.monotonic() - began_at < 20
        async with await place.ingests.open(NS, "r") as writer:
            assert writer.offset == HALF

    run(steps())


def test_a_cancelled_open_of_a_large_ingest_is_quick_and_frees_its_ref(place: Place) -> None:
    run(place.write(b"x"))
    (directory,) = place.directories()
    os.truncate(directory / "data", 8 << 30)  # sparse: hashing it takes many seconds

    async def steps() -> None:
        task = asyncio.ensure_future(place.ingests.open(NS, "r"))
        await asyncio.sleep(0.1)
        began_at = time.monotonic()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert time.monotonic() - began_at < 20
        await place.ingests.abort(NS, "r")

    run(steps())
    assert place.directories() == []


@pytest.mark.parametrize(
    ("data", "size", "digest", "error"),
    [
        (DATA[:-1], len(DATA), DIGEST, FailedPrecondition),
        (DATA + b"!", len(DATA), DIGEST, FailedPrecondition),
        (DATA[:-1] + b"!", len(DATA), DIGEST, DataLoss),
        (DATA[:-1], 0, DIGEST, DataLoss),
        (b"", 0, DIGEST, FailedPrecondition),
        (DATA, 0, "sha256:zz", InvalidArgument),
    ],
)
def test_sec_36_wrong_bytes_are_never_content(
    place: Place, data: bytes, size: int, digest: str, error: type[Exception]
) -> None:
    async def steps() -> None:
        async with await place.ingests.open(NS, "r") as writer:
            await writer.write(data)
            with pytest.raises(error, match=r"commit ingest r|parse digest"):
                await writer.commit(size, digest)
            await writer.truncate(0)
            await writer.write(DATA)
            await writer.commit(len(DATA), DIGEST)

    run(steps())
    assert place.blobs() == [DIGEST.hex]


def test_truncation_forgets_bytes_and_their_hash(place: Place) -> None:
    async def steps() -> None:
        async with await place.ingests.open(NS, "r") as writer:
            await writer.write(DATA[:HALF] + b"wrong")
            for wrong in (-1, HALF + 6):
                with pytest.raises(InvalidArgument, match="truncate ingest r"):
                    await writer.truncate(wrong)
            await writer.truncate(HALF)
            assert writer.offset == HALF
            await writer.write(DATA[HALF:])
            await writer.commit(len(DATA), DIGEST)

    run(steps())
    assert place.read() == DATA


def test_bytes_that_cannot_be_read_again_are_never_committed(place: Place) -> None:
    async def steps() -> None:
        async with await place.ingests.open(NS, "r") as writer:
            await writer.write(DATA)
            readable, writer.fd = writer.fd, os.open(writer.path, os.O_WRONLY)
            try:
                with pytest.raises(Exception, match="truncate ingest r"):
                    await writer.truncate(HALF)
            finally:
                os.close(writer.fd)
                writer.fd = readable
            for attempt in (writer.commit(0, ""), writer.write(b"x"), writer.truncate(0)):
                with pytest.raises(FailedPrecondition, match="could not all be read again"):
                    await attempt
        await place.commit()  # the next writer reads them again

    run(steps())
    assert place.read() == DATA


class FailingSync:
    """os.fsync of one descriptor fails once, as a disk that lost pages tells it."""

    def __init__(self, writer: Writer) -> None:
        self.target = writer.fd
        self.real = os.fsync

    def __call__(self, fd: int) -> None:
        if fd == self.target:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        self.real(fd)


def test_f51_a_failed_fsync_is_a_failed_commit_and_its_pages_are_not_trusted_again(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def steps() -> None:
        async with await place.ingests.open(NS, "r") as writer:
            await writer.write(DATA)
            with monkeypatch.context() as patched:
                patched.setattr(os, "fsync", FailingSync(writer))
                with pytest.raises(DataLoss, match="commit ingest r: Input/output error"):
                    await writer.commit(len(DATA), DIGEST)
            with pytest.raises(FailedPrecondition, match="could not be written to disk"):
                await writer.commit(len(DATA), DIGEST)
        assert place.blobs() == []
        async with await place.ingests.open(NS, "r") as writer:
            assert writer.offset == 0

    run(steps())


def test_f51_who_sends_is_told_of_the_disk_and_not_that_there_is_no_ingest(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ingest is gone by then; that its removal finds none is no answer."""
    collector = Collector(place.db, place.log, place.content, {})
    methods = content_methods(place.content, place.ingests, Leases(place.db), collector)
    ingest = methods["content.ingest"].stream
    assert ingest is not None
    real = os.fsync

    def fails(fd: int) -> None:
        if os.readlink(f"/proc/self/fd/{fd}").endswith("/data"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(fd)

    async def steps() -> None:
        (tmp_path / "sent").write_bytes(DATA)
        with (tmp_path / "sent").open("rb") as sent:
            body = {"ref": "r", "source": f"/proc/{os.getpid()}/fd/{sent.fileno()}"}
            with monkeypatch.context() as patched:
                patched.setattr(os, "fsync", fails)
                with pytest.raises(DataLoss, match="commit ingest r: Input/output error"):
                    async for _ in ingest(Call(NS, os.getpid(), 0), body):
                        pass

    run(steps())
    assert place.directories() == []


def test_a_commit_that_broke_off_leaves_a_writer_that_cannot_change_content(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file has its name in the store already; what fails is the record."""
    monkeypatch.setattr(faults._faults, "plan", {"import.blob-renamed": ("error", 0)})
    monkeypatch.setattr(faults._faults, "passes", {})

    async def steps() -> None:
        async with await place.ingests.open(NS, "r") as writer:
            await writer.write(DATA)
            with pytest.raises(Internal, match="blob-renamed"):
                await writer.commit(len(DATA), DIGEST)
            assert place.blobs() == [DIGEST.hex]
            for attempt in (writer.write(b"x"), writer.truncate(0), writer.commit(0, "")):
                with pytest.raises(FailedPrecondition, match="its commit was begun"):
                    await attempt

    run(steps())
    monkeypatch.undo()
    run(place.commit())
    assert place.read() == DATA


def test_labels_that_are_refused_leave_the_ingest_to_be_committed_with_others(place: Place) -> None:
    async def steps() -> None:
        async with await place.ingests.open(NS, "r") as writer:
            await writer.write(DATA)
            with pytest.raises(InvalidArgument):
                await writer.commit(len(DATA), DIGEST, {"x" * 5000: ""})
            await writer.commit(len(DATA), DIGEST, {"a": "b"})

    run(steps())


def test_f53_after_a_loss_no_ingest_goes_for_its_age(place: Place) -> None:
    """The lease that held it may be among the rows that are lost."""
    collector = Collector(place.db, place.log, place.content, {})
    housekeeping = Housekeeping(
        Root(str(place.root)),
        place.db,
        place.namespaces,
        collector,
        place.ingests,
        Leases(place.db),
    )
    run(place.write(DATA[:HALF]))
    (directory,) = place.directories()
    os.utime(directory / "data", (0, 0))
    place.db.note_loss("lost: rows of leases")
    run(housekeeping.collect())
    assert run(housekeeping.prune(dry_run=True)) == run(housekeeping.prune(dry_run=False)) == []
    assert place.directories() == [directory]
    place.db.accept_loss()
    run(housekeeping.collect())
    assert place.directories() == []


def test_f50_content_of_other_bytes_is_read_as_broken(place: Place) -> None:
    run(place.commit())
    path = Path(place.content.path(DIGEST))
    path.chmod(0o600)
    path.write_bytes(DATA[:-1] + b"X")
    collector = Collector(place.db, place.log, place.content, {})
    methods = content_methods(place.content, place.ingests, Leases(place.db), collector)
    read = methods["content.read"].stream
    assert read is not None

    async def steps(offset: int) -> None:
        async for _ in read(Call(NS, os.getpid(), 0), {"digest": DIGEST, "offset": offset}):
            pass

    with pytest.raises(DataLoss, match=f"read content {DIGEST}: its bytes have another digest"):
        run(steps(0))
    run(steps(1))  # a part proves nothing


def test_after_a_commit_the_writer_cannot_change_what_is_content(place: Place) -> None:
    async def steps() -> None:
        async with await place.ingests.open(NS, "r") as writer:
            await writer.write(DATA)
            await writer.commit(len(DATA), DIGEST)
            for attempt in (writer.write(b"x"), writer.truncate(0), writer.commit(0, "")):
                with pytest.raises(FailedPrecondition, match="it has been committed"):
                    await attempt

    run(steps())
    assert place.read() == DATA


def test_content_that_exists_is_not_written_again(place: Place) -> None:
    run(place.commit())
    with pytest.raises(AlreadyExists, match=r"open ingest r2: content sha256:.* exists"):
        run(place.write(ref="r2", expected=DIGEST))
    assert place.directories() == []

    async def unexpected() -> None:
        async with await place.ingests.open(NS, "r3") as writer:
            await writer.write(DATA)
            with pytest.raises(AlreadyExists, match="commit ingest r3"):
                await writer.commit(len(DATA), DIGEST)

    run(unexpected())
    assert place.directories() == []


def test_an_ingest_for_another_digest_is_left_alone(place: Place) -> None:
    run(place.write(DATA[:HALF], expected=DIGEST))
    other = Digest.of(b"other")
    with pytest.raises(FailedPrecondition, match=f"it was begun for {DIGEST}, not {other}"):
        run(place.write(expected=other))
    assert place.ingests.status(NS, "r").offset == HALF


@pytest.mark.parametrize("ref", ["", "x" * 1025, "a\0b", "é" * 513])
def test_a_ref_has_limits(place: Place, ref: str) -> None:
    with pytest.raises(InvalidArgument, match="open ingest"):
        run(place.write(ref=ref))


@pytest.mark.parametrize("ref", ["../../etc/passwd", "/", ".", "a/b", "x\ny", "é", "x" * 1024])
def test_no_ref_is_a_path(place: Place, ref: str) -> None:
    run(place.write(ref=ref))
    assert [status.ref for status in place.ingests.list(NS)] == [ref]
    (directory,) = place.directories()
    assert sorted(path.name for path in directory.iterdir()) == ["about.json", "data"]
    assert directory.stat().st_mode & 0o777 == 0o700
    run(place.ingests.abort(NS, ref))
    assert place.directories() == []


def test_namespaces_do_not_see_each_others_ingests(place: Place) -> None:
    run(place.write(DATA[:HALF], namespace="a"))
    assert place.ingests.list("b") == ()
    with pytest.raises(NotFound):
        run(place.ingests.abort("b", "r"))

    async def own() -> int:
        async with await place.ingests.open("b", "r") as writer:
            return writer.offset

    assert run(own()) == 0


# --- who sees what


def test_sec_35_a_digest_is_no_way_to_another_namespaces_bytes(place: Place) -> None:
    run(place.commit(namespace="a"))

    async def steps() -> None:
        async with await place.ingests.open("b", "r", expected=DIGEST) as writer:
            with pytest.raises(FailedPrecondition, match="nothing was written"):
                await writer.commit(0, DIGEST)
            with pytest.raises(FailedPrecondition, match="it has 0 bytes"):
                await writer.commit(len(DATA), DIGEST)
            assert os.pread(writer.fd, 100, 0) == b""

    run(steps())
    assert not place.content.has("b", DIGEST)
    assert not place.content.share("b", DIGEST)
    run(place.commit(namespace="b"))  # with the bytes it is welcome
    assert place.read("b") == DATA
    assert place.blobs() == [DIGEST.hex]


def test_sec_35_content_is_shared_by_the_label_of_the_namespace_that_has_it(place: Place) -> None:
    run(place.commit(namespace="a"))
    place.namespaces.ensure("b")
    place.namespaces.label("b", {SHAREABLE_LABEL: "true"})  # who asks cannot share what he lacks
    with pytest.raises(NotFound):
        place.content.open("b", DIGEST)
    assert not place.content.share("b", DIGEST)
    place.namespaces.label("a", {SHAREABLE_LABEL: "yes"})
    assert not place.content.share("b", DIGEST)
    place.namespaces.label("a", {SHAREABLE_LABEL: "true"})
    with pytest.raises(AlreadyExists):
        run(place.write(namespace="b", expected=DIGEST))
    assert place.read("b") == DATA
    assert place.content.info("b", DIGEST).labels == {}
    run(place.content.delete("a", DIGEST))
    assert place.read("b") == DATA


def test_the_sharing_namespace_is_found_among_others_that_do_not_share(place: Place) -> None:
    for namespace in ("a", "m", "z"):
        run(place.commit(namespace=namespace))
    place.namespaces.label("m", {SHAREABLE_LABEL: "true", "z": "1"})
    assert place.content.share("other", DIGEST)


@pytest.mark.parametrize("labels", ["{", b"\xff\x00", "[]"])
def test_a_namespace_with_damaged_labels_keeps_nobody_from_sharing(
    place: Place, labels: str | bytes
) -> None:
    for namespace in ("a", "bad", "z"):
        run(place.commit(namespace=namespace))
    with place.db.fast_transaction() as tx:
        tx.execute("UPDATE namespaces SET labels = ? WHERE name = 'bad'", (labels,))
    assert not place.content.share("other", DIGEST)
    place.namespaces.label("z", {SHAREABLE_LABEL: "true"})
    assert place.content.share("other", DIGEST)


def test_content_is_shared_with_all_when_configured(place: Place) -> None:
    run(place.commit(namespace="a"))
    place.reopen(share_all=True)
    with pytest.raises(AlreadyExists):
        run(place.write(namespace="b", expected=DIGEST))
    assert place.read("b") == DATA


def test_damaged_content_is_not_shared(place: Place) -> None:
    run(place.commit(namespace="a"))
    place.reopen(share_all=True)
    path = place.root / "content/blobs/sha256" / DIGEST.hex
    path.unlink()
    assert not place.content.share("b", DIGEST)
    run(place.commit(namespace="b"))
    assert place.read("a") == DATA  # and mended by the new bytes


# --- their end


def aged(place: Place, ref: str, age_s: float) -> None:
    run(place.write(ref=ref))
    at = time.time() - age_s
    (directory,) = [path for path in place.directories() if refers_to(path, ref)]
    os.utime(directory / "data", (at, at))


def refers_to(directory: Path, ref: str) -> bool:
    return f'"ref": "{ref}"' in (directory / "about.json").read_text()


def test_idle_ingests_expire_but_for_open_young_and_leased_ones(place: Place) -> None:
    for ref in ("old", "open", "leased"):
        aged(place, ref, EXPIRE_S + 60)
    aged(place, "young", EXPIRE_S - 60)
    leases = Leases(place.db)
    leases.create(NS, "l")
    leases.add(NS, "l", INGESTS, "leased")

    async def steps() -> int:
        async with await place.ingests.open(NS, "open"):
            return await place.ingests.expire(leases.ingests())

    assert run(steps()) == 1
    assert {status.ref for status in place.ingests.list(NS)} == {"open", "leased", "young"}


def test_f57_a_clock_that_jumps_ends_no_ingest(place: Place) -> None:
    run(place.write())
    hour_ns, year_ns = 3600 * 10**9, 365 * 86400 * 10**9
    wall, passed = time.time_ns(), 0
    clock = Clock(lambda: wall, lambda: passed)
    ingests = Ingests(str(place.root / "content/writes"), place.content, clock.now_ns)
    wall += 10 * year_ns
    passed += hour_ns
    assert run(ingests.expire()) == 0
    wall -= 60 * year_ns  # 1970 or thereabouts
    assert run(ingests.expire()) == 0
    wall += 60 * year_ns
    passed += 24 * hour_ns
    assert run(ingests.expire()) == 1


def test_what_is_no_whole_ingest_goes(place: Place) -> None:
    writes = place.root / "content/writes"
    (writes / "empty").mkdir()
    (writes / "garbage").mkdir()
    (writes / "garbage/about.json").write_bytes(b"{")
    (writes / "committed").mkdir()
    run(place.write(b"x"))
    (whole,) = [path for path in place.directories() if (path / "data").exists()]
    (writes / "committed/about.json").write_bytes((whole / "about.json").read_bytes())
    assert run(place.ingests.expire()) == 3
    assert place.directories() == [whole]


@pytest.mark.root
@pytest.mark.parametrize("leased", [True, False], ids=["leased", "by nobody"])
def test_f51_an_ingest_that_cannot_be_read_is_kept_and_told(
    place: Place, leased: bool, caplog: pytest.LogCaptureFixture
) -> None:
    aged(place, "r", EXPIRE_S + 60)
    aged(place, "other", 0)
    leases = Leases(place.db)
    if leased:
        leases.create(NS, "l")
        leases.add(NS, "l", INGESTS, "r")
    directory = next(path for path in place.directories() if refers_to(path, "r"))
    with unreadable(str(directory / "about.json")):
        assert run(place.ingests.expire(leases.ingests())) == 0
        assert f"read ingest {directory}: Input/output error" in caplog.text
        assert [status.ref for status in place.ingests.list(NS)] == ["other"]
        for attempt in (place.ingests.abort(NS, "r"), place.ingests.open(NS, "r")):
            with pytest.raises(DataLoss, match="ingest r: Input/output error"):
                run(attempt)
        for _ in range(16):
            assert run(place.ingests.expire(leases.ingests())) == 0
        assert caplog.text.count("read ingest") == 5, "it is told less and less"
    assert len(place.ingests.list(NS)) == 2
    assert f"read ingest {directory}: done" in caplog.text
    assert run(place.commit()) == DIGEST, "it goes on where it was"


def test_an_ingest_that_is_being_removed_cannot_be_opened(place: Place) -> None:
    run(place.write(DATA[:HALF]))

    async def steps() -> None:
        removal = asyncio.ensure_future(place.ingests.abort(NS, "r"))
        await asyncio.sleep(0)
        with pytest.raises(Unavailable):
            await place.ingests.open(NS, "r")
        await removal
        async with await place.ingests.open(NS, "r") as writer:
            assert writer.offset == 0

    run(steps())


def test_two_removals_of_an_ingest_are_one(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second would go on after the first, and take what a new writer has begun."""
    run(place.write(DATA[:HALF]))
    removed: list[str] = []
    may_end, rmtree = threading.Event(), shutil.rmtree

    def slow(path: str, ignore_errors: bool) -> None:
        may_end.wait(10)
        removed.append(path)
        rmtree(path, ignore_errors)

    monkeypatch.setattr(shutil, "rmtree", slow)

    async def steps() -> None:
        removal = asyncio.ensure_future(place.ingests.abort(NS, "r"))
        await asyncio.sleep(0)
        with pytest.raises(Unavailable, match="it is being removed"):
            await place.ingests.abort(NS, "r")
        await place.ingests.abort_all(NS)
        may_end.set()
        await removal
        assert len(removed) == 1

    run(steps())


# --- kill -9


def test_the_points_of_an_ingest_are_the_ones_swept_here(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = tmp_path / "trace"
    monkeypatch.setattr(faults._faults, "trace", str(trace))
    run(place.commit())
    assert [line.split()[1] for line in trace.read_text().splitlines()] == POINTS


@pytest.mark.parametrize("point", POINTS)
def test_f23_f26_killed_anywhere_the_next_manager_goes_on(place: Place, point: str) -> None:
    def die() -> None:
        faults._faults.plan = {point: ("abort", 1)}
        place.open()
        run(place.commit())

    run(place.write(DATA[:HALF], ref="other", namespace="other"))
    place.db.close()  # SQLite's handles are not to be carried over a fork
    status = in_child(die)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    place.open()
    # Before its recovery no wrong bytes are to be seen, and content is whole or not there.
    assert not place.content.has(NS, DIGEST) or place.read() == DATA
    run(place.content.recover())
    assert place.content.unrecorded() == ()  # adopted or removed
    if place.content.has(NS, DIGEST):
        assert POINTS.index(point) >= POINTS.index("ingest.adopted")
        with pytest.raises(AlreadyExists):
            run(place.commit())
    else:
        run(place.commit())
    assert place.read() == DATA
    run(place.ingests.expire())
    assert [status.ref for status in place.ingests.list("other")] == ["other"]
    assert len(place.directories()) == 1
    assert place.blobs() == [DIGEST.hex]
    assert place.db.rows("SELECT * FROM trash") == []
    assert place.content.unrecorded() == ()


def test_f23_a_resumed_ingest_costs_only_the_rest(place: Place) -> None:
    """What was written before a kill is used: the first writer's bytes are never asked again."""

    def die() -> None:
        place.open()

        async def steps() -> None:
            async with await place.ingests.open(NS, "r", expected=DIGEST) as writer:
                await writer.write(DATA[:HALF])
                os.kill(os.getpid(), signal.SIGKILL)

        run(steps())

    place.db.close()
    assert os.WIFSIGNALED(in_child(die))
    place.open()

    async def rest() -> bytes:
        async with await place.ingests.open(NS, "r", expected=DIGEST) as writer:
            missing = DATA[writer.offset :]
            await writer.write(missing)
            await writer.commit(len(DATA), DIGEST)
            return missing

    assert run(rest()) == DATA[HALF:]
    assert hashlib.sha256(place.read()).hexdigest() == DIGEST.hex


def test_a_collection_leaves_ingests_alone(place: Place) -> None:
    run(place.write(DATA[:HALF], expected=DIGEST))
    run(Collector(place.db, place.log, place.content, {}).collect(NS))
    run(place.commit())
    assert place.read() == DATA
