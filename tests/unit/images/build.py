"""Image archives of a test's own: OCI layouts and what docker save writes."""

import gzip
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
HOST = {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine]
NAME = "io.containerd.image.name"
REF = "org.opencontainers.image.ref.name"


def as_json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def sha256(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def tar(files: Mapping[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), 0o644
            archive.addfile(entry, io.BytesIO(data))
    return out.getvalue()


class Layout:
    """An OCI image layout. `blobs` by digest; change it freely before `archive`."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.manifests: list[dict[str, Any]] = []

    def add(self, media_type: str, data: bytes) -> dict[str, Any]:
        digest = sha256(data)
        self.blobs[digest] = data
        return {"mediaType": media_type, "digest": digest, "size": len(data)}

    def image(
        self,
        layers: Sequence[Mapping[str, bytes]],
        arch: str = HOST,
        *,
        compressed: bool = False,
        diff_ids: Sequence[str] | None = None,
        blobs: Sequence[bytes] = (),
        media_type: str = LAYER,
    ) -> dict[str, Any]:
        """Add an image, with `blobs` as its layers if given; returns its manifest's descriptor."""
        tars = list(blobs) or [tar(files) for files in layers]
        config = {
            "architecture": arch,
            "os": "linux",
            "config": {"Cmd": ["sh"]},
            "rootfs": {"type": "layers", "diff_ids": diff_ids or [sha256(data) for data in tars]},
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": self.add(CONFIG, as_json(config)),
            "layers": [
                self.add(LAYER + "+gzip", gzip.compress(data, mtime=0))
                if compressed
                else self.add(media_type, data)
                for data in tars
            ],
        }
        return self.add(MANIFEST, as_json(manifest))

    def artifact(self) -> dict[str, Any]:
        """Add what is no image and says no platform; returns its manifest's descriptor."""
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "artifactType": "application/vnd.example.sbom",
            "config": self.add("application/vnd.oci.empty.v1+json", b"{}"),
            "layers": [self.add("application/spdx+json", b"{}")],
        }
        return self.add(MANIFEST, as_json(manifest))

    def index(self, *entries: tuple[dict[str, Any], str]) -> dict[str, Any]:
        """Add an index of (descriptor, architecture); returns its descriptor."""
        listed = [
            {**described, "platform": {"os": "linux", "architecture": arch}}
            for described, arch in entries
        ]
        return self.add(INDEX, as_json({"schemaVersion": 2, "manifests": listed}))

    def list(self, described: dict[str, Any], **annotations: str) -> None:
        """Put an image into index.json under annotations: name=…, ref=…"""
        keys = {"name": NAME, "ref": REF}
        named = {keys[key]: text for key, text in annotations.items()}
        self.manifests.append({**described, "annotations": named} if named else described)

    def archive(self) -> bytes:
        files = {
            "oci-layout": b'{"imageLayoutVersion":"1.0.0"}',
            "index.json": as_json({"schemaVersion": 2, "manifests": self.manifests}),
        }
        for digest, data in self.blobs.items():
            files["blobs/" + digest.replace(":", "/")] = data
        return tar(files)


def docker_save(
    layers: Sequence[Mapping[str, bytes]],
    tags: Sequence[str],
    pack: Callable[[bytes], bytes] = bytes,
) -> bytes:
    """What docker save wrote before version 25; `pack` compresses a layer."""
    tars = [tar(files) for files in layers]
    config = as_json(
        {
            "architecture": HOST,
            "os": "linux",
            "rootfs": {"type": "layers", "diff_ids": [sha256(data) for data in tars]},
        }
    )
    config_name = hashlib.sha256(config).hexdigest() + ".json"
    paths = [f"{number}/layer.tar" for number in range(len(tars))]
    listed = [{"Config": config_name, "RepoTags": list(tags), "Layers": paths}]
    return tar(
        {
            config_name: config,
            **dict(zip(paths, map(pack, tars), strict=True)),
            "manifest.json": as_json(listed),
            "repositories": b"{}",
        }
    )
