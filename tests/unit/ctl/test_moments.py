"""Points in time as they are given on the command line."""

import time

import pytest

from lighter.ctl import grammar
from lighter.ctl.logs import Since
from lighter.ctl.moments import LAST_NS, date_ns


@pytest.mark.parametrize(
    ("text", "ns"),
    [
        ("1970-01-01T00:00:01Z", 1_000_000_000),
        ("2026-01-31T12:00:00.123456789Z", 1_769_860_800_123_456_789),
        ("2026-01-31T12:00:00.5+01:00", 1_769_857_200_500_000_000),
        ("0001-01-01T00:00:00Z", 0),
        ("9999-12-31T00:00:00Z", LAST_NS),
    ],
)
def test_a_date_is_nanoseconds_that_a_message_can_hold(text: str, ns: int) -> None:
    assert date_ns(text) == ns


@pytest.mark.parametrize("text", ["0001-01-01", "9999-12-31"])
def test_a_year_at_the_edge_without_a_zone_is_no_crash(text: str) -> None:
    try:
        assert 0 <= date_ns(text) <= LAST_NS
    except grammar.BadValue as refused:
        assert "is no time" in str(refused)


@pytest.mark.parametrize("text", ["2026-13-01", "2026-01-31T12:00:00.Z", "x"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(grammar.BadValue, match="is no time"):
        date_ns(text)


def test_a_log_is_read_from_seconds_since_the_epoch() -> None:
    """Which docker takes; smaller numbers are seconds ago."""
    assert Since().convert("1769860800") == 1_769_860_800_000_000_000
    assert Since().convert("1769860800.123456789") == 1_769_860_800_123_456_789
    assert abs(Since().convert("600") - (time.time_ns() - 600 * 10**9)) < 300 * 10**9
