"""`ctl tasks`: the running side of containers."""

from __future__ import annotations

from lighter.ctl import grammar
from lighter.ctl.cli import (
    SIGNAL,
    Session,
    absolute,
    detach_keys_option,
    fifo_dir_option,
    force_option,
    format_option,
)
from lighter.ctl.output import listing, print_json, rfc3339, table
from lighter.proto.errors import InvalidArgument, NotFound

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any


_log_uri = grammar.option(
    "--log-uri",
    default="",
    metavar="URI",
    help="Its output goes to file:///PATH or binary:///PROGRAM?KEY=VALUE.",
)


@grammar.group("tasks")
def tasks(_session: Session) -> None:
    """Manage tasks: containers that run, or have run.

    \b
      ctl tasks start -d web
      ctl tasks exec --exec-id 1 -t web /bin/sh
      ctl tasks kill web
      ctl tasks delete web
    """


@tasks.verb("start")
@grammar.option("--detach", "-d", is_flag=True, help="Do not wait for it.")
@grammar.option("--null-io", is_flag=True, help="Pass no streams.")
@grammar.option("--pid-file", type=grammar.PATH, default="", help="Write the pid to this file.")
@grammar.option("--checkpoint", type=grammar.PATH, default="", help="Go on from this directory.")
@_log_uri
@fifo_dir_option
@detach_keys_option
@grammar.argument("container_id", metavar="CONTAINER")
@grammar.argument("words", nargs=-1, type=grammar.RAW, metavar="")
def start(
    session: Session,
    container_id: str,
    words: tuple[str, ...],
    detach: bool,
    null_io: bool,
    pid_file: str,
    fifo_dir: str,
    checkpoint: str,
    log_uri: str,
) -> int:
    """start a container, attached unless -d; the exit code is its own

    \b
      ctl tasks start -d web
      ctl tasks start -d --log-uri file:///var/log/web.log web
    """
    from lighter.ctl import process

    if words:
        session.warn([f"start {container_id}: not used: {' '.join(words)}"])
    origin = {"checkpoint": absolute(checkpoint)} if checkpoint else {}
    if log_uri:
        origin["log_uri"] = log_uri
    if detach:
        process.start_detached(session, container_id, pid_file, fifo_dir, origin)
        return 0
    terminal = process.has_terminal(session, container_id)
    code = process.start_attached(
        session,
        container_id,
        terminal=terminal,
        stdin=not null_io,
        output=not null_io,
        pid_file=pid_file,
        origin=origin,
    )
    process.forget(session, container_id)
    return code


@tasks.verb("list ls")
@grammar.option("--quiet", "-q", is_flag=True, help="Ids alone.")
@format_option
def list_(session: Session, quiet: bool) -> None:
    """list tasks

    \b
      ctl tasks list
    """
    rows = session.call("tasks.list")["tasks"]
    if quiet:
        for row in rows:
            print(row["id"])
        return
    listing(
        session.json,
        rows,
        ("TASK", "PID", "STATUS"),
        lambda row: (row["id"], row["pid"], row["status"].upper()),
    )


@tasks.verb("ps")
@grammar.argument("container_id", metavar="CONTAINER")
@format_option
def ps(session: Session, container_id: str) -> None:
    """list the processes of a container, with the host's pids; as JSON with their own ones too

    \b
      ctl tasks ps web
    """
    listing(
        session.json,
        session.call("tasks.top" if session.json else "tasks.pids", id=container_id)["processes"],
        ("PID", "INFO"),
        lambda row: (row["pid"], f"ExecID:{row['exec_id']}" if row["exec_id"] else "-"),
    )


@tasks.verb("checkpoint")
@force_option
@grammar.option("--image-path", type=grammar.PATH, default="", help="A new directory for it.")
@grammar.option("--exit", "ends", is_flag=True, help="End the container with it.")
@grammar.argument("container_id", metavar="CONTAINER")
def checkpoint(session: Session, container_id: str, image_path: str, ends: bool) -> None:
    """write a container's processes and memory to a directory, by CRIU

    It runs on, unless --exit is given. `tasks start --checkpoint DIR` goes on from there. What
    the container has written to its files is not in it: they stay with the container.

    Without --image-path an image is made of all, whose name is printed, and which `containers
    restore` makes a container of.

    \b
      ctl tasks checkpoint --image-path /var/tmp/web --exit web
      ctl tasks delete web && ctl tasks start -d --checkpoint /var/tmp/web web
      ctl containers restore --rw --live again "$(ctl tasks checkpoint web)"
    """
    import os

    if not image_path:
        from lighter.ctl.checkpoint import to_image

        print(to_image(session, container_id, ends))
        return
    directory = absolute(image_path)
    try:
        os.makedirs(directory, 0o700, exist_ok=True)
    except OSError as err:
        raise InvalidArgument(f"make {directory}: {err.strerror}") from err
    session.call("tasks.checkpoint", id=container_id, directory=directory, leave_running=not ends)


@tasks.verb("metrics metric")
@grammar.option("--format", "shape", type=grammar.Choice(("table", "json")), help="Of output.")
@grammar.argument("container_id", metavar="CONTAINER")
def metrics(session: Session, container_id: str, shape: str | None) -> None:
    """print what a task has used, as ctr does

    \b
      ctl tasks metrics --format json web
    """
    (found,) = session.call("tasks.metrics", ids=[container_id])["metrics"]
    if not found["version"]:
        raise NotFound(f"measure task {container_id}: it has ended")
    if "json" in (shape, session.format if shape is None else ""):
        print_json(found["values"])
        return
    table(("ID", "TIMESTAMP"), [(found["id"], go_time(found["timestamp"]))], min_width=1)
    print()
    rows = metric_rows(found["version"], found["values"])
    table(("METRIC", "VALUE"), rows, min_width=1)


def go_time(time_ns: int) -> str:
    """As Go's time.Time prints itself in UTC."""
    text = str(rfc3339(time_ns))
    return text.replace("T", " ").removesuffix("Z") + " +0000 UTC"


def metric_rows(version: int, values: Mapping[str, Any]) -> list[tuple[str, object]]:
    """The metrics that ctr prints, by its names."""
    memory, cpu, pids = (values.get(part) or {} for part in ("memory", "cpu", "pids"))
    of_pids: list[tuple[str, object]] = [
        (f"pids.{name}", pids.get(name, 0)) for name in ("current", "limit")
    ]
    if version == 1:
        usage = memory.get("usage") or {}
        used = cpu.get("usage") or {}
        return [
            ("memory.usage_in_bytes", usage.get("usage", 0)),
            ("memory.limit_in_bytes", usage.get("limit", 0)),
            ("memory.stat.cache", memory.get("total_cache", 0)),
            ("cpuacct.usage", used.get("total", 0)),
            ("cpuacct.usage_percpu", f"[{' '.join(map(str, used.get('per_cpu') or ()))}]"),
            *of_pids,
        ]
    of_cpu = ("usage_usec", "user_usec", "system_usec", "nr_periods", "nr_throttled")
    of_memory = ("usage", "usage_limit", "swap_usage", "swap_limit")
    return [
        *of_pids,
        *((f"cpu.{name}", cpu.get(name, 0)) for name in (*of_cpu, "throttled_usec")),
        *((f"memory.{name}", memory.get(name, 0)) for name in of_memory),
    ]


@tasks.verb("exec", interspersed=False)
@grammar.option("--exec-id", help="Id of the new process.  [default: made up]")
@grammar.option("--tty", "-t", is_flag=True, help="Give it a terminal.")
@grammar.option("--detach", "-d", is_flag=True, help="Do not wait for it.")
@grammar.option("--cwd", help="Working directory.")
@grammar.option("--user", "-u", help="User or uid[:group or gid].")
@_log_uri
@fifo_dir_option
@detach_keys_option
@grammar.argument("container_id", metavar="CONTAINER")
@grammar.argument("command", nargs=-1, required=True, type=grammar.RAW, metavar="CMD [ARG]...")
def exec_(
    session: Session,
    /,
    container_id: str,
    command: tuple[str, ...],
    exec_id: str | None,
    detach: bool,
    fifo_dir: str,
    log_uri: str,
    **flags: Any,
) -> int:
    """run a command in a running container; its exit code is ctl's

    \b
      ctl tasks exec --exec-id 1 -t web /bin/sh
      ctl tasks exec -d --log-uri file:///var/log/check.log web /bin/check
    """
    from lighter.ctl import process

    request = process.exec_request(exec_id, command, flags)
    if log_uri:
        request["log_uri"] = log_uri
    if detach:
        process.exec_detached(session, container_id, request, fifo_dir)
        return 0
    return process.exec_attached(session, container_id, request, stdin=True)


@tasks.verb("kill")
@force_option
@grammar.option("--signal", "-s", "signum", type=SIGNAL, default="TERM", show_default=True)
@grammar.option("--exec-id", default="", help="Signal this process instead of the first one.")
@grammar.option("--all", "-a", "everyone", is_flag=True, help="Signal all its processes.")
@grammar.argument("container_id", metavar="CONTAINER")
def kill(session: Session, container_id: str, signum: int, exec_id: str, everyone: bool) -> None:
    """send a signal to a container

    \b
      ctl tasks kill -s HUP web
    """
    session.call("tasks.kill", id=container_id, exec_id=exec_id, signal=signum, all=everyone)


@tasks.verb("pause")
@force_option
@grammar.argument("container_id", metavar="CONTAINER")
def pause(session: Session, container_id: str) -> None:
    """freeze a container

    \b
      ctl tasks pause web
    """
    session.call("tasks.pause", id=container_id)


@tasks.verb("resume")
@force_option
@grammar.argument("container_id", metavar="CONTAINER")
def resume(session: Session, container_id: str) -> None:
    """let a paused container go on

    \b
      ctl tasks resume web
    """
    session.call("tasks.resume", id=container_id)


@tasks.verb("attach")
@detach_keys_option
@grammar.option("--exec-id", default="", help="This process instead of the first one.")
@grammar.argument("container_id", metavar="CONTAINER")
def attach(session: Session, container_id: str, exec_id: str) -> int:
    """attach to a running container; the keys to detach leave a terminal

    \b
      ctl tasks attach web
    """
    from lighter.ctl import process

    return process.attach(session, container_id, exec_id, stdin=True)


@tasks.verb("wait")
@grammar.option("--exec-id", default="", help="This process instead of the first one.")
@grammar.argument("container_id", metavar="CONTAINER")
@format_option
def wait(session: Session, container_id: str, exec_id: str) -> None:
    """wait for the end of a container and print its exit code

    \b
      ctl tasks wait web
    """
    end = session.call("tasks.wait", id=container_id, exec_id=exec_id)
    if session.json:
        print_json(end)
    else:
        print(end["exit_status"])


@tasks.verb("delete del remove rm")
@grammar.option("--force", "-f", is_flag=True, help="End it first.")
@grammar.option("--exec-id", default="", help="Forget this process instead.")
@grammar.argument("container_ids", nargs=-1, required=True, metavar="CONTAINER...")
def delete(session: Session, container_ids: tuple[str, ...], force: bool, exec_id: str) -> int:
    """delete tasks that have ended; the containers stay

    \b
      ctl tasks delete web
    """
    from lighter.ctl.resolve import work_through

    def forget(container_id: str) -> None:
        session.call("tasks.delete", id=container_id, exec_id=exec_id, force=force)

    return work_through(session, container_ids, forget, shown=False)
