"""What a snapshotter plugin is asked, and what of its answers is mounted here."""

import os
from collections.abc import Mapping, Sequence
from typing import Protocol

from lighter.daemon.types import Mount, Usage
from lighter.proto.errors import FailedPrecondition, Unimplemented

MAX_MOUNTS = 64

_WRITTEN = ("upperdir=", "workdir=")
_BINDS = frozenset(("bind", "rbind"))  # as a type or as an option of any other


class Backend(Protocol):
    """A plugin, whose keys are the caller's. Raises Unavailable and DeadlineExceeded, which name
    it, and what it answers itself."""

    address: str

    async def prepare(
        self, namespace: str, key: str, parent: str, labels: Mapping[str, str]
    ) -> tuple[Mount, ...]: ...

    async def view(
        self, namespace: str, key: str, parent: str, labels: Mapping[str, str]
    ) -> tuple[Mount, ...]: ...

    async def mounts(self, namespace: str, key: str) -> tuple[Mount, ...]: ...

    async def commit(
        self, namespace: str, name: str, key: str, labels: Mapping[str, str]
    ) -> None: ...

    async def remove(self, namespace: str, key: str) -> None: ...

    async def usage(self, namespace: str, key: str) -> Usage: ...

    async def is_committed(self, namespace: str, key: str) -> bool:
        """Whether there is a committed snapshot of this name."""

    async def close(self) -> None:
        """Calls under way end with Unavailable."""


def check_mounts(what: str, plugin: str, mounts: Sequence[Mount], guarded: str) -> None:
    """Refuse what cannot be mounted, or would let others write to `guarded`, a real path.

    Raises FailedPrecondition, Unimplemented.
    """
    if not 0 < len(mounts) <= MAX_MOUNTS:
        raise FailedPrecondition(
            f"{what}: {plugin} gives {len(mounts)} mounts, expected 1 to {MAX_MOUNTS}"
        )
    for mount in mounts:
        if mount.type.startswith("fuse"):
            raise Unimplemented(
                f"{what}: {plugin} gives a mount of type {mount.type}, which needs a "
                "program of its own"
            )
        written = [option for option in mount.options if option.startswith(_WRITTEN)]
        places = [option.partition("=")[2] for option in written]
        if not _BINDS.isdisjoint((mount.type, *mount.options)):
            places.append(mount.source)
        for place in places:
            if not place.startswith("/") or "\0" in place or _would_give_away(place, guarded):
                raise FailedPrecondition(
                    f"{what}: {plugin} gives {place[:200]!a} to be mounted, which is no "
                    "directory of a snapshot"
                )


def _would_give_away(place: str, guarded: str) -> bool:
    path = os.path.realpath(place)
    return os.path.commonpath((path, guarded)) in (path, guarded)
