"""The codec: what is well-formed survives the trip, all else is refused, and cheaply."""

import pickle
import resource
import struct
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lighter.proto import codec
from lighter.proto.errors import ResourceExhausted

IDS = st.integers(0, (1 << 63) - 1)
TEXTS = st.text(max_size=30)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | TEXTS
    | st.binary(max_size=30),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)
BODIES = st.dictionaries(TEXTS, VALUES, max_size=4)
MESSAGES: dict[type[Any], st.SearchStrategy[Any]] = {
    codec.Welcome: st.builds(codec.Welcome, IDS, st.lists(IDS), st.lists(TEXTS)),
    codec.Hello: st.builds(codec.Hello, IDS, IDS, st.lists(TEXTS), BODIES),
    codec.Request: st.builds(
        codec.Request,
        IDS,
        IDS,
        TEXTS,
        TEXTS,
        st.none() | IDS,
        st.dictionaries(TEXTS, TEXTS),
        BODIES,
    ),
    codec.Response: st.builds(codec.Response, IDS, IDS, VALUES),
    codec.Error: st.builds(codec.Error, IDS, IDS, TEXTS, TEXTS, BODIES),
    codec.Data: st.builds(codec.Data, IDS, IDS, VALUES),
    codec.End: st.builds(codec.End, IDS, IDS, VALUES),
    codec.Cancel: st.builds(codec.Cancel, IDS, IDS),
    codec.Credit: st.builds(codec.Credit, IDS, IDS, IDS),
    codec.Event: st.builds(codec.Event, IDS, IDS, TEXTS, IDS, BODIES),
    codec.Ack: st.builds(codec.Ack, IDS, IDS),
}
VERSION_1 = bytes((1,))
A_REQUEST = codec.Request(3, 7, "tasks", "list", None, {"namespace": "default"}, {})


def body_of(message: codec.Message) -> list[Any]:
    fields: list[Any] = msgpack.unpackb(codec.encode(message)[1])
    return fields


@pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: kind.__name__)
def test_each_kind_survives_the_trip(kind: type[Any]) -> None:
    @given(MESSAGES[kind])
    @settings(max_examples=60, deadline=None)
    def trip(message: codec.Message) -> None:
        decoded = codec.decode(codec.encode(message))
        assert decoded == message
        assert type(decoded) is kind

    trip()


def test_every_kind_is_covered() -> None:
    assert set(MESSAGES) == set(codec.Message.__args__)  # type: ignore[attr-defined]


@given(st.lists(st.binary(max_size=200), max_size=4))
@settings(max_examples=400, deadline=None)
def test_f73_random_frames_are_refused_or_decoded(frames: list[bytes]) -> None:
    try:
        message = codec.decode(frames)
    except codec.ProtocolError:
        return
    assert codec.decode(codec.encode(message)) == message


@given(st.sampled_from([b"\x00", b"\x01"]), VALUES)
@settings(max_examples=400, deadline=None)
def test_f73_valid_msgpack_that_is_no_message_is_refused(version: bytes, value: Any) -> None:
    with pytest.raises(codec.ProtocolError):
        codec.decode([version, msgpack.packb(value)])


@pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: kind.__name__)
def test_f73_each_field_of_each_kind_refuses_the_wrong_type(kind: type[Any]) -> None:
    @given(MESSAGES[kind], st.data())
    @settings(max_examples=60, deadline=None)
    def spoil(message: codec.Message, data: st.DataObject) -> None:
        fields = body_of(message)
        version = codec.encode(message)[0]
        index = data.draw(st.integers(0, len(fields) - 1))
        if index and kind._fields[index - 1] == "body" and kind not in (codec.Request, codec.Event):
            return  # an answer's body may be anything
        fields[index] = data.draw(st.sampled_from([-1, 1 << 63, 1.5, b"x", True, [None], {1: 2}]))
        with pytest.raises(codec.ProtocolError):
            codec.decode([version, msgpack.packb(fields, strict_types=False)])

    spoil()


@pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: kind.__name__)
def test_f73_a_message_with_too_few_or_too_many_fields_is_refused(kind: type[Any]) -> None:
    message = _plain(kind)
    version, _ = codec.encode(message)
    fields = body_of(message)
    for wrong in (fields[:-1], [*fields, None], fields[:1], []):
        with pytest.raises(codec.ProtocolError):
            codec.decode([version, msgpack.packb(wrong)])


def _plain(kind: type[Any]) -> Any:
    empty: dict[str, Any] = {
        "versions": [],
        "features": [],
        "identity": {},
        "metadata": {},
        "body": {},
        "details": {},
        "deadline_ns": None,
    }
    texts = dict.fromkeys(("service", "method", "code", "message", "topic"), "x")
    return kind(**{name: {**empty, **texts}.get(name, 0) for name in kind._fields})


def test_a_request_with_a_readable_head_can_be_answered() -> None:
    fields = body_of(A_REQUEST)
    fields[6] = "no map"
    with pytest.raises(codec.MalformedRequest, match=r"request\.metadata is a str") as caught:
        codec.decode([VERSION_1, msgpack.packb(fields)])
    assert (caught.value.generation, caught.value.ident) == (3, 7)


@given(generation=st.integers(0, (1 << 63) - 1), ident=st.integers(0, (1 << 63) - 1))
def test_the_head_of_a_request_can_be_read_without_its_body(generation: int, ident: int) -> None:
    request = codec.Request(generation, ident, "tasks", "list", None, {}, {"x": "y" * 100})
    body = codec.encode(request)[1]
    assert codec.request_head(body[:32]) == (generation, ident)
    other = codec.encode(codec.Credit(generation, ident, 1))[1]
    assert codec.request_head(other[:32]) is None


@given(start=st.one_of(st.binary(max_size=32), st.binary(max_size=30).map(b"\x98\x02".__add__)))
def test_f73_a_head_of_anything_is_two_numbers_or_none(start: bytes) -> None:
    found = codec.request_head(start)
    assert found is None or all(0 <= number < 1 << 64 for number in found)


def test_handshake_and_other_kinds_do_not_mix_versions() -> None:
    _, welcome = codec.encode(codec.Welcome(1, [1], []))
    _, request = codec.encode(A_REQUEST)
    for frames in ([VERSION_1, welcome], [b"\x00", request], [b"\x02", request], [b"", request]):
        with pytest.raises(codec.ProtocolError):
            codec.decode(frames)


def claims() -> dict[str, bytes]:
    """Heads of five bytes or so that promise up to 4 GiB (msgpack spec, formats)."""
    huge = struct.pack(">I", 0xFFFFFFFF)
    return {
        "str 32": b"\xdb" + huge,
        "bin 32": b"\xc6" + huge,
        "array 32": b"\xdd" + huge,
        "map 32": b"\xdf" + huge,
        "ext 32": b"\xc9" + huge + b"\x01",
        "array of 16 Mi": b"\xdd" + struct.pack(">I", 1 << 24),
        "ext type 1": msgpack.packb(msgpack.ExtType(1, b"x")),
        "timestamp": b"\xd6\xff" + bytes(4),
        "depth 10^6": b"\x91" * 1_000_000 + b"\xc0",
        "maps 10^5 deep": b"\x81\xa1x" * 100_000 + b"\xc0",
        "pickle": pickle.dumps({"x": 1}),
        "truncated": codec.encode(A_REQUEST)[1][:-1],
        "two objects": codec.encode(A_REQUEST)[1] * 2,
        "bad UTF-8": b"\x91\xa2\xff\xfe",
        "map with a list as key": b"\x81\x90\x00",
    }


@pytest.mark.parametrize("name", claims())
def test_sec_67_68_hostile_frames_are_protocol_errors(name: str) -> None:
    with pytest.raises(codec.ProtocolError):
        codec.decode([VERSION_1, claims()[name]])


@pytest.mark.parametrize("name", claims().keys() - {"truncated", "two objects"})
def test_sec_67_68_hostile_values_inside_a_body_are_too(name: str) -> None:
    head = codec.encode(A_REQUEST)[1][:-1]  # its last byte is the empty body
    with pytest.raises(codec.ProtocolError):
        codec.decode([VERSION_1, head + claims()[name]])


def test_sec_68_hostile_frames_cost_no_memory() -> None:
    hostile = list(claims().values())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(200):
        for body in hostile:
            with pytest.raises(codec.ProtocolError):
                codec.decode([VERSION_1, body])
    for _ in range(100_000):
        try:
            codec.decode([VERSION_1, b"\xc0"])
        except codec.ProtocolError:
            continue
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown_kib < 32 * 1024


def test_a_body_may_nest_as_deep_as_the_rule_and_no_deeper() -> None:
    """SEC-68: what nests without end costs no recursion."""

    def nested(depth: int) -> dict[str, Any]:
        value: dict[str, Any] = {}
        for _ in range(depth - 1):
            value = {"x": value}
        return value

    assert codec.decode(codec.encode(A_REQUEST._replace(body=nested(codec.MAX_DEPTH))))
    with pytest.raises(codec.ProtocolError):
        codec.decode(codec.encode(A_REQUEST._replace(body=nested(codec.MAX_DEPTH + 1))))


@pytest.mark.parametrize("kind", [codec.Response, codec.Data, codec.End])
def test_an_answer_may_not_nest_deeper_either(kind: type[Any]) -> None:
    deep: list[Any] = []
    for _ in range(codec.MAX_DEPTH + 5):
        deep = [deep]
    with pytest.raises(codec.ProtocolError):
        codec.decode(codec.encode(kind(1, 1, deep)))


def test_a_message_over_the_cap_is_refused_by_its_sender() -> None:
    room = codec.MAX_MESSAGE_BYTES - len(codec.encode(codec.Data(1, 1, b""))[1]) - 3
    _, body = codec.encode(codec.Data(1, 1, bytes(room)))
    assert len(body) == codec.MAX_MESSAGE_BYTES
    with pytest.raises(ResourceExhausted, match="send data: 16777217 bytes"):
        codec.encode(codec.Data(1, 1, bytes(room + 1)))


def test_a_message_over_the_cap_is_refused_by_its_receiver() -> None:
    with pytest.raises(codec.ProtocolError):
        codec.decode([VERSION_1, bytes(codec.MAX_MESSAGE_BYTES + 1)])


@pytest.mark.parametrize(
    ("offered", "mine", "chosen"),
    [
        ([1], (1,), 1),
        ([1, 2, 3], (1, 2), 2),
        ([3, 4], (1, 2), 0),
        ([], (1,), 0),
        ([2, 1], (2, 1), 2),
    ],
)
def test_the_highest_common_version_is_chosen(
    offered: list[int], mine: tuple[int, ...], chosen: int
) -> None:
    assert codec.choose_version(offered, mine) == chosen
