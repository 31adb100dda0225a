"""The test image with one more layer and other words in its config."""

import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tests import images
from tests.harness import Lighterd

_LAYER = "application/vnd.oci.image.layer.v1.tar"
Files = Iterable[tuple[tarfile.TarInfo, bytes]]


def entry(
    path: str, kind: bytes = tarfile.REGTYPE, mode: int = 0o644, **more: Any
) -> tarfile.TarInfo:
    """One file of a layer; `more` sets any field of TarInfo."""
    made = tarfile.TarInfo(path)
    made.type, made.mode, made.mtime = kind, mode, 1_000_000_000
    for name, value in more.items():
        setattr(made, name, value)
    return made


def import_image(
    lighterd: Lighterd, folder: Path, name: str, files: Files, config: Mapping[str, Any]
) -> str:
    """Import an image `name` whose config has `config` too; returns its full name."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for info, content in files:
            info.size = len(content) if info.isreg() else 0
            tar.addfile(info, io.BytesIO(content))
    with tarfile.open(images.busybox_archive()) as base:
        blobs = {item.name: base.extractfile(item).read() for item in base if item.isfile()}  # type: ignore[union-attr]
    index = json.loads(blobs["index.json"])
    manifest = json.loads(blobs[_path(index["manifests"][0]["digest"])])
    said = json.loads(blobs[_path(manifest["config"]["digest"])])
    said["config"].update(config)
    said["rootfs"]["diff_ids"].append("sha256:" + hashlib.sha256(layer.getvalue()).hexdigest())
    manifest["layers"].append(_put(blobs, layer.getvalue(), _LAYER))
    manifest["config"] = _put(blobs, _json(said), manifest["config"]["mediaType"])
    described = _put(blobs, _json(manifest), manifest["mediaType"])
    full = f"docker.io/library/{name}:test"
    described["annotations"] = {"io.containerd.image.name": full}
    blobs["index.json"] = _json({"schemaVersion": 2, "manifests": [described]})
    archive = folder / f"{name}.tar"
    with tarfile.open(archive, "w") as tar:
        for path, content in blobs.items():
            tar.addfile(entry(path, size=len(content)), io.BytesIO(content))
    lighterd.ctl("images", "import", str(archive), check=True, timeout=60)
    return full


def _path(digest: str) -> str:
    return "blobs/" + digest.replace(":", "/")


def _put(blobs: dict[str, bytes], content: bytes, media_type: str) -> dict[str, Any]:
    digest = "sha256:" + hashlib.sha256(content).hexdigest()
    blobs[_path(digest)] = content
    return {"mediaType": media_type, "digest": digest, "size": len(content)}


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()
