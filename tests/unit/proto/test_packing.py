"""Short messages without the library: the same bytes, values and refusals as with it."""

import subprocess
import sys
from types import ModuleType
from typing import Any

import msgpack
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lighter.proto import packing

MOST = 1000
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.sampled_from([n + d for n in (1 << 5, 1 << 7, 1 << 8, 1 << 15, 1 << 16) for d in (-1, 0)])
    | st.sampled_from([-(1 << n) + d for n in (5, 7, 15, 31, 63) for d in (0, 1)])
    | st.floats(allow_nan=False)
    | st.text(max_size=40)
    | st.sampled_from(["x" * n for n in (31, 32, 255, 256, 65535, 65536)])
    | st.binary(max_size=40)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=20) | st.dictionaries(st.text(), inner, max_size=20),
    max_leaves=40,
)


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a process that has not loaded the library."""
    monkeypatch.delitem(sys.modules, "msgpack")


def test_what_is_packed_is_what_the_library_packs(alone: None) -> None:
    @given(VALUES)
    @settings(max_examples=300, deadline=None)
    @example({str(n): n for n in range(70_000)})
    @example(list(range(70_000)))
    @example(b"x" * 70_000)
    def same(value: Any) -> None:
        assert packing.pack(value) == msgpack.packb(value, use_bin_type=True)

    same()


def test_what_is_unpacked_is_what_the_library_unpacks(alone: None) -> None:
    @given(VALUES)
    @settings(max_examples=300, deadline=None)
    def same(value: Any) -> None:
        data = msgpack.packb(value, use_bin_type=True)
        if len(data) <= packing.SHORT_BYTES:
            assert packing.unpack(data, MOST) == value

    same()
    assert "msgpack" not in sys.modules


def outcome(data: bytes) -> object:
    try:
        return repr(packing.unpack(data, MOST))
    except (ValueError, TypeError, RecursionError, OverflowError):
        return "refused"


def test_f73_random_bytes_are_refused_or_read_as_by_the_library(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    @given(st.binary(max_size=60) | VALUES.map(lambda v: msgpack.packb(v)[:100]))
    @settings(max_examples=1500, deadline=None)
    @example(b"\xc1")  # never used
    @example(b"\xd4\x01\x00")  # an extension type
    @example(b"\xdd\xff\xff\xff\xff")  # four billion items
    @example(b"\xdb\xff\xff\xff\xff")
    @example(b"\x81\x01\x02")  # a number for a key
    @example(b"\xa1\xff")  # not UTF-8
    @example(b"\x91" * 1500)
    def same(data: bytes) -> None:
        with monkeypatch.context() as without:
            without.delitem(sys.modules, "msgpack")
            mine = outcome(data)
        assert mine == outcome(data)

    same()


def test_what_is_long_is_the_librarys(alone: None) -> None:
    data = msgpack.packb(["x" * packing.SHORT_BYTES])
    assert packing.unpack(data, MOST) == ["x" * packing.SHORT_BYTES]
    assert "msgpack" in sys.modules


def test_a_library_that_another_thread_is_loading_is_not_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "msgpack", ModuleType("msgpack"))
    assert packing.unpack(packing.pack({"a": 1}), MOST) == {"a": 1}


def test_other_types_are_refused_with_and_without_the_library(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for _ in range(2):
        for value in (object(), {1, 2}, 1j):
            with pytest.raises(TypeError):
                packing.pack(value)
        for number in (1 << 64, -(1 << 63) - 1):
            with pytest.raises(OverflowError):
                packing.pack(number)
        monkeypatch.delitem(sys.modules, "msgpack", raising=False)


def test_managers_and_shims_have_the_library_and_short_commands_do_not() -> None:
    for module, expected in (
        ("lighter.daemon.core", True),
        ("lighter.shim.foundation", True),
        ("lighter.shim.worker.channel", True),
        ("lighter.ctl.process", False),
    ):
        code = f"import sys, {module}; print('msgpack' in sys.modules)"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.stdout.strip() == str(expected), (module, done.stderr)
