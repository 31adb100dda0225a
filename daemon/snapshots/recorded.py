"""What all snapshotters do alike: they make snapshots in one piece, and answer from our records."""

from abc import ABC, abstractmethod
from collections.abc import Mapping

from lighter.daemon.snapshots.rows import Row, SnapshotRows
from lighter.daemon.snapshots.types import ACTIVE, COMMITTED, VIEW
from lighter.daemon.types import Mount, SnapshotInfo
from lighter.daemon.whole import whole
from lighter.proto.daemon_api import PAGE_ROWS
from lighter.proto.errors import FailedPrecondition


class RecordedSnapshotter(ABC):
    """Base of them; a subclass makes snapshots, mounts, commits and removes them."""

    _rows: SnapshotRows

    @abstractmethod
    async def _make(
        self,
        namespace: str,
        key: str,
        parent: str,
        kind: str,
        labels: Mapping[str, str],
        lease: str,
    ) -> tuple[Mount, ...]:
        """Make an active snapshot or a view, and record it."""

    # --- a part of the interface; contracts in types.Snapshotter

    async def prepare(
        self,
        namespace: str,
        key: str,
        parent: str = "",
        labels: Mapping[str, str] | None = None,
        lease: str = "",
    ) -> tuple[Mount, ...]:
        return await whole(self._make(namespace, key, parent, ACTIVE, labels or {}, lease))

    async def view(
        self,
        namespace: str,
        key: str,
        parent: str = "",
        labels: Mapping[str, str] | None = None,
        lease: str = "",
    ) -> tuple[Mount, ...]:
        return await whole(self._make(namespace, key, parent, VIEW, labels or {}, lease))

    async def stat(self, namespace: str, key: str) -> SnapshotInfo:
        return self._rows.find("stat", namespace, key).info

    async def update(self, namespace: str, key: str, changes: Mapping[str, str]) -> SnapshotInfo:
        self._rows.label(namespace, key, changes)
        return await self.stat(namespace, key)

    async def walk(
        self, namespace: str, cursor: str = "", limit: int = PAGE_ROWS
    ) -> tuple[tuple[SnapshotInfo, ...], str]:
        return self._rows.page(namespace, cursor, limit)

    def _active(self, verb: str, namespace: str, key: str) -> Row:
        row = self._rows.find(verb, namespace, key)
        if row.info.kind != ACTIVE:
            raise FailedPrecondition(f"{verb} snapshot {key}: it is {row.info.kind}, not active")
        return row

    def _mountable(self, namespace: str, key: str) -> Row:
        row = self._rows.find("mount", namespace, key)
        if row.info.kind == COMMITTED:
            raise FailedPrecondition(
                f"mount snapshot {key}: it is committed; prepare or view one on it"
            )
        return row
