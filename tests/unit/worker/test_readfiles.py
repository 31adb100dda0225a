"""Job `read`: files of a snapshot that somebody else filled."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest

from lighter.proto.errors import InvalidArgument, LighterError, ResourceExhausted
from lighter.shim.worker.readfiles import read_file, read_only, stat_file
from tests.unit.worker.harness import run_job

pytestmark = pytest.mark.root


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    (root / "etc" / "passwd").write_text("root:x:0:0\n")
    (tmp_path / "secret").write_text("host")
    return root


def read(root: Path, *paths: str, **job: Any) -> dict[str, Any]:
    mounts = job.pop("mounts", [["bind", str(root), ["rbind", "rw"]]])
    return run_job({"job": "read", "mounts": mounts, "paths": list(paths), **job})


def test_files_and_what_is_not_there(snapshot: Path) -> None:
    found = read(snapshot, "/etc/passwd", "/etc/group", "/etc/passwd/x", stat=["/etc", "/none"])
    assert found["files"] == {
        "/etc/passwd": b"root:x:0:0\n",
        "/etc/group": None,
        "/etc/passwd/x": None,
    }
    assert found["stat"]["/etc"][0] == os.stat(snapshot / "etc").st_mode
    assert found["stat"]["/none"] is None


@pytest.mark.parametrize("target", ["{secret}", "../../secret", "../../../../../../{secret}"])
def test_sec_39_links_stay_inside(snapshot: Path, target: str) -> None:
    secret = snapshot.parent / "secret"
    os.symlink(target.replace("{secret}", str(secret)), snapshot / "etc" / "group")
    assert read(snapshot, "/etc/group")["files"] == {"/etc/group": None}
    inside = snapshot / str(secret).lstrip("/")
    inside.parent.mkdir(parents=True)
    inside.write_text("inside")
    (snapshot / "secret").write_text("inside")
    assert read(snapshot, "/etc/group")["files"] == {"/etc/group": b"inside"}


@pytest.mark.parametrize("target", ["{secret}", "../../secret"])
def test_sec_39_links_stay_inside_even_where_no_lock_holds(snapshot: Path, target: str) -> None:
    """The look-up alone, in a process whose root is the host's."""
    secret = snapshot.parent / "secret"
    os.symlink(target.replace("{secret}", str(secret)), snapshot / "etc" / "group")
    root_fd = os.open(snapshot, os.O_PATH)
    try:
        for path in ("/etc/group", "etc/group", str(secret), "../secret"):
            assert read_file(root_fd, path, 1000) is None
            assert stat_file(root_fd, path) is None
    finally:
        os.close(root_fd)


def test_sec_39_only_regular_files(snapshot: Path) -> None:
    os.mkfifo(snapshot / "fifo")
    os.mknod(snapshot / "zero", 0o20666, os.makedev(1, 5))
    os.symlink("loop", snapshot / "loop")
    for name in ("/fifo", "/zero", "/etc", "/loop"):
        with pytest.raises(LighterError) as caught:
            read(snapshot, name)
        assert caught.value.code in ("invalid-argument", "permission-denied"), name
        assert name in caught.value.message


def test_sec_39_at_most_max_bytes(snapshot: Path) -> None:
    with open(snapshot / "large", "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ResourceExhausted, match="large"):
        read(snapshot, "/large", max_bytes=1000)
    assert read(snapshot, "/etc/passwd", max_bytes=11)["files"]["/etc/passwd"]
    with pytest.raises(ResourceExhausted):
        read(snapshot, "/etc/passwd", max_bytes=10)


def test_a_result_of_any_size_goes_to_a_descriptor(snapshot: Path) -> None:
    content = os.urandom(5 << 20)
    (snapshot / "large").write_bytes(content)
    with pytest.raises(InvalidArgument, match="a packet"):
        read(snapshot, "/large")
    fd = os.memfd_create("result")
    job = {"job": "read", "mounts": [["bind", str(snapshot), []]], "paths": ["/large"]}
    answer = run_job(job, [fd])
    packed = os.pread(fd, answer["size_bytes"] + 1, 0)
    os.close(fd)
    assert msgpack.unpackb(packed) == {"files": {"/large": content}, "stat": {}}


@pytest.fixture
def overlay(tmp_path: Path) -> Iterator[list[str]]:
    """A mounted overlay, as below a running container; the options of its mount."""
    for name in ("lower", "upper", "work", "merged"):
        (tmp_path / name).mkdir()
    (tmp_path / "lower" / "old").write_text("old")
    (tmp_path / "lower" / "gone").write_text("gone")
    options = [f"{name}dir={tmp_path / name}" for name in ("lower", "upper", "work")]
    merged = tmp_path / "merged"
    subprocess.run(
        ["mount", "-t", "overlay", "-o", ",".join(options), "overlay", merged], check=True
    )
    try:
        (merged / "new").write_text("new")
        (merged / "gone").unlink()
        yield options
    finally:
        subprocess.run(["umount", merged], check=True)


def test_an_overlay_in_use_is_read_and_left_alone(tmp_path: Path, overlay: list[str]) -> None:
    before = sorted(os.listdir(tmp_path / "work"))
    found = read(tmp_path, "/old", "/new", "/gone", mounts=[["overlay", "overlay", overlay]])
    assert found["files"] == {"/old": b"old", "/new": b"new", "/gone": None}
    assert sorted(os.listdir(tmp_path / "work")) == before
    (tmp_path / "merged" / "later").write_text("still writable")


def test_many_layers_fit_the_mount_data(tmp_path: Path) -> None:
    layers = []
    for number in range(100):
        layer = tmp_path / f"layer-with-a-long-name-{number:03d}" / "fs"
        layer.mkdir(parents=True)
        (layer / "number").write_text(str(number))
        layers.append(str(layer))
    options = ["lowerdir=" + ":".join(layers)]
    assert len(options[0]) > 4096
    assert read(tmp_path, "/number", mounts=[["overlay", "overlay", options]])["files"] == {
        "/number": b"0"
    }


def test_the_upper_directory_becomes_the_nearest_lower() -> None:
    options = ["index=off", "lowerdir=/s/2:/s/1", "upperdir=/s/3", "workdir=/s/w", "rw"]
    directory, mounts = read_only([["overlay", "overlay", options]])
    assert directory == "/"
    flags = ["ro", "nosuid", "nodev", "noexec"]
    assert mounts == [("overlay", "overlay", ["index=off", "lowerdir=/s/3:/s/2:/s/1", *flags])]


@pytest.mark.parametrize("mounts", [[], [["bind", "/nowhere", []]], [["nofs", "x", []]]])
def test_a_mount_that_fails_is_an_error(tmp_path: Path, mounts: list[Any]) -> None:
    with pytest.raises(LighterError):
        read(tmp_path, "/x", mounts=mounts)
