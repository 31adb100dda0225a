"""What happens to volumes' directories when something goes between: by real files and rows."""

import asyncio
import os
import subprocess
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from lighter.daemon.containers.service import ContainerService
from lighter.daemon.metadata.db import Database
from lighter.daemon.metadata.namespaces import NamespaceStore
from lighter.daemon.metadata.volumes import VolumeStore
from lighter.daemon.snapshots import disk
from lighter.daemon.types import Container, Mount
from lighter.daemon.volumes.claim import Claim
from lighter.daemon.volumes.service import Volumes
from lighter.proto.errors import FailedPrecondition, InvalidArgument, LighterError, NotFound
from lighter.proto.paths import Root

IMAGE = (Mount("bind", "/image", ()),)
DEEP = 1500  # more than Python's own stack, or a path, or the usual number of descriptors allows


class Workers:
    """Copies one file as an image's directory, at the pace of the test."""

    def __init__(self) -> None:
        self.copying = asyncio.Event()
        self.may_end = asyncio.Event()

    async def run(self, job: Mapping[str, Any], _fds: Sequence[int]) -> dict[str, Any]:
        if job["job"] == "look":
            return {"found": True, "target": 0o040755}
        if job["job"] == "extract":
            self.copying.set()
            await self.may_end.wait()
            await asyncio.to_thread(Path(job["target"], "of-the-image").touch)
        return {}


class Made:
    def __init__(self, tmp_path: Path) -> None:
        self.db = Database(str(tmp_path / "lighter.db"))
        self.store = VolumeStore(self.db)
        self.root = Root(str(tmp_path / "root"))
        self.workers = Workers()
        self.again()

    def again(self) -> None:
        """As the next manager has it."""
        self.volumes = Volumes(self.root, self.store, self.workers, remove)

    def data(self, name: str = "v") -> Path:
        return Path(self.root.volume_data("default", name))


async def remove(path: str) -> None:
    await asyncio.to_thread(subprocess.run, ["rm", "-rf", path], check=True)


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Made]:
    made = Made(tmp_path)
    yield made
    made.db.close()
    subprocess.run(["rm", "-rf", made.root.dir], check=True)


@asynccontextmanager
async def claimed(
    made: Made, *options: str, owner: tuple[int, int] = (0, 0)
) -> AsyncIterator[Claim]:
    mount = {"type": "volume", "source": "v", "destination": "/d", "options": list(options)}
    async with Claim(made.volumes, "default") as claim:
        await claim.mounts([mount], [], IMAGE, owner)
        yield claim


def go(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 30))


def test_sec_46_a_directory_that_is_used_is_never_replaced(made: Made) -> None:
    """Two that ask at once: whoever does not want the copy waits for it, or prevents it."""

    async def during_the_copy() -> None:
        async with asyncio.TaskGroup() as group:
            filling = group.create_task(use(made))
            await made.workers.copying.wait()
            using = group.create_task(use(made, "nocopy"))
            await asyncio.sleep(0)
            await asyncio.to_thread(int)  # a thread's turn: the other would be through by now
            made.workers.may_end.set()
        assert filling.result() == using.result() == made.data().stat().st_ino
        assert os.listdir(made.data()) == ["of-the-image"]

    async def before_the_copy() -> None:
        await made.volumes.delete("default", "v")
        async with claimed(made, "nocopy") as first:
            first.keep()
            before = made.data().stat().st_ino
            assert await use(made) == before
            assert os.listdir(made.data()) == []

    async def both() -> None:
        await during_the_copy()
        await before_the_copy()

    go(both())


async def use(made: Made, *options: str) -> int:
    async with claimed(made, *options) as claim:
        claim.keep()
        return made.data().stat().st_ino


def test_a_volume_that_was_created_meanwhile_stays_when_its_claim_fails(made: Made) -> None:
    """Whoever created it was told that it is there; that another container wants it too is not."""

    async def fail(during: Callable[[], Awaitable[object]]) -> None:
        made.workers.copying.clear()
        failing = asyncio.ensure_future(use(made))
        await made.workers.copying.wait()
        await during()
        failing.cancel()
        await asyncio.wait([failing])

    async def created() -> None:
        made.volumes.create("default", "v")

    async def claimed_too() -> None:
        other = asyncio.ensure_future(use(made, "nocopy"))
        await asyncio.sleep(0)
        other.cancel()
        await asyncio.wait([other])

    async def work() -> None:
        await fail(created)
        assert made.volumes.get("default", "v")
        await made.volumes.delete("default", "v")
        await fail(claimed_too)
        with pytest.raises(NotFound):
            made.volumes.get("default", "v")

    go(work())


def test_a_volume_that_a_restored_container_names_is_not_removed_meanwhile(made: Made) -> None:
    async def work() -> None:
        made.volumes.create("default", "v")
        rows = [{"name": "v", "destination": place, "anonymous": False} for place in ("/a", "/b")]
        async with Claim(made.volumes, "default") as claim:
            claim.hold(rows)
            with pytest.raises(FailedPrecondition, match="is being made with it"):
                await made.volumes.delete("default", "v")
        await made.volumes.delete("default", "v")
        async with Claim(made.volumes, "default") as claim:
            with pytest.raises(NotFound):
                claim.hold(rows)
            for wrong in (5, [5], [{}], [{"name": 5}]):
                with pytest.raises(InvalidArgument):
                    claim.hold(wrong)

    go(work())


def test_a_client_that_goes_during_a_removal_leaves_none_of_its_volumes(made: Made) -> None:
    """The record, by which they could be found, has gone before them."""
    under_way, may_go = asyncio.Event(), asyncio.Event()

    async def remove_slowly(path: str) -> None:
        under_way.set()
        await may_go.wait()
        await remove(path)

    async def work() -> None:
        made.volumes = Volumes(made.root, made.store, made.workers, remove_slowly)
        names = ("v", "w")
        for name in names:
            made.volumes.create("default", name, anonymous=True)
        options = {"volumes": [{"name": name, "anonymous": True} for name in names]}
        deleting = asyncio.ensure_future(
            containers(made.volumes, options).delete("default", "c1", False, volumes=True)
        )
        await under_way.wait()
        deleting.cancel()
        may_go.set()
        await asyncio.wait([deleting])
        assert deleting.cancelled()
        assert made.volumes.list("default") == ()
        assert os.listdir(f"{made.root.volumes}/.removed") == []

    go(work())


class OneContainer:
    """All that is asked for a container's removal: its record, and whether it has a task."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._container = Container("default", "c1", "", "", "", "", b"{}", {}, options, 1, 1)

    def get(self, *_key: str) -> Container:
        return self._container

    async def end_creation(self, *_key: object) -> None: ...

    def exists(self, *_key: str) -> bool:
        return False

    def forget(self, *_key: str) -> None: ...


def containers(volumes: Volumes, options: Mapping[str, Any]) -> ContainerService:
    parts: dict[str, Any] = dict.fromkeys(
        ("maker", "snapshotters", "identities", "creator", "networks", "relabelling")
    )
    one: Any = OneContainer(options)
    return ContainerService(store=one, tasks=one, records=one, volumes=volumes, **parts)


def test_files_that_somebody_puts_there_during_the_copy_stay(made: Made) -> None:
    async def work() -> None:
        filling = asyncio.ensure_future(use(made))
        await made.workers.copying.wait()
        (made.data() / "mine").touch()
        made.workers.may_end.set()
        await filling
        assert os.listdir(made.data()) == ["mine"]
        assert os.listdir(made.data().parent) == ["_data"]

    go(work())


@pytest.mark.parametrize("recovered", [True, False])
def test_what_was_deleted_does_not_come_back_with_the_name(made: Made, recovered: bool) -> None:
    """The manager died between the row and the directory, and the name is asked for at once."""
    made.volumes.create("default", "v")
    (made.data() / "secret").touch()
    made.store.delete("default", "v", "0123456789abcdef")
    made.again()
    if recovered:
        made.volumes.recover()
    made.volumes.create("default", "v")
    assert os.listdir(made.data()) == []
    (made.data() / "mine").touch()
    made.again()
    made.volumes.recover()
    go(made.volumes.tidy())
    assert os.listdir(made.data()) == ["mine"]
    assert made.store.trash() == ()
    assert os.listdir(f"{made.root.volumes}/.removed") == []


def test_what_cannot_be_put_away_yet_is_not_forgotten(made: Made) -> None:
    made.volumes.create("default", "v")
    (made.data() / "secret").touch()
    made.store.delete("default", "v", "0123456789abcdef")
    in_the_way = Path(made.root.volumes, ".removed")
    in_the_way.touch()
    made.again()
    made.volumes.recover()
    go(made.volumes.tidy())
    with pytest.raises(LighterError, match="create volume v"):
        made.volumes.create("default", "v")
    in_the_way.unlink()
    made.volumes.create("default", "v")
    assert os.listdir(made.data()) == []


def test_a_start_takes_no_copy_away_that_is_under_way(made: Made) -> None:
    async def work() -> None:
        made.volumes.create("default", "v")
        (made.data().parent / "filling-old").mkdir()
        made.volumes.recover()
        filling = asyncio.ensure_future(use(made))
        await made.workers.copying.wait()
        await made.volumes.tidy()
        assert not (made.data().parent / "filling-old").exists()
        made.workers.may_end.set()
        await filling
        assert os.listdir(made.data()) == ["of-the-image"]

    go(work())


def test_an_empty_directory_of_a_lost_database_is_never_replaced(made: Made) -> None:
    """A container whose record was lost too may run on it; what a dead manager made is another."""

    async def work() -> None:
        made.data().mkdir(parents=True)
        os.utime(made.data().parent, (1, 1))
        NamespaceStore(made.db).ensure("default")
        before = made.data().stat().st_ino
        made.workers.may_end.set()
        async with claimed(made) as claim:
            claim.keep()
        made.again()
        async with claimed(made):
            pass
        assert (made.data().stat().st_ino, os.listdir(made.data())) == (before, [])
        assert made.store.get("default", "v").labels == {"io.lighter/adopted": "true"}
        made.data("w").mkdir(parents=True)
        assert made.volumes.create("default", "w")[0].labels == {}

    go(work())


def test_a_directory_without_a_row_keeps_owner_and_files(made: Made) -> None:
    """A lost database: what it held is neither given away nor removed with who failed to use it."""

    async def work() -> None:
        made.data().mkdir(parents=True)
        os.chown(made.data(), 5, 6)
        (made.data() / "mine").touch()
        with pytest.raises(LighterError, match="refused"):
            async with claimed(made, owner=(1000, 2000)):
                raise LighterError("refused")
        found = made.data().stat()
        assert (found.st_uid, found.st_gid) == (5, 6)
        assert os.listdir(made.data()) == ["mine"]

    go(work())


@pytest.mark.parametrize("options", [(), ("nocopy",)])
def test_an_empty_volume_of_nobodys_goes_to_the_containers_root(
    made: Made, options: tuple[str, ...]
) -> None:
    async def work() -> None:
        made.volumes.create("default", "v")
        made.workers.may_end.set()
        async with claimed(made, "nocopy", owner=(1000, 2000)) as claim:
            claim.keep()
        found = made.data().stat()
        assert (found.st_uid, found.st_gid) == (1000, 2000)
        async with claimed(made, *options, owner=(3000, 3000)):
            pass
        if options:
            assert made.data().stat().st_uid == 1000, "it has an owner by now"

    go(work())


def test_a_hostile_tree_is_measured_as_it_is_and_prevents_no_prune(made: Made) -> None:
    """Deeper than any stack, and with a link to what is not in it."""

    outside = Path(made.root.dir, "outside")
    outside.mkdir(parents=True)
    (outside / "big").write_bytes(b"x" * 1_000_000)

    async def work() -> None:
        for name in ("a", "deep", "z"):
            made.volumes.create("default", name)
        (made.data("deep") / "link").symlink_to(outside)
        fd = os.open(made.data("deep"), os.O_RDONLY)
        for _ in range(DEEP):
            os.mkdir("d", dir_fd=fd)
            inner = os.open("d", os.O_RDONLY, dir_fd=fd)
            os.close(fd)
            fd = inner
        last = os.open("last", os.O_WRONLY | os.O_CREAT, dir_fd=fd)
        os.write(last, b"x" * 5000)
        os.close(last)
        os.close(fd)
        usage = disk.measure(str(made.data("deep")))
        assert usage.inodes == DEEP + 3
        assert await made.volumes.size_bytes("default", "deep") == usage.size_bytes
        assert 5000 < usage.size_bytes < 4096 * (DEEP + 10)
        pruned = await made.volumes.prune("default", everything=True)
        assert pruned.names == ("a", "deep", "z") and pruned.problems == ()

    go(work())


def test_a_volume_whose_directory_is_gone_can_be_pruned(made: Made) -> None:
    made.volumes.create("default", "v")
    made.data().rmdir()

    async def work() -> None:
        with pytest.raises(LighterError, match="measure volume v"):
            await made.volumes.size_bytes("default", "v")
        assert (await made.volumes.prune("default", everything=True)).names == ("v",)

    go(work())
