"""Layers from sources that still arrive, and layers side by side."""

import asyncio
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from lighter.daemon.images import platforms
from lighter.daemon.images.chain import chain_id, chain_ids
from lighter.daemon.images.graph import Resolved, StoredDocuments, Walker
from lighter.daemon.images.importer import ImportOptions
from lighter.daemon.images.unpack import LayerSource, Unpacker
from lighter.daemon.images.worker import read_files
from lighter.daemon.snapshots.types import COMMITTED
from lighter.proto import faults
from lighter.proto.errors import DataLoss, FailedPrecondition, LighterError, NotFound, Unavailable
from tests.security.images import DIR, FILE, HARDLINK, archive, diff_id, entry
from tests.unit.images.build import Layout
from tests.unit.images.conftest import NS, Place

pytestmark = pytest.mark.root

NAME = "docker.io/library/test:1"
DEADLINE_S = 20.0


class Arriving:
    """A LayerSource whose bytes come when the test says so."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.opened = 0
        self.may_feed = threading.Event()
        self.verified: asyncio.Future[None] | None = None
        self.cut = len(data)
        self.close_pipe = True

    def open(self) -> int:
        self.opened += 1
        read_end, write_end = os.pipe2(os.O_CLOEXEC)
        threading.Thread(target=self._feed, args=(write_end,), daemon=True).start()
        return read_end

    def _feed(self, write_end: int) -> None:
        assert self.may_feed.wait(DEADLINE_S)
        try:
            rest = memoryview(self.data)[: self.cut]
            while rest:
                rest = rest[os.write(write_end, rest[:100]) :]
        except BrokenPipeError:
            pass
        if self.close_pipe:
            os.close(write_end)

    async def whole(self) -> None:
        if self.verified is None:
            self.verified = asyncio.get_running_loop().create_future()
        await asyncio.shield(self.verified)

    async def settle(self, error: Exception | None = None) -> None:
        await until(lambda: self.verified is not None)
        assert self.verified is not None
        if error is None:
            self.verified.set_result(None)
        else:
            self.verified.set_exception(error)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():  # noqa: ASYNC110 (of files and threads, which set no event)
            await asyncio.sleep(0.01)


class Case:
    """One image of raw layers, its content imported, nothing unpacked."""

    def __init__(self, place: Place, layers: Sequence[bytes], at_once: int = 3) -> None:
        self.place = place
        self.diffs = [diff_id(layer) for layer in layers]
        self.chain = chain_ids(self.diffs)
        built = Layout()
        described = built.image([], blobs=layers)
        built.list(described, name=NAME)
        place.take(built.archive(), ImportOptions(unpack=False))
        target = place.images.find(NS, NAME).target
        walker = Walker(StoredDocuments(place.content, NS), platforms.host())
        self.image: Resolved = place.runner.run(walker.resolve(target))
        self.unpacker = Unpacker(
            place.content,
            place.snapshotters,
            place.worker,
            place.images.collector,
            layers_at_once=at_once,
        )
        assert chain_id(self.image) == self.chain[-1]

    async def unpack(self, *sources: LayerSource | None, snapshotter: str = "overlayfs") -> str:
        given = {
            layer.digest: source
            for layer, source in zip(self.image.manifest.layers, sources, strict=False)
            if source is not None
        }
        async with asyncio.timeout(DEADLINE_S):
            return await self.unpacker.unpack(NS, self.image, snapshotter, sources=given)

    def is_labelled(self) -> bool:
        labels = self.place.content.info(NS, self.image.manifest.config.digest).labels
        return any("gc.ref.snapshot" in label for label in labels)

    def failed(self, committed: int, *sources: LayerSource | None) -> LighterError:
        """Unpack; it fails, with the lowest `committed` layers left and nothing besides."""
        with pytest.raises(LighterError) as caught:
            self.place.run(self.unpack(*sources))
        self.is_clean(committed)
        return caught.value

    def is_clean(self, committed: int) -> None:
        assert self.place.snapshot_keys() == set(self.chain[:committed])
        assert self.place.snapshot_directories() == committed
        assert not self.is_labelled()

    def completes(self) -> None:
        """A further try, from the content store."""
        assert self.place.run(self.unpack()) == self.chain[-1]
        assert self.is_labelled()
        assert self.place.snapshot_keys() == set(self.chain)
        for name, below in zip(self.chain, ("", *self.chain), strict=False):
            info = self.place.run(self.place.overlay.stat(NS, name))
            assert (info.kind, info.parent) == (COMMITTED, below)


BIG = archive(entry("big", FILE, os.urandom(300_000)), entry("d", DIR, mode=0o1777))
LINKING = archive(entry("d/new"), entry("link", HARDLINK, link="big"))
TOP = archive(entry("d/top", FILE, b"top"))


@pytest.fixture
def case(place: Place) -> Case:
    return Case(place, [BIG, LINKING, TOP])


def test_a_layer_is_applied_while_it_arrives_and_committed_when_it_is_whole(case: Case) -> None:
    source = Arriving(BIG)

    async def steps() -> None:
        unpacking = asyncio.ensure_future(case.unpack(source))
        source.may_feed.set()
        applied = case.place.overlay.dir

        def is_written() -> bool:
            found = [f"{applied}/{name}/fs/big" for name in os.listdir(applied)]
            return any(os.path.exists(p) and os.stat(p).st_size == 300_000 for p in found)

        await until(is_written)
        assert not set(case.chain) & case.place.snapshot_keys()
        await source.settle()
        await unpacking

    case.place.run(steps())
    assert source.opened == 1
    case.completes()


@pytest.mark.parametrize("cut", [0, 1, 512, 100_000, len(BIG) - 1])
def test_f_26_a_source_that_is_cut_short_says_why(case: Case, cut: int) -> None:
    source = Arriving(BIG)
    source.cut = cut
    source.may_feed.set()

    async def steps() -> None:
        unpacking = asyncio.ensure_future(case.unpack(source))
        await source.settle(Unavailable("pull blob: the registry hung up"))
        await unpacking

    with pytest.raises(Unavailable, match="hung up"):
        case.place.run(steps())
    case.is_clean(0)
    case.completes()


def test_a_source_that_fails_ends_a_worker_that_waits_for_it(case: Case) -> None:
    source = Arriving(BIG)
    source.cut, source.close_pipe = 1000, False
    source.may_feed.set()

    async def steps() -> None:
        unpacking = asyncio.ensure_future(case.unpack(source))
        await until(lambda: source.opened)
        await source.settle(Unavailable("pull blob: no answer"))
        await unpacking

    with pytest.raises(Unavailable, match="no answer"):
        case.place.run(steps())
    case.is_clean(0)
    case.completes()


def test_a_damaged_layer_is_told_although_its_source_never_ends(case: Case) -> None:
    source = Arriving(b"\1" * 5000)
    source.may_feed.set()
    assert "is this a tar archive" in case.failed(0, source).message
    case.completes()


def test_other_bytes_than_the_digest_says_are_not_committed(case: Case) -> None:
    """The diff id is right, what arrived is not: the source alone knows."""
    source = Arriving(BIG)
    source.may_feed.set()

    async def steps() -> None:
        unpacking = asyncio.ensure_future(case.unpack(source))
        await source.settle(DataLoss("pull blob: its digest differs"))
        await unpacking

    with pytest.raises(DataLoss, match="digest differs"):
        case.place.run(steps())
    case.is_clean(0)


def test_a_link_into_a_layer_below_waits_for_it(case: Case) -> None:
    """And so does all that the implied directory takes its attributes from."""
    source = Arriving(BIG)

    async def steps() -> None:
        unpacking = asyncio.ensure_future(case.unpack(source))
        # The layers above are written as far as they can be while the lowest has not come.
        await until(lambda: written(case.place, "d/top"))
        assert not written(case.place, "link")
        source.may_feed.set()
        await source.settle()
        await unpacking
        mounts = await case.place.overlay.view(NS, "look", case.chain[-1])
        files = await read_files(case.place.worker, mounts, ["/link", "/d/new", "/d/top"])
        assert files == {"/link": big(), "/d/new": b"", "/d/top": b"top"}
        await case.place.overlay.remove(NS, "look")

    case.place.run(steps())
    numbers = [case.place.overlay._rows.find("find", NS, name).number for name in case.chain]
    for number in numbers:
        assert os.stat(f"{case.place.overlay.files(number)}/d").st_mode & 0o7777 == 0o1777


def test_f29_a_layer_waits_until_the_one_below_is_committed(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is not committed is no parent, and no reason to fail either."""
    case = Case(place, [TOP, archive(entry("upper", FILE, b"upper"))])
    trace = tmp_path / "trace"
    monkeypatch.setattr(faults._faults, "trace", str(trace))
    commit = place.overlay.commit

    async def commit_late(namespace: str, name: str, *args: Any, **more: Any) -> None:
        if name == case.chain[0]:
            await until(lambda: trace.read_text().count("unpack.applied") == 2)
        await commit(namespace, name, *args, **more)

    monkeypatch.setattr(place.overlay, "commit", commit_late)
    case.completes()


def written(place: Place, name: str) -> list[str]:
    """The snapshots that have this file themselves."""
    numbers = os.listdir(place.overlay.dir)
    return [n for n in numbers if os.path.lexists(f"{place.overlay.dir}/{n}/fs/{name}")]


def big() -> bytes:
    return BIG[512 : 512 + 300_000]


@pytest.mark.parametrize("at_once", [1, 2, 5])
def test_as_many_layers_at_once_as_are_set(place: Place, at_once: int) -> None:
    layers = [archive(entry(f"f{n}", FILE, bytes(n))) for n in range(5)]
    case = Case(place, layers, at_once)
    sources = [Arriving(layer) for layer in layers]

    async def steps() -> None:
        unpacking = asyncio.ensure_future(case.unpack(*sources))
        for place_ in range(len(layers)):
            wanted = min(place_ + at_once, len(layers))
            await until(lambda wanted=wanted: sum(s.opened for s in sources) == wanted)
            assert [s.opened for s in sources] == [1] * wanted + [0] * (len(layers) - wanted)
            sources[place_].may_feed.set()
            await sources[place_].settle()
        await unpacking

    place.run(steps())
    case.completes()


@pytest.mark.parametrize("at_once", range(1, 9))
@pytest.mark.parametrize("bad", [0, 1, 3])
def test_sec_16_a_layer_that_fails_leaves_no_success(place: Place, at_once: int, bad: int) -> None:
    layers = [archive(entry(f"f{n}", FILE, bytes(n)), entry("d/x")) for n in range(4)]
    layers[bad] = archive(entry("x", HARDLINK, link="nowhere"))
    case = Case(place, layers, at_once)
    with pytest.raises(NotFound, match="nowhere"):
        place.run(case.unpack())
    committed = len(place.snapshot_keys())
    assert committed <= bad  # those below may have been committed, in order
    case.is_clean(committed)


def test_an_image_that_has_a_layer_twice(place: Place) -> None:
    case = Case(place, [BIG, TOP, BIG])
    source = Arriving(BIG)
    source.may_feed.set()

    async def steps() -> None:
        unpacking = asyncio.ensure_future(case.unpack(source))
        await source.settle()
        await unpacking

    place.run(steps())
    assert source.opened == 2
    case.completes()


@pytest.mark.parametrize("snapshotter", ["overlayfs", "native"])
def test_images_that_share_layers_unpack_beside_each_other(place: Place, snapshotter: str) -> None:
    layers = [archive(entry(f"f{n}", FILE, bytes(n))) for n in range(5)]
    first = Case(place, layers[:4], 2)
    second = Case(place, [*layers[:2], layers[4]], 2)
    second.unpacker = first.unpacker

    async def steps() -> None:
        await asyncio.gather(
            *(case.unpack(snapshotter=snapshotter) for case in (first, second) * 10)
        )

    place.worker.jobs.clear()
    place.run(steps())
    applied = [job for job in place.worker.jobs if job["job"] == "apply"]
    assert len(applied) == 5
    assert place.snapshot_keys(snapshotter) == {*first.chain, *second.chain}


def test_too_many_layers_are_refused_at_once(place: Place) -> None:
    case = Case(place, [TOP] * 501)
    place.worker.jobs.clear()
    with pytest.raises(FailedPrecondition, match=r"501 layers, overlayfs can mount 500"):
        place.run(case.unpack())
    assert place.worker.jobs == []
    case.is_clean(0)


def test_an_unpack_that_is_cancelled_leaves_nothing(case: Case) -> None:
    source = Arriving(BIG)

    async def steps() -> Any:
        unpacking = asyncio.ensure_future(case.unpack(source))
        await until(lambda: source.opened)
        unpacking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await unpacking
        source.may_feed.set()

    case.place.run(steps())
    case.is_clean(0)
    case.completes()
