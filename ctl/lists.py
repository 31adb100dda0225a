"""`ctl ps` and `ctl ls`: containers in lists, filtered and printed as docker does it."""

from __future__ import annotations

import time

from lighter.ctl import grammar
from lighter.ctl.output import ago, for_how_long, labels_text, listing, rfc3339
from lighter.proto.names import BROKEN_LABEL

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    from lighter.ctl.cli import Session
    from lighter.ctl.listfilter import Filter
    from lighter.ctl.template import Fields

    Row = Mapping[str, Any]

SHORT_DIGEST = 12
ALIVE = ("running", "paused", "unknown")


def list_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """-q, -f, --no-trunc and --format, which lists of containers share."""
    for option in (
        grammar.option(
            "--format",
            "template",
            metavar="table|json|TEMPLATE",
            help="A table, JSON, or a Go template such as '{{.ID}} {{.Status}}'.",
        ),
        grammar.option("--no-trunc", is_flag=True, help="Digests in full."),
        grammar.option(
            "--filter",
            "-f",
            "filters",
            multiple=True,
            metavar="KEY=VALUE",
            help="id, name, ancestor, label, status, exited, health, before, since.",
        ),
        grammar.option("--quiet", "-q", is_flag=True, help="Ids alone."),
    ):
        command = option(command)
    return command


@grammar.command("ps")
@grammar.option("--all", "-a", "everything", is_flag=True, help="Those that do not run too.")
@list_options
def ps(
    session: Session,
    everything: bool,
    filters: tuple[str, ...],
    quiet: bool,
    no_trunc: bool,
    template: str | None,
) -> None:
    """List running containers.

    \b
      ctl ps -a --filter status=exited --filter label=tier=web
      ctl ps --format 'table {{.Names}}\\t{{.Image}}\\t{{.Status}}'
      ctl ps --format '{{json .}}'
    """
    now_ns = time.time_ns()
    shape = _Shape(session, template, ps_fields(now_ns, no_trunc))
    wanted = _filter(filters)
    tasks: list[dict[str, Any]] = session.call("tasks.list")["tasks"]
    if everything or (wanted and wanted.of_states):
        rows = _with_tasks(_containers(session), tasks)
    else:
        rows = [task for task in tasks if task["status"] in ALIVE or task.get("restart_at")]
        if (wanted and wanted.needs_all) or shape.is_whole:
            known = {row["id"]: row for row in _containers(session)}
            # A task may be there without its container.
            rows = [_row(known.get(task["id"], task), task) for task in rows]
            if wanted:
                wanted.know(list(known.values()))
    shape.print(
        wanted.chosen(rows) if wanted else rows,
        quiet,
        ("CONTAINER", "IMAGE", "PID", "STATUS", "CREATED", "ADDRESS", "PORTS"),
        lambda row: (
            row["id"],
            image_text(row, no_trunc),
            row["pid"] or "-",
            status_text(row, now_ns),
            ago(made_at(row), now_ns),
            addresses_text(row) or "-",
            ports_text(row) or "-",
        ),
    )


@grammar.command("ls")
@list_options
def ls(
    session: Session,
    filters: tuple[str, ...],
    quiet: bool,
    no_trunc: bool,
    template: str | None,
) -> None:
    """List containers, whether they run or not.

    \b
      ctl ls
    """
    wanted = _filter(filters)
    shape = _Shape(session, template, ls_fields(time.time_ns(), no_trunc))
    rows = _containers(session)
    if wanted and wanted.of_states:
        rows = _with_tasks(rows, session.call("tasks.list")["tasks"])
    if not quiet:
        warn_of_damage(session, rows)
    shape.print(
        wanted.chosen(rows) if wanted else rows,
        quiet,
        ("CONTAINER", "IMAGE", "RUNTIME"),
        lambda row: (row["id"], image_text(row, no_trunc), row["runtime"]),
    )


class _Shape:
    """How a list is printed: what --format says after the verb, else what it says before it."""

    def __init__(self, session: Session, template: str | None, fields: Fields) -> None:
        chosen = template or session.format
        self._json = chosen == "json"
        self.template = None
        if chosen not in ("json", "table"):
            from lighter.ctl.template import Template

            self.template = Template(chosen, fields)

    @property
    def is_whole(self) -> bool:
        """Whether more of a row may be shown than the table has."""
        return self._json or self.template is not None

    def print(
        self,
        rows: Sequence[Row],
        quiet: bool,
        header: Sequence[str],
        cells: Callable[[Row], Sequence[object]],
    ) -> None:
        if quiet:
            for row in rows:
                print(row["id"])
        elif self.template is not None:
            self.template.print(rows)
        else:
            listing(self._json, rows, header, cells)


def _filter(words: Sequence[str]) -> Filter | None:
    """None where all is wanted: most lists need not load what filters need."""
    if not words:
        return None
    from lighter.ctl.listfilter import Filter

    return Filter(words)


def _containers(session: Session) -> list[dict[str, Any]]:
    from lighter.ctl.paging import pages

    return pages(session, "containers.list", "containers")


def _with_tasks(containers: Sequence[Row], tasks: Sequence[Row]) -> list[dict[str, Any]]:
    """Containers as rows of tasks.list, with their labels and runtime; without a task all but
    their definition is empty."""
    known = {task["id"]: task for task in tasks}
    return [_row(container, known.get(container["id"], {})) for container in containers]


def _row(container: Row, task: Row) -> dict[str, Any]:
    row = {**_definition(container), **task}
    return {**row, "reason": row["reason"] or damage_text(row)}


def damage_text(container: Row) -> str:
    """What is wrong with a container whose record could not be read whole; "" for any other."""
    broken = (container.get("labels") or {}).get(BROKEN_LABEL)
    return f"its record is damaged: {broken} cannot be read" if broken else ""


def warn_of_damage(session: Session, containers: Sequence[Row]) -> None:
    """Warn of damaged records, for lists that have no column for it."""
    damaged = ((row["id"], damage_text(row)) for row in containers)
    session.warn([f"container {id_}: {text}; it can be removed" for id_, text in damaged if text])


def _definition(container: Row) -> dict[str, Any]:
    return {
        "id": container["id"],
        "pid": 0,
        "status": "created",
        "image": container["image"],
        "exit_status": None,
        "exited_at": None,
        "cause": "",
        "reason": "",
        "created_at": container["created_at"],
        "started_at": None,
        "networks": [],
        "ports": [],
        "labels": container.get("labels", {}),
        "runtime": container.get("runtime", ""),
    }


def made_at(row: Row) -> int:
    """When the container was made; its task is made anew with each start."""
    return int(row.get("defined_at") or row["created_at"])


def ps_fields(now_ns: int, no_trunc: bool) -> Fields:
    """What a template of `ps` may name: docker's words, and Pid."""
    return {
        "ID": ("CONTAINER ID", lambda row: str(row["id"])),
        "Names": ("NAMES", lambda row: str(row["id"])),
        "Image": ("IMAGE", lambda row: image_text(row, no_trunc)),
        "Pid": ("PID", lambda row: str(row["pid"] or "")),
        "State": ("STATE", state_text),
        "Status": ("STATUS", lambda row: status_text(row, now_ns)),
        "CreatedAt": ("CREATED AT", lambda row: rfc3339(made_at(row)) or ""),
        "RunningFor": ("CREATED", lambda row: ago(made_at(row), now_ns)),
        "Labels": ("LABELS", lambda row: labels_text(row.get("labels") or {})),
        "Networks": ("NETWORKS", networks_text),
        "Addresses": ("ADDRESSES", addresses_text),
        "Ports": ("PORTS", ports_text),
    }


def ls_fields(now_ns: int, no_trunc: bool) -> Fields:
    """What a template of `ls` may name."""
    fields = ps_fields(now_ns, no_trunc)
    same = ("ID", "Names", "Image", "CreatedAt", "RunningFor", "Labels")
    return {
        **{name: fields[name] for name in same},
        "Runtime": ("RUNTIME", lambda row: str(row["runtime"])),
        "Snapshotter": ("SNAPSHOTTER", lambda row: str(row.get("snapshotter", ""))),
    }


def image_text(row: Row, no_trunc: bool) -> str:
    """An image's name; of a digest in it the beginning, unless all of it is wanted."""
    image = str(row["image"] or "-")
    name, at, digest = image.partition("@")
    algorithm, _, value = digest.partition(":")
    if no_trunc or not at or len(value) <= SHORT_DIGEST:
        return image
    return f"{name}@{algorithm}:{value[:SHORT_DIGEST]}"


def networks_text(row: Row) -> str:
    return ",".join(one["network"] for one in row.get("networks") or ())


def addresses_text(row: Row) -> str:
    """Its addresses without their prefix lengths."""
    networks = row.get("networks") or ()
    return ",".join(a.partition("/")[0] for one in networks for a in one["addresses"])


def ports_text(row: Row) -> str:
    """As docker words them: 0.0.0.0:8080->80/tcp."""
    return ", ".join(
        f"{where(port)}->{port['container_port']}/{port['protocol']}"
        for port in row.get("ports") or ()
    )


def where(published: Row) -> str:
    """The host's side of a published port."""
    ip = published["host_ip"] or "0.0.0.0"  # noqa: S104
    return f"{f'[{ip}]' if ':' in ip else ip}:{published['host_port']}"


def _health_text(row: Row) -> str:
    match row.get("health"):
        case "starting":
            return " (health: starting)"
        case "healthy" | "unhealthy" as status:
            return f" ({status})"
    return ""


def state_text(row: Row) -> str:
    """A task's status in docker's word."""
    if row["status"] == "stopped":
        return "restarting" if row.get("restart_at") else "exited"
    return str(row["status"])


def status_text(row: Row, now_ns: int) -> str:
    """A task's status as docker words it, with what is odd about it."""
    if row["reason"] and row["status"] != "unknown":
        return f"{status_text({**row, 'reason': ''}, now_ns)} ({row['reason']})"
    match row["status"]:
        case "running":
            return f"Up {for_how_long(row['started_at'], now_ns)}{_health_text(row)}"
        case "paused":
            return f"Up {for_how_long(row['started_at'], now_ns)} (Paused)"
        case "stopped" if row.get("restart_at"):
            return f"Restarting ({row['exit_status']}) {ago(row['exited_at'], now_ns)}"
        case "stopped":
            code = f"{row['exit_status']}, {row['cause']}" if row["cause"] else row["exit_status"]
            return f"Exited ({code}) {ago(row['exited_at'], now_ns)}"
        case "unknown":
            return f"Unknown ({row['reason']})"
    return str(row["status"]).capitalize()
