"""Names on the command line: beginnings of made-up ids, and many names of one verb."""

from __future__ import annotations

from lighter.ctl.cli import Session
from lighter.proto.errors import LighterError, NotFound

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    Result = TypeVar("Result")


def resolved(session: Session, ref: str, act: Callable[[str], Result]) -> Result:
    """`act` on the container `ref`, or else on the only one whose made-up id begins with it.

    The look-up is made after a NotFound alone, so an exact id costs nothing. It takes no beginnings
    of names: who asks for `db` when that has just gone must not get `db-prod`.
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


def work_through(
    session: Session, names: tuple[str, ...], act: Callable[[str], object], *, shown: bool = True
) -> int:
    """`act` on each name; `shown`: prints those it succeeded for. Returns the exit code.

    Works through all of them, tells what failed, and fails if anything did.
    """
    code = 0
    for name in names:
        try:
            act(name)
        except LighterError as error:
            if not error.answered:  # nobody is there for the others either, or the time is over
                raise
            session.complain(error.message)
            code = 1
        else:
            if shown:
                print(name, flush=True)
    return code


def remove_each(
    session: Session, method: str, names: tuple[str, ...], *, force: bool, **fields: object
) -> int:
    """Call `method` for each full name, as `work_through`. `force`: one that is not there is no
    failure. `fields` go with each request.
    """

    def remove(name: str) -> None:
        try:
            session.call(method, name=name, **fields)
        except NotFound:
            if not force:
                raise

    return work_through(session, names, remove)
