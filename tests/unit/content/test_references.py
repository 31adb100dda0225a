"""Random worlds: nothing that is needed is removed, and nothing that is not stays.

The oracle below knows the rules in its own words and no code of the product's: it grows the set of
what is needed until nothing is added any more.
"""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lighter.daemon.content import references
from lighter.daemon.content.digest import Digest
from lighter.daemon.content.gc import Collector
from lighter.daemon.content.store import ContentStore
from lighter.daemon.events.log import EventLog
from lighter.daemon.metadata.db import Database
from lighter.daemon.metadata.namespaces import NamespaceStore

NAMESPACES = ("one", "two")
BLOBS = [Digest.of(bytes([n])) for n in range(6)]
SNAPSHOTS = [f"s{n}" for n in range(6)]
SNAPSHOTTERS = ("overlayfs", "native")
IMAGES = ["i0", "i1", "i2"]
CONTAINERS = ["c0", "c1"]
LEASES = ["l0", "l1"]
PAST, FUTURE = "2001-01-01T00:00:00Z", "2901-01-01T00:00:00Z"
PREFIX = "containerd.io/gc."

Labels = dict[str, str]


@dataclass
class World:
    """One namespace as rows: what a name maps to is what the row says."""

    blobs: dict[str, Labels] = field(default_factory=dict)
    images: dict[str, tuple[str, Labels]] = field(default_factory=dict)
    # (snapshotter, key) -> (parent's key, kind, labels)
    snapshots: dict[tuple[str, str], tuple[str, str, Labels]] = field(default_factory=dict)
    containers: dict[str, tuple[str, str, Labels]] = field(default_factory=dict)
    leases: dict[str, tuple[Labels, list[tuple[str, str]]]] = field(default_factory=dict)


def labels_of(draw: Any, *, expiring: bool) -> Labels:
    ends = draw(st.sampled_from(["", "", ".a", "/b", ".l.0"]))
    choices = [
        (f"ref.content{ends}", st.sampled_from(BLOBS)),
        (f"ref.image{ends}", st.sampled_from(IMAGES)),
        ("ref.snapshot.overlayfs", st.sampled_from(SNAPSHOTS)),
        ("ref.snapshot.native/x", st.sampled_from(SNAPSHOTS)),
        (f"bref.content{ends}", st.sampled_from(BLOBS)),
        (f"bref.image{ends}", st.sampled_from(IMAGES)),
        (f"bref.container{ends}", st.sampled_from(CONTAINERS)),
        ("bref.snapshot.overlayfs/y", st.sampled_from(SNAPSHOTS)),
        ("ref.contents", st.sampled_from(BLOBS)),  # no label of containerd's
        ("root", st.just("x")),
    ]
    if expiring:
        choices.append(("expire", st.sampled_from([PAST, FUTURE, "never"])))
    # Few labels: with many, everything is needed and nothing is tested.
    picked = draw(st.lists(st.sampled_from(choices), max_size=2))
    return {PREFIX + label: draw(value) for label, value in picked}


@st.composite
def worlds(draw: Any) -> World:
    world = World()
    for digest in draw(st.lists(st.sampled_from(BLOBS), unique=True)):
        world.blobs[digest] = labels_of(draw, expiring=True)
    for name in draw(st.lists(st.sampled_from(IMAGES), unique=True, max_size=2)):
        world.images[name] = (draw(st.sampled_from(BLOBS)), labels_of(draw, expiring=True))
    for snapshotter in SNAPSHOTTERS:
        committed: list[str] = []
        for key in draw(st.lists(st.sampled_from(SNAPSHOTS), unique=True, max_size=5)):
            parent = draw(st.sampled_from(["", *committed]))
            kind = draw(st.sampled_from(["committed"] * 4 + ["active", "view"]))
            world.snapshots[snapshotter, key] = (parent, kind, labels_of(draw, expiring=True))
            if kind == "committed":
                committed.append(key)
    for id_ in draw(st.lists(st.sampled_from(CONTAINERS), unique=True, max_size=1)):
        on = (draw(st.sampled_from(SNAPSHOTTERS)), draw(st.sampled_from(SNAPSHOTS)))
        world.containers[id_] = (*on, labels_of(draw, expiring=False))
    for id_ in draw(st.lists(st.sampled_from(LEASES), unique=True)):
        labels: Labels = {}
        if draw(st.booleans()):
            labels[PREFIX + "flat"] = ""
        if draw(st.booleans()):
            labels[PREFIX + "expire"] = draw(st.sampled_from([PAST, FUTURE]))
        resource = st.one_of(
            st.tuples(st.just("content"), st.sampled_from(BLOBS)),
            st.tuples(st.just("images"), st.sampled_from(IMAGES)),
            st.tuples(st.just("snapshots/overlayfs"), st.sampled_from(SNAPSHOTS)),
            st.tuples(st.just("ingests"), st.just("ref")),
        )
        world.leases[id_] = (labels, draw(st.lists(resource, max_size=2, unique=True)))
    return world


# --- the oracle

Thing = tuple[str, str]


def needed_in(world: World) -> set[Thing]:
    objects: dict[Thing, Labels] = {
        **{("content", digest): labels for digest, labels in world.blobs.items()},
        **{("image", name): labels for name, (_, labels) in world.images.items()},
        **{("snapshot", f"{s}/{k}"): row[2] for (s, k), row in world.snapshots.items()},
        **{("container", id_): row[2] for id_, row in world.containers.items()},
    }
    full: set[Thing] = {("container", id_) for id_ in world.containers}
    flat: set[Thing] = set()
    for (kind, name), labels in objects.items():
        expire = labels.get(PREFIX + "expire", "")
        if kind == "image":
            if expire != PAST:
                full.add((kind, name))
        elif kind != "container" and (PREFIX + "root" in labels or expire in (FUTURE, "never")):
            full.add((kind, name))
    for (snapshotter, key), (_, kind, _labels) in world.snapshots.items():
        if kind != "committed":
            full.add(("snapshot", f"{snapshotter}/{key}"))
    for labels, resources in world.leases.values():
        if labels.get(PREFIX + "expire") == PAST:
            continue
        into = flat if PREFIX + "flat" in labels else full
        for type_, resource in resources:
            if type_ == "content":
                into.add(("content", resource))
            elif type_ == "images":
                into.add(("image", resource))
            elif type_.startswith("snapshots/"):
                into.add(("snapshot", f"{type_[len('snapshots/') :]}/{resource}"))
    while True:
        before = len(full) + len(flat)
        for thing in [*full]:
            full |= built_in(world, thing)
            for label, value in objects.get(thing, {}).items():
                full |= aimed_at(label, value, "ref")
            for other, labels in objects.items():
                if any(thing in aimed_at(label, value, "bref") for label, value in labels.items()):
                    full.add(other)
        for thing in [*flat]:
            flat |= built_in(world, thing)
        if len(full) + len(flat) == before:
            return full | flat


def built_in(world: World, thing: Thing) -> set[Thing]:
    """What an object keeps without a label."""
    kind, name = thing
    if kind == "image" and name in world.images:
        return {("content", world.images[name][0])}
    if kind == "container" and name in world.containers:
        snapshotter, key, _ = world.containers[name]
        return {("snapshot", f"{snapshotter}/{key}")}
    if kind == "snapshot":
        snapshotter, _, key = name.partition("/")
        if (snapshotter, key) in world.snapshots and world.snapshots[snapshotter, key][0]:
            return {("snapshot", f"{snapshotter}/{world.snapshots[snapshotter, key][0]}")}
    return set()


def aimed_at(label: str, value: str, word: str) -> set[Thing]:
    for kind in ("content", "image", "container"):
        start = f"{PREFIX}{word}.{kind}"
        if label == start or label[: len(start) + 1] in (f"{start}.", f"{start}/"):
            return {(kind, value)}
    if label.startswith(f"{PREFIX}{word}.snapshot."):
        snapshotter = label[len(f"{PREFIX}{word}.snapshot.") :].split("/")[0]
        return {("snapshot", f"{snapshotter}/{value}")}
    return set()


# --- the product

EMPTIED = ("content", "images", "containers", "lease_resources", "leases", "trash")


class Place:
    def __init__(self, root: Path) -> None:
        self.db = Database(str(root / "lighter.db"))
        namespaces = NamespaceStore(self.db)
        for name in NAMESPACES:
            namespaces.ensure(name)
        log = EventLog(self.db)
        content = ContentStore(str(root / "content"), self.db, log)
        self.collector = Collector(self.db, log, content, {})

    def fill(self, worlds: dict[str, World]) -> None:
        with self.db.durable_transaction() as tx:
            tx.execute("UPDATE snapshots SET parent = NULL")
            tx.execute("DELETE FROM snapshots")
            for table in EMPTIED:
                tx.execute(f"DELETE FROM {table}")
            for namespace, world in worlds.items():
                self._fill(tx, namespace, world)

    def _fill(self, tx: Any, namespace: str, world: World) -> None:
        for digest, labels in world.blobs.items():
            row = (namespace, digest, json.dumps(labels))
            tx.execute("INSERT INTO content VALUES(?, ?, 1, ?, 0, 0)", row)
        for name, (digest, labels) in world.images.items():
            row = (namespace, name, digest, json.dumps(labels))
            tx.execute("INSERT INTO images VALUES(?, ?, 't', ?, 1, '{}', ?, 0, 0)", row)
        numbers: dict[tuple[str, str], int] = {}
        for (snapshotter, key), (parent, kind, labels) in world.snapshots.items():
            below = numbers.get((snapshotter, parent))
            numbers[snapshotter, key] = tx.execute(
                "INSERT INTO snapshots(snapshotter, namespace, key, parent, kind, labels,"
                " created_at, updated_at) VALUES(?,?,?,?,?,?,0,0)",
                (snapshotter, namespace, key, below, kind, json.dumps(labels)),
            ).lastrowid
        for id_, (snapshotter, key, labels) in world.containers.items():
            tx.execute(
                "INSERT INTO containers VALUES(?, ?, '', '', ?, ?, x'', ?, '{}', 0, 0)",
                (namespace, id_, snapshotter, key, json.dumps(labels)),
            )
        for id_, (labels, resources) in world.leases.items():
            expires = {PAST: 1, FUTURE: 2**62}.get(labels.get(PREFIX + "expire", ""))
            row = (namespace, id_, json.dumps(labels), expires)
            tx.execute("INSERT INTO leases VALUES(?, ?, ?, 0, ?)", row)
            for type_, resource in resources:
                tx.execute(
                    "INSERT INTO lease_resources VALUES(?, ?, ?, ?)",
                    (namespace, id_, type_, resource),
                )

    def there(self, namespace: str) -> set[Thing]:
        found = {("content", row["digest"]) for row in self._rows("content", namespace)}
        found |= {("image", row["name"]) for row in self._rows("images", namespace)}
        return found | {
            ("snapshot", f"{row['snapshotter']}/{row['key']}")
            for row in self._rows("snapshots", namespace)
        }

    def _rows(self, table: str, namespace: str) -> list[Any]:
        return self.db.rows(f"SELECT * FROM {table} WHERE namespace = ?", (namespace,))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    place = Place(tmp_path_factory.mktemp("gc"))
    yield place
    place.db.close()


@settings(max_examples=150)
@given(worlds(), worlds())
def test_exactly_what_is_needed_stays(place: Place, one: World, two: World) -> None:
    place.fill({"one": one, "two": two})
    before = {name: place.there(name) for name in NAMESPACES}
    preview = place.collector.preview("one")
    assert preview == place.collector._drop_rows("one")
    assert place.there("one") == before["one"] & needed_in(one)
    assert place.there("two") == before["two"]
    leases = {row["id"] for row in place._rows("leases", "one")}
    assert leases == {
        id_ for id_, (labels, _) in one.leases.items() if labels.get(PREFIX + "expire") != PAST
    }


@settings(max_examples=60)
@given(worlds())
def test_why_tells_a_chain_exactly_for_what_stays(place: Place, world: World) -> None:
    place.fill({"one": world})
    needed = needed_in(world)
    graph = place.collector.references("one")
    for digest in world.blobs:
        chains = place.collector.why("one", digest)["content"]
        assert bool(chains) == (("content", digest) in needed)
        for chain in chains:
            assert chain[0].node in graph.roots
            assert chain[-1].node[:2] == ("content", digest)
            for step, following in pairwise(chain):
                assert following in graph.leads_to(step.node)


@pytest.mark.parametrize(
    ("value", "over"),
    [
        (PAST, True),
        (FUTURE, False),
        ("2001-01-01T00:00:00+02:00", True),
        ("2001-01-01T00:00:00", True),
        ("tomorrow", False),
        ("", False),
        ("9999-12-31T23:59:59-23:59", False),
    ],
)
def test_an_expiry_that_is_no_time_never_comes(value: str, over: bool) -> None:
    assert references.is_over(value, time.time_ns()) is over
