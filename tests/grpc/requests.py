"""Requests that real clients have sent, and damaged ones made of them.

    requests/<service>.<method>     a request a line, in base64

requests/README.md tells how they are recorded (record.py).
"""

import base64
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message

from tests.security.fuzzing import mutated

FOLDER = Path(__file__).with_name("requests")
# Where a damaged path is a real one, a container's process or a layer would be let loose on it.
LEFT_ALONE = "containerd.types.Mount"

Value = Callable[[FieldDescriptor, random.Random], Any]
Requests = dict[str, list[bytes]]


def read(folder: Path = FOLDER) -> Requests:
    """By full name of the method, "service/method"."""
    found = {}
    for path in sorted(folder.iterdir()):
        if path.suffix != ".md":
            service, _, method = path.name.rpartition(".")
            lines = path.read_text().splitlines()
            found[f"{service}/{method}"] = [base64.b64decode(line) for line in lines]
    return found


def write(requests: Requests, folder: Path = FOLDER) -> None:
    for name, made in requests.items():
        lines = [
            base64.b64encode(one).decode() for one in sorted(made, key=lambda one: (len(one), one))
        ]
        (folder / name.replace("/", ".")).write_text("".join(f"{line}\n" for line in lines))


def damaged(data: bytes, kind: type[Message] | None, choose: random.Random, value: Value) -> bytes:
    """One to four fields of it are others, or its bytes are where nothing of it is a mount.

    `value` makes what a field may hold.
    """
    message = None if kind is None else kind()
    try:
        if message is not None:
            message.ParseFromString(data)
    except DecodeError:
        message = None
    if message is None or not message.DESCRIPTOR.fields:
        return mutated(data, [data], choose)
    if choose.random() < 0.3 and not has_mounts(message):
        return mutated(data, [data], choose)
    for _ in range(choose.randint(1, 4)):
        holder, field = choose.choice(list(fields(message)))
        _change(holder, field, choose, value)
    return message.SerializeToString()


def fields(message: Message) -> Iterator[tuple[Message, FieldDescriptor]]:
    """All that it has set and all that it could, mounts aside."""
    for field in message.DESCRIPTOR.fields:
        kind = field.message_type
        if kind is not None and kind.full_name == LEFT_ALONE:
            continue
        yield message, field
        if kind is None or kind.GetOptions().map_entry:
            continue
        held = getattr(message, field.name)
        for one in held if field.is_repeated else [held] * message.HasField(field.name):
            yield from fields(one)


def has_mounts(message: Message) -> bool:
    kinds = [field.message_type for field in message.DESCRIPTOR.fields if field.message_type]
    return any(kind.full_name == LEFT_ALONE for kind in kinds)


def _change(holder: Message, field: FieldDescriptor, choose: random.Random, value: Value) -> None:
    kind = field.message_type
    old = getattr(holder, field.name)
    if choose.random() < 0.2:
        holder.ClearField(field.name)
    elif kind is not None and kind.GetOptions().map_entry:
        key, held = (kind.fields_by_name[name] for name in ("key", "value"))
        if held.message_type is None:
            old[value(key, choose)] = value(held, choose)
    elif field.is_repeated:
        for _ in range(choose.choice([1, 1, 100])):
            one = value(field, choose)
            old.add().CopyFrom(one) if kind else old.append(one)
    elif kind is not None:
        old.CopyFrom(value(field, choose))
    elif isinstance(old, bytes) and old:
        setattr(holder, field.name, mutated(old, [old], choose))
    elif isinstance(old, str) and old and choose.random() < 0.5:
        text = mutated(old.encode(), [old.encode()], choose).decode(errors="ignore")
        setattr(holder, field.name, text)
    else:
        setattr(holder, field.name, value(field, choose))
