"""`ctl shim`: a container's monitor, reached through the manager, with ctr's words for it."""

from typing import Any

import click

from lighter.ctl import process
from lighter.ctl.cli import HELP_OPTIONS, Commands, Session
from lighter.ctl.output import print_json
from lighter.ctl.task import exec_request
from lighter.proto.errors import NotFound


@click.group("shim", cls=Commands)
@click.option("--id", "container_id", required=True, help="The container's id.")
@click.pass_context
def shim(context: click.Context, container_id: str) -> None:
    """Reach a container's monitor.

    \b
      ctl shim --id web state
      ctl shim --id web exec --exec-id 1 sh
    """
    context.meta["lighter.container"] = container_id


def _id() -> str:
    return str(click.get_current_context().meta["lighter.container"])


@shim.verb("state")
@click.pass_obj
def state(session: Session) -> None:
    """print what the monitor is and how its container stands, as JSON"""
    container_id = _id()
    task = session.call("tasks.get", id=container_id)["task"]
    rows = session.call("system.shims")["shims"]
    mine = [r for r in rows if (r["namespace"], r["id"]) == (session.namespace, container_id)]
    if not mine:
        raise NotFound(f"find shim of {container_id}: its task has ended, and it has too")
    print_json({"task": task, "shim": mine[0]})


@shim.verb("exec", context_settings={"allow_interspersed_args": False, **HELP_OPTIONS})
@click.option("--exec-id", help="Id of the new process.  [default: made up]")
@click.option("--attach", "-a", "stdin", is_flag=True, help="Pass standard input on.")
@click.option("--tty", "-t", is_flag=True, help="Give it a terminal.")
@click.option("--env", "-e", multiple=True, help="KEY=value; KEY alone takes ctl's own.")
@click.option("--cwd", help="Working directory.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED, metavar="CMD [ARG]...")
@click.pass_obj
def exec_(
    session: Session, /, command: tuple[str, ...], exec_id: str | None, stdin: bool, **flags: Any
) -> int:
    """run a command in the container; its exit code is ctl's"""
    request = exec_request(exec_id, command, {**flags, "user": None})
    return process.exec_attached(session, _id(), request, stdin=stdin or flags["tty"])


@shim.verb("delete")
@click.pass_obj
def delete(session: Session) -> None:
    """forget a task that has ended: its monitor has gone then"""
    print_json(session.call("tasks.delete", id=_id(), exec_id="", force=False))
