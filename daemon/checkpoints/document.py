"""What a checkpoint is as an image: containerd's index, with one entry of our own.

    index ─┬─ …checkpoint.config.v1+proto         the container's spec, in protobuf's Any
           ├─ …criu.checkpoint.criu.tar           with a task: CRIU's files
           ├─ an OCI layer, gzipped               what the container has written to its root
           ├─ the container's image               its manifest or index
           └─ …lighter.container.checkpoint…      what stands beside the spec in our record

ctr and containerd know all but the last, which they pass over; what they made has none. Whoever
made it: these are bytes from outside, and the spec in them may ask for anything (see service.py).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lighter.daemon.images.documents import INDEXES, MANIFESTS, descriptor, load, parse
from lighter.daemon.types import Container, Descriptor
from lighter.proto.errors import InvalidArgument

# containerd, core/images/mediatypes.go and client/container.go
CRIU = "application/vnd.containerd.container.criu.checkpoint.criu.tar"
CONFIG = "application/vnd.containerd.container.checkpoint.config.v1+proto"
IMAGE_NAME = "org.opencontainers.image.ref.name"
RUNTIME_NAME = "io.containerd.checkpoint.runtime"
SNAPSHOTTER_NAME = "io.containerd.checkpoint.snapshotter"
_CONTAINERD_RUNC = "io.containerd.runc.v2"

RECORD = "application/vnd.lighter.container.checkpoint.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
_LAYERS = "application/vnd.oci.image.layer."

SPEC_TYPE = "types.containerd.io/opencontainers/runtime-spec/1/Spec"

# Of the options of a container: what another one made of it has too. Not: --rm, whose container
# would be gone with its first end, and what belongs to a place or to ids.
_OPTIONS = frozenset(
    (
        *("log", "stdin_open", "terminal", "network", "joins", "restart", "stop_timeout_s"),
        *("stop_signal", "health", "volumes", "userns"),
    )
)


@dataclass(frozen=True)
class Record:
    """`parent`: the snapshot that the container's files stood on, "" where nobody knows."""

    runtime: str
    snapshotter: str
    parent: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Checkpoint:
    """A parsed index. What is None is not in it."""

    image: str
    runtime: str
    snapshotter: str
    config: Descriptor
    criu: Descriptor | None = None
    layer: Descriptor | None = None
    base: Descriptor | None = None
    record: Descriptor | None = None


def record_of(container: Container, parent: str) -> bytes:
    kept = {key: value for key, value in container.options.items() if key in _OPTIONS}
    body = {
        "runtime": container.runtime,
        "snapshotter": container.snapshotter,
        "parent": parent,
        "labels": dict(container.labels),
        "options": kept,
    }
    return json.dumps(body, separators=(",", ":")).encode()


def read_record(data: bytes) -> Record:
    """Raises InvalidArgument."""
    body = load(data, "record of a checkpoint")
    texts = [body.get(name, "") for name in ("runtime", "snapshotter", "parent")]
    labels, options = body.get("labels", {}), body.get("options", {})
    plain = all(isinstance(text, str) for text in texts) and isinstance(options, dict)
    if not plain or not isinstance(labels, dict):
        raise InvalidArgument("parse record of a checkpoint: it is none")
    if not all(isinstance(value, str) for value in labels.values()):
        raise InvalidArgument("parse record of a checkpoint: its labels are no texts")
    known = {key: value for key, value in options.items() if key in _OPTIONS}
    runtime, snapshotter, parent = texts
    return Record(runtime, snapshotter, parent, labels, known)


def annotations(container: Container) -> dict[str, str]:
    """What containerd looks for to make a container of it."""
    runtime = container.runtime
    return {
        IMAGE_NAME: container.image,
        RUNTIME_NAME: _CONTAINERD_RUNC if runtime == "runc" else runtime,
        SNAPSHOTTER_NAME: container.snapshotter,
    }


def parse_index(data: bytes, target: Descriptor) -> Checkpoint:
    """Raises InvalidArgument for an image that is no checkpoint."""
    what = f"checkpoint {target.digest}"
    if target.media_type not in INDEXES:
        raise InvalidArgument(f"parse {what}: the image is no checkpoint")
    parse(data, target.media_type, what)
    document = load(data, what)
    entries = [descriptor(value, what) for value in document["manifests"]]
    notes = document.get("annotations") or {}
    if not isinstance(notes, dict):
        raise InvalidArgument(f"parse {what}: its annotations are none")
    config = _one(entries, what, lambda one: one.media_type == CONFIG)
    if config is None:
        raise InvalidArgument(f"parse {what}: it has no specification, so it is no checkpoint")
    return Checkpoint(
        image=str(notes.get(IMAGE_NAME) or ""),
        runtime=str(notes.get(RUNTIME_NAME) or ""),
        snapshotter=str(notes.get(SNAPSHOTTER_NAME) or ""),
        config=config,
        criu=_one(entries, what, lambda one: one.media_type == CRIU),
        layer=_one(entries, what, lambda one: one.media_type.startswith(_LAYERS)),
        base=_one(entries, what, lambda one: one.media_type in INDEXES | MANIFESTS),
        record=_one(entries, what, lambda one: one.media_type == RECORD),
    )


def _one(entries: list[Descriptor], what: str, is_it: Any) -> Descriptor | None:
    found = [one for one in entries if is_it(one)]
    if len(found) > 1:
        raise InvalidArgument(f"parse {what}: it has {found[0].media_type} {len(found)} times")
    return found[0] if found else None


def pack_spec(spec: bytes) -> bytes:
    from google.protobuf.any_pb2 import Any as AnyMessage  # loaded when one is written or read

    return AnyMessage(type_url=SPEC_TYPE, value=spec).SerializeToString()


def unpack_spec(data: bytes) -> str:
    """The spec's text. Raises InvalidArgument."""
    from google.protobuf.any_pb2 import Any as AnyMessage
    from google.protobuf.message import DecodeError

    try:
        value = AnyMessage.FromString(data)
        text = value.value.decode()
    except (DecodeError, UnicodeDecodeError) as err:
        raise InvalidArgument("parse specification of a checkpoint: it is malformed") from err
    if value.type_url != SPEC_TYPE:
        raise InvalidArgument(
            f"parse specification of a checkpoint: it is {value.type_url[:80]!r}, no OCI spec"
        )
    return text
