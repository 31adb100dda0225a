"""Containers named by the beginning of their id, as the short verbs allow."""

from collections.abc import Callable
from typing import TypeVar

from lighter.ctl.cli import Session
from lighter.proto.errors import NotFound

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
