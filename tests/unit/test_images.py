"""The test image is what it says: whole, named, reproducible, with the modes tests rely on."""

import gzip
import hashlib
import io
import json
import tarfile
from pathlib import Path

import pytest

from tests import images


def unpacked(*, compressed: bool) -> dict[str, bytes]:
    raw = images.busybox_archive(compressed=compressed).read_bytes()
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(raw) if compressed else raw)) as tar:
        files = {member.name: tar.extractfile(member) for member in tar if member.isfile()}
        return {name: file.read() for name, file in files.items() if file is not None}


@pytest.mark.parametrize("compressed", [False, True])
def test_every_blob_has_its_digest_and_every_descriptor_its_blob(compressed: bool) -> None:
    files = unpacked(compressed=compressed)
    blobs = {name.split("/")[2]: data for name, data in files.items() if name.startswith("blobs/")}
    assert all(hashlib.sha256(data).hexdigest() == name for name, data in blobs.items())
    (described,) = json.loads(files["index.json"])["manifests"]
    assert described["annotations"]["io.containerd.image.name"] == images.REFERENCE
    manifest = json.loads(blobs[described["digest"].split(":")[1]])
    for descriptor in (manifest["config"], *manifest["layers"]):
        assert len(blobs[descriptor["digest"].split(":")[1]]) == descriptor["size"]
    config = json.loads(blobs[manifest["config"]["digest"].split(":")[1]])
    stored = blobs[manifest["layers"][0]["digest"].split(":")[1]]
    layer = gzip.decompress(stored) if compressed else stored
    assert config["rootfs"]["diff_ids"] == [f"sha256:{hashlib.sha256(layer).hexdigest()}"]
    with tarfile.open(fileobj=io.BytesIO(layer)) as tar:
        assert tar.getmember("tmp").mode == 0o1777
        assert tar.getmember("home/user").uid == 1000
        assert tar.getmember("bin/sh").mode & 0o111


def test_it_is_made_the_same_again(tmp_path: Path) -> None:
    first = images.busybox_archive(cache_dir=tmp_path / "a")
    second = images.busybox_archive(cache_dir=tmp_path / "b")
    assert first.name == second.name
    assert first.read_bytes() == second.read_bytes()
