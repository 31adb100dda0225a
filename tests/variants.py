"""The test image with another config, or with a layer on top: what an image's author may write."""

import io
import json
import tarfile
from collections.abc import Mapping
from typing import Any

from tests.images import REFERENCE, busybox_archive
from tests.unit.images.build import CONFIG, LAYER, MANIFEST, Layout, as_json, sha256, tar

NAME = "docker.io/library/variant:1"


def variant(
    files: Mapping[str, bytes] | None = None,
    *,
    layer: bytes | None = None,
    name: str = NAME,
    **config: Any,
) -> bytes:
    """An OCI archive: busybox, `files` or the tar `layer` above it, `config` over its own config.

    The keys of `config` are those of OCI image-spec's "config" object (User, Env, Labels, …).
    """
    with tarfile.open(busybox_archive()) as archive:
        blobs = _Blobs(archive)
        manifest = blobs.json(blobs.read_json("index.json")["manifests"][0])
        made = blobs.json(manifest["config"])
        layers = [blobs.data(descriptor) for descriptor in manifest["layers"]]
    if files is not None or layer is not None:
        layers.append(tar(files) if layer is None else layer)
    made["config"].update(config)
    made["rootfs"]["diff_ids"] = [sha256(data) for data in layers]
    made.pop("history", None)
    layout = Layout()
    document = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": layout.add(CONFIG, as_json(made)),
        "layers": [layout.add(LAYER, data) for data in layers],
    }
    layout.list(layout.add(MANIFEST, as_json(document)), name=name)
    return layout.archive()


class _Blobs:
    def __init__(self, archive: tarfile.TarFile) -> None:
        self._archive = archive

    def read_json(self, path: str) -> Any:
        reader = self._archive.extractfile(path)
        assert reader is not None
        return json.loads(reader.read())

    def data(self, descriptor: Mapping[str, Any]) -> bytes:
        path = "blobs/" + descriptor["digest"].replace(":", "/")
        reader = self._archive.extractfile(path)
        assert reader is not None
        return reader.read()

    def json(self, descriptor: Mapping[str, Any]) -> Any:
        return json.loads(self.data(descriptor))


def tar_of(*entries: tarfile.TarInfo) -> bytes:
    """A tar of entries without content: links, devices, directories."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for entry in entries:
            archive.addfile(entry)
    return out.getvalue()


__all__ = ["NAME", "REFERENCE", "tar_of", "variant"]
