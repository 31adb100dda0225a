"""What a snapshotter is: containerd's model of layered file systems.

A snapshot is *active* (writable, made from a committed parent or from nothing), a *view* (the same,
read-only) or *committed* (unchanging, may be a parent). `prepare` and `view` make one, `commit`
turns an active one into a committed one of another name. Keys are free text, per namespace.

Every implementation passes tests/contract/test_snapshotter.py.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from lighter.daemon.types import Mount, SnapshotInfo, Usage
from lighter.proto.daemon_api import PAGE_ROWS
from lighter.proto.errors import NotFound

ACTIVE = "active"
VIEW = "view"
COMMITTED = "committed"

# On an active snapshot that a client unpacks a layer to, or that lost its lease by name: it is kept
# by leases and containers, not by itself.
UNDER_LEASE_LABEL = "io.lighter/under-lease"

# Removes a directory tree of hostile content, without following links or crossing mounts.
TreeRemover = Callable[[str], Awaitable[None]]


@dataclass(frozen=True)
class LayerTarget:
    """Where a layer is applied: what the unpack worker needs to know of an active snapshot.

    `whiteouts` is "overlay" (a removal is recorded in `dir` as overlayfs reads it) or "plain"
    (`dir` holds the whole tree and the removal is done). `lowers`: nearest first. With `mounts` the
    worker mounts the tree for itself, and there is no `dir`.
    """

    dir: str
    lowers: tuple[str, ...]
    whiteouts: str
    mounts: tuple[Mount, ...] = ()

    def order(self) -> dict[str, Any]:
        """Its part of the worker's job `apply`."""
        return {
            "target": self.dir,
            "whiteouts": self.whiteouts,
            "lowers": list(self.lowers),
            "mounts": [[mount.type, mount.source, list(mount.options)] for mount in self.mounts],
        }


def shown_by(mounts: Sequence[Mount]) -> list[tuple[str, ...]]:
    """The directories that each mount shows, nearest first: by these a snapshot is known again.

    A client may have changed the other options of what it was given. BuildKit adds
    `redirect_dir=off` to every overlay, and to read an active snapshot it names its upper directory
    as the first of the lower ones. Of other types all counts.
    """
    return [_shown_by(mount) for mount in mounts]


def _shown_by(mount: Mount) -> tuple[str, ...]:
    if mount.type == "overlay":
        told = [option.partition("=") for option in mount.options]
        uppers = [value for name, _, value in told if name == "upperdir"]
        lowers = [value.split(":") for name, _, value in told if name == "lowerdir"]
        return ("overlay", *uppers, *(directory for value in lowers for directory in value))
    if mount.type in ("bind", "rbind") or {"bind", "rbind"} & set(mount.options):
        return ("bind", mount.source)
    return (mount.type, mount.source, *mount.options)


def is_read_only(mounts: Sequence[Mount]) -> bool:
    """Whether nothing can be written through them."""
    top = mounts[-1] if mounts else Mount("", "", ("ro",))
    without_upper = not any(option.startswith("upperdir=") for option in top.options)
    return "ro" in top.options or (top.type == "overlay" and without_upper)


class Snapshotter(Protocol):
    """Errors: NotFound, AlreadyExists, FailedPrecondition (wrong kind, has children), and those
    of the disk."""

    @property
    def name(self) -> str:
        """What clients call it, and its directory below `snapshots/` where it has one."""

    @property
    def max_layers(self) -> int:
        """How many committed snapshots can lie upon each other and be mounted; 0: no limit."""

    @property
    def layers_apart(self) -> bool:
        """Whether a layer's snapshot needs nothing of its parent's until it is committed."""

    @property
    def has_directories(self) -> bool:
        """Whether each snapshot has one below `snapshots/`, named by its number."""

    @property
    def unusable(self) -> str:
        """Why no snapshot can be made here, "" when nothing speaks against it."""

    async def prepare(
        self,
        namespace: str,
        key: str,
        parent: str = "",
        labels: Mapping[str, str] | None = None,
        lease: str = "",
    ) -> tuple[Mount, ...]:
        """Make an active snapshot, which the lease holds if one is named; returns its mounts.

        Raises NotFound for a lease that there is not.
        """

    async def view(
        self,
        namespace: str,
        key: str,
        parent: str = "",
        labels: Mapping[str, str] | None = None,
        lease: str = "",
    ) -> tuple[Mount, ...]:
        """Make a read-only one; returns its mounts."""

    async def commit(
        self,
        namespace: str,
        name: str,
        key: str,
        labels: Mapping[str, str] | None = None,
        usage: Usage | None = None,
        parent: str = "",
    ) -> None:
        """Freeze the active snapshot `key` under `name`; `key` is free again.

        `parent` gives one that was prepared without a parent (see `layers_apart`) its place.
        With `usage` the caller has measured the tree and synced it to disk; without, both is
        done here.
        """

    async def mounts(self, namespace: str, key: str) -> tuple[Mount, ...]:
        """The mounts of an active snapshot or a view, absolute, in order, at one target."""

    async def find(self, namespace: str, mounts: Sequence[Mount]) -> str:
        """The key of the namespace's active snapshot or view that these mounts show (`shown_by`);
        "" for none. Of several views of one snapshot it is any."""

    async def remove(self, namespace: str, key: str) -> None:
        """Remove a snapshot that has no children; its files go in the background."""

    async def stat(self, namespace: str, key: str) -> SnapshotInfo:
        """What is recorded."""

    async def update(self, namespace: str, key: str, changes: Mapping[str, str]) -> SnapshotInfo:
        """Set labels; the value "" removes one."""

    async def walk(
        self, namespace: str, cursor: str = "", limit: int = PAGE_ROWS
    ) -> tuple[tuple[SnapshotInfo, ...], str]:
        """One page by key, after the key `cursor`, and the next cursor ("" at the end)."""

    async def usage(self, namespace: str, key: str) -> Usage:
        """Disk space of this snapshot alone, without its parents."""

    async def layer_target(self, namespace: str, key: str) -> LayerTarget:
        """Where to apply a layer to an active snapshot."""

    async def sweep(self) -> None:
        """Remove the files of removed snapshots; returns when that is done."""

    async def recover(self) -> None:
        """Once after a start: remove what a dead manager left half done. New work may go on."""


def find_snapshotter(snapshotters: Mapping[str, Snapshotter], name: str) -> Snapshotter:
    """Raises NotFound, naming those that there are."""
    found = snapshotters.get(name)
    if found is None:
        known = ", ".join(sorted(snapshotters))
        raise NotFound(f"find snapshotter {name}: this manager has {known}")
    return found
