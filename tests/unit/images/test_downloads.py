"""Blobs on their way: each once, whoever wants it, however often it breaks."""

import asyncio
import contextlib
import os
import random
import signal
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from lighter.daemon.content.ingests import Ingests
from lighter.daemon.content.store import ContentStore
from lighter.daemon.events.log import EventLog
from lighter.daemon.images.downloads import Downloads
from lighter.daemon.metadata.db import Database
from lighter.proto.errors import DataLoss, NotFound, Unavailable
from tests.fakes.remote import MemoryRemote

BLOB = random.Random(1).randbytes(3_000_000)
DEADLINE_S = 20


def ignore(_bytes: int) -> None:
    """What hears how far a blob is."""


class Place:
    """A content store with its downloads."""

    def __init__(self, root: Path, share_all: bool = False) -> None:
        self.db = Database(str(root / "db"))
        log = EventLog(self.db)
        self.content = ContentStore(str(root / "content"), self.db, log, share_all=share_all)
        self.ingests = Ingests(str(root / "writes"), self.content)
        self.downloads = Downloads(self.content, self.ingests)

    async def fetch(self, remote: MemoryRemote, namespace: str = "default") -> bool:
        return await self.downloads.fetch(
            namespace, remote.descriptor(), remote, {"k": "v"}, ignore
        )

    def read(self, digest: str, namespace: str = "default") -> bytes:
        fd = self.content.open(namespace, digest)
        with os.fdopen(fd, "rb") as file:
            return file.read()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    place = Place(tmp_path)
    yield place
    place.db.close()


def scenario(steps: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(DEADLINE_S):
            await steps()

    asyncio.run(bounded())


def test_a_blob_becomes_content_and_is_not_fetched_again(place: Place) -> None:
    async def steps() -> None:
        remote = MemoryRemote(BLOB)
        digest = remote.descriptor().digest
        assert await place.fetch(remote)
        assert place.read(digest) == BLOB
        assert place.content.info("default", digest).labels == {"k": "v"}
        assert not await place.fetch(remote)
        assert remote.asked == [(digest, 0)]
        assert place.ingests.list("default") == ()

    scenario(steps)


def test_f69_fifty_callers_share_one_download(place: Place) -> None:
    async def steps() -> None:
        remote = MemoryRemote(BLOB)
        assert all(await asyncio.gather(*(place.fetch(remote) for _ in range(50))))
        assert remote.sent_bytes == len(BLOB)

    scenario(steps)


def test_f69_a_caller_that_leaves_is_succeeded_by_one_that_waits(place: Place) -> None:
    async def steps() -> None:
        remote = MemoryRemote(BLOB)
        first = asyncio.ensure_future(place.fetch(remote))
        others = [asyncio.ensure_future(place.fetch(remote)) for _ in range(5)]
        while remote.sent_bytes < 2_000_000:  # noqa: ASYNC110 (the fake's own count)
            await asyncio.sleep(0)
        first.cancel()
        await asyncio.wait([first])
        assert first.cancelled()
        await asyncio.gather(*others)
        assert place.read(remote.descriptor().digest) == BLOB
        (_, begun), (_, resumed) = remote.asked
        assert begun == 0 and resumed > 1_000_000
        assert remote.sent_bytes == len(BLOB)

    scenario(steps)


def test_namespaces_do_not_share_what_they_have_not_brought(place: Place) -> None:
    async def steps() -> None:
        remote = MemoryRemote(BLOB)
        await asyncio.gather(place.fetch(remote, "one"), place.fetch(remote, "two"))
        assert remote.sent_bytes == 2 * len(BLOB)

    scenario(steps)


def test_what_another_namespace_shares_is_not_asked_for(tmp_path: Path) -> None:
    place = Place(tmp_path, share_all=True)

    async def steps() -> None:
        remote = MemoryRemote(BLOB)
        digest = remote.descriptor().digest
        assert await place.fetch(remote, "other")
        assert not await place.fetch(remote)
        assert place.read(digest) == BLOB
        assert place.content.info("default", digest).labels == {"k": "v"}
        assert remote.asked == [(digest, 0)]

    scenario(steps)
    place.db.close()


def test_f63_what_has_arrived_is_not_asked_for_again(place: Place) -> None:
    async def steps() -> None:
        remote = MemoryRemote(BLOB)
        remote.cuts = [1_500_000]
        with pytest.raises(Unavailable):
            await place.fetch(remote)
        assert not place.content.has("default", remote.descriptor().digest)
        (status,) = place.ingests.list("default")
        assert status.offset == 1_500_000 and status.total_bytes == len(BLOB)
        await place.fetch(remote)
        assert [offset for _, offset in remote.asked] == [0, 1_500_000]
        assert place.read(remote.descriptor().digest) == BLOB

    scenario(steps)


def test_f24_a_killed_managers_bytes_count_for_the_range_and_for_the_digest(
    place: Place, tmp_path: Path
) -> None:
    place.db.close()  # SQLite's handles are not to be carried over a fork
    pid = os.fork()
    if pid == 0:
        try:
            dying = Place(tmp_path)
            remote = MemoryRemote(BLOB)
            remote.cuts = [1_500_000]
            with contextlib.suppress(Unavailable):
                asyncio.run(dying.fetch(remote))
            os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(9)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
    place.db = Database(str(tmp_path / "db"))
    after = Place(tmp_path)

    async def steps() -> None:
        remote = MemoryRemote(BLOB)
        digest = remote.descriptor().digest
        assert not after.content.has("default", digest)
        await after.fetch(remote)
        assert remote.asked == [(digest, 1_500_000)]
        assert after.read(digest) == BLOB

    try:
        scenario(steps)
    finally:
        after.db.close()


def test_f64_a_registry_without_ranges_sends_all_again(place: Place) -> None:
    async def steps() -> None:
        remote = MemoryRemote(BLOB)
        remote.ranges = False
        remote.cuts = [1_500_000]
        with pytest.raises(Unavailable):
            await place.fetch(remote)
        await place.fetch(remote)
        assert place.read(remote.descriptor().digest) == BLOB

    scenario(steps)


def test_f64_other_bytes_of_an_earlier_download_are_given_up(place: Place) -> None:
    async def steps() -> None:
        remote = MemoryRemote(BLOB)
        digest = remote.descriptor().digest
        async with await place.ingests.open("default", f"blob-{digest}") as writer:
            await writer.write(b"x" * 2_000_000)
        await place.fetch(remote)
        assert [offset for _, offset in remote.asked] == [2_000_000, 0]
        assert place.read(digest) == BLOB

    scenario(steps)


@pytest.mark.parametrize("left", [len(BLOB), len(BLOB) + 5000])
def test_a_whole_ingest_of_other_bytes_is_given_up_too(place: Place, left: int) -> None:
    async def steps() -> None:
        remote = MemoryRemote(BLOB)
        digest = remote.descriptor().digest
        async with await place.ingests.open("default", f"blob-{digest}") as writer:
            await writer.write(b"x" * left)
        await place.fetch(remote)
        assert place.read(digest) == BLOB

    scenario(steps)


def test_sec_36_bytes_of_another_digest_never_become_content(place: Place) -> None:
    async def steps() -> None:
        remote = MemoryRemote(BLOB)
        digest = remote.descriptor().digest
        remote.blobs[digest] = bytes(len(BLOB))
        with pytest.raises(DataLoss, match=f"{digest}.*registry.test"):
            await place.fetch(remote)
        assert remote.distrusted == 1
        assert not place.content.has("default", digest)
        (status,) = place.ingests.list("default")
        assert status.offset == 0

    scenario(steps)


def test_an_error_of_one_caller_is_not_the_next_ones(place: Place) -> None:
    async def steps() -> None:
        remote, other = MemoryRemote(BLOB), MemoryRemote(BLOB)
        descriptor = remote.descriptor()
        remote.blobs.clear()
        other.gate.clear()
        first = asyncio.ensure_future(
            place.downloads.fetch("default", descriptor, remote, {}, ignore)
        )
        second = asyncio.ensure_future(place.fetch(other))
        with pytest.raises(NotFound):
            await first
        other.gate.set()
        await second
        assert place.read(descriptor.digest) == BLOB

    scenario(steps)


# --- a layer's source


async def drained(fd: int) -> bytes:
    def read_all() -> bytes:
        with os.fdopen(fd, "rb") as file:
            return file.read()

    return await asyncio.to_thread(read_all)


def test_a_source_yields_what_is_there_and_what_comes(place: Place) -> None:
    async def steps() -> None:
        remote = MemoryRemote(BLOB)
        remote.cuts = [1_500_000]
        with pytest.raises(Unavailable):
            await place.fetch(remote)
        fetching = asyncio.ensure_future(place.fetch(remote))
        source = place.downloads.source("default", remote.descriptor(), fetching)
        assert await drained(source.open()) == BLOB
        await source.whole()

    scenario(steps)


def test_a_reader_that_waits_does_not_hold_the_download(place: Place) -> None:
    async def steps() -> None:
        remote = MemoryRemote(BLOB)
        fetching = asyncio.ensure_future(place.fetch(remote))
        source = place.downloads.source("default", remote.descriptor(), fetching)
        fd = source.open()
        await fetching
        assert await drained(fd) == BLOB

    scenario(steps)


def test_a_reader_that_leaves_disturbs_nobody(place: Place) -> None:
    async def steps() -> None:
        remote = MemoryRemote(BLOB)
        fetching = asyncio.ensure_future(place.fetch(remote))
        source = place.downloads.source("default", remote.descriptor(), fetching)
        os.close(source.open())
        await fetching
        assert place.read(remote.descriptor().digest) == BLOB

    scenario(steps)


def test_a_source_ends_early_and_says_why_when_its_download_fails(place: Place) -> None:
    async def steps() -> None:
        remote = MemoryRemote(BLOB)
        remote.cuts = [1_500_000]
        fetching = asyncio.ensure_future(place.fetch(remote))
        source = place.downloads.source("default", remote.descriptor(), fetching)
        assert await drained(source.open()) == BLOB[:1_500_000]
        with pytest.raises(Unavailable):
            await source.whole()

    scenario(steps)


def test_a_source_of_a_download_that_is_over_reads_content(place: Place) -> None:
    async def steps() -> None:
        remote = MemoryRemote(BLOB)
        fetching = asyncio.ensure_future(place.fetch(remote))
        await fetching
        source = place.downloads.source("default", remote.descriptor(), fetching)
        assert await drained(source.open()) == BLOB

    scenario(steps)
