"""Layers by containerd's API: onto a snapshot that a client knows by its mounts, and from two."""

import gzip
import io
import os
import tarfile
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import zstandard

from lighter.daemon.grpc.pb import diff_pb2 as pb
from lighter.daemon.grpc.pb import types_pb2
from tests.grpc.space import LEASE, SNAPSHOTTER, Space, descriptor, digest_of, refused
from tests.grpc.test_snapshots import mounted
from tests.harness import await_that
from tests.processes import with_title

LAYER = "application/vnd.oci.image.layer.v1.tar"


def layer(**files: str) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, text in files.items():
            entry = tarfile.TarInfo(name.replace("__", "/"))
            entry.size, entry.mode = len(text), 0o644
            tar.addfile(entry, io.BytesIO(text.encode()))
    return out.getvalue()


def names(data: bytes) -> set[str]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return set(tar.getnames())


def unpack(space: Space, key: str, parent: str, name: str, data: bytes, kind: str = "") -> Any:
    """What a client's unpacker does for one layer."""
    space.put(data)
    mounts = space.snapshots("Prepare", key=key, parent=parent).mounts
    applied = space.diff("Apply", diff=descriptor(data, LAYER + kind), mounts=mounts).applied
    space.snapshots("Commit", key=key, name=name)
    return applied


@pytest.mark.parametrize("kind", ["", "+gzip", "+zstd"])
def test_layers_are_applied_to_the_snapshot_of_the_mounts(
    space: Space, tmp_path: Path, kind: str
) -> None:
    lower, upper = layer(file="lower", gone="x"), layer(file="upper", **{".wh.gone": ""})
    pack = {"": bytes, "+gzip": gzip.compress, "+zstd": zstandard.ZstdCompressor().compress}[kind]
    for key, below, name, plain in (("1", "", "base", lower), ("2", "base", "top", upper)):
        applied = unpack(space, key, below, name, pack(plain), kind)
        assert (applied.digest, applied.size) == (digest_of(plain), len(plain))
        assert applied.media_type == LAYER
    view = space.snapshots("View", key="v", parent="top").mounts
    with mounted(view, tmp_path / "m") as place:
        assert os.listdir(place) == ["file"]
        assert (place / "file").read_text() == "upper"


def test_only_snapshots_of_the_namespace_are_written(space: Space, tmp_path: Path) -> None:
    data = layer(file="x")
    space.put(data)
    outside = tmp_path / "outside"
    outside.mkdir()
    mine = space.snapshots("Prepare", key="a").mounts
    with Space(space.lighterd, f"{space.namespace}-2") as other:
        theirs = other.snapshots("Prepare", key="a").mounts
        root = str(space.lighterd.root)
        link = f"{mine[0].source}/../../../../lighter.db"
        for mounts in (
            [],
            theirs,
            [types_pb2.Mount(type="bind", source=str(outside), options=["rw", "rbind"])],
            [types_pb2.Mount(type="bind", source="/", options=["rw", "rbind"])],
            [types_pb2.Mount(type="bind", source=root, options=["rw", "rbind"])],
            [types_pb2.Mount(type="bind", source=link, options=["rw", "rbind"])],
            [
                types_pb2.Mount(
                    type="overlay",
                    source="overlay",
                    options=[f"upperdir={mine[0].source}", f"workdir={outside}", "lowerdir=/"],
                )
            ],
            [*mine, types_pb2.Mount(type="bind", source="/etc", options=["rw", "rbind"])],
            [
                types_pb2.Mount(
                    type="overlay",
                    source="overlay",
                    options=[f"upperdir={outside}", f"workdir={outside}", "lowerdir=/"],
                )
            ],
        ):
            with refused("NOT_FOUND", "find snapshot of mounts"):
                space.diff("Apply", diff=descriptor(data, LAYER), mounts=mounts)
            if mounts:
                with refused("NOT_FOUND", "find snapshot of mounts"):
                    space.diff("Diff", left=[], right=mounts)
                with refused("NOT_FOUND", "find snapshot of mounts"):
                    space.diff("Diff", left=mounts, right=mine)
        assert other.snapshots("Usage", key="a").inodes == 1
    with refused("INVALID_ARGUMENT", "no mounts of the upper"):
        space.diff("Diff", left=mine, right=[])
    mine[0].target = "/within"
    with refused("UNIMPLEMENTED", "a target within the root file system, '/within'"):
        space.diff("Apply", diff=descriptor(data, LAYER), mounts=mine)
    assert os.listdir(outside) == [] and space.snapshots("Usage", key="a").inodes == 1


def test_a_client_may_have_changed_what_says_no_directory(space: Space) -> None:
    """BuildKit adds options to every overlay's, and reads an active snapshot as lower ones."""
    unpack(space, "1", "", "base", layer(file="lower"))
    (mount,) = space.snapshots("Prepare", key="2", parent="base").mounts
    told = dict(option.partition("=")[::2] for option in mount.options)
    data = layer(more="x")
    space.put(data)
    read_only = types_pb2.Mount(
        type="overlay",
        source="overlay",
        options=[f"lowerdir={told['upperdir']}:{told['lowerdir']}"],
    )
    with refused("FAILED_PRECONDITION", "given as read-only"):
        space.diff("Apply", diff=descriptor(data, LAYER), mounts=[read_only])
    mount.options.append("redirect_dir=off")
    applied = space.diff("Apply", diff=descriptor(data, LAYER), mounts=[mount]).applied
    assert applied.digest == digest_of(data)
    lower = space.snapshots("View", key="v", parent="base").mounts
    made = space.diff("Diff", left=lower, right=[read_only], media_type=LAYER).diff
    assert names(space.read(made.digest)) == {"more"}


def test_what_cannot_be_applied(space: Space) -> None:
    data = layer(file="x")
    mounts = space.snapshots("Prepare", key="a").mounts
    with refused("NOT_FOUND", f"get content {digest_of(data)}"):
        space.diff("Apply", diff=descriptor(data, LAYER), mounts=mounts)
    space.put(data)
    space.snapshots("Prepare", key="b")
    space.snapshots("Commit", key="b", name="base")
    view = space.snapshots("View", key="v", parent="base").mounts
    with refused("FAILED_PRECONDITION", "view, not active"):
        space.diff("Apply", diff=descriptor(data, LAYER), mounts=view)
    garbage = os.urandom(100000)
    space.put(garbage)
    with refused("INVALID_ARGUMENT"):
        space.diff("Apply", diff=descriptor(garbage, LAYER), mounts=mounts)
    cut = gzip.compress(layer(file="x" * 100000))[:-100]
    space.put(cut)
    with refused("DATA_LOSS"):
        space.diff("Apply", diff=descriptor(cut, LAYER + "+gzip"), mounts=mounts)


@pytest.mark.parametrize("kind", ["", "+gzip", "+zstd"])
def test_a_layer_is_made_of_two_snapshots(space: Space, tmp_path: Path, kind: str) -> None:
    unpack(space, "1", "", "base", layer(kept="x", changed="x", gone="x"))
    mounts = space.snapshots("Prepare", key="a", parent="base").mounts
    with mounted(mounts, tmp_path / "m") as place:
        (place / "changed").write_text("y")
        (place / "gone").unlink()
        (place / "new").write_text("z")
    lower = space.snapshots("View", key="v", parent="base").mounts
    made = space.diff(
        "Diff", left=lower, right=mounts, media_type=LAYER + kind, ref="r", labels={"a": "b"}
    ).diff
    assert made.media_type == LAYER + kind
    info = space.content("Info", digest=made.digest).info
    data = space.read(made.digest)
    assert (info.size, made.size, digest_of(data)) == (len(data), len(data), made.digest)
    unpacked = {"": bytes, "+gzip": gzip.decompress, "+zstd": _unzstd}[kind](data)
    assert names(unpacked) == {"changed", ".wh.gone", "new"}
    told = {"containerd.io/uncompressed": digest_of(unpacked)} if kind else {}
    assert dict(info.labels) == {"a": "b", **told}
    assert not space.content("ListStatuses").statuses

    again = space.snapshots("Prepare", key="again", parent="base").mounts
    applied = space.diff("Apply", diff=made, mounts=again).applied
    assert applied.digest == digest_of(unpacked)
    with mounted(again, tmp_path / "m") as place:
        assert {path.name: path.read_text() for path in place.iterdir()} == {
            "kept": "x",
            "changed": "y",
            "new": "z",
        }


def _unzstd(data: bytes) -> bytes:
    return zstandard.ZstdDecompressor().decompressobj().decompress(data)


def test_a_layer_that_was_made_is_held_by_the_lease(space: Space) -> None:
    unpack(space, "1", "", "base", layer(file="x"))
    view = space.snapshots("View", key="v", parent="base").mounts
    made = space.diff("Diff", left=[], right=view).diff
    assert made.media_type == LAYER + "+gzip"  # containerd's default
    assert names(gzip.decompress(space.read(made.digest))) == {"file"}
    held = space.leases("ListResources", id=LEASE).resources
    assert made.digest in [one.id for one in held if one.type == "content"]
    space.collect()
    assert made.digest in space.digests()
    space.leases("Delete", id=LEASE, sync=True)
    assert not space.digests()


def test_what_no_layer_is_made_of(space: Space) -> None:
    mounts = space.snapshots("Prepare", key="a").mounts
    with refused("UNIMPLEMENTED", "unsupported diff media type: x/y"):
        space.diff("Diff", right=mounts, media_type="x/y")
    with refused("UNIMPLEMENTED", "source_date_epoch"):
        space.diff("Diff", right=mounts, source_date_epoch={"seconds": 1})
    native = space.snapshots("Prepare", key="a", snapshotter="native").mounts
    with refused("FAILED_PRECONDITION", f"one is of {SNAPSHOTTER}, the other of native"):
        space.diff("Diff", left=mounts, right=native)
    empty = space.diff("Diff", left=mounts, right=mounts, media_type=LAYER).diff
    assert names(space.read(empty.digest)) == set()


def test_a_client_that_goes_leaves_the_snapshot_removable(space: Space) -> None:
    data = gzip.compress(layer(**{f"f{number}": "x" * 5000 for number in range(5000)}))
    space.put(data)
    mounts = space.snapshots("Prepare", key="a").mounts
    call = space.api.future(
        pb, "Diff", "Apply", diff=descriptor(data, LAYER + "+gzip"), mounts=mounts
    )
    working = partial(with_title, f"lighter-worker --instance {space.lighterd.instance}")
    await_that(working, 30, "a worker applies it")
    assert call.cancel(), "it was over before"
    await_that(lambda: not working(), 30, "the worker has ended")
    space.snapshots("Remove", key="a")
    space.snapshots("Cleanup")
    assert space.keys() == []
