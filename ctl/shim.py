"""`ctl shim`: a container's monitor, reached through the manager, with ctr's words for it."""

from typing import Any

from lighter.ctl import grammar, process
from lighter.ctl.cli import Session, force_option
from lighter.ctl.output import print_json
from lighter.proto.errors import NotFound


@grammar.group("shim")
@grammar.option("--id", "container_id", required=True, help="The container's id.")
def shim(session: Session, container_id: str) -> None:
    """Reach a container's monitor.

    \b
      ctl shim --id web state
      ctl shim --id web exec --exec-id 1 sh
    """
    session.scope = container_id


@shim.verb("state")
def state(session: Session) -> None:
    """print what the monitor is and how its container stands, as JSON

    \b
      ctl shim --id web state
    """
    container_id = session.scope
    task = session.call("tasks.get", id=container_id)["task"]
    rows = session.call("system.shims")["shims"]
    mine = [r for r in rows if (r["namespace"], r["id"]) == (session.namespace, container_id)]
    if not mine:
        raise NotFound(f"find shim of {container_id}: its task has ended, and it has too")
    print_json({"task": task, "shim": mine[0]})


@shim.verb("exec", interspersed=False)
@grammar.option("--exec-id", help="Id of the new process.  [default: made up]")
@grammar.option("--attach", "-a", "stdin", is_flag=True, help="Pass standard input on.")
@grammar.option("--tty", "-t", is_flag=True, help="Give it a terminal.")
@grammar.option("--env", "-e", multiple=True, help="KEY=value; KEY alone takes ctl's own.")
@grammar.option("--cwd", help="Working directory.")
@grammar.argument("command", nargs=-1, required=True, type=grammar.RAW, metavar="CMD [ARG]...")
def exec_(
    session: Session, /, command: tuple[str, ...], exec_id: str | None, stdin: bool, **flags: Any
) -> int:
    """run a command in the container; its exit code is ctl's

    \b
      ctl shim --id web exec --exec-id 1 sh
    """
    request = process.exec_request(exec_id, command, {**flags, "user": None})
    return process.exec_attached(session, session.scope, request, stdin=stdin or flags["tty"])


@shim.verb("delete")
@force_option
def delete(session: Session) -> None:
    """forget a task that has ended: its monitor has gone then

    \b
      ctl shim --id web delete
    """
    print_json(session.call("tasks.delete", id=session.scope, exec_id="", force=False))
