"""`ctl stats` and `ctl top`: what containers use, and which processes they have."""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lighter.ctl import grammar
from lighter.ctl.cli import Session, format_option
from lighter.ctl.output import decimal_size_text, listing, size_text, table
from lighter.ctl.resolve import resolved
from lighter.ctl.template import Template
from lighter.proto.errors import NotFound

INTERVAL_S = 1.0
_CLEAR, _TO_END = "\x1b[H\x1b[J", "\x1b[J"
_HEADER = ("CONTAINER", "CPU %", "MEM USAGE / LIMIT", "MEM %", "NET I/O", "BLOCK I/O", "PIDS")

Row = Mapping[str, Any]


@grammar.command("stats")
@grammar.option("--all", "-a", "everything", is_flag=True, help="Those that do not run too.")
@grammar.option("--no-stream", is_flag=True, help="Once.")
@grammar.option("--no-trunc", is_flag=True, help="Docker's word; nothing is cut anyway.")
@grammar.option(
    "--format",
    "template",
    metavar="table|json|TEMPLATE",
    help="A table, JSON, or a Go template such as '{{.Name}} {{.CPUPerc}}'.",
)
@grammar.argument("refs", nargs=-1, metavar="[CONTAINER]...")
def stats(
    session: Session,
    refs: tuple[str, ...],
    everything: bool,
    no_stream: bool,
    no_trunc: bool,
    template: str | None,
) -> None:
    """Show what containers use, every second anew.

    Memory is what cannot be given back at once: file cache that nobody used lately is left out. A
    container whose shim is stuck is shown like any other: the numbers are the kernel's.

    \b
      ctl stats
      ctl stats --no-stream --format '{{.Name}}: {{.MemUsage}}' web
    """
    del no_trunc
    ids = [resolved(session, ref, lambda id_: _known(session, id_)) for ref in refs]
    printer = _Printer(session, template or session.format)
    before = _sample(session, ids)
    while True:
        time.sleep(INTERVAL_S)
        try:
            now = _sample(session, ids)
        except NotFound:
            ids = [id_ for id_ in ids if _is_there(session, id_)]
            if not ids:
                return
            continue
        rows = [_row(one, before[0].get(id_), now[1]) for id_, one in now[0].items()]
        printer.show([row for row in rows if everything or refs or row["running"]])
        if no_stream:
            return
        before = now


def _known(session: Session, container_id: str) -> str:
    session.call("tasks.get", id=container_id)
    return container_id


def _is_there(session: Session, container_id: str) -> bool:
    try:
        _known(session, container_id)
    except NotFound:
        return False
    return True


def _sample(session: Session, ids: Sequence[str]) -> tuple[dict[str, Row], int]:
    """(metrics by container, memory of the host)."""
    answer = session.call("tasks.metrics", ids=list(ids))
    return {one["id"]: one for one in answer["metrics"]}, answer["memory_bytes"]


def _row(now: Row, before: Row | None, memory_bytes: int) -> dict[str, Any]:
    usage, limit = memory(now, memory_bytes)
    read, written = block_bytes(now)
    network = now["network"] or {}
    return {
        "id": now["id"],
        "running": bool(now["version"]),
        "cpu_percent": cpu_percent(now, before),
        "memory_bytes": usage,
        "memory_limit_bytes": limit,
        "memory_percent": 100 * usage / limit if limit else 0.0,
        "rx_bytes": network.get("rx_bytes"),
        "tx_bytes": network.get("tx_bytes"),
        "read_bytes": read,
        "write_bytes": written,
        "pids": (now["values"].get("pids") or {}).get("current", 0),
    }


def cpu_ns(one: Row) -> int:
    cpu = one["values"].get("cpu") or {}
    if one["version"] == 1:
        return int((cpu.get("usage") or {}).get("total", 0))
    return int(cpu.get("usage_usec", 0)) * 1000


def cpu_percent(now: Row, before: Row | None) -> float:
    """Percent of one processor: two busy ones are 200."""
    if before is None or not (now["version"] and before["version"]):
        return 0.0
    passed = now["timestamp"] - before["timestamp"]
    return max(0.0, 100 * (cpu_ns(now) - cpu_ns(before)) / passed) if passed > 0 else 0.0


def memory(one: Row, memory_bytes: int) -> tuple[int, int]:
    """(bytes in use without idle file cache, the limit or what the host has), as docker counts."""
    values = one["values"].get("memory") or {}
    if not values:
        return 0, 0
    if one["version"] == 1:
        of = values.get("usage") or {}
        usage, limit = of.get("usage", 0), of.get("limit", 0)
        idle = values.get("total_inactive_file", 0)
    else:
        usage, limit = values.get("usage", 0), values.get("usage_limit", 0)
        idle = values.get("inactive_file", 0)
    return max(0, usage - min(idle, usage)), min(limit, memory_bytes) or memory_bytes


def block_bytes(one: Row) -> tuple[int, int]:
    """(read, written)."""
    if one["version"] == 1:
        rows = (one["values"].get("blkio") or {}).get("io_service_bytes_recursive") or ()
        by_op = {"read": 0, "write": 0}
        for row in rows:
            if row["op"].lower() in by_op:
                by_op[row["op"].lower()] += row["value"]
        return by_op["read"], by_op["write"]
    rows = (one["values"].get("io") or {}).get("usage") or ()
    return sum(row["rbytes"] for row in rows), sum(row["wbytes"] for row in rows)


def _pair(first: int | None, second: int | None, text: Callable[[int], str]) -> str:
    return "- / -" if first is None or second is None else f"{text(first)} / {text(second)}"


def _cells(row: Row) -> tuple[str, ...]:
    if not row["running"]:
        return (row["id"], "-", "- / -", "-", "- / -", "- / -", "-")
    return (
        row["id"],
        f"{row['cpu_percent']:.2f}%",
        _pair(row["memory_bytes"], row["memory_limit_bytes"], size_text),
        f"{row['memory_percent']:.2f}%",
        _pair(row["rx_bytes"], row["tx_bytes"], decimal_size_text),
        _pair(row["read_bytes"], row["write_bytes"], decimal_size_text),
        str(row["pids"]),
    )


def _cell(number: int) -> Callable[[Row], str]:
    return lambda row: _cells(row)[number]


_FIELDS = {
    "Container": ("CONTAINER", _cell(0)),
    "Name": ("NAME", _cell(0)),
    "ID": ("CONTAINER ID", _cell(0)),
    "CPUPerc": ("CPU %", _cell(1)),
    "MemUsage": ("MEM USAGE / LIMIT", _cell(2)),
    "MemPerc": ("MEM %", _cell(3)),
    "NetIO": ("NET I/O", _cell(4)),
    "BlockIO": ("BLOCK I/O", _cell(5)),
    "PIDs": ("PIDS", _cell(6)),
}


class _Printer:
    """Table, JSON or template; a table on a terminal is drawn over the one before."""

    def __init__(self, session: Session, chosen: str) -> None:
        self._json = chosen == "json"
        self._template = None if chosen in ("json", "table") else Template(chosen, _FIELDS)
        self._redraws = sys.stdout.isatty() and not self._json

    def show(self, rows: Sequence[Row]) -> None:
        if self._redraws:
            sys.stdout.write(_CLEAR)
        if self._json:
            from lighter.ctl.output import print_json_line

            for row in rows:
                print_json_line(row)
        elif self._template is not None:
            self._template.print(rows)
        else:
            table(_HEADER, map(_cells, rows), min_width=10, padding=3)
        if self._redraws:
            sys.stdout.write(_TO_END)
        sys.stdout.flush()


@grammar.command("top")
@grammar.argument("ref", metavar="CONTAINER")
@format_option
def top(session: Session, ref: str) -> None:
    """List a container's processes: PID is the host's number, INSIDE the container's own.

    Nothing of the container is run for it, nor does it have to answer.

    \b
      ctl top web
    """
    found = resolved(session, ref, lambda id_: session.call("tasks.top", id=id_))["processes"]
    listing(
        session.json,
        found,
        ("UID", "PID", "INSIDE", "PPID", "STAT", "TIME", "CMD"),
        lambda row: (
            row["uid"],
            row["pid"],
            row["container_pid"],
            row["ppid"],
            row["state"],
            _clock(row["cpu_s"]),
            " ".join(row["args"]),
        ),
        min_width=4,
        padding=2,
    )


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest:02d}"
