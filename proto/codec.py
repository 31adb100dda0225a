"""Messages to frames and back: the wire format of PROTOCOL.md, with no socket in sight.

A message is two frames: one byte that is the version, one msgpack array `[kind, generation, …]`.
Version 0 is the handshake (welcome, hello), whose layout never changes; the others speak the
version that the handshake chose. Whatever comes in is checked here, field by field, so that the
code behind sees well-formed messages or none.
"""

from __future__ import annotations

from lighter.proto import packing
from lighter.proto.compat import PROTOCOLS
from lighter.proto.errors import ResourceExhausted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NamedTuple
else:
    from lighter.proto.light import NamedTuple

HANDSHAKE = 0
SUPPORTED = PROTOCOLS
VERSION = max(SUPPORTED)

MAX_MESSAGE_BYTES = 16 * 1024 * 1024
MAX_DEPTH = 64
MAX_ITEMS = 1_000_000
_MAX_ID = (1 << 63) - 1


class ProtocolError(Exception):
    """Bytes that are no message of ours. The receiver drops and counts them."""


class MalformedRequest(ProtocolError):
    """A request whose head could be read, so that its sender can be told."""

    def __init__(self, generation: int, ident: int, reason: str) -> None:
        super().__init__(reason)
        self.generation = generation
        self.ident = ident


class Welcome(NamedTuple):
    """Manager to peer after each (re)connect: which versions it has. `features` is reserved."""

    generation: int
    versions: list[int]
    features: list[str]


class Hello(NamedTuple):
    """Peer to manager: the version it chose (0: none in common) and who it is."""

    generation: int
    version: int
    features: list[str]
    identity: dict[str, Any]


class Request(NamedTuple):
    """A call. `deadline_ns` is CLOCK_MONOTONIC of this host, None for no limit."""

    generation: int
    ident: int
    service: str
    method: str
    deadline_ns: int | None
    metadata: dict[str, str]
    body: dict[str, Any]


class Response(NamedTuple):
    generation: int
    ident: int
    body: Any


class Error(NamedTuple):
    generation: int
    ident: int
    code: str
    message: str
    details: dict[str, Any]


class Data(NamedTuple):
    """One item of a stream; counts against the receiver's credit with its frame length."""

    generation: int
    ident: int
    body: Any


class End(NamedTuple):
    """The stream's last message; `body` is its result."""

    generation: int
    ident: int
    body: Any


class Cancel(NamedTuple):
    generation: int
    ident: int


class Credit(NamedTuple):
    generation: int
    ident: int
    size_bytes: int


class Event(NamedTuple):
    """Shim to manager, numbered from 1 per incarnation, resent until acknowledged."""

    generation: int
    sequence: int
    topic: str
    timestamp: int
    body: dict[str, Any]


class Ack(NamedTuple):
    """Manager to shim: all events up to `sequence` are committed."""

    generation: int
    sequence: int


Message = Welcome | Hello | Request | Response | Error | Data | End | Cancel | Credit | Event | Ack

_KINDS: tuple[Any, ...] = (
    Welcome,
    Hello,
    Request,
    Response,
    Error,
    Data,
    End,
    Cancel,
    Credit,
    Event,
    Ack,
)
_KIND_OF = {cls: number for number, cls in enumerate(_KINDS)}
_HANDSHAKE_KINDS = 2

_INT, _TEXT, _MAP, _ANY, _INTS, _TEXTS, _DEADLINE, _TEXT_MAP = range(8)
_FIELDS: tuple[tuple[int, ...], ...] = (
    (_INT, _INTS, _TEXTS),
    (_INT, _INT, _TEXTS, _MAP),
    (_INT, _INT, _TEXT, _TEXT, _DEADLINE, _TEXT_MAP, _MAP),
    (_INT, _INT, _ANY),
    (_INT, _INT, _TEXT, _TEXT, _MAP),
    (_INT, _INT, _ANY),
    (_INT, _INT, _ANY),
    (_INT, _INT),
    (_INT, _INT, _INT),
    (_INT, _INT, _TEXT, _INT, _MAP),
    (_INT, _INT),
)


def encode(message: Message, version: int = VERSION) -> list[bytes]:
    """Frames of one message. Raises ResourceExhausted when it is over the size cap.

    libzmq would drop the connection of a too large message without a word, so it is refused here.
    """
    kind = _KIND_OF[type(message)]
    body = packing.pack((kind, *message))
    if len(body) > MAX_MESSAGE_BYTES:
        raise ResourceExhausted(
            f"send {type(message).__name__.lower()}: {len(body)} bytes, "
            f"at most {MAX_MESSAGE_BYTES} fit into a message"
        )
    return [bytes((HANDSHAKE if kind < _HANDSHAKE_KINDS else version,)), body]


def decode(frames: list[bytes]) -> Message:
    """The message in `frames`. Raises ProtocolError, or MalformedRequest for a readable head."""
    if len(frames) != 2 or len(frames[0]) != 1:
        raise ProtocolError(f"expected a version byte and one body, got {len(frames)} frames")
    version = frames[0][0]
    if version != HANDSHAKE and version not in SUPPORTED:
        raise ProtocolError(f"version {version} is not spoken here")
    fields = _unpack(frames[1])
    if not isinstance(fields, list) or not fields:
        raise ProtocolError("the body is not an array")
    kind = fields[0]
    if type(kind) is not int or not 0 <= kind < len(_KINDS):
        raise ProtocolError(f"kind {kind!r} is unknown")
    if (version == HANDSHAKE) != (kind < _HANDSHAKE_KINDS):
        raise ProtocolError(f"kind {kind} does not belong to version {version}")
    cls = _KINDS[kind]
    problem = _problem(cls, _FIELDS[kind], fields)
    if problem:
        if cls is Request and len(fields) > 2 and _is_id(fields[1]) and _is_id(fields[2]):
            raise MalformedRequest(fields[1], fields[2], problem)
        raise ProtocolError(problem)
    message: Message = cls(*fields[1:])
    return message


def request_head(start: bytes) -> tuple[int, int] | None:
    """(generation, ident) of the request that begins with `start`; None when it is none.

    For one that is too large for the memory that is left: its head is a few bytes.
    """
    if start[:1] != b"\x98" or start[1:2] != bytes((_KIND_OF[Request],)):
        return None
    numbers, at = [], 2
    for _ in range(2):
        first = start[at] if at < len(start) else 0xC0
        size = 1 << first - 0xCC if 0xCC <= first <= 0xCF else 0
        if first > 0x7F and (not size or at + size >= len(start)):
            return None
        numbers.append(int.from_bytes(start[at + 1 : at + 1 + size]) if size else first)
        at += 1 + size
    return numbers[0], numbers[1]


def _unpack(body: bytes) -> Any:
    """One msgpack object, bounded in every direction (CVE-2026-32284 and its kind)."""
    if len(body) > MAX_MESSAGE_BYTES:
        raise ProtocolError(f"body of {len(body)} bytes")
    try:
        return packing.unpack(body, MAX_ITEMS)
    # Of ValueError are msgpack's format, stack and extra-data errors, and bad UTF-8.
    except (ValueError, TypeError, RecursionError, OverflowError) as err:
        raise ProtocolError(f"not msgpack: {type(err).__name__}: {err}") from err


def _is_id(value: object) -> bool:
    return type(value) is int and 0 <= value <= _MAX_ID


def _problem(cls: Any, kinds: tuple[int, ...], fields: list[Any]) -> str:
    """What is wrong with the fields of a message, or "" when nothing is."""
    if len(fields) != len(kinds) + 1:
        return f"{cls.__name__.lower()} has {len(fields) - 1} fields, not {len(kinds)}"
    for name, kind, value in zip(cls._fields, kinds, fields[1:], strict=True):
        if not _fits(kind, value):
            return f"{cls.__name__.lower()}.{name} is a {type(value).__name__} that does not fit"
    return ""


def _fits(kind: int, value: Any) -> bool:
    if kind == _INT:
        return _is_id(value)
    if kind == _TEXT:
        return isinstance(value, str)
    if kind == _DEADLINE:
        return value is None or _is_id(value)
    if kind == _MAP:
        return isinstance(value, dict) and _text_keys(value) and not too_deep(value)
    if kind == _TEXT_MAP:
        return isinstance(value, dict) and all(
            isinstance(key, str) and isinstance(item, str) for key, item in value.items()
        )
    if kind == _INTS:
        return isinstance(value, list) and all(_is_id(item) for item in value)
    if kind == _TEXTS:
        return isinstance(value, list) and all(isinstance(item, str) for item in value)
    return not too_deep(value)


def _text_keys(value: dict[Any, Any]) -> bool:
    return all(isinstance(key, str) for key in value)


_CONTAINERS = (dict, list)


def too_deep(value: Any, limit: int = MAX_DEPTH) -> bool:
    """Whether containers nest deeper than `limit`; walks without recursion."""
    level = [value]
    for _ in range(limit):
        below: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                below += [v for v in item.values() if isinstance(v, _CONTAINERS)]
            elif isinstance(item, list):
                below += [v for v in item if isinstance(v, _CONTAINERS)]
        if not below:
            return False
        level = below
    return True


def choose_version(offered: list[int], mine: tuple[int, ...] = SUPPORTED) -> int:
    """The highest version that both sides speak, 0 when there is none."""
    return max(set(offered) & set(mine), default=0)
