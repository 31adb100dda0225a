"""`ctl run`: create a container and start it, attached or not."""

from __future__ import annotations

from lighter.ctl import grammar, process
from lighter.ctl.cli import Session, detach_keys_option, fifo_dir_option
from lighter.ctl.definition import definition, definition_options
from lighter.ctl.undo import Undo
from lighter.proto.errors import LighterError, NotFound

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

PULL = grammar.option(
    "--pull",
    "pull_when",
    type=grammar.Choice(("missing", "always", "never")),
    default="missing",
    show_default=True,
    help="When to pull the image.",
)


@grammar.command(
    "run",
    interspersed=False,
    short_help="run a container",
    options_metavar="[OPTIONS]",
)
@definition_options
@grammar.option("--rm", is_flag=True, help="Remove the container when it has ended.")
@grammar.option("--detach", "-d", is_flag=True, help="Do not wait for it.")
@grammar.option("--interactive", "-i", is_flag=True, help="docker's form; pass standard input on.")
@grammar.option("--name", help="docker's form: the container's id.")
@grammar.option("--null-io", is_flag=True, help="Neither streams nor a log.")
@PULL
@fifo_dir_option
@detach_keys_option
@grammar.option("--pid-file", type=grammar.PATH, default="", help="Write the pid to this file.")
@grammar.argument("image")
@grammar.argument("words", nargs=-1, type=grammar.RAW, metavar="ID [COMMAND] [ARG]...")
def run(
    session: Session,
    /,
    image: str,
    words: tuple[str, ...],
    rm: bool,
    detach: bool,
    interactive: bool,
    name: str | None,
    null_io: bool,
    pull_when: str,
    pid_file: str,
    fifo_dir: str,
    **flags: Any,
) -> int:
    """Run a container of IMAGE, by default attached: its exit code is ctl's.

    As ctr, the word after IMAGE is the new container's ID, and the words after it take the place of
    the image's entrypoint and command. With --name or -i, as docker, all words after IMAGE are the
    command, which the image's entrypoint runs; without --name an id is made up.

    \b
      ctl run -d --net-host docker.io/library/nginx:alpine web
      ctl run --rm -t docker.io/library/busybox:latest box sh
      ctl run --rm -it docker.io/library/busybox:latest sh
      ctl run -d --name db --mount type=bind,src=data,dst=/data db:1
    """
    as_docker = name is not None or interactive
    if flags["config"]:  # the spec knows the root: the one word is the id
        if as_docker or words:
            raise grammar.UsageError("run --config: the container's id alone is expected")
        words, image = (image,), ""
    if not as_docker and not words:
        raise grammar.UsageError(both_spellings(image))
    container_id, command = (name, words) if as_docker else (words[0], words[1:])
    stdin = not null_io and (not as_docker or interactive or flags["tty"])
    if null_io:
        flags["log_driver"] = "none"
    with process.Refusals():
        body = definition(
            container_id,
            image,
            command,
            flags,
            given=session.given,
            auto_remove=rm,
            stdin_open=stdin,
            as_docker=as_docker,
        )
    if body["spec"]:
        flags["tty"] = has_terminal(body["spec"])
    if not (detach or null_io):
        process.check_terminal("run", interactive=interactive, terminal=flags["tty"])
    with process.Refusals(), Undo() as undo:
        session.manager.connect()
        created = create_or_pull(session, body, image, pull_when)
        session.manager.own()
        undo.add(lambda: remove_made(session, created["id"]))
        session.warn(created["warnings"])
        if detach:
            process.start_detached(session, created["id"], pid_file, fifo_dir)
            undo.keep()
            if as_docker:
                print(created["id"], flush=True)
            return 0
        code = process.start_attached(
            session,
            created["id"],
            terminal=flags["tty"],
            stdin=stdin,
            output=not (null_io or flags["log_uri"]),
            pid_file=pid_file,
            started=undo.keep,
        )
    if not as_docker and not rm:
        process.forget(session, created["id"])
    return code


def create_or_pull(session: Session, body: dict[str, Any], image: str, pull_when: str) -> Any:
    """The new container; its image is pulled first where that is asked or needed."""
    if pull_when == "always" and body["image"]:
        _pull(session, image, body)
    try:
        return session.call("containers.create", **body)
    except NotFound as error:
        if pull_when != "missing" or error.details.get("missing") != "image":
            raise
        session.complain(f"image {image} is not here: pulling it")
    _pull(session, image, body)
    return session.call("containers.create", **body)


def _pull(session: Session, image: str, body: Mapping[str, Any]) -> None:
    """Pull it for the platform and the snapshotter that the container's definition has."""
    from lighter.ctl.transfer import NO_FLAGS, access, pull_image

    credentials = access(session, image, NO_FLAGS)
    wanted = {"platform": body["platform"], "snapshotter": body["snapshotter"]}
    pull_image(session, image, credentials, **wanted, to_stderr=True)


def has_terminal(spec: str) -> bool:
    """Whether a specification asks for a terminal; what is no specification the manager refuses."""
    import json

    try:
        return bool(json.loads(spec)["process"]["terminal"])
    except (ValueError, LookupError, TypeError, RecursionError):
        return False


def both_spellings(image: str) -> str:
    return (
        f"run {image}: the container's id is missing; either of\n"
        f"  ctl run {image} ID [COMMAND...]         as ctr\n"
        f"  ctl run --name ID {image} [COMMAND...]  as docker; -i for one that is made up"
    )


def remove_made(session: Session, container_id: str) -> None:
    """Take a container back that this command has made and not started."""
    try:
        session.manager.undo("containers.delete", id=container_id, force=True, volumes=True)
    except LighterError:
        pass
