"""Names on the command line: beginnings of made-up ids, and many names of one verb."""

from __future__ import annotations

import time

from lighter.ctl.cli import Session, Unsendable
from lighter.proto.errors import LighterError, NotFound

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeVar

    from lighter.ctl.connect import Call

    Result = TypeVar("Result")

AT_ONCE = 32  # calls of one verb; the manager takes more of one client


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
            if not _is_of_one(error):
                raise
            session.complain(error.message)
            code = 1
        else:
            if shown:
                print(name, flush=True)
    return code


def _is_of_one(error: LighterError) -> bool:
    """Else nobody is there for the others either, or the time is over."""
    return error.answered or isinstance(error, Unsendable)


class AtOnce:
    """`method` for each of many containers, in their order; those that follow are under way then.

    A name that is there twice has its second turn after the first. `body` goes with each request.
    """

    def __init__(self, session: Session, method: str, refs: tuple[str, ...], **body: Any):
        self._session = session
        self._method = method
        self._body = body
        self._later = list(refs)
        self._begun: dict[str, tuple[float, Call | Unsendable]] = {}

    def __call__(self, container_id: str) -> Any:
        """The answer for one of them, or for another name of it; raises what was answered."""
        while self._later and len(self._begun) < AT_ONCE and self._later[0] not in self._begun:
            self._begin(self._later.pop(0))
        if container_id not in self._begun:
            self._begin(container_id)
        begun, call = self._begun.pop(container_id)
        if isinstance(call, Unsendable):
            raise call
        try:
            return call.result()
        finally:
            self._session.manager.trace_call(self._method, begun)

    def _begin(self, container_id: str) -> None:
        begun = time.monotonic()
        call: Call | Unsendable
        try:
            call = self._session.manager.begin(self._method, id=container_id, **self._body)
        except Unsendable as error:  # told in its turn: others are under way
            call = error
        self._begun[container_id] = begun, call

    def tell_rest(self) -> None:
        """What has become of those that had no turn yet, when the command is broken off."""
        for container_id, (_begun, call) in self._begun.items():
            self._tell(container_id, call)

    def _tell(self, container_id: str, call: Call | Unsendable) -> None:
        if isinstance(call, Unsendable):
            self._session.complain(call.message)
        elif not call.done:
            return
        elif call.error is None:
            print(container_id, flush=True)
        elif call.error.answered and not isinstance(call.error, NotFound):  # it may be a beginning
            self._session.complain(call.error.message)


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
