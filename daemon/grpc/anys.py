"""google.protobuf.Any, and how one is kept in a record: [type url, base64 of the value]."""

import base64
from typing import Any as Anything

from google.protobuf.any_pb2 import Any
from google.protobuf.message import DecodeError, Message

from lighter.proto.errors import InvalidArgument

SPEC = "types.containerd.io/opencontainers/runtime-spec/1/Spec"
PROCESS = "types.containerd.io/opencontainers/runtime-spec/1/Process"
RESOURCES = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources"


def pack(message: Message) -> Any:
    """As containerd names types: by the message's full name alone."""
    return Any(type_url=message.DESCRIPTOR.full_name, value=message.SerializeToString())


def name_of(value: Any) -> str:
    """The message that it holds; some clients write a host before it."""
    return str(value.type_url).rpartition("/")[2]


def unpack(value: Any, message: Message) -> None:
    """Fill `message` from a value of its type. Raises InvalidArgument."""
    if name_of(value) != message.DESCRIPTOR.full_name:
        raise InvalidArgument(
            f"read {message.DESCRIPTOR.full_name}: got {value.type_url or 'no type'}"
        )
    try:
        message.ParseFromString(value.value)
    except DecodeError as err:
        raise InvalidArgument(f"read {message.DESCRIPTOR.full_name}: it is malformed") from err


def to_record(value: Any) -> list[str]:
    return [value.type_url, base64.b64encode(value.value).decode()]


def fill(message: Any, record: Anything) -> None:
    """Make it what a record keeps."""
    type_url, value = record
    message.type_url = type_url
    message.value = base64.b64decode(value)
