"""Print data: tables as ctr prints them, or JSON. Nothing here knows a service.

Tables are Go's tabwriter: a column is as wide as its widest cell and the padding, at least
`min_width`. JSON: a list is an array, one object an object, a stream one object per line; keys are
snake_case, times RFC 3339 in UTC or null.
"""

from __future__ import annotations

import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from typing import Any

_TIME_KEYS = (
    "timestamp",
    "exited_at",
    "created_at",
    "updated_at",
    "started_at",
    "defined_at",
    "ended_at",
    "due_at",
    "restart_at",
)
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_DECIMAL_UNITS = ("B", "kB", "MB", "GB", "TB", "PB", "EB")


def table(
    header: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    min_width: int = 4,
    padding: int = 4,
) -> None:
    """Print a table. Control characters in a cell are shown, never sent to a terminal."""
    lines = [list(header), *([visible(str(cell)) for cell in row] for row in rows)]
    widths = [
        max(min_width, padding + max(map(len, column))) for column in zip(*lines, strict=True)
    ]
    for line in lines:
        padded = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        print("".join(padded).rstrip())


def listing(
    as_json: bool,
    rows: Sequence[Mapping[str, Any]],
    header: Sequence[str],
    cells: Callable[[Mapping[str, Any]], Sequence[object]],
    **spacing: int,
) -> None:
    """Print a list: an array of `rows`, or a table with `cells` of each."""
    if as_json:
        print_json(rows)
    else:
        table(header, map(cells, rows), **spacing)


def print_json(value: Any) -> None:
    """One JSON value, indented."""
    print(json_text(plain(value), indent=2))


def print_json_line(value: Any) -> None:
    """One JSON value on a line of its own, out at once."""
    print(json_text(plain(value)), flush=True)


def json_text(value: Any, *, indent: int | None = None) -> str:
    """JSON for a person's eyes: other alphabets as they are, but no character that a terminal obeys
    (JSON itself escapes those below U+0020 alone).
    """
    import json

    separators = (",", ":") if indent is None else None
    text = json.dumps(value, indent=indent, ensure_ascii=False, separators=separators)
    return text.translate({code: f"\\u{code:04x}" for code in range(0x7F, 0xA0)})


def plain(value: Any, key: str = "") -> Any:
    """`value` with its times as text and its bytes as UTF-8 with replacements."""
    if isinstance(value, dict):
        return {name: plain(item, name) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if key in _TIME_KEYS and (value is None or isinstance(value, int)):
        return rfc3339(value)
    return value


def rfc3339(time_ns: int | None) -> str | None:
    """Nanoseconds since the epoch as RFC 3339 in UTC; None for no time."""
    if not time_ns:
        return None
    seconds, nanoseconds = divmod(time_ns, 1_000_000_000)
    fraction = f".{nanoseconds:09d}".rstrip("0").rstrip(".")
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + fraction + "Z"


def ago(time_ns: int | None, now_ns: int) -> str:
    """How long ago, in one unit: "5 minutes ago"; "-" for no time."""
    return f"{for_how_long(time_ns, now_ns)} ago" if time_ns else "-"


def for_how_long(time_ns: int | None, now_ns: int) -> str:
    """Time since `time_ns` in its largest unit."""
    seconds = max(0, now_ns - (time_ns or now_ns)) // 1_000_000_000
    for unit, size in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= size:
            count = seconds // size
            return f"{count} {unit}{'s' if count > 1 else ''}"
    return f"{seconds} second{'s' if seconds != 1 else ''}"


def size_text(size_bytes: int) -> str:
    """Bytes in the unit that ctr would choose: "9.7 MiB"."""
    value, unit = float(size_bytes), 0
    while value >= 1024 and unit < len(_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{value:.1f} {_UNITS[unit]}"


def decimal_size_text(size_bytes: int) -> str:
    """Bytes as ctr prints those of content: powers of 1000, four digits, "1.442kB"."""
    value, unit = float(size_bytes), 0
    while value >= 1000 and unit < len(_DECIMAL_UNITS) - 1:
        value, unit = value / 1000, unit + 1
    return f"{value:.4g}{_DECIMAL_UNITS[unit]}"


def human_duration(time_ns: int | None, now_ns: int) -> str:
    """How long ago as ctr prints an age (go-units): "3 minutes", "About an hour", "5 weeks"."""
    seconds = max(0, now_ns - (time_ns or now_ns)) // 1_000_000_000
    minutes, hours = seconds // 60, int(seconds / 3600 + 0.5)
    for below, text in (
        (seconds < 1, "Less than a second"),
        (seconds == 1, "1 second"),
        (seconds < 60, f"{seconds} seconds"),
        (minutes == 1, "About a minute"),
        (minutes < 60, f"{minutes} minutes"),
        (hours == 1, "About an hour"),
        (hours < 48, f"{hours} hours"),
        (hours < 24 * 7 * 2, f"{hours // 24} days"),
        (hours < 24 * 30 * 2, f"{hours // 24 // 7} weeks"),
        (hours < 24 * 365 * 2, f"{hours // 24 // 30} months"),
    ):
        if below:
            return text
    return f"{hours // 24 // 365} years"


def local_time(time_ns: int) -> str:
    """RFC 3339 with the local offset, to the second, as ctr prints when a lease was made."""
    text = time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(time_ns // 1_000_000_000))
    return text[:-5] + "Z" if text.endswith("+0000") else f"{text[:-2]}:{text[-2:]}"


def labels_text(labels: Mapping[str, str], empty: str = "") -> str:
    return ",".join(f"{key}={value}" for key, value in sorted(labels.items())) or empty


def visible(text: str) -> str:
    """`text` with each control character as its escape: it came from an image or a container."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


def visible_lines(text: str) -> str:
    """As `visible`, for text of several lines: they stay, as do tabs and odd spaces."""
    codes = (*range(0x20), *range(0x7F, 0xA0))
    return text.translate({code: visible(chr(code)) for code in codes if chr(code) not in "\n\t"})


def progress(text: str, end: str = "\n") -> None:
    """A part of a line, out at once."""
    print(visible(text), end=end, flush=True)


def write_bytes(fd: int, data: bytes) -> None:
    """Write all of `data` to a descriptor. Raises OSError."""
    (sys.stdout if fd == 1 else sys.stderr).flush()
    import os

    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
