"""`ctl logs`: what a container has written, from its log."""

import re
from typing import Any

from lighter.ctl import grammar
from lighter.ctl.cli import MAX_DIGITS, Session, format_option
from lighter.ctl.moments import ago_ns, date_ns, epoch_ns, looks_like_a_date
from lighter.ctl.output import print_json_line, rfc3339, write_bytes
from lighter.ctl.resolve import resolved
from lighter.proto.daemon_api import NOTICE, STDERR, STDOUT

_NAMES = {STDOUT: "stdout", STDERR: "stderr", NOTICE: "notice"}


class Tail(grammar.Kind):
    """A number of lines, or `all`."""

    name = "lines"

    def convert(self, text: str) -> int | None:
        if text == "all":
            return None
        if not (text.isascii() and text.isdigit() and len(text) <= MAX_DIGITS):
            raise grammar.BadValue(f"{text!r} is no number of lines")
        return int(text)


class Since(grammar.Kind):
    """A duration before now, an RFC 3339 time, or seconds since the epoch, as docker takes them, of
    a moment after 2001; converts to nanoseconds since the epoch.
    """

    name = "time"

    def convert(self, text: str) -> int:
        if re.fullmatch(r"[0-9]{10}(\.[0-9]{1,9})?", text, re.ASCII):
            return epoch_ns(text)
        return date_ns(text) if looks_like_a_date(text) else ago_ns(text)


@grammar.command("logs")
@grammar.option("--follow", "-f", is_flag=True, help="Go on with what is written from now on.")
@grammar.option(
    "--tail", "-n", type=Tail(), default=None, help="The last lines alone.  [default: all]"
)
@grammar.option(
    "--since", type=Since(), help="From this time on: 10m, 2026-01-31T12:00:00Z or 1769860800."
)
@grammar.option("--until", type=Since(), help="Up to this time, as --since has it.")
@grammar.option("--timestamps", "-t", is_flag=True, help="Begin each line with its time.")
@grammar.argument("ref", metavar="CONTAINER")
@format_option
def logs(
    session: Session,
    ref: str,
    follow: bool,
    tail: int | None,
    since: int | None,
    until: int | None,
    timestamps: bool,
) -> None:
    """Print what a container has written: its output and its error output, each to ctl's own.

    \b
      ctl logs web
      ctl logs -f --tail 20 web
      ctl logs --since 10m -t web
    """
    printer = LogPrinter(timestamps=timestamps, as_json=session.json)

    def read(container_id: str) -> None:
        for item in session.manager.begin(
            "logs.read", id=container_id, follow=follow, tail=tail, since=since, until=until
        ):
            printer.show(item)

    resolved(session, ref, read)


class LogPrinter:
    """Items of logs.read: the container's own bytes, or a JSON line per item."""

    def __init__(self, *, timestamps: bool, as_json: bool) -> None:
        self._timestamps = timestamps
        self._as_json = as_json
        self._in_line: dict[int, bool] = {}

    def show(self, item: Any) -> None:
        stream = item["stream"]
        if self._as_json:
            print_json_line({**item, "stream": _NAMES.get(stream, str(stream))})
            return
        data = self._with_times(item) if self._timestamps else item["data"]
        write_bytes(1 if stream == STDOUT else 2, data)

    def _with_times(self, item: Any) -> bytes:
        stamp = f"{rfc3339(item['timestamp'])} ".encode()
        stream, out = item["stream"], b""
        for line in item["data"].splitlines(keepends=True):
            out += line if self._in_line.get(stream) else stamp + line
            self._in_line[stream] = not line.endswith(b"\n")
        return out
