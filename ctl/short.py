"""The short verbs: docker's words for the same services, taking beginnings of made-up ids.

Each works through all containers it is given, tells what failed, and fails if anything did. What
may take its time or hang (kill, stop, rm) is asked for many at once.
"""

from __future__ import annotations

from lighter.ctl import grammar
from lighter.ctl.cli import (
    PATIENCE,
    SIGNAL,
    Session,
    detach_keys_option,
    force_option,
)
from lighter.ctl.resolve import AtOnce, resolved, work_through
from lighter.proto.errors import LighterError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_REFS = grammar.argument("refs", nargs=-1, required=True, metavar="CONTAINER...")


def each(session: Session, refs: tuple[str, ...], act: Callable[[str], object]) -> int:
    """`act` on every container; prints the ids it succeeded for. Returns the exit code."""

    def act_and_tell(container_id: str) -> None:
        act(container_id)
        print(container_id, flush=True)

    return work_through(
        session, refs, lambda ref: resolved(session, ref, act_and_tell), shown=False
    )


def _each_at_once(
    session: Session, refs: tuple[str, ...], act: Callable[[str], object], calls: AtOnce
) -> int:
    """`each`, by calls that are under way at the same time: broken off, it tells which are done."""
    try:
        return each(session, refs, act)
    except (LighterError, KeyboardInterrupt):
        calls.tell_rest()
        raise


@grammar.command("exec", interspersed=False)
@grammar.option("--interactive", "-i", is_flag=True, help="Pass standard input on.")
@grammar.option("--tty", "-t", is_flag=True, help="Give it a terminal; standard input too.")
@grammar.option("--detach", "-d", is_flag=True, help="Do not wait for it.")
@grammar.option("--env", "-e", multiple=True, help="KEY=value; KEY alone takes ctl's own.")
@grammar.option("--cwd", "--workdir", "-w", help="Working directory.")
@grammar.option("--user", "-u", help="User or uid[:group or gid].")
@detach_keys_option
@grammar.argument("ref", metavar="CONTAINER")
@grammar.argument("command", nargs=-1, required=True, type=grammar.RAW, metavar="CMD [ARG]...")
def exec_(
    session: Session,
    /,
    ref: str,
    command: tuple[str, ...],
    interactive: bool,
    detach: bool,
    **flags: Any,
) -> int:
    """Run a command in a running container; its exit code is ctl's.

    \b
      ctl exec web cat /etc/hosts
      ctl exec -it web sh
    """
    from lighter.ctl import process

    request = process.exec_request(None, command, flags)
    stdin = interactive or flags["tty"]
    if not detach:
        process.check_terminal("exec", interactive=interactive, terminal=flags["tty"])

    def act(container_id: str) -> int:
        if detach:
            process.exec_detached(session, container_id, request)
            return 0
        return process.exec_attached(session, container_id, request, stdin=stdin)

    return resolved(session, ref, act)


@grammar.command("attach")
@grammar.option("--no-stdin", is_flag=True, help="Look only.")
@grammar.option(
    "--sig-proxy",
    type=grammar.Choice(("true", "false")),
    default="true",
    show_default=True,
    help="Pass signals on; false: they end ctl alone.",
)
@detach_keys_option
@grammar.argument("ref", metavar="CONTAINER")
def attach(session: Session, ref: str, no_stdin: bool, sig_proxy: str) -> int:
    """Attach to a running container; the keys to detach leave a terminal.

    \b
      ctl attach web
    """
    from lighter.ctl import process

    passes = sig_proxy == "true"

    def act(container_id: str) -> int:
        return process.attach(session, container_id, "", stdin=not no_stdin, passes_signals=passes)

    return resolved(session, ref, act)


@grammar.command("kill")
@force_option
@grammar.option("--signal", "-s", "signum", type=SIGNAL, default="KILL", show_default=True)
@_REFS
def kill(session: Session, refs: tuple[str, ...], signum: int) -> int:
    """Send a signal to containers.

    \b
      ctl kill web
      ctl kill -s HUP web
    """
    kills = AtOnce(session, "tasks.kill", refs, exec_id="", signal=signum, all=False)
    return _each_at_once(session, refs, kills, kills)


@grammar.command("stop")
@force_option
@grammar.option(
    *("--timeout", "--time", "-t"),
    type=PATIENCE,
    help="Until KILL is sent; -1: never.  [default: its own]",
)
@grammar.option("--signal", "-s", "signum", type=SIGNAL, help="Instead of its stop signal.")
@_REFS
def stop(session: Session, refs: tuple[str, ...], timeout: float | None, signum: int | None) -> int:
    """Stop containers: their stop signal, then KILL. They are not started again by themselves.

    \b
      ctl stop -t 30 web
    """
    stops = AtOnce(session, "tasks.stop", refs, timeout_s=timeout, signal=signum)
    return _each_at_once(session, refs, stops, stops)


@grammar.command("pause")
@force_option
@_REFS
def pause(session: Session, refs: tuple[str, ...]) -> int:
    """Freeze containers.

    \b
      ctl pause web
    """
    return each(session, refs, lambda id_: session.call("tasks.pause", id=id_))


@grammar.command("resume")
@force_option
@_REFS
def resume(session: Session, refs: tuple[str, ...]) -> int:
    """Let paused containers go on.

    \b
      ctl resume web
    """
    return each(session, refs, lambda id_: session.call("tasks.resume", id=id_))


@grammar.command("rm")
@grammar.option("--force", "-f", is_flag=True, help="Running ones too.")
@grammar.option("--volumes", "-v", is_flag=True, help="Its anonymous volumes too.")
@_REFS
def rm(session: Session, refs: tuple[str, ...], force: bool, volumes: bool) -> int:
    """Remove containers.

    \b
      ctl rm -f web
    """
    from lighter.ctl.container import remove

    session.forced = force
    first = AtOnce(session, "containers.delete", refs, force=force, volumes=volumes)

    def act(container_id: str) -> None:
        remove(session, container_id, force, volumes=volumes, first=first)

    return _each_at_once(session, refs, act, first)
