"""What `docker save` writes, as images: manifest.json lists configs, tags and layers by path.

    [{"Config": "<hex>.json", "RepoTags": ["busybox:1"], "Layers": ["<id>/layer.tar", …]}, …]

There is no manifest in such an archive, so one is made, as containerd's import does.
"""

import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, NoReturn

from lighter.daemon.content.digest import Digest
from lighter.daemon.images import reference
from lighter.daemon.images.arrived import Arrived
from lighter.daemon.images.documents import (
    DOCKER_CONFIG,
    DOCKER_LAYER,
    DOCKER_LAYER_GZIP,
    DOCKER_MANIFEST,
    MAX_DOCUMENT_BYTES,
    MAX_LAYERS,
    load,
    load_any,
)
from lighter.daemon.types import Descriptor
from lighter.proto.errors import InvalidArgument, NotFound
from lighter.proto.references import DEFAULT_REGISTRY

MAX_IMAGES = 1024

# Of an uncompressed layer's digest, makes that of its gzip.
Compress = Callable[[Digest], Awaitable[Digest]]

# Docker's tag, in full, and OCI's: the annotations that carry names in an index.
NAME_ANNOTATION = "io.containerd.image.name"
REF_ANNOTATION = "org.opencontainers.image.ref.name"


def tag_of(name: str) -> str:
    """The tag in an image's name, "" where there is none."""
    return name.partition("@")[0].rpartition("/")[2].partition(":")[2]


def docker_tag(name: str) -> str:
    """A name as docker shows it ("busybox:1"), for RepoTags; "" for what docker calls no tag."""
    try:
        full = reference.normalise(name)
    except InvalidArgument:
        return ""
    if "@" in full:
        return ""
    return full.removeprefix(f"{DEFAULT_REGISTRY}/").removeprefix("library/")


async def targets(
    arrived: Arrived, data: bytes, compress: Compress | None = None
) -> tuple[Descriptor, ...]:
    """A descriptor per image and tag, its manifest added to `arrived`. Raises InvalidArgument.

    `compress` puts a compressed copy of a plain layer into `arrived`.
    """
    listed = load_any(data, "manifest.json")
    if not isinstance(listed, list) or not 0 < len(listed) <= MAX_IMAGES:
        _refuse(f"it is not a list of 1 to {MAX_IMAGES} images")
    found: list[Descriptor] = []
    for entry in listed:
        found += await _image(arrived, entry, compress)
    return tuple(found)


async def _image(arrived: Arrived, entry: object, compress: Compress | None) -> list[Descriptor]:
    if not isinstance(entry, dict) or not isinstance(entry.get("Config"), str):
        _refuse("an entry has no Config")
    layers = _paths(entry, "Layers")
    config = _descriptor(arrived, DOCKER_CONFIG, arrived.named(entry["Config"]))
    described = [await _layer(arrived, path, compress) for path in layers]
    document = {
        "schemaVersion": 2,
        "mediaType": DOCKER_MANIFEST,
        "config": config,
        "layers": described,
    }
    data = json.dumps(document, separators=(",", ":")).encode()
    target = Descriptor(
        media_type=DOCKER_MANIFEST,
        digest=await arrived.add(data),
        size=len(data),
        platform=await _platform(arrived, config["digest"]),
    )
    tags = [reference.normalise(tag) for tag in _paths(entry, "RepoTags")]
    if not tags:
        return [target]
    return [
        replace(
            target,
            annotations={NAME_ANNOTATION: tag, REF_ANNOTATION: tag.rpartition(":")[2]},
        )
        for tag in tags
    ]


async def _layer(arrived: Arrived, path: str, compress: Compress | None) -> dict[str, Any]:
    digest = arrived.named(path)
    is_gzip = (await arrived.begins(digest)).startswith(b"\x1f\x8b")
    if compress is not None and not is_gzip:
        digest, is_gzip = await compress(digest), True
    return _descriptor(arrived, DOCKER_LAYER_GZIP if is_gzip else DOCKER_LAYER, digest)


def _descriptor(arrived: Arrived, media_type: str, digest: str) -> dict[str, Any]:
    size = arrived.size(digest)
    if size is None:
        raise NotFound(f"import archive: content {digest} is missing")
    return {"mediaType": media_type, "size": size, "digest": digest}


async def _platform(arrived: Arrived, config_digest: str) -> dict[str, str] | None:
    data = await arrived.read(config_digest, MAX_DOCUMENT_BYTES)
    config = load(data, f"config {config_digest}")
    found = {key: config.get(key) for key in ("os", "architecture", "variant")}
    texts = {key: value for key, value in found.items() if isinstance(value, str) and value}
    return texts if "os" in texts and "architecture" in texts else None


def _paths(entry: dict[str, Any], key: str) -> list[str]:
    listed = entry.get(key) or []
    if (
        not isinstance(listed, list)
        or len(listed) > MAX_LAYERS
        or not all(isinstance(item, str) for item in listed)
    ):
        _refuse(f"{key} is not a list of texts")
    return listed


def _refuse(cause: str) -> NoReturn:
    raise InvalidArgument(f"parse manifest.json: {cause}")
