"""What a collection keeps and what it takes."""

import asyncio
import contextlib
import json
import os
import signal
import sqlite3
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from lighter.daemon.clock import Clock
from lighter.daemon.content.gc import Collected, Collector
from lighter.daemon.content.ingests import Ingests
from lighter.daemon.content.store import ContentStore
from lighter.daemon.events.log import EventLog
from lighter.daemon.grpc.content import ContentService
from lighter.daemon.grpc.pb import content_pb2
from lighter.daemon.images.store import ImageStore
from lighter.daemon.leases import Leases
from lighter.daemon.metadata.db import Database
from lighter.daemon.metadata.namespaces import NamespaceStore
from lighter.daemon.rpc.content_handlers import content_methods
from lighter.daemon.rpc.methods import Call
from lighter.daemon.snapshots.overlay import OverlaySnapshotter
from lighter.daemon.types import Descriptor, Usage
from lighter.proto import faults
from lighter.proto.errors import FailedPrecondition
from tests.fakes.worker import ForkWorker
from tests.told import check_told

pytestmark = pytest.mark.root
NS = "default"
REF = "containerd.io/gc.ref.content.l.0"


class Place:
    """A store with one snapshotter, and short ways to fill it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.open()

    def open(self) -> None:
        root = self.root
        self.runner = asyncio.Runner()
        self.db = Database(str(root / "lighter.db"))
        NamespaceStore(self.db)
        self.log = EventLog(self.db)
        self.content = ContentStore(str(root / "content"), self.db, self.log)
        self.snapshots = OverlaySnapshotter(
            str(root / "snapshots"), self.db, self.log, ForkWorker().remove_tree
        )
        self.collector = Collector(self.db, self.log, self.content, {"overlayfs": self.snapshots})

    def close(self) -> None:
        self.runner.close()
        self.db.close()

    def reopen(self) -> None:
        """As a next manager does, without its collection."""
        self.open()
        self.runner.run(self.content.recover())
        self.runner.run(self.snapshots.recover())

    def add(self, data: bytes) -> str:
        return self.runner.run(self.content.add(NS, data))

    def label(self, digest: str, key: str, value: str) -> None:
        self.content.label(NS, digest, {key: value})

    def commit(self, name: str, parent: str = "") -> None:
        self.runner.run(self.snapshots.prepare(NS, f"x {name}", parent))
        self.runner.run(self.snapshots.commit(NS, name, f"x {name}", usage=Usage(0, 0)))

    def execute(self, sql: str, *parameters: object) -> None:
        with self.db.durable_transaction() as tx:
            tx.execute(sql, parameters)

    def damage(self, sql: str, *parameters: object) -> None:
        """Change what no transaction of the manager's could."""
        with contextlib.closing(sqlite3.connect(self.root / "lighter.db")) as db:
            db.execute(sql, parameters)
            db.commit()

    def image(self, digest: str) -> None:
        ImageStore(self.db, self.log).create(NS, "i", Descriptor("t", digest, 1), {})

    def collect(self) -> Collected:
        return self.runner.run(self.collector.collect(NS))

    def kept(self) -> set[str]:
        rows = {row["digest"] for row in self.db.rows("SELECT digest FROM content")}
        files = os.listdir(self.root / "content/blobs/sha256")
        assert rows == {f"sha256:{name}" for name in files}
        return rows

    def keys(self) -> set[str]:
        rows = self.db.rows("SELECT number, key FROM snapshots")
        directories = os.listdir(self.root / "snapshots/overlayfs")
        assert {str(row["number"]) for row in rows} == set(directories)
        return {row["key"] for row in rows}


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    place = Place(tmp_path)
    yield place
    place.close()


def test_what_an_image_leads_to_is_kept(place: Place) -> None:
    leaf, stray = place.add(b"leaf"), place.add(b"stray")
    middle = place.add(b"middle")
    top = place.add(b"top")
    place.label(middle, REF, leaf)
    place.label(top, REF, middle)
    place.image(top)
    assert place.collect().content == (stray,)
    assert place.kept() == {top, middle, leaf}
    place.execute("DELETE FROM images")
    assert set(place.collect().content) == {top, middle, leaf}
    assert place.kept() == set()


def test_labels_in_a_circle_end(place: Place) -> None:
    one, two = place.add(b"1"), place.add(b"2")
    place.label(one, REF, two)
    place.label(two, REF, one)
    place.image(one)
    assert place.collect() == Collected((), ())
    place.execute("DELETE FROM images")
    assert len(place.collect().content) == 2


def test_f22_snapshots_that_content_containers_and_work_need_are_kept(place: Place) -> None:
    for name in ("base", "labelled", "contained", "worked on", "stray"):
        place.commit(name, "" if name == "base" else "base")
    config = place.add(b"config")
    place.label(config, "containerd.io/gc.ref.snapshot.overlayfs", "labelled")
    place.image(config)
    place.execute(
        "INSERT INTO containers VALUES(?, 'c', '', '', 'overlayfs', 'contained', x'', '{}', '{}',"
        " 0, 0)",
        NS,
    )
    place.runner.run(place.snapshots.prepare(NS, "active", "worked on"))
    assert place.collect().snapshots == (("overlayfs", "stray"),)
    assert place.keys() == {"base", "labelled", "contained", "worked on", "active"}


def test_an_unneeded_tower_goes_whole(place: Place) -> None:
    for number in range(5):
        place.commit(f"l{number}", f"l{number - 1}" if number else "")
    assert len(place.collect().snapshots) == 5
    assert place.keys() == set()


def test_a_pin_keeps_until_it_is_released(place: Place) -> None:
    digest = place.add(b"1")
    place.commit("made")
    with place.collector.pin() as first, place.collector.pin() as second:
        first.content(NS, digest)
        second.content(NS, digest)
        first.snapshot(NS, "overlayfs", "made")
        first.release()
        assert place.collect().content == ()
        assert place.kept() == {digest}
        assert place.keys() == set()
    assert place.collect().content == (digest,)


def test_leases_keep_until_they_expire(place: Place) -> None:
    digest = place.add(b"1")
    place.commit("made")
    future = time.time_ns() + 3600 * 10**9
    place.execute("INSERT INTO leases VALUES(?, 'l', '{}', 0, ?)", NS, future)
    place.execute("INSERT INTO lease_resources VALUES(?, 'l', 'content', ?)", NS, digest)
    place.execute("INSERT INTO lease_resources VALUES(?, 'l', 'snapshots/overlayfs', 'made')", NS)
    assert place.collect() == Collected((), ())
    place.execute("UPDATE leases SET expires_at = 1")
    assert place.collect() == Collected((digest,), (("overlayfs", "made"),))


def test_f57_a_clock_that_jumps_ends_no_lease(place: Place) -> None:
    """Nor an image that is to expire."""
    hour_ns, year_ns = 3600 * 10**9, 365 * 86400 * 10**9
    wall, passed = time.time_ns(), 0
    clock = Clock(lambda: wall, lambda: passed)
    place.collector = Collector(
        place.db, place.log, place.content, {"overlayfs": place.snapshots}, clock.now_ns
    )
    held, named = place.add(b"1"), place.add(b"2")
    Leases(place.db).hold(NS, "l", wall + 2 * hour_ns, [("content", held)])
    at = datetime.fromtimestamp(wall / 1e9 + 7200, UTC).isoformat(timespec="seconds")
    ImageStore(place.db, place.log).create(
        NS, "i", Descriptor("t", named, 1), {"containerd.io/gc.expire": at}
    )
    for jump in (10 * year_ns, -60 * year_ns, 50 * year_ns):  # ahead, to 1970 or so, and back
        wall += jump + hour_ns // 2
        passed += hour_ns // 2
        assert place.collect() == Collected((), ())
    wall += hour_ns
    passed += hour_ns
    assert set(place.collect().content) == {held, named}


def test_the_root_label_keeps(place: Place) -> None:
    digest = place.add(b"1")
    place.label(digest, "containerd.io/gc.root", "2020-01-01T00:00:00Z")
    place.commit("made")
    place.runner.run(place.snapshots.update(NS, "made", {"containerd.io/gc.root": "x"}))
    assert place.collect() == Collected((), ())


def test_another_namespace_is_left_alone(place: Place) -> None:
    place.runner.run(place.content.add("other", b"1"))
    digest = place.add(b"1")
    assert place.collect().content == (digest,)
    assert place.kept() == {digest}
    rows = place.db.rows("SELECT namespace FROM content")
    assert [row["namespace"] for row in rows] == ["other"]


def test_a_label_that_points_nowhere_is_no_matter(place: Place) -> None:
    digest = place.add(b"1")
    place.label(digest, REF, "sha256:" + "0" * 64)
    place.label(digest, "containerd.io/gc.ref.snapshot.zfs", "gone")
    place.image(digest)
    assert place.collect() == Collected((), ())
    assert json.loads(place.db.rows("SELECT labels FROM content")[0]["labels"])


def test_a_flat_lease_keeps_what_it_names_and_parents_and_follows_no_label(place: Place) -> None:
    leaf, top = place.add(b"leaf"), place.add(b"top")
    place.label(top, REF, leaf)
    place.commit("base")
    place.commit("made", "base")
    place.runner.run(place.snapshots.update(NS, "made", {REF: leaf}))
    labels = json.dumps({"containerd.io/gc.flat": "x"})
    place.execute("INSERT INTO leases VALUES(?, 'l', ?, 0, NULL)", NS, labels)
    place.execute("INSERT INTO lease_resources VALUES(?, 'l', 'content', ?)", NS, top)
    place.execute("INSERT INTO lease_resources VALUES(?, 'l', 'snapshots/overlayfs', 'made')", NS)
    assert place.collect() == Collected((leaf,), ())
    assert place.keys() == {"base", "made"}


def test_an_image_that_has_expired_goes_with_what_it_kept(place: Place) -> None:
    digest = place.add(b"1")
    place.image(digest)
    label = json.dumps({"containerd.io/gc.expire": "2001-01-01T00:00:00Z"})
    place.execute("UPDATE images SET labels = ?", label)
    collected = place.collect()
    assert collected == Collected((digest,), (), ("i",))
    assert collected.size_bytes == 1
    assert place.db.rows("SELECT * FROM images") == []


def test_bytes_that_another_namespace_has_are_not_counted_as_freed(place: Place) -> None:
    place.runner.run(place.content.add("other", b"12"))
    place.add(b"12")
    place.add(b"345")
    assert place.collector.preview(NS).size_bytes == 3
    assert place.collect().size_bytes == 3


# All that a collection passes, in order.
GC_POINTS = ["gc.asked", "gc.marked", "gc.rows-deleted", "gc.files-removed", "snapshot.removed"]


def fill(place: Place) -> tuple[set[str], set[str]]:
    """An image with a snapshot, and strays; returns the content and the snapshots to be kept."""
    config, top = place.add(b"config"), place.add(b"top")
    place.label(top, REF, config)
    for name in ("base", "layer"):
        place.commit(name, "base" if name == "layer" else "")
    place.label(config, "containerd.io/gc.ref.snapshot.overlayfs", "layer")
    place.image(top)
    for number in range(3):
        place.add(bytes([number]) * 1000)
        place.commit(f"stray{number}", "base" if number == 1 else "")
        directory = (
            place.root
            / "snapshots/overlayfs"
            / max(os.listdir(place.root / "snapshots/overlayfs"), key=int)
        )
        (directory / "fs/file").write_bytes(b"x")  # an empty one goes without a worker
    return {config, top}, {"base", "layer"}


def collect_and_die(place: Place, point: str, passes: int) -> bool:
    """A collection in a process that is killed at the point; whether it came that far."""
    place.close()  # SQLite's handles are not to be carried over a fork
    pid = os.fork()
    if pid == 0:
        try:
            faults._faults.plan = {point: ("abort", passes)}
            place.open()
            place.collect()
            os._exit(0)
        finally:
            os._exit(9)
    status = os.waitpid(pid, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, status
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


def test_the_points_of_a_collection_are_the_ones_swept_here(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(place)
    trace = tmp_path / "trace"
    monkeypatch.setattr(faults._faults, "trace", str(trace))
    place.collect()
    passed = [line.split()[1] for line in trace.read_text().splitlines()]
    assert "worker.asked" in passed, "of the process that removes files: its death is a failed job"
    assert [point for point in dict.fromkeys(passed) if point != "worker.asked"] == GC_POINTS


@pytest.mark.parametrize("passes", [1, 3])
@pytest.mark.parametrize("point", GC_POINTS)
def test_f33_f35_killed_anywhere_the_next_run_removes_the_rest(
    place: Place, point: str, passes: int
) -> None:
    content, keys = fill(place)
    died = collect_and_die(place, point, passes)
    assert died == (passes == 1 or point == "snapshot.removed")
    if point in ("gc.asked", "gc.marked") and died:  # nothing at all was touched
        place.open()
        assert (len(place.kept()), len(place.keys())) == (5, 5)
        place.close()
    place.reopen()
    for digest in content:  # nothing that is needed was touched
        os.close(place.content.open(NS, digest))
    assert keys <= place.keys()
    place.collect()
    assert place.kept() == content
    assert place.keys() == keys
    assert place.db.rows("SELECT * FROM trash") == []
    check_told(place.db, NS)


def test_f35_a_collection_that_is_killed_a_hundred_times_converges(place: Place) -> None:
    content, keys = fill(place)
    for number in range(100):
        place.close()
        place.open()
        place.add(b"new stray %d" % number)
        collect_and_die(place, GC_POINTS[number % len(GC_POINTS)], 1)
        place.open()
    place.reopen()
    place.collect()
    assert place.kept() == content
    assert place.keys() == keys
    assert place.db.rows("SELECT * FROM trash") == []


def test_f35_a_directory_that_is_a_hundred_times_half_removed_goes_at_last(place: Place) -> None:
    _, keys = fill(place)
    (stray,) = [
        place.root / f"snapshots/overlayfs/{row['number']}/fs"
        for row in place.db.rows("SELECT number FROM snapshots WHERE key = 'stray2'")
    ]
    for number in range(100):
        (stray / f"f{number}").touch()
    left = len(os.listdir(stray))

    async def remove_one_and_die(path: str) -> None:
        for name in os.listdir(f"{path}/fs"):
            os.unlink(f"{path}/fs/{name}")
            os.kill(os.getpid(), signal.SIGKILL)

    place.close()
    for _ in range(100):
        pid = os.fork()
        if pid == 0:
            try:
                place.open()
                place.snapshots._remove_tree = remove_one_and_die
                place.collect()
            finally:
                os._exit(9)
        assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
    place.open()
    assert {row["key"] for row in place.db.rows("SELECT key FROM snapshots")} == keys
    assert sum(len(files) for _, _, files in os.walk(place.root / "snapshots")) < left
    place.reopen()
    place.collect()
    assert place.keys() == keys
    assert place.db.rows("SELECT * FROM trash") == []


def test_f34_a_file_that_cannot_be_removed_holds_up_no_other(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    """It is told of now and then, and goes with the first collection that can remove it."""
    stuck, *others = [place.add(data) for data in (b"stuck", b"one", b"two")]
    place.commit("lone")
    path = place.root / "content/blobs/sha256" / stuck.partition(":")[2]
    path.unlink()
    path.mkdir()
    assert set(place.collect().content) == {stuck, *others}
    assert os.listdir(path.parent) == [path.name]
    assert place.keys() == set()
    for _ in range(8):
        place.collect()
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 4 and all(str(path) in one for one in told), told
    path.rmdir()
    path.touch()
    place.collect()
    assert os.listdir(path.parent) == [] and place.db.rows("SELECT * FROM trash") == []


@pytest.mark.parametrize(
    "labels", ['{"containerd.io/gc.root', '["containerd.io/gc.x"]', "{", "[" * 5000]
)
def test_f54_an_unreadable_record_costs_nothing_that_it_may_need(place: Place, labels: str) -> None:
    broken, stray = place.add(b"broken"), place.add(b"stray")
    place.execute("UPDATE content SET labels = ? WHERE digest = ?", labels, broken)
    place.execute("INSERT INTO leases VALUES(?, 'l', ?, 0, NULL)", NS, "containerd.io/gc.flat{")
    # What it needs is not known, so nothing goes before it; then all goes as ever.
    assert place.collect().content == ()
    assert place.kept() == {broken, stray}
    ((step,),) = place.collector.why(NS, broken)["content"]
    assert step.how == "its labels cannot be read"
    place.execute("DELETE FROM content WHERE digest = ?", broken)
    assert place.collect().content == (stray,)


@pytest.mark.parametrize(
    "column", ["images.digest", "content.digest", "lease_resources.resource", "leases.id"]
)
def test_f54_a_name_that_cannot_be_read_costs_nothing_that_it_may_be(
    place: Place, column: str
) -> None:
    """The bytes of what it names, and of what that needs in its turn, are kept."""
    needed, stray = place.add(b"needed"), place.add(b"stray")
    leases = Leases(place.db)
    leases.create(NS, "l", {})
    leases.add(NS, "l", "content", needed)
    place.image(needed)
    table, _, name = column.partition(".")
    value = "l" if column == "leases.id" else str(needed)
    place.damage(
        f"UPDATE {table} SET {name} = CAST(? AS TEXT) WHERE {name} = ?",
        value[:-1].encode() + bytes([ord(value[-1]) | 0x80]),
        value,
    )
    assert place.collect().content == ()
    files = set(os.listdir(place.root / "content/blobs/sha256"))
    assert files == {needed.partition(":")[2], stray.partition(":")[2]}


@pytest.mark.parametrize(
    "row",
    ["images WHERE name = 'i'", "leases WHERE id = 'l'", "content", "snapshots WHERE key = 's'"],
)
def test_f54_a_row_whose_namespace_is_none_costs_nothing_that_it_may_need(
    place: Place, row: str
) -> None:
    needed = place.add(b"needed")
    leases = Leases(place.db)
    leases.create(NS, "l", {})
    leases.add(NS, "l", "content", needed)
    place.image(needed)
    place.commit("s")
    place.commit("t", "s")
    place.add(b"stray")
    table, _, which = row.partition(" ")
    place.damage(f"UPDATE {table} SET namespace = 'nr' {which}")
    assert place.collect() == Collected((), ())


def test_only_a_label_that_goes_asks_for_a_collection(place: Place) -> None:
    """By either front end: what somebody has just labelled, they may be about to name."""
    asked = []
    place.collector.on_deleted = lambda: asked.append("a collection")
    ingests, leases = Ingests(str(place.root / "writes"), place.content), Leases(place.db)
    service = ContentService(place.content, ingests, leases, place.collector)
    methods = content_methods(place.content, ingests, leases, place.collector)
    ask = methods["content.label"].unary
    assert ask is not None
    digest = place.add(b"a")

    def by_api(**labels: str) -> None:
        info = content_pb2.Info(digest=digest, labels=labels)
        call = cast("Any", SimpleNamespace(namespace=NS))
        place.runner.run(service.update(call, content_pb2.UpdateRequest(info=info)))

    def by_ctl(**labels: str) -> None:
        place.runner.run(ask(Call(NS, 0, 0), {"digest": digest, "labels": labels}))

    for label in (by_api, by_ctl):
        for kept in ({"a": "1"}, {"a": "2"}, {"a": "2", REF: "x"}, {"b": "3", "a": "", REF: "x"}):
            label(**kept)
        assert not asked, label
        for let_go in ({REF: "y"}, {REF: ""}):
            label(**let_go)
            assert asked.pop() and not asked, label


def test_f54_a_label_does_not_take_the_place_of_those_that_could_not_be_read(place: Place) -> None:
    """They say what it needs: with any other in their place that would be collected."""
    broken, stray = place.add(b"broken"), place.add(b"stray")
    place.execute("UPDATE content SET labels = '{' WHERE digest = ?", broken)
    with pytest.raises(FailedPrecondition, match="its labels cannot be read"):
        place.content.label(NS, broken, {"a": "b"})
    place.content.note(NS, broken, {"a": "b"})
    assert place.collect().content == ()
    assert place.kept() == {broken, stray}
    # An image that arrives again says all of it.
    place.content.label(NS, broken, {"containerd.io/gc.ref.content.l.0": str(stray)})
    assert place.content.info(NS, broken).labels == {"containerd.io/gc.ref.content.l.0": stray}
