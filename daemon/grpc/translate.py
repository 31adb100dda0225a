"""Values that several services share: times, labels, field masks, mounts, descriptors."""

import os
from collections.abc import Collection, Mapping

from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp

from lighter.daemon.grpc.pb import types_pb2
from lighter.daemon.types import Descriptor, Mount
from lighter.proto.errors import InvalidArgument, Unimplemented


def timestamp(ns: int) -> Timestamp:
    """Of nanoseconds since the epoch."""
    return Timestamp(seconds=ns // 1_000_000_000, nanos=ns % 1_000_000_000)


def moment(ns: int) -> Timestamp:
    """A time that may not have come: 0 stands for that, and is Go's zero time in containerd's
    answers. Clients print a time that is left out as 1970."""
    return timestamp(ns) if ns else Timestamp(seconds=-62135596800)


def set_time(message: Timestamp, ns: int) -> None:
    """Make it a time in nanoseconds since the epoch."""
    message.seconds, message.nanos = divmod(ns, 1_000_000_000)


def nanoseconds(at: Timestamp) -> int:
    return int(at.seconds) * 1_000_000_000 + int(at.nanos)


def labels_of_new(given: Mapping[str, str]) -> dict[str, str]:
    """What of a new object's labels is kept: containerd keeps none whose value is empty."""
    return {key: value for key, value in given.items() if value}


def label_changes(
    old: Mapping[str, str],
    new: Mapping[str, str],
    mask: FieldMask,
    what: str,
    fixed: Collection[str] = (),
) -> dict[str, str]:
    """What an update of labels changes; the value "" removes one.

    Without a mask, and with the path `labels`, the new ones take the place of all; `labels.NAME`
    changes one. `fixed` are further paths the caller handles. Raises InvalidArgument for any
    other path, as containerd does.
    """
    paths = list(mask.paths) or ["labels"]
    changes: dict[str, str] = {}
    for path in paths:
        if path == "labels":
            changes.update(dict.fromkeys(set(old) - set(new), ""), **new)
        elif path.startswith("labels."):
            name = path.removeprefix("labels.")
            changes[name] = new.get(name, "")
        elif path not in fixed:
            raise InvalidArgument(f'cannot update "{path}" field on {what}: invalid argument')
    return changes


def mount(given: types_pb2.Mount) -> Mount:
    """A client's mount. Raises Unimplemented for one that is to lie within another: without its
    target it would hide the whole of that."""
    if os.path.normpath(f"/{given.target}").strip("/"):
        raise Unimplemented(
            f"mount {given.source[:200]!a}: a target within the root file system, "
            f"{given.target[:200]!a}, is not taken"
        )
    return Mount(given.type, given.source, tuple(given.options))


def mount_message(of: Mount) -> types_pb2.Mount:
    return types_pb2.Mount(type=of.type, source=of.source, options=of.options)


def target(given: types_pb2.Descriptor) -> Descriptor:
    """A client's descriptor."""
    return Descriptor(given.media_type, given.digest, given.size, dict(given.annotations))


def descriptor(of: Descriptor) -> types_pb2.Descriptor:
    return types_pb2.Descriptor(
        media_type=of.media_type, digest=of.digest, size=of.size, annotations=of.annotations
    )
