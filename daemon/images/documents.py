"""Indexes, manifests and configs, strictly (OCI image-spec v1.1; Docker manifest v2, schema 2).

These are content: bytes that somebody else chose. A document that two readers could take for two
things is refused (SEC-20): a key twice in one object, a body of both kinds, a media type inside
that is not the one it came under. Whatever the bytes, the answer is a value or InvalidArgument.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from lighter.daemon import jsonbounds
from lighter.daemon.content.digest import Digest
from lighter.daemon.types import Descriptor
from lighter.proto.errors import InvalidArgument

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"
DOCKER_LAYER_GZIP = "application/vnd.docker.image.rootfs.diff.tar.gzip"

INDEXES = frozenset({OCI_INDEX, DOCKER_INDEX})
MANIFESTS = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
CONFIGS = frozenset({OCI_CONFIG, DOCKER_CONFIG})

# Layers that their makers let only their own servers hand out (image-spec, layer.md), Docker's too.
_NON_DISTRIBUTABLE = ("application/vnd.oci.image.layer.nondistributable.", "foreign.diff.tar")

# An index or manifest; registries refuse above 4 MiB. A config carries the whole history.
MAX_DOCUMENT_BYTES = 8 << 20
MAX_LAYERS = 4096

_ESCAPED_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


@dataclass(frozen=True)
class Manifest:
    """One image for one platform: its config and its layers, lowest first."""

    config: Descriptor
    layers: tuple[Descriptor, ...]


@dataclass(frozen=True)
class Index:
    """A choice of manifests (or of further indexes)."""

    manifests: tuple[Descriptor, ...]


def is_non_distributable(descriptor: Descriptor) -> bool:
    """Whether it is a layer that is not to be handed on, and often is not here."""
    return any(word in descriptor.media_type for word in _NON_DISTRIBUTABLE)


def load(data: bytes, what: str) -> dict[str, Any]:
    """The JSON object in `data`. Raises InvalidArgument as "parse <what>: cause"."""
    value = load_any(data, what)
    if not isinstance(value, dict):
        _refuse(what, "it is not a JSON object")
    return value


def load_any(data: bytes, what: str) -> Any:
    """The JSON value in `data`. Raises InvalidArgument."""
    if len(data) > MAX_DOCUMENT_BYTES:
        _refuse(what, f"it has {len(data)} bytes, at most {MAX_DOCUMENT_BYTES} are allowed")
    try:
        jsonbounds.check_values(data)
        # json takes UTF-16 and byte-order marks in bytes, so it is given text.
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_int=jsonbounds.integer,
            parse_constant=_no_constant,
        )
        if _ESCAPED_SURROGATE.search(data):
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except RecursionError:
        _refuse(what, "it is nested too deeply")
    except ValueError as err:  # JSON, UTF-8, too much of it, and our own
        _refuse(what, str(err)[:200])
    return value


def parse(data: bytes, media_type: str, what: str) -> Manifest | Index:
    """A document that came under `media_type`. Raises InvalidArgument."""
    if media_type not in INDEXES | MANIFESTS:
        _refuse(what, f"{media_type!r} is neither an index nor a manifest")
    document = load(data, what)
    if type(document.get("schemaVersion")) is not int or document["schemaVersion"] != 2:
        _refuse(what, f"schemaVersion is {str(document.get('schemaVersion'))[:20]!r}, not 2")
    inside = document.get("mediaType", media_type)
    if inside != media_type:
        _refuse(what, f"it says that it is {str(inside)[:100]!r} and came as {media_type!r}")
    if "manifests" in document and ("layers" in document or "config" in document):
        _refuse(what, "it is ambiguous: it has both manifests and layers or config")
    if media_type in INDEXES:
        return Index(_descriptors(document, "manifests", what))
    config = descriptor(document.get("config"), f"{what}: config")
    return Manifest(config, _descriptors(document, "layers", what))


def descriptor(value: object, what: str) -> Descriptor:
    """One content descriptor. Raises InvalidArgument."""
    if not isinstance(value, dict):
        _refuse(what, "the descriptor is not an object")
    media_type, size = value.get("mediaType"), value.get("size")
    if not isinstance(media_type, str) or not media_type:
        _refuse(what, "the descriptor has no mediaType")
    if type(size) is not int or not 0 <= size < 1 << 63:
        _refuse(what, f"the descriptor's size is {str(size)[:40]!r}")
    try:
        digest = Digest.parse(value.get("digest"))
    except InvalidArgument as err:
        _refuse(what, err.message)
    return Descriptor(
        media_type=media_type,
        digest=digest,
        size=size,
        annotations=_texts(value.get("annotations"), f"{what}: annotations"),
        platform=_platform(value.get("platform"), what),
    )


def diff_ids(config: Mapping[str, Any], what: str) -> tuple[Digest, ...]:
    """The digests of an image's unpacked layers, from its config. Raises InvalidArgument."""
    rootfs = config.get("rootfs")
    if not isinstance(rootfs, dict) or rootfs.get("type") != "layers":
        _refuse(what, "rootfs.type is not 'layers'")
    listed = rootfs.get("diff_ids")
    if listed is None:
        return ()
    if not isinstance(listed, list) or len(listed) > MAX_LAYERS:
        _refuse(what, "rootfs.diff_ids is not a list of digests")
    try:
        return tuple(map(Digest.parse, listed))
    except InvalidArgument as err:
        _refuse(what, err.message)


def _descriptors(document: Mapping[str, Any], key: str, what: str) -> tuple[Descriptor, ...]:
    listed = document.get(key, False)
    if listed is None:  # how Go writes a list of none
        return ()
    if not isinstance(listed, list):
        _refuse(what, f"{key} is not a list")
    if len(listed) > MAX_LAYERS:
        _refuse(what, f"{key} has {len(listed)} entries, at most {MAX_LAYERS} are allowed")
    return tuple(
        descriptor(value, f"{what}: {key}[{number}]") for number, value in enumerate(listed)
    )


def _platform(value: object, what: str) -> Mapping[str, Any] | None:
    if value is None:
        return None
    if not isinstance(value, dict):
        _refuse(what, "platform is not an object")
    for key in ("os", "architecture"):
        if not isinstance(value.get(key), str):
            _refuse(what, f"platform.{key} is not a text")
    if not isinstance(value.get("variant", ""), str):
        _refuse(what, "platform.variant is not a text")
    return {key: value[key] for key in ("os", "architecture", "variant") if value.get(key)}


def _texts(value: object, what: str) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        _refuse(what, "not an object of texts")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"key {key[:60]!r} stands twice in one object")
        found[key] = value
    return found


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")


def _refuse(what: str, cause: str) -> NoReturn:
    raise InvalidArgument(f"parse {what}: {cause}")
