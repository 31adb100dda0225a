"""Signals by name or number, as users and images write them."""

import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lighter.proto.signalnames import signal_number


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("SIGTERM", 15),
        ("TERM", 15),
        ("term", 15),
        ("15", 15),
        ("64", 64),
        ("SIGRTMIN", 34),
        ("SIGRTMIN+3", 37),
        ("rtmin+30", 64),
        ("RTMAX", 64),
        ("SIGRTMAX-1", 63),
        ("RTMAX-30", 34),
        ("RTMIN+003", 37),
    ],
)
def test_a_signal(name: str, number: int) -> None:
    assert signal_number(name) == number


@pytest.mark.parametrize(
    "name",
    [
        *("", "0", "65", "-1", "+3", "1 ", "٣", "1" * 5000, "SIG", "SIGSIGTERM", "KILLER"),
        *("RTMIN+31", "RTMAX-31", "RTMIN-1", "RTMAX+1", "RTMIN+", "TERM+1", "_DFL", "_UNBLOCK"),
    ],
)
def test_no_signal(name: str) -> None:
    assert signal_number(name) is None


@given(st.text() | st.from_regex(r"(SIG)?RT(MIN|MAX)[+-]?\d*"))
def test_any_text_is_one_or_none(name: str) -> None:
    assert signal_number(name) in {None, *range(1, signal.SIGRTMAX + 1)}
