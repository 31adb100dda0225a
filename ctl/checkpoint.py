"""`ctl containers checkpoint` and `restore`: containers to images and back, as ctr does it."""

import time

from lighter.ctl import grammar, process
from lighter.ctl.cli import Session, detach_keys_option, force_option
from lighter.ctl.run import remove_made
from lighter.ctl.undo import Undo


@grammar.command("checkpoint")
@force_option
@grammar.option("--rw", is_flag=True, help="With what it has written to its root.")
@grammar.option("--image", is_flag=True, help="With the image that it was made from.")
@grammar.option("--task", is_flag=True, help="With its processes and their memory, by CRIU.")
@grammar.option("--exit", "ends", is_flag=True, help="With --task: it ends with it.")
@grammar.argument("container_id", metavar="CONTAINER")
@grammar.argument("ref")
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


def to_image(session: Session, container_id: str, ends: bool) -> str:
    """The name of an image of a container's processes, files and image, made up as ctr does."""
    container = session.call("containers.get", id=container_id)["container"]
    at = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
    made = session.call(
        "containers.checkpoint",
        id=container_id,
        name=f"localhost/checkpoint:{container_id}-{at}-{time.time_ns() % 10**9:09}",
        rw=bool(container["snapshot_key"]),
        image=bool(container["image"]),
        task=True,
        ends=ends,
    )
    return str(made["image"])


@grammar.command("restore")
@grammar.option("--rw", is_flag=True, help="With the files that were written to its root.")
@grammar.option("--live", is_flag=True, help="Go on with its processes.")
@grammar.option("--trust", is_flag=True, help="Take one that this manager has not made.")
@grammar.option("--detach", "-d", is_flag=True, help="Do not wait for it.")
@detach_keys_option
@grammar.argument("container_id", metavar="CONTAINER")
@grammar.argument("ref")
def restore(
    session: Session, container_id: str, ref: str, rw: bool, live: bool, trust: bool, detach: bool
) -> int:
    """make and start a container of a checkpoint

    A checkpoint that was made elsewhere is refused: its processes and its specification can have
    any right on this host. --trust takes it.

    \b
      ctl containers restore --rw --live web2 example.com/web:evening
    """
    session.call("containers.restore", id=container_id, name=ref, rw=rw, live=live, trust=trust)
    session.manager.own()
    origin = {"checkpoint_image": ref, "trust": trust} if live else process.NEW
    with Undo() as undo:
        undo.add(lambda: remove_made(session, container_id))
        if detach:
            process.start_detached(session, container_id, origin=origin)
            undo.keep()
            return 0
        code = process.start_attached(
            session,
            container_id,
            terminal=process.has_terminal(session, container_id),
            stdin=True,
            origin=origin,
            started=undo.keep,
        )
    process.forget(session, container_id)
    return code
