"""A snapshotter behind a socket: as every other one, and when the plugin dies, hangs or lies."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lighter.daemon.events.log import EventLog
from lighter.daemon.grpc.snapshotclient import SnapshotClient
from lighter.daemon.leases import Leases
from lighter.daemon.metadata.db import Database
from lighter.daemon.snapshots import proxy as module
from lighter.daemon.snapshots.proxy import ProxySnapshotter
from lighter.daemon.snapshots.service import TARGET_LABEL
from lighter.daemon.snapshots.types import Snapshotter
from lighter.daemon.types import Mount, Usage
from lighter.proto.errors import (
    AlreadyExists,
    DeadlineExceeded,
    FailedPrecondition,
    LighterError,
    NotFound,
    PermissionDenied,
    Unavailable,
    Unimplemented,
)
from tests.contract.test_snapshotter import (
    NS,
    Place,
    test_a_cancelled_prepare_is_whole_or_absent,
    test_a_snapshot_begins_as_its_parent_and_changes_alone,
    test_a_view_cannot_be_written,
    test_it_is_found_by_its_mounts_and_by_no_others,
    test_kinds_parents_and_names_are_recorded,
    test_layers_lie_on_each_other_and_removals_hold,
    test_namespaces_do_not_see_each_other,
    test_pages_meet_without_gap,
    test_refused_steps_change_nothing,
    test_removal_takes_the_files_and_the_number,
    test_the_root_directory_keeps_owner_and_mode,
    test_two_that_want_one_key,
    test_usage_is_what_the_snapshot_alone_takes,
    write,
)
from tests.fakes.worker import ForkWorker
from tests.harness import await_that
from tests.proxies import Proxy

pytestmark = pytest.mark.root

__all__ = [
    "test_a_cancelled_prepare_is_whole_or_absent",
    "test_a_snapshot_begins_as_its_parent_and_changes_alone",
    "test_a_view_cannot_be_written",
    "test_it_is_found_by_its_mounts_and_by_no_others",
    "test_kinds_parents_and_names_are_recorded",
    "test_layers_lie_on_each_other_and_removals_hold",
    "test_namespaces_do_not_see_each_other",
    "test_pages_meet_without_gap",
    "test_refused_steps_change_nothing",
    "test_removal_takes_the_files_and_the_number",
    "test_the_root_directory_keeps_owner_and_mode",
    "test_two_that_want_one_key",
    "test_usage_is_what_the_snapshot_alone_takes",
]

NAME = "plugged"


class ProxyPlace(Place):
    """One manager's records and the plugin beside it."""

    snapshotter: ProxySnapshotter  # type: ignore[assignment]

    def __init__(self, base: Path) -> None:
        self.root = base / "root"
        self.root.mkdir()
        self.proxy = Proxy(base).start()
        self.dir = self.proxy.dir
        self.worker = ForkWorker()
        self.runner = asyncio.Runner()
        self.open()

    def open(self, timeout_s: float = 20.0) -> ProxySnapshotter:  # type: ignore[override]
        self.db = Database(str(self.root / "lighter.db"))
        client = SnapshotClient(NAME, self.proxy.address, timeout_s)
        self.snapshotter = ProxySnapshotter(
            NAME, client, self.db, EventLog(self.db), str(self.root)
        )
        as_promised: Snapshotter = self.snapshotter
        assert as_promised.name == NAME
        return self.snapshotter

    def shut(self) -> None:
        self.runner.run(self.snapshotter.close())
        self.db.close()

    def reopen(self, timeout_s: float = 20.0) -> ProxySnapshotter:  # type: ignore[override]
        self.shut()
        self.open(timeout_s)
        self.runner.run(self.snapshotter.recover())
        return self.snapshotter

    def directories(self) -> list[str]:
        return sorted(key.removesuffix("c") for key in self.proxy.has())

    def close(self) -> None:
        self.shut()
        self.runner.close()
        self.proxy.kill()

    def trash(self) -> list[str]:
        return [row["name"] for row in self.db.rows("SELECT name FROM trash")]


@pytest.fixture
def place() -> Iterator[ProxyPlace]:
    base = Path(tempfile.mkdtemp(prefix="lighter-", dir="/var/tmp"))
    place = ProxyPlace(base)
    yield place
    place.close()
    shutil.rmtree(base)


def test_the_plugin_hears_namespaces_and_the_labels_that_are_for_it(place: ProxyPlace) -> None:
    labels = {"containerd.io/snapshot/x": "y", "containerd.io/snapshot.ref": "z", "mine": "a"}
    place.run(place.snapshotter.prepare("other", "work", "", labels))
    assert place.proxy.calls() == [["Prepare", "other", f"{place.db.uuid}/1"]]
    assert place.run(place.snapshotter.stat("other", "work")).labels == labels


# --- plugins that die, hang, lie


def test_a_dead_plugin_is_named_and_holds_up_what_needs_it_alone(
    place: ProxyPlace, caplog: pytest.LogCaptureFixture
) -> None:
    place.layer("base", "", write("a", b"1"))
    mounts = place.run(place.snapshotter.prepare(NS, "work", "base"))
    place.proxy.kill()
    snapshotter = place.reopen()
    for steps in (
        snapshotter.prepare(NS, "x", "base"),
        snapshotter.view(NS, "x", "base"),
        snapshotter.mounts(NS, "work"),
        snapshotter.commit(NS, "top", "work"),
        snapshotter.usage(NS, "work"),
        snapshotter.layer_target(NS, "work"),
    ):
        with pytest.raises(Unavailable) as caught:
            place.run(steps)
        assert f"of snapshotter plugin {NAME} at {place.proxy.address}" in caught.value.message
    assert place.run(snapshotter.find(NS, mounts)) == ""
    assert [info.key for info in place.run(snapshotter.walk(NS))[0]] == ["base", "work"]
    snapshotter = place.reopen()
    place.run(snapshotter.update(NS, "work", {"x": "y"}))
    place.run(snapshotter.remove(NS, "work"))
    assert "sweep snapshots of plugged: Remove of snapshotter plugin" in caplog.text
    assert place.trash()

    place.proxy.start()
    place.reopen()
    assert place.proxy.has() == ["1c"]
    assert place.trash() == []


def test_a_plugin_that_is_started_again_is_found_at_once(place: ProxyPlace) -> None:
    place.layer("base", "", write("a", b"1"))
    place.proxy.kill()
    with pytest.raises(Unavailable):
        place.run(place.snapshotter.prepare(NS, "x", "base"))
    assert place.trash()
    place.proxy.start()
    mounts = place.run(place.snapshotter.prepare(NS, "x", "base"))
    assert place.seen(mounts) == {"a": b"1"}
    assert place.trash() == [], "nor does it wait for what was left meanwhile"


def test_what_a_plugin_made_too_late_is_removed_later(
    place: ProxyPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshotter = place.reopen(timeout_s=1.5)  # for what does not hang too
    (place.dir / "hang").touch()
    with pytest.raises(DeadlineExceeded):
        place.run(snapshotter.prepare(NS, "slow"))
    (place.dir / "hang").unlink()
    place.run(snapshotter.prepare(NS, "work"))
    assert place.trash() == ["1"], "a sweep now could come before it"
    await_that(lambda: "1" in place.proxy.has(), 10, "the plugin has made it after all")
    monkeypatch.setattr(snapshotter, "_late", {1: 0.0})
    place.run(snapshotter.sweep())
    assert place.trash() == []
    assert place.proxy.has() == ["2"]


def test_a_plugin_that_hangs_is_given_up_in_bounded_time(
    place: ProxyPlace, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    place.run(place.snapshotter.prepare(NS, "work"))
    place.reopen(timeout_s=0.5)
    (place.dir / "hang").touch()
    for steps in (place.snapshotter.prepare(NS, "x"), place.snapshotter.mounts(NS, "work")):
        with pytest.raises(DeadlineExceeded, match=r"plugged at .*: no answer in 0\.5 s"):
            place.run(steps)
    monkeypatch.setattr(module, "SWEEP_S", 0.3)
    place.reopen()
    began = time.monotonic()
    place.run(place.snapshotter.remove(NS, "work"))
    place.run(place.snapshotter.sweep())
    assert time.monotonic() - began < 20
    assert "0.3 s are over; again later" in caplog.text
    (place.dir / "hang").unlink()
    place.reopen()
    assert place.proxy.has() == []


@pytest.mark.parametrize(
    ("mounts", "kind", "words"),
    [
        ([], FailedPrecondition, "gives 0 mounts"),
        ([["bind", "/tmp", [], ""]] * 65, FailedPrecondition, "gives 65 mounts"),
        ([["bind", "/", ["rbind"], ""]], FailedPrecondition, "'/' to be mounted"),
        ([["bind", "ROOT", ["rbind"], ""]], FailedPrecondition, "no directory of a snapshot"),
        ([["bind", "ROOT/x", ["rbind"], ""]], FailedPrecondition, "no directory of a snapshot"),
        ([["none", "/", ["ro", "rbind"], ""]], FailedPrecondition, "'/' to be mounted"),
        ([["bind", "relative", [], ""]], FailedPrecondition, "'relative' to be mounted"),
        (
            [["overlay", "overlay", ["lowerdir=/a", "upperdir=/", "workdir=/w"], ""]],
            FailedPrecondition,
            "'/' to be mounted",
        ),
        ([["fuse3.x", "x", [], ""]], Unimplemented, "of type fuse3.x, which needs a program"),
        ([["bind", "/tmp", [], "/etc"]], Unimplemented, "wants a mount at '/etc'"),
        ([["bind", "/tmp\0", [], ""]], LighterError, "NUL"),
    ],
)
def test_what_a_plugin_gives_is_looked_at(
    place: ProxyPlace, mounts: list[list[object]], kind: type[LighterError], words: str
) -> None:
    text = json.dumps(mounts).replace("ROOT", str(place.root))
    (place.dir / "mounts.json").write_text(text)
    with pytest.raises(kind) as caught:
        place.run(place.snapshotter.prepare(NS, "work"))
    assert words in caught.value.message
    assert place.run(place.snapshotter.walk(NS)) == ((), "")
    assert place.proxy.has() == []
    assert place.trash() == []


def test_what_a_plugin_refuses_is_told_in_its_words(place: ProxyPlace) -> None:
    (place.dir / "fail-Prepare").write_text("PERMISSION_DENIED")
    with pytest.raises(PermissionDenied, match=r"Prepare of .* plugged at .*: as the test wants"):
        place.run(place.snapshotter.prepare(NS, "work"))
    (place.dir / "fail-Prepare").unlink()
    (place.dir / "fail-Usage").write_text("UNIMPLEMENTED")
    place.run(place.snapshotter.prepare(NS, "work"))
    assert place.run(place.snapshotter.usage(NS, "work")) == Usage(0, 0)


def test_one_that_cannot_be_removed_is_tried_again_and_others_go(place: ProxyPlace) -> None:
    for key in ("a", "b"):
        place.run(place.snapshotter.prepare(NS, key))
    (place.dir / "fail-Remove").write_text("FAILED_PRECONDITION")
    place.run(place.snapshotter.remove(NS, "a"))
    assert place.trash() == ["1"]
    (place.dir / "fail-Remove").unlink()
    place.run(place.snapshotter.sweep())
    assert place.proxy.has() == ["2"]


def test_a_commit_that_the_plugin_did_already_goes_on(place: ProxyPlace) -> None:
    place.run(place.snapshotter.prepare(NS, "work"))
    (place.dir / "fail-Usage").write_text("INTERNAL")
    with pytest.raises(LighterError, match="as the test wants"):
        place.run(place.snapshotter.commit(NS, "base", "work"))
    (place.dir / "fail-Usage").unlink()
    assert place.proxy.has() == ["1c"]
    place.run(place.snapshotter.commit(NS, "base", "work"))
    assert place.run(place.snapshotter.stat(NS, "base")).kind == "committed"


def test_a_commit_of_what_the_plugin_has_lost_fails(place: ProxyPlace) -> None:
    place.run(place.snapshotter.prepare(NS, "work"))
    place.proxy.kill()
    (place.dir / "index.json").unlink()
    place.proxy.start()
    place.reopen()
    with pytest.raises(NotFound, match="is not here"):
        place.run(place.snapshotter.commit(NS, "base", "work"))
    place.run(place.snapshotter.remove(NS, "work"))
    assert place.trash() == []


def test_what_a_plugin_has_without_an_unpack_is_recorded(place: ProxyPlace) -> None:
    (place.dir / "remote").touch()
    below = ""
    for name in ("base", "top"):
        labels = {TARGET_LABEL: name, "containerd.io/snapshot/x": "y"}
        with pytest.raises(AlreadyExists):
            place.run(place.snapshotter.prepare(NS, "extract", below, labels))
        info = place.run(place.snapshotter.stat(NS, name))
        assert (info.kind, info.parent, info.labels) == ("committed", below, labels)
        below = name
    assert [info.key for info in place.run(place.snapshotter.walk(NS))[0]] == ["base", "top"]
    assert place.run(place.snapshotter.usage(NS, "top")).inodes == 2
    assert place.trash() == []
    assert place.proxy.has() == ["1c", "2c"]
    assert place.seen(place.run(place.snapshotter.prepare(NS, "work", "top"))) == {"remote": b""}
    for key in ("work", "top", "base"):
        place.run(place.snapshotter.remove(NS, key))
    assert place.proxy.has() == []


LIFE = """
import asyncio, sys
from lighter.daemon.events.log import EventLog
from lighter.daemon.grpc.snapshotclient import SnapshotClient
from lighter.daemon.metadata.db import Database
from lighter.daemon.snapshots.proxy import ProxySnapshotter

async def life(root, address):
    db = Database(root + "/lighter.db")
    one = ProxySnapshotter("plugged", SnapshotClient("plugged", address), db, EventLog(db), root)
    await one.prepare("default", "work", lease="mine")
    await one.commit("default", "base", "work")
    await one.remove("default", "base")
    await one.sweep()

asyncio.run(life(*sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("point", "left"),
    [
        ("snapshot.noted", []),
        ("snapshot.proxied", []),
        ("snapshot.recorded", ["work"]),
        ("snapshot.proxy-committed", ["work"]),
        ("snapshot.row-deleted", []),
        ("snapshot.removed", []),
    ],
)
def test_a_manager_killed_between_leaves_before_or_after(
    place: ProxyPlace, point: str, left: list[str]
) -> None:
    """The lease that holds it as well."""
    Leases(place.db).create(NS, "mine")
    place.shut()
    done = subprocess.run(
        [sys.executable, "-c", LIFE, str(place.root), place.proxy.address],
        env={**os.environ, "FAULT": f"{point}:abort"},
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    place.open()
    snapshotter = place.reopen()
    assert [info.key for info in place.run(snapshotter.walk(NS))[0]] == left
    assert len(place.proxy.has()) == len(left)
    assert place.trash() == []
    held = Leases(place.db).resources(NS, "mine")
    assert held == tuple((f"snapshots/{snapshotter.name}", key) for key in left)
    if left:
        place.run(snapshotter.commit(NS, "base", "work"))
        assert place.seen(place.run(snapshotter.view(NS, "look", "base"))) == {}
        place.run(snapshotter.remove(NS, "look"))
        place.run(snapshotter.remove(NS, "base"))
    assert place.proxy.has() == []


def test_mounts_are_known_to_the_next_manager(place: ProxyPlace) -> None:
    mounts = place.run(place.snapshotter.prepare(NS, "work"))
    snapshotter = place.reopen()
    assert place.run(snapshotter.find(NS, mounts)) == "work"
    assert place.run(snapshotter.find(NS, (Mount("bind", "/x", ()),))) == ""
