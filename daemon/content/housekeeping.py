"""What takes room below the root, and how it is given back, over all namespaces.

image      content and committed snapshots that a name leads to
container  what a container has written, and what else it keeps: layers whose image has gone
kept       what only leases, root labels or running work keep
orphan     what the next collection removes, and files that no record knows
ingest     content that is arriving
logs, database, other
"""

import asyncio
import logging
import os
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from lighter.daemon.content.gc import Collected, Collector
from lighter.daemon.content.ingests import Ingests
from lighter.daemon.content.references import CONTAINER, CONTENT, IMAGE, SNAPSHOT, References
from lighter.daemon.errors import from_os
from lighter.daemon.leases import Leases
from lighter.daemon.metadata.db import Database
from lighter.daemon.metadata.namespaces import NamespaceStore
from lighter.daemon.snapshots.btrfs import BtrfsSnapshotter
from lighter.daemon.snapshots.subvolumes import ROOT_INODE
from lighter.proto.errors import LighterError
from lighter.proto.paths import Root

log = logging.getLogger("lighter.gc")

KINDS = ("image", "container", "kept", "orphan", "ingest", "logs", "database", "other")
_BLOCK = 512  # st_blocks counts these (stat(2))
_BTRFS = f"snapshots/{BtrfsSnapshotter.name}/"


@dataclass(frozen=True)
class Used:
    """Disk space of one kind: how many objects, and bytes as `du` counts them."""

    kind: str
    count: int
    size_bytes: int


@dataclass(frozen=True)
class Pruned:
    """What a prune removed of one namespace, or would."""

    namespace: str
    collected: Collected
    ingests: tuple[str, ...]
    ingest_bytes: int


class Housekeeping:
    """Collections of all namespaces and of idle ingests, and the account of the disk."""

    def __init__(
        self,
        root: Root,
        db: Database,
        namespaces: NamespaceStore,
        collector: Collector,
        ingests: Ingests,
        leases: Leases,
    ) -> None:
        self._root = root
        self._db = db
        self._namespaces = namespaces
        self._collector = collector
        self._ingests = ingests
        self._leases = leases

    async def collect(self) -> float:
        """Collect all namespaces and idle ingests; returns how long nothing else ran, in seconds.

        One namespace that fails keeps no other from its turn; the first error is raised last.
        """
        pause_s, failure = 0.0, None
        for namespace in self._namespaces.list():
            try:
                collected = await self._collect(namespace.name)
                pause_s += collected.pause_s
            except LighterError as err:
                failure = failure or err
        if not self._db.loss:  # a lost row may have held any
            await self._ingests.expire(self._leases.ingests())
        if failure:
            raise failure
        return pause_s

    async def _collect(self, namespace: str) -> Collected:
        collected = await self._collector.collect(namespace)
        if collected.content or collected.snapshots or collected.images:
            log.info(
                "collected namespace=%s content=%d snapshots=%d images=%d bytes=%d",
                namespace,
                len(collected.content),
                len(collected.snapshots),
                len(collected.images),
                collected.size_bytes,
            )
        return collected

    async def prune(self, *, dry_run: bool) -> list[Pruned]:
        """Collect now, or tell what that would remove; namespaces without any are left out."""
        leased = self._leases.ingests()
        idle = () if self._db.loss else self._ingests.idle(leased)
        pruned = []
        for namespace in [one.name for one in self._namespaces.list()]:
            if dry_run:
                collected = self._collector.preview(namespace)
            else:
                collected = await self._collect(namespace)
            own = [status for of, status in idle if of == namespace]
            if own or collected.content or collected.snapshots or collected.images:
                refs = tuple(status.ref for status in own)
                size_bytes = sum(status.offset for status in own)
                pruned.append(Pruned(namespace, collected, refs, size_bytes))
        if not dry_run and not self._db.loss:
            await self._ingests.expire(leased)
        return pruned

    async def usage(self) -> tuple[Used, ...]:
        """Every byte below the root, attributed. What changes meanwhile may count as either."""
        owners = await self._owners()
        try:
            sizes, counts = await asyncio.to_thread(_measure, self._root.dir, owners)
        except OSError as err:
            raise from_os(f"measure {self._root.dir}", err) from err
        return tuple(Used(kind, counts[kind], sizes[kind]) for kind in KINDS)

    async def _owners(self) -> dict[str, str]:
        """Path of a blob or of a snapshot's directory -> its kind, best owner of all namespaces."""
        owners: dict[str, str] = {}
        rank = {kind: number for number, kind in enumerate(KINDS)}

        def own(path: str, kind: str) -> None:
            if rank[kind] < rank[owners.get(path, "other")]:
                owners[path] = kind

        for namespace in [one.name for one in self._namespaces.list()]:
            graph = self._collector.references(namespace)
            of = await asyncio.to_thread(_reached, graph)
            for row in self._db.rows(
                "SELECT digest FROM content WHERE namespace = ?", (namespace,)
            ):
                path = f"content/blobs/sha256/{row['digest'][7:]}"
                own(path, _kind(of, CONTENT, row["digest"]))
            for row in self._db.rows(
                "SELECT snapshotter, number, key FROM snapshots WHERE namespace = ?", (namespace,)
            ):
                path = f"snapshots/{row['snapshotter']}/{row['number']}"
                own(path, _kind(of, SNAPSHOT, f"{row['snapshotter']}/{row['key']}"))
        return owners


def _reached(graph: References) -> list[tuple[str, set[tuple[str, str]]]]:
    """(kind of owner, what its roots keep), best owner first."""
    of = [
        (kind, graph.reachable([root for root in graph.roots if root.kind == root_kind]))
        for kind, root_kind in (("image", IMAGE), ("container", CONTAINER))
    ]
    return [*of, ("kept", graph.reachable())]


def _kind(of: Iterable[tuple[str, set[tuple[str, str]]]], kind: str, name: str) -> str:
    return next((owner for owner, found in of if (kind, name) in found), "orphan")


def _measure(root: str, owners: Mapping[str, str]) -> tuple[dict[str, int], dict[str, int]]:
    """Walk the root: bytes and objects of each kind. Follows nothing, leaves no file system."""
    sizes, counts = dict.fromkeys(KINDS, 0), dict.fromkeys(KINDS, 0)
    device = os.lstat(root).st_dev
    seen: set[tuple[int, int]] = set()
    waiting = [("", os.lstat(root))]
    while waiting:
        path, found = waiting.pop()
        kind, is_object = _attribute(path, found, owners)
        if kind:
            counts[kind] += is_object
            if not stat.S_ISDIR(found.st_mode) and found.st_nlink > 1:
                file = (found.st_dev, found.st_ino)
                if file in seen:
                    continue
                seen.add(file)
            sizes[kind] += found.st_blocks * _BLOCK
        if is_object and stat.S_ISDIR(found.st_mode):
            on_btrfs = path.startswith(_BTRFS)
            sizes[kind] += _tree_bytes(f"{root}/{path}", seen, subvolumes=on_btrfs)
            continue
        if not stat.S_ISDIR(found.st_mode) or found.st_dev != device:
            continue
        for name in _names(f"{root}/{path}"):
            inner = f"{path}/{name}" if path else name
            try:
                waiting.append((inner, os.lstat(f"{root}/{inner}")))
            except FileNotFoundError:
                continue
    return sizes, counts


def _names(path: str) -> list[str]:
    try:
        return os.listdir(path)
    except FileNotFoundError:
        return []


def _attribute(path: str, found: os.stat_result, owners: Mapping[str, str]) -> tuple[str, bool]:
    """(kind, whether it is an object of its own) of one path below the root."""
    parts = path.split("/")
    top = parts[0]
    if top == "content" and len(parts) > 1:
        if parts[1] in ("ingest", "writes"):
            return "ingest", len(parts) == 3
        if len(parts) == 4:
            return owners.get(path, "orphan"), True
    elif top == "snapshots" and len(parts) == 3 and stat.S_ISDIR(found.st_mode):
        return owners.get(path, "orphan"), True
    elif top == "logs":
        return "logs", len(parts) == 3
    elif top.startswith("lighter.db"):
        return "database", True
    return "other", False


def _tree_bytes(top: str, seen: set[tuple[int, int]], *, subvolumes: bool) -> int:
    """Disk space below a directory of an object, itself left out. Names in it may be hostile.

    `subvolumes` of btrfs belong to it, though each has a device number of its own.
    """
    size_bytes = 0
    device = os.lstat(top).st_dev
    for _, folders, files, fd in os.fwalk(top, follow_symlinks=False, onerror=None):
        for name in (*folders, *files):
            try:
                found = os.lstat(name, dir_fd=fd)
            except OSError:
                continue
            is_other = found.st_dev != device and not (subvolumes and found.st_ino == ROOT_INODE)
            if name in folders and is_other:
                folders.remove(name)
                continue
            file = (found.st_dev, found.st_ino)
            if stat.S_ISDIR(found.st_mode) or found.st_nlink == 1:
                size_bytes += found.st_blocks * _BLOCK
            elif file not in seen:
                seen.add(file)
                size_bytes += found.st_blocks * _BLOCK
    return size_bytes
