"""`ctl containers checkpoint` and `restore`: containers to images and back, as ctr does it."""

import click

from lighter.ctl import process
from lighter.ctl.cli import HELP_OPTIONS, Session, detach_keys_option
from lighter.ctl.container import remove
from lighter.proto.errors import LighterError


@click.command("checkpoint", context_settings=HELP_OPTIONS)
@click.option("--rw", is_flag=True, help="With what it has written to its root.")
@click.option("--image", is_flag=True, help="With the image that it was made from.")
@click.option("--task", is_flag=True, help="With its processes and their memory, by CRIU.")
@click.option("--exit", "ends", is_flag=True, help="With --task: it ends with it.")
@click.argument("container_id", metavar="CONTAINER")
@click.argument("ref")
@click.pass_obj
def checkpoint(
    session: Session, container_id: str, ref: str, rw: bool, image: bool, task: bool, ends: bool
) -> None:
    """make an image of a container, of which `restore` makes one again

    \b
      ctl containers checkpoint --rw --task web example.com/web:evening
      ctl containers restore --rw --live web2 example.com/web:evening
    """
    made = session.call(
        "containers.checkpoint", id=container_id, name=ref, rw=rw, image=image, task=task, ends=ends
    )
    print(made["image"])


@click.command("restore", context_settings=HELP_OPTIONS)
@click.option("--rw", is_flag=True, help="With the files that were written to its root.")
@click.option("--live", is_flag=True, help="Go on with its processes.")
@click.option("--trust", is_flag=True, help="Take one that this manager has not made.")
@click.option("--detach", "-d", is_flag=True, help="Do not wait for it.")
@detach_keys_option
@click.argument("container_id", metavar="CONTAINER")
@click.argument("ref")
@click.pass_obj
def restore(
    session: Session, container_id: str, ref: str, rw: bool, live: bool, trust: bool, detach: bool
) -> int:
    """make and start a container of a checkpoint

    A checkpoint that was made elsewhere is refused: its processes and its specification can have
    any right on this host. --trust takes it.
    """
    session.call("containers.restore", id=container_id, name=ref, rw=rw, live=live, trust=trust)
    origin = {"checkpoint_image": ref, "trust": trust} if live else process.NEW
    try:
        if detach:
            process.start_detached(session, container_id, origin=origin)
            return 0
        code = process.start_attached(
            session,
            container_id,
            terminal=process.has_terminal(session, container_id),
            stdin=True,
            origin=origin,
        )
    except LighterError:
        remove(session, container_id, True)
        raise
    process.forget(session, container_id)
    return code
