"""Layers that a program of the administrator's reads first: by pull, import, ctr and Diff.Apply."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from lighter.daemon.grpc.pb import diff_pb2, snapshots_pb2
from tests.grpc.client import Api
from tests.grpc.conftest import run_ctr
from tests.grpc.space import Space, descriptor, digest_of, refused
from tests.grpc.test_snapshots import mounted
from tests.harness import Lighterd, await_that
from tests.processes import with_title
from tests.registries import OCI_CONFIG, OCI_MANIFEST, Scripted, SmallImage
from tests.unit.images.build import HOST, LAYER, Layout, tar

SECRET = LAYER + "+encrypted"
NAME = "docker.io/library/secret:1"
PLAIN = tar({"file": b"text", "big": bytes(range(256)) * 4000})
FLIP = r"LC_ALL=C tr '\\000-\\377' '\\200-\\377\\000-\\177'"


def flipped(data: bytes) -> bytes:
    return bytes(byte ^ 0x80 for byte in data)


def config(script: str) -> str:
    return f"""
[stream_processors]
  [stream_processors."test.flip"]
    accepts = ["{SECRET}"]
    returns = "{LAYER}"
    path = "/bin/sh"
    args = ["-c", "{script}"]
    env = ["MARK=mine"]
"""


@pytest.fixture
def manager(make_lighterd: Callable[..., Lighterd]) -> Lighterd:
    return make_lighterd(config=config(FLIP)).start()


def archive(path: Path, plain: bytes = PLAIN) -> Path:
    built = Layout()
    image = built.image([], blobs=[flipped(PLAIN)], diff_ids=[digest_of(plain)], media_type=SECRET)
    built.list(image, name=NAME)
    path.write_bytes(built.archive())
    return path


def check_snapshot(lighterd: Lighterd, where: Path) -> None:
    """The image's snapshot holds what was encrypted."""
    with Api(lighterd.grpc_address) as api:
        view = {"snapshotter": "overlayfs", "key": "look"}
        made = api.call(snapshots_pb2, "Snapshots", "View", parent=digest_of(PLAIN), **view)
        with mounted(made.mounts, where) as place:
            assert (place / "file").read_bytes() == b"text"
        api.call(snapshots_pb2, "Snapshots", "Remove", **view)


def test_an_imported_layer_goes_through_its_processor(manager: Lighterd, tmp_path: Path) -> None:
    path = archive(tmp_path / "archive")
    done = manager.ctl("images", "import", str(path))
    assert done.returncode == 0, done.stderr
    check_snapshot(manager, tmp_path / "m")


def test_the_diff_id_is_of_what_the_processor_made(manager: Lighterd, tmp_path: Path) -> None:
    path = archive(tmp_path / "archive", plain=b"something else")
    done = manager.ctl("images", "import", str(path))
    assert done.returncode == 1
    assert b"diff id" in done.stderr
    assert manager.ctl("snapshots", "ls", "-q").stdout == b""


@pytest.mark.parametrize("by", ["ctl", "ctr"])
def test_a_pulled_layer_goes_through_its_processor(
    manager: Lighterd, tmp_path: Path, by: str
) -> None:
    layer = flipped(PLAIN)
    settings = json.dumps(
        {
            "architecture": HOST,
            "os": "linux",
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": [digest_of(PLAIN)]},
        }
    ).encode()
    described = [
        {"mediaType": kind, "digest": digest_of(data), "size": len(data)}
        for kind, data in ((OCI_CONFIG, settings), (SECRET, layer))
    ]
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": described[0],
        "layers": described[1:],
    }
    blobs = {digest_of(data): data for data in (settings, layer)}
    with Scripted() as registry:
        registry.serve(SmallImage(json.dumps(manifest).encode(), blobs), "app", "1")
        words = ("images", "pull", "--plain-http", f"{registry.host}/app:1")
        done = manager.ctl(*words) if by == "ctl" else run_ctr(manager.grpc_address, *words)
    assert done.returncode == 0, done.stderr
    check_snapshot(manager, tmp_path / "m")


def test_a_client_gives_what_the_processor_needs(
    make_lighterd: Callable[..., Lighterd], tmp_path: Path
) -> None:
    """By the processor's id, as imgcrypt's clients give keys; for others it is passed over."""
    out = tmp_path / "out"
    lighterd = make_lighterd(config=config(f"cat <&3 >{out}; {FLIP}")).start()
    with Space(lighterd, "default") as space:
        for data, kind in ((flipped(PLAIN), SECRET), (PLAIN, LAYER)):
            space.put(data)
            mounts = space.snapshots("Prepare", key=kind).mounts
            given = {"test.flip": {"type_url": "t", "value": b"key"}, "other": {"value": b"o"}}
            asked = {"diff": descriptor(data, kind), "mounts": mounts, "payloads": given}
            applied = space.diff("Apply", **asked).applied
            assert (applied.digest, applied.size) == (digest_of(PLAIN), len(PLAIN))
            assert applied.media_type == LAYER
    assert out.read_bytes() == b"\x0a\x01t\x12\x03key"  # google.protobuf.Any


def test_a_layer_without_a_processor_is_refused(space: Space) -> None:
    data = flipped(PLAIN)
    space.put(data)
    mounts = space.snapshots("Prepare", key="a").mounts
    given = {"x": {"value": b"key"}}
    with refused("UNIMPLEMENTED", "is not supported"):
        space.diff("Apply", diff=descriptor(data, SECRET), mounts=mounts, payloads=given)


def test_a_killed_manager_leaves_no_processor(make_lighterd: Callable[..., Lighterd]) -> None:
    lighterd = make_lighterd(config=config("setsid sleep 4321.5 & sleep 4321.6")).start()
    words = ("sleep 4321.5", "sleep 4321.6")
    space = Space(lighterd, "default").__enter__()
    try:
        data = flipped(PLAIN)
        space.put(data)
        mounts = space.snapshots("Prepare", key="a").mounts
        call = (diff_pb2, "Diff", "Apply")
        asked = space.api.future(*call, diff=descriptor(data, SECRET), mounts=mounts)
        await_that(lambda: all(map(with_title, words)), 20, "the program runs")
        lighterd.kill9()
        await_that(lambda: not any(map(with_title, words)), 20, "all of the program ends")
        assert asked.exception() is not None
    finally:
        space.api.close()
        space.bare.close()
    lighterd.start()
    assert lighterd.ctl("snapshots", "rm", "a").returncode == 0
