"""Snapshots for clients that handle them themselves: each call names its snapshotter or takes the
default one."""

import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from typing import Any, Protocol

from lighter.daemon.metadata.db import Database
from lighter.daemon.snapshots.rows import MAX_KEY_BYTES
from lighter.daemon.snapshots.types import COMMITTED, UNDER_LEASE_LABEL, Snapshotter
from lighter.daemon.types import Mount, SnapshotInfo, Usage
from lighter.proto.daemon_api import PAGE_ROWS
from lighter.proto.errors import AlreadyExists, FailedPrecondition, NotFound

TARGET_LABEL = "containerd.io/snapshot.ref"
DIFF_LABEL = "io.lighter/diff"  # of a view that a comparison reads: which manager made it

_UNPACK_KEY = re.compile(r"extract-\S+ sha256:[0-9a-f]{64}")  # containerd's UnpackKeyFormat


class JobRunner(Protocol):
    """Runs a job in a worker (lighter.daemon.images.worker)."""

    async def run(self, job: dict[str, Any], fds: Sequence[int]) -> dict[str, Any]: ...


class SnapshotService:
    """All snapshotters of an instance; "" names the default one."""

    def __init__(
        self,
        db: Database,
        snapshotters: Mapping[str, Snapshotter],
        default: str,
        worker: JobRunner,
    ) -> None:
        self._db = db
        self._worker = worker
        self._snapshotters = snapshotters
        self._default = default
        self._mark = secrets.token_hex(8)

    def snapshotter(self, name: str) -> Snapshotter:
        """Raises NotFound."""
        found = self._snapshotters.get(name or self._default)
        if found is None:
            known = ", ".join(sorted(self._snapshotters))
            raise NotFound(f"find snapshotter {name or self._default}: there are {known}")
        return found

    def image(self, namespace: str, ref: str) -> str:
        """The name of an image whose manifest or index has the digest `ref`; else `ref` itself."""
        row = self._db.row(
            "SELECT name FROM images WHERE namespace = ? AND digest = ? ORDER BY name LIMIT 1",
            (namespace, ref),
        )
        return ref if row is None else str(row["name"])

    async def list(
        self, namespace: str, snapshotter: str, cursor: str = "", limit: int = PAGE_ROWS
    ) -> tuple[tuple[SnapshotInfo, ...], str]:
        """One page by key, after the key `cursor`, and the next cursor ("" at the end)."""
        return await self.snapshotter(snapshotter).walk(namespace, cursor, limit)

    async def get(self, namespace: str, snapshotter: str, key: str) -> SnapshotInfo:
        return await self.snapshotter(snapshotter).stat(namespace, key)

    async def usage(self, namespace: str, snapshotter: str, key: str) -> Usage:
        return await self.snapshotter(snapshotter).usage(namespace, key)

    async def mounts(self, namespace: str, snapshotter: str, key: str) -> tuple[Mount, ...]:
        return await self.snapshotter(snapshotter).mounts(namespace, key)

    async def prepare(
        self,
        namespace: str,
        snapshotter: str,
        key: str,
        parent: str,
        labels: Mapping[str, str],
        *,
        lease: str = "",
    ) -> tuple[Mount, ...]:
        """Raises AlreadyExists too when the label `containerd.io/snapshot.ref` names a snapshot
        that is there: a client says with it what it will commit.

        `lease`: the client's, which holds it. What is made for a layer goes with
        that lease, so that a client that died while it unpacked leaves nothing for ever; what may
        be somebody's root file system stays until it is removed, or its lease ended by name.
        """
        chosen = self.snapshotter(snapshotter)
        await self._check_target(chosen, namespace, labels)
        if lease and (TARGET_LABEL in labels or _UNPACK_KEY.fullmatch(key)):
            labels = {**labels, UNDER_LEASE_LABEL: "true"}
        return await chosen.prepare(namespace, key, parent, labels, lease)

    async def view(
        self,
        namespace: str,
        snapshotter: str,
        key: str,
        parent: str,
        labels: Mapping[str, str],
        *,
        lease: str = "",
    ) -> tuple[Mount, ...]:
        chosen = self.snapshotter(snapshotter)
        await self._check_target(chosen, namespace, labels)
        return await chosen.view(namespace, key, parent, labels, lease)

    async def _check_target(
        self, chosen: Snapshotter, namespace: str, labels: Mapping[str, str]
    ) -> None:
        target = labels.get(TARGET_LABEL, "")
        with suppress(NotFound):
            if target:
                await chosen.stat(namespace, target)
                raise AlreadyExists(f'target snapshot "{target}": it already exists')

    async def find(self, namespace: str, mounts: Sequence[Mount]) -> tuple[str, str]:
        """(snapshotter, key) of the namespace's active snapshot or view with these mounts.

        Raises NotFound.
        """
        for name, snapshotter in self._snapshotters.items():
            if key := await snapshotter.find(namespace, mounts):
                return name, key
        shown = ", ".join(f"{mount.type} {mount.source}" for mount in mounts)[:200] or "none"
        raise NotFound(f"find snapshot of mounts {shown}: namespace {namespace} has none of them")

    async def commit(
        self, namespace: str, snapshotter: str, name: str, key: str, labels: Mapping[str, str]
    ) -> None:
        """Raises FailedPrecondition too for a container's snapshot, which would lose its root."""
        self._check_unused("commit", namespace, snapshotter, key)
        await self.snapshotter(snapshotter).commit(namespace, name, key, labels)

    async def label(
        self, namespace: str, snapshotter: str, key: str, changes: Mapping[str, str]
    ) -> SnapshotInfo:
        return await self.snapshotter(snapshotter).update(namespace, key, changes)

    async def delete(
        self, namespace: str, snapshotter: str, key: str, *, under_container: bool = False
    ) -> None:
        """Raises FailedPrecondition while a container or another snapshot stands on it.

        `under_container`: a container may stay without it, as when containerd's clients remove
        first the one and then the other; one that has a task may not.
        """
        self._check_unused("remove", namespace, snapshotter, key, with_task=under_container)
        await self.snapshotter(snapshotter).remove(namespace, key)

    async def diff(
        self,
        namespace: str,
        snapshotter: str,
        keys: tuple[str, str],
        target_fd: int,
        compression: str,
    ) -> dict[str, Any]:
        """Write the layer that makes the snapshot `keys[1]` of `keys[0]` ("": of nothing).

        Returns the worker's answer: {diff_id, digest, size_bytes, entries}.
        """
        job = {"job": "diff", "compression": compression}
        return await self.compare(namespace, snapshotter, keys, target_fd, job)

    async def compare(
        self,
        namespace: str,
        snapshotter: str,
        keys: tuple[str, str],
        target_fd: int,
        job: Mapping[str, Any],
    ) -> dict[str, Any]:
        """Have a worker do a job that reads two snapshots and writes to `target_fd`."""
        found = self.snapshotter(snapshotter)
        async with AsyncExitStack() as undo:
            lower, upper = [
                await self._to_read(undo, found, namespace, key) if key else [] for key in keys
            ]
            return await self._worker.run({**job, "lower": lower, "upper": upper}, [target_fd])

    async def _to_read(
        self, undo: AsyncExitStack, found: Snapshotter, namespace: str, key: str
    ) -> Sequence[Any]:
        """The mounts of a snapshot of any kind; a committed one is viewed for it."""
        if (await found.stat(namespace, key)).kind == COMMITTED:
            name = f"diff-{secrets.token_hex(8)} {key}"[:MAX_KEY_BYTES]
            undo.push_async_callback(_remove_if_there, found, namespace, name)
            mounts = await found.view(namespace, name, key, {DIFF_LABEL: self._mark})
        else:
            mounts = await found.mounts(namespace, key)
        return [[mount.type, mount.source, list(mount.options)] for mount in mounts]

    async def recover(self, namespaces: Iterable[str]) -> None:
        """Once after a start: remove what a dead manager viewed for a diff, not what we do."""
        for found in self._snapshotters.values():
            for namespace in namespaces:
                cursor, more = "", True
                while more:
                    page, cursor = await found.walk(namespace, cursor)
                    for info in page:
                        if info.labels.get(DIFF_LABEL, self._mark) != self._mark:
                            await _remove_if_there(found, namespace, info.key)
                    more = bool(cursor)

    def _check_unused(
        self, verb: str, namespace: str, snapshotter: str, key: str, *, with_task: bool = False
    ) -> None:
        row = self._db.row(
            "SELECT id FROM containers AS c"
            " WHERE namespace = ? AND snapshotter = ? AND snapshot_key = ? AND (NOT ? OR EXISTS"
            " (SELECT 1 FROM tasks WHERE namespace = c.namespace AND id = c.id))",
            (namespace, self.snapshotter(snapshotter).name, key, with_task),
        )
        if row is not None:
            raise FailedPrecondition(f"{verb} snapshot {key}: container {row['id']} uses it")


async def _remove_if_there(found: Snapshotter, namespace: str, key: str) -> None:
    with suppress(NotFound):
        await found.remove(namespace, key)
