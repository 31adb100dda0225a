"""Snapshots of containers whose create or delete was cut short."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from lighter.daemon.events.log import EventLog
from lighter.daemon.metadata.db import Database
from lighter.daemon.metadata.namespaces import NamespaceStore
from lighter.daemon.orphans import OWNER_LABEL, Orphans
from lighter.daemon.snapshots.overlay import OverlaySnapshotter
from lighter.proto.paths import Root
from tests.fakes.worker import ForkWorker

pytestmark = pytest.mark.root
NS = "default"


class Place:
    """Snapshots of the containers `there` and `gone`, and one that a client has made for itself."""

    def __init__(self, root: Path) -> None:
        self.runner = asyncio.Runner()
        self.db = Database(str(root / "lighter.db"))
        NamespaceStore(self.db)
        self.snapshots = OverlaySnapshotter(
            str(root / "snapshots"), self.db, EventLog(self.db), ForkWorker().remove_tree
        )
        self.orphans = Orphans(
            Root(str(root)), {"overlayfs": self.snapshots}, lambda _ns, owner: owner == "there"
        )
        for key, owner in (("there", "there"), ("gone", "gone"), ("own", "")):
            labels = {OWNER_LABEL: owner} if owner else {}
            self.runner.run(self.snapshots.prepare(NS, key, "", labels))

    def names(self) -> set[str]:
        return {row["key"] for row in self.db.rows("SELECT key FROM snapshots")}


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    made.runner.run(made.snapshots.sweep())
    made.runner.close()
    made.db.close()


def test_f22_a_snapshot_without_its_container_goes_and_no_other(place: Place) -> None:
    place.runner.run(place.orphans.remove_all([NS]))
    assert place.names() == {"there", "own"}


def test_f22_a_container_that_is_made_again_gets_a_new_root(place: Place) -> None:
    place.runner.run(place.orphans.make_way(place.snapshots, NS, "gone"))
    place.runner.run(place.snapshots.prepare(NS, "gone", "", {OWNER_LABEL: "gone"}))


def test_f22_what_a_client_has_made_by_that_name_stays(place: Place) -> None:
    place.runner.run(place.orphans.make_way(place.snapshots, NS, "own"))
    assert "own" in place.names()
