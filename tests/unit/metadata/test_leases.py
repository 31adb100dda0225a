"""Leases: rows that hold resources, until they are deleted or their time is over."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from lighter.daemon.clock import Clock
from lighter.daemon.events.log import EventLog
from lighter.daemon.leases import CONTENT, EXPIRE_LABEL, IMAGES, INGESTS, Leases
from lighter.daemon.metadata.db import Database
from lighter.daemon.metadata.namespaces import NamespaceStore
from lighter.daemon.snapshots.rows import SnapshotRows
from lighter.daemon.snapshots.types import ACTIVE, UNDER_LEASE_LABEL, VIEW
from lighter.proto.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound

NS = "default"
DIGEST = "sha256:" + "a" * 64


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Database]:
    db = Database(str(tmp_path / "lighter.db"))
    NamespaceStore(db)
    yield db
    db.close()


@pytest.fixture
def leases(db: Database) -> Leases:
    return Leases(db)


def test_a_lease_comes_back_as_it_was_made(leases: Leases) -> None:
    made = leases.create(NS, "mine", {"team": "web", EXPIRE_LABEL: "2101-01-02T03:04:05+01:00"})
    assert leases.get(NS, "mine") == made
    at = datetime(2101, 1, 2, 2, 4, 5, tzinfo=UTC).timestamp()
    assert made.expires_at == int(at * 1e9)
    assert made.created_at <= time.time_ns()
    other = leases.create(NS)
    assert other.expires_at is None
    assert {lease.id for lease in leases.list(NS)} == {"mine", other.id}
    with pytest.raises(AlreadyExists, match="create lease mine: it already exists"):
        leases.create(NS, "mine")
    leases.create("elsewhere", "mine")


@pytest.mark.parametrize("lease_id", ["x" * 257, "a\nb", "\x1b[2J", "é" * 129])
def test_an_id_has_limits(leases: Leases, lease_id: str) -> None:
    with pytest.raises(InvalidArgument, match="create lease"):
        leases.create(NS, lease_id)


@pytest.mark.parametrize("value", ["", "tomorrow", "1e9", "2101-13-01T00:00:00Z"])
def test_a_time_that_is_none_is_refused(leases: Leases, value: str) -> None:
    with pytest.raises(InvalidArgument):
        leases.create(NS, "mine", {EXPIRE_LABEL: value})
    assert leases.list(NS) == ()


@pytest.mark.parametrize("value", ["9999-12-31T23:59:59Z", "9999-12-31T23:59:59-23:59"])
def test_a_time_beyond_the_database_is_as_late_as_it_goes(leases: Leases, value: str) -> None:
    assert leases.create(NS, "mine", {EXPIRE_LABEL: value}).expires_at == (1 << 63) - 1
    assert leases.get(NS, "mine").labels == {EXPIRE_LABEL: value}


def test_resources_are_added_and_removed_one_by_one(leases: Leases) -> None:
    leases.create(NS, "mine")
    added = [
        *((CONTENT, DIGEST), (IMAGES, "nginx"), (INGESTS, "ref")),
        ("snapshots/overlayfs", "key"),
    ]
    for type_, resource in [*added, added[0]]:  # again is nothing
        leases.add(NS, "mine", type_, resource)
    assert list(leases.resources(NS, "mine")) == sorted(added)
    assert leases.ingests() == {(NS, "ref")}
    leases.remove(NS, "mine", CONTENT, DIGEST)
    with pytest.raises(NotFound, match="it does not hold content"):
        leases.remove(NS, "mine", CONTENT, DIGEST)
    for type_ in ("", "contents", "snapshots/", "container"):
        with pytest.raises(InvalidArgument, match="add lease resource of type"):
            leases.add(NS, "mine", type_, "x")


def test_what_is_not_there_is_not_found(leases: Leases) -> None:
    for attempt in (
        lambda: leases.get(NS, "x"),
        lambda: leases.delete(NS, "x"),
        lambda: leases.add(NS, "x", CONTENT, DIGEST),
        lambda: leases.remove(NS, "x", CONTENT, DIGEST),
        lambda: leases.resources(NS, "x"),
    ):
        with pytest.raises(NotFound, match="lease x: there is none in namespace default"):
            attempt()


def test_deleting_a_lease_forgets_what_it_held(leases: Leases, db: Database) -> None:
    leases.create(NS, "mine")
    leases.add(NS, "mine", CONTENT, DIGEST)
    leases.delete(NS, "mine")
    assert db.rows("SELECT * FROM lease_resources") == []
    with pytest.raises(NotFound):
        leases.delete(NS, "mine")


def test_a_lease_of_our_own_is_renewed_with_more(leases: Leases) -> None:
    later = time.time_ns() + 3600 * 10**9
    leases.hold(NS, "pull", later, [(CONTENT, DIGEST)])
    leases.hold(NS, "pull", later + 10**9, [(CONTENT, DIGEST), (INGESTS, "ref")])
    assert leases.get(NS, "pull").expires_at == later + 10**9
    assert leases.resources(NS, "pull") == ((CONTENT, DIGEST), (INGESTS, "ref"))


def test_a_namespace_with_a_lease_is_not_empty(leases: Leases, db: Database) -> None:
    leases.create("moby", "mine")
    with pytest.raises(FailedPrecondition, match="1 leases"):
        NamespaceStore(db).delete("moby")


def test_a_snapshot_is_recorded_with_its_lease_or_not_at_all(leases: Leases, db: Database) -> None:
    snapshots = SnapshotRows(db, EventLog(db), "overlayfs")
    with pytest.raises(NotFound, match="lease mine does not exist"):
        snapshots.insert(NS, "work", 1, None, ACTIVE, {}, "mine")
    assert not snapshots.numbers()
    leases.create(NS, "mine")
    leases.add(NS, "mine", "snapshots/overlayfs", "work")  # there or not yet
    snapshots.insert(NS, "work", 1, None, ACTIVE, {}, "mine")
    snapshots.insert(NS, "more", 2, None, VIEW, {}, "mine")
    held = [("snapshots/overlayfs", "more"), ("snapshots/overlayfs", "work")]
    assert list(leases.resources(NS, "mine")) == held


@pytest.mark.parametrize(("passed_s", "is_free"), [(60, False), (7200, True)])
def test_f57_a_clock_that_jumps_takes_no_snapshot_from_another_lease(
    db: Database, passed_s: int, is_free: bool
) -> None:
    """The other one has an hour to go, whatever the clock says; or had."""
    wall = time.time_ns()
    passed = 0
    leases = Leases(db, Clock(lambda: wall, lambda: passed).now_ns)
    snapshots = SnapshotRows(db, EventLog(db), "overlayfs")
    snapshots.insert(NS, "work", 1, None, ACTIVE, {})
    leases.hold(NS, "other", wall + 3600 * 10**9, [("snapshots/overlayfs", "work")])
    leases.create(NS, "mine")
    leases.add(NS, "mine", "snapshots/overlayfs", "work")
    wall += 10 * 365 * 86400 * 10**9
    passed += passed_s * 10**9
    leases.delete(NS, "mine")
    assert (UNDER_LEASE_LABEL in snapshots.find("find", NS, "work").info.labels) is is_free
