"""Points in time on the command line, to the nanosecond."""

from __future__ import annotations

import re
import time

from lighter.ctl import grammar
from lighter.ctl.cli import DURATION

LAST_NS = (1 << 63) - 1


def looks_like_a_date(text: str) -> bool:
    return re.match(r"\d{4}-\d{2}-\d{2}", text, re.ASCII) is not None


def date_ns(text: str) -> int:
    """RFC 3339, to nanoseconds since the epoch; without a zone in the host's, as docker has it."""
    from datetime import datetime

    # Nanoseconds, as our own output has them, are more than the standard library keeps.
    whole, dot, rest = text.partition(".")
    digits = re.match(r"[0-9]{1,9}", rest, re.ASCII)
    if dot and digits is None:
        raise grammar.BadValue(f"{text!r} is no time")
    fraction = digits[0] if digits else ""
    try:
        moment = datetime.fromisoformat(whole + rest[len(fraction) :])
        seconds = int(moment.timestamp())
    except (ValueError, OverflowError):
        raise grammar.BadValue(f"{text!r} is no time such as 2026-01-31T12:00:00Z") from None
    # Docker's words for no limit are of the years 1 and 9999, which 64 bits do not reach.
    return min(max(0, seconds * 1_000_000_000 + int(fraction.ljust(9, "0"))), LAST_NS)


def ago_ns(text: str) -> int:
    """How long ago it was, to nanoseconds since the epoch."""
    return time.time_ns() - int(DURATION.convert(text) * 1e9)


def epoch_ns(text: str) -> int:
    """Seconds since the epoch, `1700000000` or `1700000000.5`, to nanoseconds."""
    seconds, _, part = text.partition(".")
    return int(seconds) * 1_000_000_000 + int(part.ljust(9, "0"))
