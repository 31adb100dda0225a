"""`ctl containers create`: a definition alone. What it loads for its flags, no other verb needs."""

from __future__ import annotations

from lighter.ctl import grammar
from lighter.ctl.cli import Session
from lighter.ctl.definition import definition, definition_options

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


@grammar.command("create", interspersed=False, late_flags=2)
@definition_options
@grammar.argument("words", nargs=-1, type=grammar.RAW, metavar="IMAGE CONTAINER [COMMAND] [ARG]...")
def create(session: Session, /, words: tuple[str, ...], **flags: Any) -> None:
    """create a container, which `tasks start` starts

    \b
      ctl containers create docker.io/library/busybox:latest box
      ctl containers create docker.io/library/busybox:latest box sh -c 'sleep 60'
      ctl containers create IMAGE box --mount type=bind,src=/tmp,dst=/hostdir,options=rbind:rw
    """
    if flags["config"] and len(words) == 1:  # the spec knows the root: the one word is the id
        words = ("", *words)
    if len(words) < 2:
        raise grammar.UsageError("image and container id must be given")
    body = definition(words[1], words[0], words[2:], flags, given=session.given)
    session.warn(session.call("containers.create", **body)["warnings"])
