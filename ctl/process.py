"""Attached and detached processes: start, exec and attach, as several verbs use them.

The order of an attached start: the pipes, tasks.create with their names, tasks.wait (outstanding),
tasks.start; then the pump, until the output has ended and the wait is answered.
"""

from __future__ import annotations

import sys

from lighter.ctl.cli import Session
from lighter.ctl.connect import Call, Manager
from lighter.ctl.pump import (
    Detached,
    Flow,
    Pump,
    Signals,
    answered,
    output_flows,
    watched_signals,
)
from lighter.ctl.stdio import NO_STDIO, Pipes, Terminal, window_size
from lighter.ctl.undo import Undo
from lighter.proto.errors import InvalidArgument, LighterError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping
    from types import TracebackType
    from typing import Any
else:
    import posix as os  # system calls alone; what `os` brings besides takes a millisecond

REFUSED = 125
NEW: Mapping[str, Any] = {}


class Refusals:
    """Gives what is refused in its block the exit code 125, unless it knows a better."""

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, LighterError):
            error.details.setdefault("exit_code", REFUSED)


def check_terminal(verb: str, *, interactive: bool, terminal: bool) -> None:
    """Raises InvalidArgument, in docker's words, where what is typed comes from no terminal.

    A terminal inside has no end of input that every program on it would see.
    """
    if interactive and terminal and not os.isatty(0):
        raise InvalidArgument(
            f"{verb}: the input device is not a TTY; without -t, -i passes on what comes by a pipe"
        )


def start_detached(
    session: Session,
    container_id: str,
    pid_file: str = "",
    fifo_dir: str = "",
    origin: Mapping[str, Any] = NEW,
) -> None:
    """Create and start the task, with no streams of ctl's.

    `fifo_dir`: with FIFOs that are made in a new directory there, for whoever opens them;
    `origin`: the fields of tasks.create that say what it goes on from.
    """
    streams = make_fifos(fifo_dir, container_id) if fifo_dir else NO_STDIO
    body = {"id": container_id, **streams, **origin}
    created = session.call("tasks.create", **body, rows=0, cols=0)
    session.manager.own()
    with Undo() as undo:
        undo.add(lambda: _forget_task(session, container_id))
        if pid_file:
            _write_pid(pid_file, created["pid"])
        session.call("tasks.start", id=container_id)
        undo.keep()


def start_attached(
    session: Session,
    container_id: str,
    *,
    terminal: bool,
    stdin: bool,
    output: bool = True,
    pid_file: str = "",
    replace: bool = False,
    origin: Mapping[str, Any] = NEW,
    started: Callable[[], object] = lambda: None,
) -> int:
    """Create and start the task, and see it to its end; returns its exit code.

    `replace`: an ended task makes way. `origin`: see `start_detached`. `started` is called once
    the task runs, so that a caller stops undoing what went before.
    """
    manager = session.manager
    with (
        Pipes(stdin=stdin, stdout=output, stderr=output and not terminal) as pipes,
        Undo() as undo,
    ):
        outputs = output_flows(pipes)
        body: dict[str, Any] = {"id": container_id, **pipes.uris(), **_size(terminal)}
        body |= {**origin, "replace": replace}
        created = answered(manager, manager.begin("tasks.create", **body), outputs)
        manager.own()
        undo.add(lambda: _forget_task(session, container_id))
        pipes.give_away()
        if pid_file:
            _write_pid(pid_file, created["pid"])
        wait = manager.begin("tasks.wait", id=container_id, exec_id="", until_removed=True)

        def start() -> None:
            session.call("tasks.start", id=container_id)
            undo.keep()
            started()

        return _attend(session, container_id, "", pipes, outputs, wait, terminal, start)


def exec_request(
    exec_id: str | None, command: tuple[str, ...], flags: Mapping[str, Any]
) -> dict[str, Any]:
    """The fields of tasks.exec that the command line decides."""
    env: list[str] = []
    if flags.get("env"):
        from lighter.ctl.flags.process import environment

        env = environment(flags["env"], ())
    return {
        "exec_id": exec_id,
        "args": list(command),
        "env": env,
        "cwd": flags["cwd"] or "",
        "user": flags["user"] or "",
        "terminal": flags["tty"],
    }


def exec_attached(
    session: Session, container_id: str, request: Mapping[str, Any], *, stdin: bool
) -> int:
    """Run one more process in the container and see it to its end; returns its exit code.

    `request` holds the fields of tasks.exec but for the streams and the size.
    """
    manager = session.manager
    terminal = bool(request["terminal"])
    with Pipes(stdin=stdin, stdout=True, stderr=not terminal) as pipes:
        outputs = output_flows(pipes)
        body = {"id": container_id, **request, **pipes.uris(), **_size(terminal)}
        with Refusals():
            answer = answered(manager, manager.begin("tasks.exec", **body), outputs)
        pipes.give_away()
        exec_id = answer["exec_id"]
        wait = manager.begin("tasks.wait", id=container_id, exec_id=exec_id, delete=True)
        code = _attend(session, container_id, exec_id, pipes, outputs, wait, terminal)
        if wait.done and not wait.value.get("deleted"):  # a manager of the release before
            forget(session, container_id, exec_id)
        return code


def exec_detached(
    session: Session, container_id: str, request: Mapping[str, Any], fifo_dir: str = ""
) -> None:
    """As `start_detached`, for one more process of a container that runs."""
    streams = make_fifos(fifo_dir, container_id) if fifo_dir else NO_STDIO
    with Refusals():
        session.call("tasks.exec", id=container_id, **request, **streams, rows=0, cols=0)


def make_fifos(folder: str, name: str) -> dict[str, str]:
    """FIFOs <folder>/<random>/<name>-<stream>, as ctr's; they are the caller's to remove."""
    import os
    import tempfile

    try:
        os.makedirs(folder, 0o700, exist_ok=True)
        place = tempfile.mkdtemp(dir=os.path.abspath(folder))
        streams = {stream: f"{place}/{name}-{stream}" for stream in NO_STDIO}
        for path in streams.values():
            os.mkfifo(path, 0o600)
    except OSError as err:
        raise InvalidArgument(f"make FIFOs in {folder}: {err.strerror}") from err
    return streams


def attach(
    session: Session, container_id: str, exec_id: str, *, stdin: bool, passes_signals: bool = True
) -> int:
    """Take part in a running process until it ends or the keys to detach are typed.

    Without `passes_signals` they end ctl, and the process goes on.
    """
    manager = session.manager
    process = {"id": container_id, "exec_id": exec_id}
    with Pipes(stdin=stdin, stdout=True, stderr=True) as pipes:
        wait = manager.begin("tasks.wait", **process)
        answer = session.call("tasks.attach", **process, **pipes.uris())
        pipes.give_away()
        terminal = bool(answer["terminal"])
        if terminal and (size := window_size())["rows"]:
            # A program draws itself anew when the size changes, and at no other word.
            session.call("tasks.resize", **process, rows=size["rows"] + 1, cols=size["cols"])
            session.call("tasks.resize", **process, **size)
        outputs = output_flows(pipes)
        return _attend(
            session,
            container_id,
            exec_id,
            pipes,
            outputs,
            wait,
            terminal,
            ends_stdin=False,
            passes_signals=passes_signals,
        )


def _attend(
    session: Session,
    container_id: str,
    exec_id: str,
    pipes: Pipes,
    outputs: list[Flow],
    wait: Call,
    terminal: bool,
    start: Callable[[], None] = lambda: None,
    *,
    ends_stdin: bool = True,
    passes_signals: bool = True,
) -> int:
    """Pump a process's streams until its end, and say what is special about that."""
    manager: Manager = session.manager
    process = {"id": container_id, "exec_id": exec_id}
    try:
        with Signals(watched_signals(terminal)) as signals:
            start()
            # Without standard input no key reaches the process: Ctrl-C has to reach ctl.
            with Terminal(raw=terminal and pipes.stdin >= 0):
                pump = Pump(
                    manager,
                    process,
                    pipes,
                    outputs,
                    signals,
                    terminal=terminal,
                    passes_signals=passes_signals and not terminal,
                    ends_stdin=ends_stdin,
                    detach_keys=session.detach_keys,
                )
                end = pump.run(wait)
    except Detached:
        print(file=sys.stderr)  # the cursor stands where the container left it
        session.complain(f"detached from {exec_id or container_id}, which runs on")
        return 0
    if end.get("cause"):
        name = f"exec {exec_id} in {container_id}" if exec_id else container_id
        session.complain(f"wait for {name}: it ended with {end['exit_status']}: {end['cause']}")
    return int(end["exit_status"])


def has_terminal(session: Session, container_id: str) -> bool:
    """Whether the container's first process is defined to have a terminal."""
    import json

    spec = json.loads(session.call("containers.get", id=container_id)["container"]["spec"])
    return bool(spec.get("process", {}).get("terminal"))


def forget(session: Session, container_id: str, exec_id: str = "") -> None:
    """Delete an ended task, as ctr does after an attached one, or exec; the task's log stays."""
    try:
        session.call("tasks.delete", id=container_id, exec_id=exec_id, force=False)
    except LighterError:
        pass


def _forget_task(session: Session, container_id: str) -> None:
    """A task that was created but could not be started does not stay."""
    try:
        session.manager.undo("tasks.delete", id=container_id, exec_id="", force=True)
    except LighterError:
        pass


def _size(terminal: bool) -> dict[str, int]:
    return window_size() if terminal else {"rows": 0, "cols": 0}


def _write_pid(path: str, pid: int) -> None:
    try:
        with open(path, "w", encoding="ascii") as file:
            file.write(str(pid))
    except OSError as err:
        raise InvalidArgument(f"write pid file {path}: {err.strerror}") from err
