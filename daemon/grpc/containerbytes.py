"""A recorded container as bytes of an answer.

Every answer that holds a container has it as field 1. So the bytes of that field are a whole
answer of Get, and those of many, one after the other, one of List.

Nothing is kept that could be out of date: what stands before the spec is a function of the row's
other columns, and is remembered by them. The spec, the most of a record, is copied as it was read.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from google.protobuf.any_pb2 import Any as Any_

from lighter.daemon.grpc import anys
from lighter.daemon.grpc.pb import containers_pb2 as pb
from lighter.daemon.grpc.translate import set_time
from lighter.daemon.metadata.containers import Stored
from lighter.daemon.types import Container

_REMEMBERED = 2048
_MOST_CHARACTERS = 4096  # of labels and options that are remembered

# Tags (https://protobuf.dev/programming-guides/encoding/): the number of a field and 2, bytes.
_CONTAINER = bytes([1 << 3 | 2])
_SPEC = bytes([pb.Container.SPEC_FIELD_NUMBER << 3 | 2])
_VALUE = bytes([Any_.VALUE_FIELD_NUMBER << 3 | 2])


def parts(stored: Stored) -> tuple[bytes, bytes]:
    """Field 1 of an answer, to be joined."""
    spec = bytes(stored.spec)
    beside = stored[:-1]
    if _is_short(stored.labels, stored.options):
        return _before_spec(beside, len(spec)), spec
    return _before_spec.__wrapped__(beside, len(spec)), spec


def _is_short(*texts: object) -> bool:
    """Whether these are texts, which those of a damaged row need not be, and not long."""
    return all(isinstance(text, str) and len(text) <= _MOST_CHARACTERS // 2 for text in texts)


@lru_cache(_REMEMBERED)
def _before_spec(beside: tuple[Any, ...], spec_bytes: int) -> bytes:
    """The bytes of the field up to the spec itself, with which it ends."""
    container = Stored._make((*beside, b"")).read()
    message = pb.Container()
    _fill_beside_spec(message, container)
    others = message.SerializeToString()
    kind = Any_(type_url=_spec_type(container)).SerializeToString()
    value = _VALUE + _varint(spec_bytes)
    any_bytes = _varint(len(kind) + len(value) + spec_bytes)
    head = b"".join((others, _SPEC, any_bytes, kind, value))
    return _CONTAINER + _varint(len(head) + spec_bytes) + head


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def fill(message: pb.Container, container: Container) -> None:
    """Make it what is recorded."""
    _fill_beside_spec(message, container)
    message.spec.type_url = _spec_type(container)
    message.spec.value = container.spec


def _spec_type(container: Container) -> str:
    return str(container.options.get("spec_type", anys.SPEC))


def _fill_beside_spec(message: pb.Container, container: Container) -> None:
    """Field by field in place: copies of values take three times as long."""
    options: Mapping[str, Any] = container.options
    message.id = container.id
    message.labels.update(container.labels)
    message.image = container.image
    message.runtime.name = container.runtime
    if options.get("runtime_options"):
        anys.fill(message.runtime.options, options["runtime_options"])
    message.snapshotter = container.snapshotter
    message.snapshot_key = container.snapshot_key
    set_time(message.created_at, container.created_at)
    set_time(message.updated_at, container.updated_at)
    for name, value in (options.get("extensions") or {}).items():
        anys.fill(message.extensions[name], value)
    message.sandbox = options.get("sandbox", "")
