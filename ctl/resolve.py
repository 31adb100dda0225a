"""Names on the command line: beginnings of containers' ids, and many names of one verb."""

from __future__ import annotations

from lighter.ctl.cli import Session
from lighter.proto.errors import LighterError, NotFound

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    Result = TypeVar("Result")


def resolved(session: Session, ref: str, act: Callable[[str], Result]) -> Result:
    """`act` on the container `ref`, or else on the only one whose id begins with it.

    The look-up is made after a NotFound alone, so an exact id costs nothing.
    """
    try:
        return act(ref)
    except NotFound:
        try:
            container_id = session.call("containers.resolve", ref=ref)["id"]
        except NotFound:
            container_id = ref
        if container_id == ref:
            raise
    return act(container_id)


def remove_each(session: Session, method: str, names: tuple[str, ...], *, force: bool) -> int:
    """Call `method` for each full name and print those that went; returns the exit code.

    Works through all of them, tells what failed, and fails if anything did. `force`: one that is
    not there is no failure.
    """
    code = 0
    for name in names:
        try:
            try:
                session.call(method, name=name)
            except NotFound:
                if not force:
                    raise
        except LighterError as error:
            session.complain(error.message)
            code = 1
        else:
            print(name, flush=True)
    return code
