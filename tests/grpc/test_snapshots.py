"""Snapshots by containerd's API."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lighter.daemon.grpc.pb import snapshots_pb2 as pb
from tests.grpc.space import LEASE, SNAPSHOTTER, Space, refused


@contextmanager
def mounted(mounts: Any, where: Path) -> Iterator[Path]:
    """What a client does with the mounts it is given."""
    where.mkdir(exist_ok=True)
    (one,) = mounts
    options = ",".join(one.options).replace("rbind", "bind")
    argv = ["mount", "-o", options, one.source, str(where)]
    subprocess.run([*argv, *([] if one.type == "bind" else ["-t", one.type])], check=True)
    try:
        yield where
    finally:
        subprocess.run(["umount", str(where)], check=True)


def test_life_of_a_snapshot(space: Space, tmp_path: Path) -> None:
    mounts = space.snapshots("Prepare", key="a", labels={"x": "y"}).mounts
    with mounted(mounts, tmp_path / "m") as place:
        (place / "file").write_bytes(b"x" * 10000)
    info = space.snapshots("Stat", key="a").info
    assert (info.name, info.parent, info.kind, dict(info.labels)) == (
        "a",
        "",
        pb.ACTIVE,
        {"x": "y"},
    )
    assert info.created_at.seconds > 0
    assert space.snapshots("Mounts", key="a").mounts == mounts
    assert space.snapshots("Usage", key="a").size >= 10000
    space.snapshots("Commit", key="a", name="base", labels={"z": "1"})
    with refused("NOT_FOUND", "snapshot a does not exist: not found"):
        space.snapshots("Stat", key="a")
    base = space.snapshots("Stat", key="base").info
    assert (base.kind, dict(base.labels)) == (pb.COMMITTED, {"z": "1"})
    assert base.created_at == base.updated_at != info.created_at  # by the commit
    usage = space.snapshots("Usage", key="base")
    assert usage.size >= 10000 and usage.inodes == 2

    view = space.snapshots("View", key="v", parent="base").mounts
    assert "ro" in view[0].options
    with mounted(view, tmp_path / "m") as place:
        assert (place / "file").stat().st_size == 10000
    upper = space.snapshots("Prepare", key="b", parent="base").mounts
    assert upper[0].type == "overlay"
    with mounted(upper, tmp_path / "m") as place:
        (place / "file").unlink()
    assert space.snapshots("Usage", key="b").inodes >= 1
    with refused("FAILED_PRECONDITION", "cannot remove snapshot with child"):
        space.snapshots("Remove", key="base")
    for key in ("v", "b", "base"):
        space.snapshots("Remove", key=key)
    assert space.keys() == []
    space.snapshots("Cleanup")
    root = space.lighterd.root / "snapshots" / SNAPSHOTTER
    assert not [name for name in os.listdir(root) if name.startswith("new-")]


def test_what_is_refused(space: Space) -> None:
    space.snapshots("Prepare", key="a")
    space.snapshots("Prepare", key="b")
    space.snapshots("Commit", key="b", name="base")
    missing = "snapshot nope does not exist: not found"
    for method, fields, code, text in (
        ("Prepare", {"key": "a"}, "ALREADY_EXISTS", 'snapshot "a": already exists'),
        ("View", {"key": "a"}, "ALREADY_EXISTS", 'snapshot "a": already exists'),
        ("Prepare", {"key": ""}, "INVALID_ARGUMENT", "key"),
        (
            "Prepare",
            {"key": "c", "parent": "nope"},
            "NOT_FOUND",
            "parent snapshot nope does not exist: not found",
        ),
        (
            "View",
            {"key": "c", "parent": "a"},
            "INVALID_ARGUMENT",
            'parent "a" is not committed snapshot',
        ),
        (
            "Prepare",
            {"key": "c", "labels": {"containerd.io/snapshot.ref": "base"}},
            "ALREADY_EXISTS",
            "",
        ),
        ("Commit", {"key": "nope", "name": "n"}, "NOT_FOUND", missing),
        ("Commit", {"key": "a", "name": "base"}, "ALREADY_EXISTS", 'snapshot "base": already'),
        ("Commit", {"key": "base", "name": "n"}, "FAILED_PRECONDITION", "committed"),
        ("Mounts", {"key": "nope"}, "NOT_FOUND", missing),
        ("Mounts", {"key": "base"}, "FAILED_PRECONDITION", "not active or view"),
        ("Remove", {"key": "nope"}, "NOT_FOUND", missing),
        ("Stat", {"key": "nope"}, "NOT_FOUND", missing),
        ("Usage", {"key": "nope"}, "NOT_FOUND", missing),
        ("Update", {"info": pb.Info(name="nope")}, "NOT_FOUND", missing),
        (
            "Stat",
            {"key": "a", "snapshotter": ""},
            "INVALID_ARGUMENT",
            "snapshotter argument missing",
        ),
        (
            "Stat",
            {"key": "a", "snapshotter": "zz"},
            "INVALID_ARGUMENT",
            "snapshotter not loaded: zz",
        ),
    ):
        with refused(code, text):
            space.snapshots(method, **fields)
    assert space.keys() == ["a", "base"]


def test_lists_and_filters(space: Space) -> None:
    space.snapshots("Prepare", key="top")
    space.snapshots("Commit", key="top", name="base")
    for number in range(120):
        method = "View" if number % 2 else "Prepare"
        labels = {"n": str(number)}
        space.snapshots(method, key=f"k{number:03}", parent="base", labels=labels)
    found = space.api.stream(pb, "Snapshots", "List", snapshotter=SNAPSHOTTER)
    assert [len(page.info) for page in found] == [100, 21]
    assert len(space.keys()) == len(space.keys("")) == 121
    assert space.keys("kind==committed") == ["base"] == space.keys("name==base")
    assert len(space.keys("kind==view")) == 60 == len(space.keys("kind==active"))
    assert len(space.keys("parent==base")) == 120
    assert space.keys("labels.n==7", "labels.n==8") == ["k007", "k008"]
    assert [info.name for info in space.snapshot_infos(snapshotter="native")] == []
    with Space(space.lighterd, f"{space.namespace}-2") as other:
        assert other.keys() == []
        with refused("NOT_FOUND"):
            other.snapshots("Stat", key="base")
        with refused("NOT_FOUND"):
            other.snapshots("Prepare", key="x", parent="base")


def test_updates_go_by_their_mask(space: Space) -> None:
    space.snapshots("Prepare", key="a", labels={"a": "1", "b": "2"})

    def update(paths: list[str], **labels: str) -> dict[str, str]:
        info = pb.Info(name="a", labels=labels)
        answer = space.snapshots("Update", info=info, update_mask={"paths": paths}).info
        assert space.snapshots("Stat", key="a").info == answer
        return dict(answer.labels)

    assert update(["labels.a"], a="3", b="4") == {"a": "3", "b": "2"}
    assert update(["labels.a"]) == {"b": "2"}
    assert update(["labels"], c="5") == {"c": "5"}
    assert update([], d="6") == {"d": "6"}
    with refused("INVALID_ARGUMENT", 'cannot update "parent" field on snapshot "a"'):
        update(["parent"])


def test_whole_copies_are_a_snapshotter_too(space: Space, tmp_path: Path) -> None:
    one = space.snapshots("Prepare", key="a", snapshotter="native").mounts
    with mounted(one, tmp_path / "m") as place:
        (place / "file").write_text("x")
    space.snapshots("Commit", key="a", name="base", snapshotter="native")
    two = space.snapshots("Prepare", key="b", parent="base", snapshotter="native").mounts
    assert two[0].type == "bind"
    with mounted(two, tmp_path / "m") as place:
        assert (place / "file").read_text() == "x"
    assert space.keys() == []


def test_the_native_front_end_shows_and_tells_the_same(space: Space) -> None:
    with space.lighterd.client(space.namespace) as client:
        mounts = space.snapshots("Prepare", key="a").mounts
        (shown,) = client.call("snapshots", "mounts", snapshotter="", key="a")["mounts"]
        assert (shown["source"], shown["options"]) == (mounts[0].source, list(mounts[0].options))
        client.call("snapshots", "commit", snapshotter="", key="a", name="base", labels={})
        assert space.snapshots("Stat", key="base").info.kind == pb.COMMITTED
        space.snapshots("Prepare", key="b", parent="base")
        space.snapshots("Commit", key="b", name="top")
        space.snapshots("Remove", key="top")
        client.call("snapshots", "prepare", snapshotter="", key="c", parent="base", labels={})
        client.call("snapshots", "delete", snapshotter="", key="c")
        made = {"snapshotter": SNAPSHOTTER}
        assert space.told("/snapshot/") == [
            ("/snapshot/prepare", {**made, "key": "a", "parent": ""}),
            ("/snapshot/commit", {**made, "key": "a", "name": "base"}),
            ("/snapshot/prepare", {**made, "key": "b", "parent": "base"}),
            ("/snapshot/commit", {**made, "key": "b", "name": "top"}),
            ("/snapshot/remove", {**made, "key": "top"}),
            ("/snapshot/prepare", {**made, "key": "c", "parent": "base"}),
            ("/snapshot/remove", {**made, "key": "c"}),
        ]


def test_a_committed_one_goes_with_its_lease(space: Space) -> None:
    space.snapshots("Prepare", key="a")
    space.snapshots("Commit", key="a", name="base")
    space.snapshots("Prepare", key="b", parent="base")
    space.snapshots("Commit", key="b", name="top")
    space.leases("Delete", id=LEASE, sync=True)
    assert space.keys() == []
    gone = [body["key"] for topic, body in space.told("/snapshot/remove")]
    assert gone == ["top", "base"]  # what is collected is told too, children first
