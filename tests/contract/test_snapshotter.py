"""What every snapshotter does alike: life cycle, mounts, sharing, removal, crashes."""

import asyncio
import contextlib
import os
import shutil
import signal
import stat
import tempfile
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lighter.daemon.content.gc import Collector
from lighter.daemon.content.housekeeping import Housekeeping
from lighter.daemon.content.ingests import Ingests
from lighter.daemon.content.store import ContentStore
from lighter.daemon.events.log import EventLog
from lighter.daemon.images.worker import read_files
from lighter.daemon.leases import Leases
from lighter.daemon.metadata.containers import ContainerStore
from lighter.daemon.metadata.db import Database
from lighter.daemon.metadata.namespaces import NamespaceStore
from lighter.daemon.snapshots.btrfs import BtrfsSnapshotter
from lighter.daemon.snapshots.directories import DirectorySnapshotter
from lighter.daemon.snapshots.erofs import ErofsSnapshotter
from lighter.daemon.snapshots.native import NativeSnapshotter
from lighter.daemon.snapshots.overlay import MAX_MOUNT_DATA, OverlaySnapshotter
from lighter.daemon.snapshots.subvolumes import create, freeze
from lighter.daemon.snapshots.types import Snapshotter
from lighter.daemon.types import Container, Mount, Usage
from lighter.proto import faults
from lighter.proto.errors import (
    AlreadyExists,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
)
from lighter.proto.paths import Root
from lighter.shim import linux
from tests.fakes.worker import ForkWorker
from tests.loopdisk import btrfs_at

pytestmark = pytest.mark.root

KINDS: list[type[DirectorySnapshotter]] = [OverlaySnapshotter, NativeSnapshotter]
if "btrfs" in Path("/proc/filesystems").read_text().split():
    KINDS.append(BtrfsSnapshotter)  # where the kernel has none, the last test says what it says
if "erofs" in Path("/proc/filesystems").read_text().split():
    KINDS.append(ErofsSnapshotter)
NS = "default"


class Place:
    """One snapshotter on disk that can be opened again, as a next manager does."""

    def __init__(self, kind: type[DirectorySnapshotter], root: Path) -> None:
        self.kind = kind
        self.root = root
        self.dir = root / "snapshots" / kind.name
        self.worker = ForkWorker()
        self.runner = asyncio.Runner()
        self.open()

    def open(self) -> DirectorySnapshotter:
        self.db = Database(str(self.root / "lighter.db"))
        self.snapshotter: DirectorySnapshotter = self.kind(
            str(self.root / "snapshots"), self.db, EventLog(self.db), self.worker.remove_tree
        )
        as_promised: Snapshotter = self.snapshotter
        assert as_promised.name == self.kind.name
        return self.snapshotter

    def reopen(self) -> DirectorySnapshotter:
        self.db.close()
        self.open()
        self.runner.run(self.snapshotter.recover())
        return self.snapshotter

    def directories(self) -> list[str]:
        return sorted(os.listdir(self.dir))

    def lose(self, number: int) -> None:
        """As a power cut may lose a directory, and the mounts with it."""
        self.unmount()
        shutil.rmtree(self.dir / str(number))

    def unmount(self) -> None:
        # Not os.path.ismount: a btrfs subvolume has a device number of its own too.
        mounts = Path("/proc/self/mountinfo").read_text()
        for entry in os.scandir(self.dir):
            if f" {entry.path}/fs " in mounts:
                linux.umount(f"{entry.path}/fs")

    def close(self) -> None:
        self.unmount()
        self.runner.close()
        self.db.close()

    def run(self, steps: Coroutine[Any, Any, Any]) -> Any:
        """Run a step, and what it left to the background."""

        async def all_of_it() -> Any:
            try:
                return await steps
            finally:
                await self.snapshotter.sweep()

        return self.runner.run(all_of_it())

    @contextmanager
    def mounted(self, mounts: tuple[Mount, ...]) -> Iterator[Path]:
        target = tempfile.mkdtemp(dir=self.root)
        linux.mount_all([(m.type, m.source, list(m.options)) for m in mounts], target)
        try:
            yield Path(target)
        finally:
            linux.umount(target)
            os.rmdir(target)

    def layer(self, name: str, parent: str, fill: Callable[[Path], object]) -> None:
        """Commit a layer in which `fill` changed what `parent` holds."""
        mounts = self.run(self.snapshotter.prepare(NS, f"extract {name}", parent))
        with self.mounted(mounts) as tree:
            fill(tree)
        self.run(self.snapshotter.commit(NS, name, f"extract {name}"))

    def seen(self, mounts: tuple[Mount, ...]) -> dict[str, bytes]:
        with self.mounted(mounts) as tree:
            return {
                str(path.relative_to(tree)): path.read_bytes()
                for path in tree.rglob("*")
                if path.is_file()
            }


@pytest.fixture(params=KINDS, ids=lambda kind: kind.name)
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    root = Path(tempfile.mkdtemp(prefix="lighter-", dir="/var/tmp"))
    with btrfs_at(root) if request.param is BtrfsSnapshotter else contextlib.nullcontext():
        place = Place(request.param, root)
        yield place
        place.close()
    shutil.rmtree(root)


@pytest.fixture
def btrfs(tmp_path: Path) -> Iterator[Place]:
    with btrfs_at(tmp_path):
        place = Place(BtrfsSnapshotter, tmp_path)
        yield place
        place.close()


def write(name: str, data: bytes) -> Callable[[Path], object]:
    return lambda tree: (tree / name).write_bytes(data)


def test_a_snapshot_begins_as_its_parent_and_changes_alone(place: Place) -> None:
    place.layer("base", "", write("a", b"1"))
    snapshotter = place.snapshotter
    first = place.run(snapshotter.prepare(NS, "first", "base"))
    second = place.run(snapshotter.prepare(NS, "second", "base"))
    with place.mounted(first) as tree:
        (tree / "a").write_bytes(b"changed")
        (tree / "b").write_bytes(b"new")
    assert place.seen(first) == {"a": b"changed", "b": b"new"}
    assert place.seen(second) == {"a": b"1"}
    assert place.run(snapshotter.mounts(NS, "first")) == first


def test_layers_lie_on_each_other_and_removals_hold(place: Place) -> None:
    def third(tree: Path) -> None:
        (tree / "a").unlink()
        shutil.rmtree(tree / "d")
        (tree / "d").mkdir()
        (tree / "d/new").write_bytes(b"n")

    def first(tree: Path) -> None:
        (tree / "a").write_bytes(b"1")
        (tree / "d").mkdir()
        (tree / "d/old").write_bytes(b"o")

    place.layer("one", "", first)
    place.layer("two", "one", write("b", b"2"))
    place.layer("three", "two", third)
    view = place.run(place.snapshotter.view(NS, "look", "three"))
    assert place.seen(view) == {"b": b"2", "d/new": b"n"}
    below = place.run(place.snapshotter.view(NS, "look below", "two"))
    assert place.seen(below) == {"a": b"1", "b": b"2", "d/old": b"o"}


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_a_view_cannot_be_written(place: Place, depth: int) -> None:
    parent = ""
    for number in range(depth):
        place.layer(f"l{number}", parent, write(f"f{number}", b"x"))
        parent = f"l{number}"
    mounts = place.run(place.snapshotter.view(NS, "look", parent))
    with place.mounted(mounts) as tree:
        with pytest.raises(OSError, match="Read-only"):
            (tree / "new").write_bytes(b"")


def test_kinds_parents_and_names_are_recorded(place: Place) -> None:
    place.layer("base", "", write("a", b"1"))
    snapshotter = place.snapshotter
    place.run(snapshotter.prepare(NS, "work", "base", {"x": "y"}))
    place.run(snapshotter.view(NS, "look", "base"))
    infos, cursor = place.run(snapshotter.walk(NS))
    assert [(i.key, i.parent, i.kind) for i in infos] == [
        ("base", "", "committed"),
        ("look", "base", "view"),
        ("work", "base", "active"),
    ]
    assert cursor == ""
    assert place.run(snapshotter.stat(NS, "work")).labels == {"x": "y"}
    updated = place.run(snapshotter.update(NS, "work", {"x": "", "z": "1"}))
    assert updated.labels == {"z": "1"}


def test_namespaces_do_not_see_each_other(place: Place) -> None:
    place.layer("base", "", write("a", b"1"))
    with pytest.raises(NotFound, match="has none in namespace other"):
        place.run(place.snapshotter.prepare("other", "work", "base"))
    with pytest.raises(NotFound):
        place.run(place.snapshotter.mounts("other", "base"))
    place.run(place.snapshotter.prepare("other", "base"))
    assert place.run(place.snapshotter.stat("other", "base")).kind == "active"


def read_only(mount: Mount) -> Mount:
    """Of the same files, with the upper directory as the first of the lower ones."""
    if mount.type != "overlay":
        return Mount(mount.type, mount.source, (*mount.options, "ro"))
    named = dict(option.partition("=")[::2] for option in mount.options)
    lower = f"lowerdir={named['upperdir']}:{named['lowerdir']}"
    kept = [o for o in mount.options if not o.startswith(("upperdir=", "workdir=", "lowerdir="))]
    return Mount(mount.type, mount.source, (*kept, lower))


def test_it_is_found_by_its_mounts_and_by_no_others(place: Place) -> None:
    place.layer("base", "", lambda tree: tree.joinpath("a").touch())
    place.layer("top", "base", lambda tree: tree.joinpath("b").touch())
    made = {}
    for key, parent in (("empty", ""), ("on base", "base"), ("on top", "top"), ("again", "top")):
        made[key] = place.run(place.snapshotter.prepare(NS, key, parent))
        assert place.run(place.snapshotter.find(NS, made[key])) == key
        assert place.run(place.snapshotter.find("other", made[key])) == ""
    for parent in ("base", "top"):
        mounts = place.run(place.snapshotter.view(NS, f"view of {parent}", parent))
        assert place.run(place.snapshotter.find(NS, mounts)) == f"view of {parent}"
    (mount,) = made["on top"]
    # As BuildKit passes them on: an option more, and read-only.
    more = Mount(mount.type, mount.source, (*mount.options, "redirect_dir=off"))
    assert place.run(place.snapshotter.find(NS, [more])) == "on top"
    assert place.run(place.snapshotter.find(NS, [read_only(mount)])) == "on top"
    plain = [option for option in mount.options if option not in ("bind", "rbind")]
    for other in (
        [],
        [mount, mount],
        [Mount("overlay", "overlay", (f"upperdir={place.dir}", *plain))],
        [Mount("overlay", "overlay", (f"lowerdir={place.dir}", *plain))],
        [Mount("tmpfs", mount.source, tuple(plain))],
        [Mount("bind", str(place.dir), ("rw", "rbind"))],
        [Mount("bind", "/", ("rw", "rbind"))],
    ):
        assert place.run(place.snapshotter.find(NS, other)) == ""
    place.run(place.snapshotter.remove(NS, "on top"))
    assert place.run(place.snapshotter.find(NS, made["on top"])) == ""


def test_refused_steps_change_nothing(place: Place) -> None:
    """Among them: what is not committed is nobody's parent (F29)."""
    place.layer("base", "", write("a", b"1"))
    snapshotter = place.snapshotter
    place.run(snapshotter.prepare(NS, "work", "base"))
    place.run(snapshotter.view(NS, "look", "base"))
    before = (place.directories(), place.run(snapshotter.walk(NS)))
    refused: list[tuple[type[Exception], str, Coroutine[Any, Any, Any]]] = [
        (AlreadyExists, "prepare snapshot work", snapshotter.prepare(NS, "work", "base")),
        (AlreadyExists, "commit snapshot base", snapshotter.commit(NS, "base", "work")),
        (NotFound, "prepare on snapshot gone", snapshotter.prepare(NS, "x", "gone")),
        (FailedPrecondition, "work is active", snapshotter.prepare(NS, "x", "work")),
        (FailedPrecondition, "it is view", snapshotter.commit(NS, "x", "look")),
        (FailedPrecondition, "it is committed", snapshotter.commit(NS, "x", "base")),
        (FailedPrecondition, "it is committed", snapshotter.mounts(NS, "base")),
        (FailedPrecondition, "not active", snapshotter.layer_target(NS, "look")),
        (FailedPrecondition, "the parent of look, work", snapshotter.remove(NS, "base")),
        (NotFound, "remove snapshot gone", snapshotter.remove(NS, "gone")),
        (InvalidArgument, "a key has", snapshotter.prepare(NS, "")),
        (InvalidArgument, "a key has", snapshotter.prepare(NS, "x" * 2000)),
    ]
    for kind, text, steps in refused:
        with pytest.raises(kind, match=text):
            place.run(steps)
    assert (place.directories(), place.run(snapshotter.walk(NS))) == before


def test_removal_takes_the_files_and_the_number(place: Place) -> None:
    place.layer("base", "", write("a", b"1"))
    place.run(place.snapshotter.prepare(NS, "work", "base"))
    place.run(place.snapshotter.remove(NS, "work"))
    place.run(place.snapshotter.remove(NS, "base"))
    assert place.directories() == []
    assert place.db.rows("SELECT * FROM trash") == []
    place.run(place.snapshotter.prepare(NS, "next"))
    assert place.directories() == ["3"]


def test_sec_18_snapshots_of_nothing_are_fresh_and_apart(place: Place) -> None:
    outside = stat.S_IMODE(place.dir.stat().st_mode)
    first = place.run(place.snapshotter.prepare(NS, "first"))
    second = place.run(place.snapshotter.prepare(NS, "second"))
    assert first[0].source != second[0].source
    with place.mounted(first) as tree:
        assert list(tree.iterdir()) == []
        os.chmod(tree, 0o777)
        (tree / "a").write_bytes(b"1")
    assert place.seen(second) == {}
    assert stat.S_IMODE(place.dir.stat().st_mode) == outside == 0o700


def test_the_root_directory_keeps_owner_and_mode(place: Place) -> None:
    def fill(tree: Path) -> None:
        os.chown(tree, 7, 8)
        os.chmod(tree, 0o1750)

    place.layer("base", "", fill)
    with place.mounted(place.run(place.snapshotter.prepare(NS, "work", "base"))) as tree:
        found = tree.stat()
        assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (7, 8, 0o1750)


def test_modes_hold_under_any_umask(place: Place) -> None:
    for umask in (0, 0o077):
        before = os.umask(umask)
        try:
            place.run(place.snapshotter.prepare(NS, f"work {umask}"))
        finally:
            os.umask(before)
    for name in place.directories():
        assert stat.S_IMODE((place.dir / name).stat().st_mode) == 0o700
        assert stat.S_IMODE((place.dir / name / "fs").stat().st_mode) == 0o755


def test_usage_is_what_the_snapshot_alone_takes(place: Place) -> None:
    place.layer("base", "", write("a", bytes(1 << 20)))
    used = place.run(place.snapshotter.usage(NS, "base"))
    assert 1 << 20 <= used.size_bytes < (1 << 20) + 65536
    assert used.inodes == 2
    mounts = place.run(place.snapshotter.prepare(NS, "work"))
    with place.mounted(mounts) as tree:
        (tree / "b").write_bytes(bytes(1 << 16))
        os.link(tree / "b", tree / "c")
        os.symlink("/etc", tree / "link")
    used = place.run(place.snapshotter.usage(NS, "work"))
    assert 1 << 16 <= used.size_bytes < 1 << 17
    assert used.inodes == 3
    place.run(place.snapshotter.commit(NS, "done", "work", usage=Usage(5, 6)))
    assert place.run(place.snapshotter.usage(NS, "done")) == Usage(5, 6)


def test_a_layer_is_applied_where_the_target_says(place: Place) -> None:
    place.layer("base", "", write("a", b"1"))
    place.run(place.snapshotter.prepare(NS, "work", "base"))
    target = place.run(place.snapshotter.layer_target(NS, "work"))
    Path(target.dir, "b").write_bytes(b"2")
    if target.whiteouts == "overlay":
        assert [sorted(os.listdir(lower)) for lower in target.lowers] == [["a"]]
        os.mknod(target.dir + "/a", stat.S_IFCHR, 0)
    else:
        assert target.lowers == ()
        os.unlink(target.dir + "/a")
    place.run(place.snapshotter.commit(NS, "top", "work"))
    assert place.seen(place.run(place.snapshotter.view(NS, "look", "top"))) == {"b": b"2"}


def test_pages_meet_without_gap(place: Place) -> None:
    names = [f"s{number}" for number in range(5)]
    for name in names:
        place.run(place.snapshotter.prepare(NS, name))
    seen: list[str] = []
    cursor = ""
    for _ in range(3):
        page, cursor = place.run(place.snapshotter.walk(NS, cursor, 2))
        seen += [info.key for info in page]
    assert seen == names
    large = {f"k{number}": "x" * 4000 for number in range(700)}
    for name in names[:2]:
        place.run(place.snapshotter.update(NS, name, large))
    page, cursor = place.run(place.snapshotter.walk(NS))
    assert [info.key for info in page] == [cursor] == names[:1]


@pytest.mark.parametrize(
    ("point", "left"),
    [
        ("snapshot.directory-made", []),
        ("snapshot.recorded", ["work"]),
        ("snapshot.row-deleted", []),
        ("snapshot.removed", []),
    ],
)
def test_a_manager_killed_between_leaves_before_or_after(
    place: Place, point: str, left: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lease that holds it as well."""
    Leases(place.db).create(NS, "mine")
    place.db.close()
    pid = os.fork()
    if pid == 0:
        try:
            plan = faults.Faults({"FAULT": f"{point}:abort"})
            monkeypatch.setattr("lighter.daemon.snapshots.directories.hit", plan.hit)
            place.open()
            place.run(place.snapshotter.prepare(NS, "work", lease="mine"))
            place.run(place.snapshotter.remove(NS, "work"))
        finally:
            os._exit(9)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
    place.open()
    snapshotter = place.reopen()
    infos, _ = place.run(snapshotter.walk(NS))
    assert [info.key for info in infos] == left
    assert len(place.directories()) == len(left)
    assert place.db.rows("SELECT * FROM trash") == []
    held = Leases(place.db).resources(NS, "mine")
    assert held == tuple((f"snapshots/{snapshotter.name}", key) for key in left)
    for info in infos:
        assert place.seen(place.run(snapshotter.mounts(NS, info.key))) == {}
        place.run(snapshotter.remove(NS, info.key))
    place.run(snapshotter.prepare(NS, "work"))


def test_a_lease_that_has_gone_meanwhile_leaves_no_snapshot(place: Place) -> None:
    for make in (place.snapshotter.prepare, place.snapshotter.view):
        with pytest.raises(NotFound, match="prepare snapshot work: lease gone does not exist"):
            place.run(make(NS, "work", lease="gone"))
    assert (place.run(place.snapshotter.walk(NS)), place.directories()) == (((), ""), [])


def test_a_directory_that_cannot_get_its_name_is_taken_back(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = faults.Faults({"FAULT": "snapshot.recorded:error"})
    monkeypatch.setattr("lighter.daemon.snapshots.directories.hit", plan.hit)
    with pytest.raises(Internal, match="asked to fail"):
        place.run(place.snapshotter.prepare(NS, "work"))
    infos, _ = place.run(place.snapshotter.walk(NS))
    place.run(place.snapshotter.sweep())
    assert (infos, place.directories()) == ((), [])
    assert place.db.rows("SELECT * FROM trash") == []
    assert place.seen(place.run(place.snapshotter.prepare(NS, "work"))) == {}


def test_a_directory_that_no_record_knows_is_kept(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    (place.dir / "77").mkdir()
    snapshotter = place.reopen()
    assert place.directories() == ["77"]
    assert "77 has no record: it is kept" in caplog.text
    place.run(snapshotter.prepare(NS, "work"))
    assert place.directories() == ["77", "78"]


def test_a_committed_record_without_directory_is_named_and_removable(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    place.run(place.snapshotter.prepare(NS, "work"))
    place.run(place.snapshotter.commit(NS, "base", "work"))
    place.lose(1)
    snapshotter = place.reopen()
    place.run(snapshotter.recover())
    assert "its directory is missing" in caplog.text
    assert place.directories() == []
    place.run(snapshotter.remove(NS, "base"))
    assert place.run(snapshotter.walk(NS)) == ((), "")


def test_an_active_one_that_a_power_cut_took_is_made_again_empty(place: Place) -> None:
    place.run(place.snapshotter.prepare(NS, "base-work"))
    place.run(place.snapshotter.commit(NS, "base", "base-work"))
    mounts = place.run(place.snapshotter.prepare(NS, "work", "base"))
    place.lose(2)
    snapshotter = place.reopen()
    place.run(snapshotter.recover())
    assert place.run(snapshotter.mounts(NS, "work")) == mounts
    assert place.seen(mounts) == {}


def test_what_cannot_be_removed_is_tried_again(place: Place) -> None:
    place.run(place.snapshotter.prepare(NS, "work"))
    held = place.dir / "1/fs/held"
    held.mkdir()
    linux.mount("tmpfs", str(held), "tmpfs")
    try:
        place.run(place.snapshotter.remove(NS, "work"))
        assert place.directories() == ["1"]
        assert os.path.ismount(held)
    finally:
        linux.umount(str(held))
    place.reopen()
    assert place.directories() == []


def test_two_that_want_one_key(place: Place) -> None:
    async def race() -> list[Any]:
        both = (place.snapshotter.prepare(NS, "work") for _ in range(2))
        return await asyncio.gather(*both, return_exceptions=True)

    results = place.run(race())
    assert sorted(isinstance(result, AlreadyExists) for result in results) == [False, True]
    assert len(place.directories()) == 1


def test_a_cancelled_prepare_is_whole_or_absent(place: Place) -> None:
    async def steps() -> None:
        for turns in range(10):
            task = asyncio.ensure_future(place.snapshotter.prepare(NS, f"w{turns}"))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):  # or it was faster
                await task

    place.run(steps())
    infos, _ = place.run(place.snapshotter.walk(NS))
    assert len(place.directories()) == len(infos)
    assert all(name.isdigit() for name in place.directories())


# --- overlayfs alone: the limit of mount(2)'s data


@pytest.fixture
def overlay() -> Iterator[Place]:
    root = tempfile.mkdtemp(prefix="l", dir="/var/tmp")  # as long as /var/lib/lighter
    place = Place(OverlaySnapshotter, Path(root))
    yield place
    place.close()
    shutil.rmtree(root)


def tower(place: Place, height: int) -> str:
    parent = ""
    for number in range(height):
        place.run(place.snapshotter.prepare(NS, f"x{number}", parent))
        (Path(place.snapshotter.files(number + 1)) / f"f{number}").touch()
        place.run(place.snapshotter.commit(NS, f"l{number}", f"x{number}", usage=Usage(0, 0)))
        parent = f"l{number}"
    return parent


def test_f_61_128_layers_mount(overlay: Place) -> None:
    top = tower(overlay, 128)
    mounts = overlay.run(overlay.snapshotter.prepare(NS, "work", top))
    assert len(",".join(mounts[0].options)) <= MAX_MOUNT_DATA
    assert len(overlay.seen(mounts)) == 128
    with overlay.mounted(mounts) as tree:
        (tree / "written").touch()
    assert os.path.exists(overlay.snapshotter.files(129) + "/written")
    links = overlay.root / "l"
    assert len(os.listdir(links)) == 128
    overlay.run(overlay.snapshotter.remove(NS, "work"))
    overlay.run(overlay.snapshotter.remove(NS, top))
    assert len(os.listdir(links)) == 127


def test_f_61_500_layers_mount_and_one_more_names_the_limit(overlay: Place) -> None:
    top = tower(overlay, 500)
    mounts = overlay.run(overlay.snapshotter.prepare(NS, "work", top))
    assert len(",".join(mounts[0].options)) > MAX_MOUNT_DATA
    here = os.getcwd()
    with overlay.mounted(mounts) as tree:
        assert len(os.listdir(tree)) == 500
        (tree / "written").touch()
    assert os.getcwd() == here
    assert os.path.exists(overlay.snapshotter.files(501) + "/written")
    files = overlay.run(read_files(overlay.worker, mounts, ["/f0", "/f499", "/written"]))
    assert set(files.values()) == {b""}
    assert len(overlay.seen(overlay.run(overlay.snapshotter.view(NS, "look", top)))) == 500
    overlay.run(overlay.snapshotter.commit(NS, "l500", "work", usage=Usage(0, 0)))
    with pytest.raises(FailedPrecondition, match=r"501 layers .* 500 layers can be mounted"):
        overlay.run(overlay.snapshotter.prepare(NS, "more", "l500"))
    assert len(overlay.directories()) == 502


def commit_while(place: Place, meanwhile: Callable[[], Coroutine[Any, Any, object]]) -> None:
    """Commit "work", and do something else while its files are synced: threads wait for that."""

    async def steps() -> None:
        go = threading.Event()
        with ThreadPoolExecutor(1) as threads:
            asyncio.get_running_loop().set_default_executor(threads)
            threads.submit(go.wait)
            commit = asyncio.ensure_future(place.snapshotter.commit(NS, "base", "work"))
            async with place.snapshotter._sweeping:  # no file goes before the commit is over
                try:
                    await asyncio.sleep(0)
                    await meanwhile()
                finally:
                    go.set()
                    await asyncio.wait([commit])
            await place.snapshotter.sweep()
            await commit

    asyncio.run(steps())


def test_a_commit_is_of_the_snapshot_that_was_meant(overlay: Place) -> None:
    """F50: another one that has its key by then was never synced."""
    overlay.run(overlay.snapshotter.prepare(NS, "work"))
    Path(overlay.snapshotter.files(1), "file").touch()  # its directory goes in the background

    async def exchange() -> None:
        await overlay.snapshotter.remove(NS, "work")
        await overlay.snapshotter.prepare(NS, "work")

    with pytest.raises(NotFound, match="commit snapshot work: it has been removed"):
        commit_while(overlay, exchange)
    rows = overlay.db.rows("SELECT key, kind FROM snapshots")
    assert [tuple(row) for row in rows] == [("work", "active")]


def test_a_container_that_takes_a_snapshot_while_it_is_committed_keeps_its_root(
    overlay: Place,
) -> None:
    overlay.run(overlay.snapshotter.prepare(NS, "work"))

    async def take() -> None:
        ContainerStore(overlay.db).create(
            Container(NS, "c", "", "runc", "overlayfs", "work", b"", {}, {}, 0, 0)
        )

    with pytest.raises(FailedPrecondition, match="commit snapshot work: container c uses it"):
        commit_while(overlay, take)


def test_a_root_that_mount_options_cannot_name_is_refused(tmp_path: Path) -> None:
    db = Database(str(tmp_path / "lighter.db"))
    for name in ("a,b", "a:b", "a\\b"):
        with pytest.raises(InvalidArgument, match="mount options cannot hold"):
            OverlaySnapshotter(str(tmp_path / name), db, EventLog(db), ForkWorker().remove_tree)
    db.close()


def test_native_copies_keep_links_modes_and_attributes(tmp_path: Path) -> None:
    place = Place(NativeSnapshotter, tmp_path)

    def fill(tree: Path) -> None:
        (tree / "a").write_bytes(b"1")
        os.link(tree / "a", tree / "b")
        os.chown(tree / "a", 5, 6)
        os.chmod(tree / "a", 0o4755)
        os.setxattr(tree / "a", "trusted.x", b"z")
        os.symlink("nowhere", tree / "link")
        os.mkfifo(tree / "fifo")

    place.layer("base", "", fill)
    with place.mounted(place.run(place.snapshotter.prepare(NS, "work", "base"))) as tree:
        found = (tree / "a").stat()
        assert (found.st_uid, found.st_gid, found.st_nlink) == (5, 6, 2)
        assert stat.S_IMODE(found.st_mode) == 0o4755
        assert os.getxattr(tree / "a", "trusted.x") == b"z"
        assert os.readlink(tree / "link") == "nowhere"
        assert stat.S_ISFIFO((tree / "fifo").lstat().st_mode)
    place.close()


def test_snapshotters_of_one_database_do_not_take_each_others_numbers(place: Place) -> None:
    other_kind = next(kind for kind in KINDS if kind is not place.kind)
    snapshots_dir = str(place.root / "snapshots")
    other = other_kind(snapshots_dir, place.db, EventLog(place.db), place.worker.remove_tree)

    async def steps() -> None:
        for turn in range(3):
            await asyncio.gather(
                place.snapshotter.prepare(NS, f"x{turn}"), other.prepare(NS, f"x{turn}")
            )

    place.run(steps())
    rows = place.db.rows("SELECT number FROM snapshots ORDER BY number")
    assert [row["number"] for row in rows] == [1, 2, 3, 4, 5, 6]


def test_a_file_system_that_overlayfs_cannot_use_is_named(tmp_path: Path) -> None:
    linux.mount("small", str(tmp_path), "ramfs")  # it keeps no attributes
    try:
        place = Place(OverlaySnapshotter, tmp_path)
        with pytest.raises(FailedPrecondition, match=r"trusted attributes .* snapshotter native"):
            place.run(place.snapshotter.prepare(NS, "x"))
        assert place.directories() == []
        place.close()
        native = Place(NativeSnapshotter, tmp_path)
        native.run(native.snapshotter.prepare(NS, "x"))
        native.close()
    finally:
        linux.umount(str(tmp_path))


def test_the_account_of_the_disk_has_each_snapshots_files_once(place: Place) -> None:
    """Also where a snapshot's directory is a subvolume, which looks like another file system, or
    is mounted from an image, which is one."""
    place.layer("base", "", write("big", os.urandom(1 << 20)))
    mounts = place.run(place.snapshotter.prepare(NS, "work", "base"))
    with place.mounted(mounts) as tree:
        if place.kind is BtrfsSnapshotter:
            create(str(tree), "inner")
            (tree / "inner/of it").write_bytes(os.urandom(1 << 20))
        (tree / "new").write_bytes(os.urandom(1 << 20))
        os.link(tree / "new", tree / "again")
    os.sync()
    log = EventLog(place.db)
    content = ContentStore(str(place.root / "content"), place.db, log)
    housekeeping = Housekeeping(
        Root(str(place.root)),
        place.db,
        NamespaceStore(place.db),
        Collector(place.db, log, content, {place.kind.name: place.snapshotter}),
        Ingests(str(place.root / "content/writes"), content),
        Leases(place.db),
    )
    used = {one.kind: one for one in place.run(housekeeping.usage())}
    # The parent's files are copied by native, and shared, which du does not see, by btrfs.
    files = {OverlaySnapshotter: 2, NativeSnapshotter: 3, BtrfsSnapshotter: 4, ErofsSnapshotter: 2}
    count = files[place.kind]
    assert count << 20 <= used["kept"].size_bytes < (count << 20) + (256 << 10)
    assert used["kept"].count == 2
    place.run(place.snapshotter.remove(NS, "work"))


def test_btrfs_snapshots_share_what_nobody_changed(btrfs: Place) -> None:
    """The big file is there once, and the second layer is charged for its own alone."""
    free = os.statvfs(btrfs.root)
    btrfs.layer("base", "", write("big", os.urandom(64 << 20)))
    for number in range(5):
        btrfs.run(btrfs.snapshotter.prepare(NS, f"work {number}", "base"))
    btrfs.layer("top", "base", write("small", bytes(1 << 16)))
    os.sync()
    now = os.statvfs(btrfs.root)
    assert (free.f_bavail - now.f_bavail) * free.f_frsize < 128 << 20
    used = btrfs.run(btrfs.snapshotter.usage(NS, "top"))
    assert 1 << 16 <= used.size_bytes < 1 << 18


def test_a_committed_btrfs_snapshot_is_read_only_for_everybody(btrfs: Place) -> None:
    btrfs.layer("base", "", write("a", b"1"))
    with pytest.raises(OSError, match="Read-only"):
        (btrfs.dir / "1/fs/a").write_bytes(b"2")


def test_subvolumes_that_a_container_made_go_with_its_snapshot(btrfs: Place) -> None:
    """However deep they lie, read-only ones too, and under names that are no text."""
    btrfs.run(btrfs.snapshotter.prepare(NS, "work"))
    folder = btrfs.dir / "1/fs"
    for _ in range(5):
        create(str(folder), "inner")
        folder = folder / "inner"
        (folder / "file").write_bytes(b"x")
    create(str(btrfs.dir / "1/fs"), os.fsdecode(b"\xff\n"))
    for number in range(100):
        create(str(btrfs.dir / "1/fs/inner"), f"sibling {number}")
    freeze(str(folder))
    btrfs.run(btrfs.snapshotter.remove(NS, "work"))
    assert btrfs.directories() == []


@pytest.mark.parametrize("committed", [False, True])
def test_nothing_that_is_frozen_keeps_a_btrfs_snapshot(btrfs: Place, committed: bool) -> None:
    """A container freezes its own subvolumes, a commit the whole; either has others within."""
    btrfs.run(btrfs.snapshotter.prepare(NS, "work"))
    create(str(btrfs.dir / "1/fs"), "outer")
    create(str(btrfs.dir / "1/fs/outer"), "inner")
    freeze(str(btrfs.dir / "1/fs/outer"))
    name = "work"
    if committed:
        btrfs.run(btrfs.snapshotter.commit(NS, "base", "work"))
        name = "base"

    btrfs.run(btrfs.snapshotter.remove(NS, name))
    btrfs.run(btrfs.snapshotter.sweep())

    assert btrfs.directories() == []


@pytest.fixture
def erofs() -> Iterator[Place]:
    root = Path(tempfile.mkdtemp(prefix="lighter-", dir="/var/tmp"))
    place = Place(ErofsSnapshotter, root)
    yield place
    place.close()
    shutil.rmtree(root)


@pytest.mark.parametrize(
    "point", ["snapshot.image-made", "snapshot.image-committed", "snapshot.image-mounting"]
)
def test_an_erofs_layer_is_whole_wherever_its_commit_was_killed(
    erofs: Place, point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    erofs.layer("base", "", write("a", b"1"))
    with erofs.mounted(erofs.run(erofs.snapshotter.prepare(NS, "work", "base"))) as tree:
        (tree / "b").write_bytes(b"2")
        (tree / "a").unlink()
    erofs.db.close()
    pid = os.fork()
    if pid == 0:
        try:
            plan = faults.Faults({"FAULT": f"{point}:abort"})
            monkeypatch.setattr("lighter.daemon.snapshots.erofs.hit", plan.hit)
            erofs.runner = asyncio.Runner()  # the threads of the other one are not forked
            erofs.open()
            erofs.run(erofs.snapshotter.commit(NS, "top", "work"))
        finally:
            os._exit(9)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL

    erofs.open()
    erofs.reopen()
    keys = [info.key for info in erofs.run(erofs.snapshotter.walk(NS))[0]]
    if "top" not in keys:
        erofs.run(erofs.snapshotter.commit(NS, "top", "work"))
    assert erofs.seen(erofs.run(erofs.snapshotter.view(NS, "v", "top"))) == {"b": b"2"}
    assert sorted(os.listdir(erofs.dir / "2")) == ["fs", "layer.erofs", "work"]
    for key in ("v", "top", "base"):
        erofs.run(erofs.snapshotter.remove(NS, key))
    assert erofs.directories() == []


def test_erofs_images_are_mounted_again_after_a_reboot(erofs: Place) -> None:
    erofs.layer("base", "", write("a", b"1"))
    erofs.layer("top", "base", write("b", b"2"))
    mounts = erofs.run(erofs.snapshotter.prepare(NS, "work", "top"))
    erofs.unmount()
    assert not os.listdir(erofs.dir / "1/fs")
    erofs.reopen()
    assert erofs.run(erofs.snapshotter.mounts(NS, "work")) == mounts
    assert erofs.seen(mounts) == {"a": b"1", "b": b"2"}


def test_an_erofs_image_keeps_holes_and_says_what_it_takes(erofs: Place) -> None:
    def fill(tree: Path) -> None:
        with (tree / "sparse").open("wb") as file:
            file.truncate(64 << 20)
            file.seek(32 << 20)
            file.write(b"middle")

    erofs.layer("base", "", fill)
    assert erofs.run(erofs.snapshotter.usage(NS, "base")).size_bytes < 4 << 20
    with erofs.mounted(erofs.run(erofs.snapshotter.view(NS, "v", "base"))) as tree:
        data = (tree / "sparse").read_bytes()
    assert len(data) == 64 << 20
    assert data.strip(b"\0") == b"middle"


def test_erofs_says_what_is_missing(erofs: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    erofs.layer("base", "", write("a", b"1"))
    erofs.unmount()
    (erofs.dir / "1/layer.erofs").unlink()
    with pytest.raises(FailedPrecondition, match=r"mount layer 1: its image .* is missing"):
        erofs.run(erofs.snapshotter.prepare(NS, "work", "base"))
    monkeypatch.setenv("PATH", "")
    with pytest.raises(FailedPrecondition, match=r"use erofs: there is no mkfs.erofs"):
        erofs.run(erofs.snapshotter.prepare(NS, "x"))
    assert erofs.directories() == ["1"]


def test_btrfs_says_why_it_cannot_be_used_and_touches_nothing(tmp_path: Path) -> None:
    linux.mount("small", str(tmp_path), "tmpfs")
    try:
        place = Place(BtrfsSnapshotter, tmp_path)
        why = r"use btrfs: .*(is not on a btrfs|kernel has no btrfs).* overlayfs or native"
        with pytest.raises(FailedPrecondition, match=why):
            place.run(place.snapshotter.prepare(NS, "x"))
        assert place.directories() == []
        place.close()
    finally:
        linux.umount(str(tmp_path))
