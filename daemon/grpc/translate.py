"""Values that several services share: times, labels, field masks."""

from collections.abc import Collection, Mapping

from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp

from lighter.proto.errors import InvalidArgument


def timestamp(ns: int) -> Timestamp:
    """Of nanoseconds since the epoch."""
    return Timestamp(seconds=ns // 1_000_000_000, nanos=ns % 1_000_000_000)


def nanoseconds(at: Timestamp) -> int:
    return int(at.seconds) * 1_000_000_000 + int(at.nanos)


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
