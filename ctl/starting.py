"""Docker's verbs of a container's life: create, start, restart, wait."""

from collections import deque
from typing import Any

from lighter.ctl import grammar, process
from lighter.ctl.cli import PATIENCE, SIGNAL, Session, force_option, format_option
from lighter.ctl.definition import definition, definition_options
from lighter.ctl.output import print_json
from lighter.ctl.resolve import AT_ONCE, resolved
from lighter.ctl.run import PULL, create_or_pull
from lighter.ctl.short import each
from lighter.proto.errors import LighterError, NotFound

_REFS = grammar.argument("refs", nargs=-1, required=True, metavar="CONTAINER...")


@grammar.command(
    "create",
    interspersed=False,
    options_metavar="[OPTIONS]",
)
@definition_options
@grammar.option("--name", help="The container's id.  [default: made up]")
@grammar.option("--rm", is_flag=True, help="Remove the container when it has ended.")
@grammar.option("--interactive", "-i", is_flag=True, help="Keep standard input open.")
@PULL
@grammar.argument("image")
@grammar.argument("words", nargs=-1, type=grammar.RAW, metavar="[COMMAND] [ARG]...")
def create(
    session: Session,
    /,
    image: str,
    words: tuple[str, ...],
    name: str | None,
    rm: bool,
    interactive: bool,
    pull_when: str,
    **flags: Any,
) -> None:
    """Create a container of IMAGE, which `ctl start` starts; prints its id.

    As docker: all words after IMAGE are the command, which the image's entrypoint runs.
    `ctl containers create` is ctr's form.

    \b
      ctl create --name web --restart unless-stopped docker.io/library/nginx:alpine
      ctl start web
    """
    with process.Refusals():
        body = definition(
            name,
            image,
            words,
            flags,
            given=session.given,
            auto_remove=rm,
            stdin_open=interactive,
            as_docker=True,
        )
        created = create_or_pull(session, body, image, pull_when)
    session.warn(created["warnings"])
    print(created["id"], flush=True)


@grammar.command("start")
@force_option
@grammar.option("--attach", "-a", is_flag=True, help="Show its output; its exit code is ctl's.")
@grammar.option("--interactive", "-i", is_flag=True, help="Attach, and pass standard input on.")
@_REFS
def start(session: Session, refs: tuple[str, ...], attach: bool, interactive: bool) -> int:
    """Start containers that do not run.

    \b
      ctl start web db
      ctl start -a -i box
    """
    if not (attach or interactive):
        return each(session, refs, lambda id_: session.call("containers.start", id=id_))
    if len(refs) > 1:
        raise grammar.UsageError("start: one container alone can be attached to")

    def act(container_id: str) -> int:
        terminal = process.has_terminal(session, container_id)
        process.check_terminal("start", interactive=interactive, terminal=terminal)
        return process.start_attached(
            session,
            container_id,
            terminal=terminal,
            stdin=interactive,
            replace=True,
        )

    return resolved(session, refs[0], act)


@grammar.command("restart")
@force_option
@grammar.option(
    *("--timeout", "--time", "-t"),
    type=PATIENCE,
    help="Until KILL is sent; -1: never.  [default: its own]",
)
@grammar.option("--signal", "-s", "signum", type=SIGNAL, help="Instead of its stop signal.")
@_REFS
def restart(
    session: Session, refs: tuple[str, ...], timeout: float | None, signum: int | None
) -> int:
    """Stop containers, as `ctl stop` does, and start them again; those that do not run, too.

    \b
      ctl restart web
    """
    return each(
        session,
        refs,
        lambda id_: session.call("containers.restart", id=id_, timeout_s=timeout, signal=signum),
    )


@grammar.command("wait")
@_REFS
@format_option
def wait(session: Session, refs: tuple[str, ...]) -> int:
    """Wait for the end of containers, and print their exit codes, in the order of the words.

    \b
      ctl wait web
    """
    code = 0
    ends: list[Any] = []
    later = deque(_id_of(session, ref) for ref in refs)
    waits: deque[tuple[str, Any]] = deque()
    try:
        while later or waits:
            # As many as may be asked for at once, before the first is waited for.
            while later and len(waits) < AT_ONCE:
                next_ = later.popleft()
                waits.append((next_, _begin_wait(session, next_)))
            id_, call = waits.popleft()
            try:
                end = call.result()
            except LighterError as error:
                if not error.answered:  # the time is over, or nobody is there for the others either
                    raise
                session.complain(error.message)
                code = 1
                continue
            ends.append({"id": id_, **end})
            if not session.json:
                print(end["exit_status"], flush=True)
    except (LighterError, KeyboardInterrupt):
        # Those behind it too, by their ids; a code alone is of use in its order only.
        ends += [{"id": id_, **call.value} for id_, call in waits if call.done and not call.error]
        if session.json and ends:
            print_json(ends)
        raise
    if session.json:
        print_json(ends)
    return code


def _begin_wait(session: Session, id_: str) -> Any:
    return session.manager.begin("tasks.wait", id=id_, exec_id="", reissued=True)


def _id_of(session: Session, ref: str) -> str:
    try:
        return str(session.call("containers.resolve", ref=ref)["id"])
    except NotFound:
        return ref  # a task may be there without its container
