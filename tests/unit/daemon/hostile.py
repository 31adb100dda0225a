"""Frames that no peer of ours sends, for tests of both ROUTERs."""

from typing import Any

import msgpack
from hypothesis import strategies as st

from lighter.proto import codec

_VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


def messages(generation: int) -> st.SearchStrategy[list[bytes]]:
    """Frames from random bytes to messages that differ from a good one in a field."""
    almost = st.tuples(
        st.integers(-1, 12), st.sampled_from([generation, 0, -1, 1 << 63]), st.lists(_VALUES)
    ).map(lambda parts: [parts[0], parts[1], *parts[2]])
    requests = st.tuples(
        st.just(2),
        st.just(generation),
        st.integers(0, 3) | _VALUES,
        st.sampled_from(["test", "task", ""]) | _VALUES,
        st.sampled_from(["echo", "count", "hang", "fail"]) | _VALUES,
        st.none() | st.integers(0, 1 << 62) | _VALUES,
        st.just({"namespace": "default"}) | _VALUES,
        st.dictionaries(st.text(), _VALUES, max_size=2) | _VALUES,
    ).map(list)
    packed = (almost | requests | _VALUES).map(_pack)
    cut = st.tuples(packed, st.integers(1, 30)).map(lambda both: both[0][: -both[1]])
    body = packed | cut | st.binary(max_size=200)
    version = st.sampled_from([b"\0", b"\1", b"\2", b"\xff", b"", b"\1\1"])
    two = st.tuples(version, body).map(list)
    return two | st.lists(st.binary(max_size=50), max_size=4).filter(bool)


def _pack(value: Any) -> bytes:
    packed: bytes = msgpack.packb(value)
    return packed


# Declared lengths that are not there (CVE-2026-32284, CVE-2026-21452), a nest, an ext type, a
# pickle, and messages that stop in the middle.
BODIES = {
    "array of 4 GiB": b"\xdd\xff\xff\xff\xff",
    "map of 4 GiB": b"\xdf\xff\xff\xff\xff",
    "text of 4 GiB": b"\xdb\xff\xff\xff\xff",
    "bytes of 4 GiB": b"\xc6\xff\xff\xff\xff",
    "ext of 4 GiB": b"\xc9\xff\xff\xff\xff\x01",
    "ext in a request": _pack([2, 7, 1, "test", "echo", None, {}, {}])[:-1] + b"\xd4\x01\x00",
    "nest of a million": b"\x91" * 1_000_000,
    "nest of maps": b"\x81\xa1a" * 300_000,
    "pickle": b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x8c\x06system\x93.",
    "cut request": codec.encode(codec.Request(7, 1, "test", "echo", None, {}, {"a": 1}))[1][:-3],
    "two in one": _pack([3, 7, 1, None]) * 2,
    "reserved byte": b"\xc1",
    "empty": b"",
}
