"""The content store: who sees what, in which order it comes and goes, and each crash between."""

import asyncio
import os
import signal
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lighter.daemon.content.blobs import Arrival
from lighter.daemon.content.digest import Digest
from lighter.daemon.content.ingest import Ingest
from lighter.daemon.content.store import ContentStore
from lighter.daemon.events.log import EventLog
from lighter.daemon.metadata.db import Database
from lighter.proto import faults
from lighter.proto.errors import DataLoss, InvalidArgument, NotFound, ResourceExhausted

DATA = b"some bytes"
DIGEST = Digest.of(DATA)


class Place:
    """A store on disk that can be opened again, as a next manager does."""

    def __init__(self, root: Path) -> None:
        self.dir = root / "content"
        self.db_path = str(root / "lighter.db")
        self.open()

    def open(self) -> ContentStore:
        self.db = Database(self.db_path)
        self.store = ContentStore(str(self.dir), self.db, EventLog(self.db))
        return self.store

    def reopen(self) -> ContentStore:
        self.db.close()
        self.open()
        asyncio.run(self.store.recover())
        return self.store

    def blobs(self) -> list[str]:
        return sorted(os.listdir(self.dir / "blobs/sha256"))

    def ingests(self) -> list[str]:
        return os.listdir(self.dir / "ingest")

    def notes(self) -> int:
        return len(self.db.rows("SELECT * FROM trash"))


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    place = Place(tmp_path)
    yield place
    place.db.close()


def in_child(steps: Callable[[], object]) -> int:
    """Run `steps` in a forked process; returns its wait status."""
    pid = os.fork()
    if pid == 0:
        try:
            steps()
        finally:
            os._exit(9)
    return os.waitpid(pid, 0)[1]


def read(store: ContentStore, namespace: str, digest: str) -> bytes:
    with open(store.open(namespace, digest), "rb") as file:
        return file.read()


def test_content_comes_back_under_its_digest(place: Place) -> None:
    digest = asyncio.run(place.store.add("default", DATA, {"a": "1"}))
    assert digest == DIGEST
    assert read(place.store, "default", digest) == DATA
    info = place.store.info("default", digest)
    assert (info.size, info.labels) == (len(DATA), {"a": "1"})
    assert place.ingests() == []
    assert place.notes() == 0


def test_files_are_private_and_read_only_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        place = Place(tmp_path)
        asyncio.run(place.store.add("default", DATA))
    finally:
        os.umask(before)
    for path in (place.dir, place.dir / "ingest", place.dir / "blobs", place.dir / "blobs/sha256"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    (name,) = place.blobs()
    assert stat.S_IMODE((place.dir / "blobs/sha256" / name).stat().st_mode) == 0o400
    place.db.close()


@contextmanager
def new_ingest(place: Place) -> Iterator[Ingest]:
    ingest = place.store.new_ingest()
    yield ingest
    asyncio.run(ingest.close())


def test_sec_65_wider_modes_are_corrected_at_a_start(place: Place) -> None:
    os.chmod(place.dir, 0o777)
    os.chmod(place.dir / "blobs/sha256", 0o777)
    place.reopen()
    assert stat.S_IMODE(place.dir.stat().st_mode) == 0o700
    assert stat.S_IMODE((place.dir / "blobs/sha256").stat().st_mode) == 0o700


def test_sec_35_a_digest_gives_no_sight_of_another_namespace(place: Place) -> None:
    asyncio.run(place.store.add("a", DATA))
    assert not place.store.has("b", DIGEST)
    for attempt in (place.store.open, place.store.info):
        with pytest.raises(NotFound, match="there is none in namespace b"):
            attempt("b", DIGEST)
    with pytest.raises(NotFound):
        asyncio.run(place.store.delete("b", DIGEST))
    with new_ingest(place) as ingest:
        empty = ingest.file("x")
        Path(empty).touch()
        with pytest.raises(DataLoss):  # naming a digest is no way to its bytes
            asyncio.run(place.store.adopt("b", empty, DIGEST, len(DATA)))
    assert not place.store.has("b", DIGEST)


def test_bytes_are_shared_and_go_with_their_last_name(place: Place) -> None:
    for namespace in ("a", "b"):
        asyncio.run(place.store.add(namespace, DATA))
    assert place.blobs() == [DIGEST.hex]
    asyncio.run(place.store.delete("a", DIGEST))
    assert read(place.store, "b", DIGEST) == DATA
    asyncio.run(place.store.delete("b", DIGEST))
    assert place.blobs() == []
    assert place.notes() == 0
    with pytest.raises(NotFound):
        asyncio.run(place.store.delete("b", DIGEST))


@pytest.mark.parametrize(
    "text",
    [
        "sha256:../../x",
        "SHA256:" + "a" * 64,
        "sha256:" + "A" * 64,
        "sha256:" + "a" * 63,
        "sha256:" + "a" * 64 + "\n",
        "sha256:" + "a" * 64 + "?",
        "sha256:" + "a" * 64 + "#x",
        "sha256:" + "\u0661" * 64,
        "md5:" + "a" * 32,
        "sha512:" + "a" * 128,
        "",
        None,
        7,
    ],
)
def test_sec_23_what_is_no_digest_reaches_no_path(place: Place, text: object) -> None:
    with pytest.raises(InvalidArgument, match="parse digest"):
        Digest.parse(text)
    if isinstance(text, str):
        for attempt in (place.store.open, place.store.info, place.store.has):
            with pytest.raises(InvalidArgument):
                attempt("default", text)


def test_nothing_is_adopted_when_one_file_is_wrong(place: Place) -> None:
    with new_ingest(place) as ingest:
        good, short = ingest.file("good"), ingest.file("short")
        Path(good).write_bytes(DATA)
        Path(short).write_bytes(b"x")
        with pytest.raises(DataLoss, match="expected a file of 2 bytes"):
            asyncio.run(
                place.store.adopt_all(
                    "default",
                    [Arrival(good, DIGEST, len(DATA)), Arrival(short, Digest.of(b"xy"), 2)],
                )
            )
        os.unlink(short)
        os.symlink("/etc/passwd", short)
        size = os.lstat(short).st_size
        with pytest.raises(DataLoss):
            asyncio.run(place.store.adopt("default", short, DIGEST, size))
    assert place.blobs() == place.ingests() == []


def test_an_ingest_names_only_its_own_files(place: Place) -> None:
    with new_ingest(place) as ingest:
        for name in ("../x", "a/b", "", ".", "..", "a\0", None):
            with pytest.raises(InvalidArgument):
                ingest.file(name)
        Path(ingest.file("x")).touch()
        assert stat.S_IMODE(os.fstat(ingest.fd).st_mode) == 0o700
    assert place.ingests() == []


def test_what_was_not_adopted_goes_while_others_are_served(place: Place) -> None:
    """However long that takes; who is cancelled over it leaves nothing either."""

    async def steps() -> None:
        ingest = place.store.new_ingest()
        await asyncio.to_thread(lambda: [Path(ingest.file(str(n))).touch() for n in range(3000)])
        served = 0
        closing = asyncio.ensure_future(ingest.close())
        while not closing.done():
            await asyncio.sleep(0)
            served += 1
            if served == 2:
                closing.cancel()
        assert served > 3 and closing.cancelled()

    asyncio.run(steps())
    assert place.ingests() == []


def test_a_damaged_file_is_found_and_mended(place: Place) -> None:
    asyncio.run(place.store.add("default", DATA))
    path = place.dir / "blobs/sha256" / DIGEST.hex
    path.write_bytes(b"other byte")
    with pytest.raises(DataLoss, match="its bytes have another digest"):
        asyncio.run(place.store.read_document("default", DIGEST, 100))
    path.write_bytes(b"")
    with pytest.raises(DataLoss, match="its file has 0 bytes, 10 were recorded"):
        place.store.open("default", DIGEST)
    path.unlink()
    with pytest.raises(DataLoss, match="is missing"):
        place.store.open("default", DIGEST)
    asyncio.run(place.store.add("default", DATA))
    assert asyncio.run(place.store.read_document("default", DIGEST, 100)) == DATA


def test_a_document_has_a_limit(place: Place) -> None:
    asyncio.run(place.store.add("default", DATA))
    with pytest.raises(ResourceExhausted, match="10 bytes, at most 9"):
        asyncio.run(place.store.read_document("default", DIGEST, 9))


def test_labels_are_merged_and_kept_when_content_comes_again(place: Place) -> None:
    asyncio.run(place.store.add("default", DATA, {"a": "1", "b": "2"}))
    place.store.label("default", DIGEST, {"a": ""})
    asyncio.run(place.store.add("default", DATA, {"c": "3"}))
    assert place.store.info("default", DIGEST).labels == {"b": "2", "c": "3"}


def test_pages_meet_without_gap(place: Place) -> None:
    made = sorted(asyncio.run(place.store.add("default", bytes([n]))) for n in range(5))
    seen: list[str] = []
    cursor = ""
    for _ in range(3):
        page, cursor = place.store.list("default", cursor, 2)
        seen += [info.digest for info in page]
    assert seen == made
    assert cursor == ""


def test_a_page_fits_a_message_whatever_labels_say(place: Place) -> None:
    """Those of an index name all that it needs."""
    large = {f"k{number}": "x" * 4000 for number in range(700)}
    made = sorted(asyncio.run(place.store.add("default", bytes([n]), large)) for n in range(2))
    page, cursor = place.store.list("default")
    assert [info.digest for info in page] == [cursor] == made[:1]


@pytest.mark.parametrize("point", ["content.noted", "import.blob-renamed", "gc.files-removed"])
def test_a_manager_killed_between_leaves_nothing_half(
    place: Place, point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.db.close()

    def steps() -> None:
        os.environ["FAULT"] = f"{point}:abort"
        plan = faults.Faults(os.environ)
        monkeypatch.setattr("lighter.daemon.content.store.hit", plan.hit)
        store = place.open()
        asyncio.run(store.add("default", DATA))
        asyncio.run(store.delete("default", DIGEST))

    assert os.WTERMSIG(in_child(steps)) == signal.SIGKILL
    place.open()
    store = place.reopen()
    assert not store.has("default", DIGEST)
    assert place.blobs() == place.ingests() == []
    assert place.notes() == 0


def test_a_start_empties_the_ingests_of_the_dead(place: Place) -> None:
    Path(place.store.new_ingest().file("half")).write_bytes(DATA)
    assert place.ingests() != []
    place.reopen()
    assert place.ingests() == []


def test_a_file_that_no_record_knows_is_kept_and_named(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    (place.dir / "blobs/sha256" / ("0" * 64)).write_bytes(b"from a newer database")
    store = place.reopen()
    assert store.unrecorded() == ("0" * 64,)
    assert "1 files of" in caplog.text


def test_arrival_and_removal_of_the_same_content_do_not_meet(place: Place) -> None:
    async def steps() -> None:
        async def come_and_go() -> None:
            for _ in range(10):
                await place.store.add("default", DATA)
                try:
                    await place.store.delete("default", DIGEST)
                except NotFound:
                    pass

        await asyncio.gather(*(come_and_go() for _ in range(4)))
        await place.store.add("default", DATA)

    asyncio.run(steps())
    assert read(place.store, "default", DIGEST) == DATA
    assert place.notes() == 0


def test_the_last_name_may_go_while_files_are_swept(place: Place) -> None:
    """After the sweep's look, which has seen it: the sweep that follows must know of the file."""

    async def steps() -> None:
        for namespace in ("a", "b"):
            await place.store.add(namespace, DATA)
        sweeping = asyncio.ensure_future(place.store.delete("a", DIGEST))
        while not place.store._files.locked():  # noqa: ASYNC110 (from the next line on it waits)
            await asyncio.sleep(0)
        await place.store.delete("b", DIGEST)
        await sweeping

    asyncio.run(steps())
    assert (place.blobs(), place.notes()) == ([], 0)


def test_a_cancelled_arrival_is_whole_or_absent(place: Place) -> None:
    async def steps() -> None:
        for delay in range(12):
            task = asyncio.ensure_future(place.store.add("default", bytes([delay]) * 9))
            for _ in range(delay):
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        await place.store.sweep()

    asyncio.run(steps())
    page, _ = place.store.list("default")
    assert sorted(Digest.parse(info.digest).hex for info in page) == place.blobs()
    assert place.ingests() == []
