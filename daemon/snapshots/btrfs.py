"""Snapshots as btrfs's own: for a root directory on a btrfs.

snapshots/btrfs/<number>/fs is a subvolume with a complete tree, which shares with its parent all
that neither has changed since. A subvolume that a container makes within is not part of what is
committed: btrfs leaves it out of snapshots, and it is deleted with the one it lies in.
"""

import asyncio
import logging

from lighter.daemon.snapshots import subvolumes
from lighter.daemon.snapshots.disk import measure
from lighter.daemon.snapshots.native import NativeSnapshotter
from lighter.daemon.snapshots.rows import Row
from lighter.daemon.snapshots.types import ACTIVE
from lighter.daemon.types import Usage
from lighter.proto.errors import FailedPrecondition

logger = logging.getLogger(__name__)


class BtrfsSnapshotter(NativeSnapshotter):
    """An active snapshot begins as a btrfs snapshot of its parent, a committed one is read-only."""

    name = "btrfs"

    @property
    def unusable(self) -> str:
        try:
            if subvolumes.is_btrfs(self.dir):
                return ""
        except OSError as err:
            return f"{self.dir}: {err.strerror}"
        with open("/proc/filesystems", encoding="ascii") as known:
            if "btrfs" not in known.read().split():
                return "this kernel has no btrfs (or has not loaded it)"
        return f"{self.dir} is not on a btrfs"

    async def _fill(self, path: str, parents: tuple[int, ...], kind: str) -> None:
        if reason := self.unusable:
            raise FailedPrecondition(
                f"use btrfs: {reason}; put the root directory on a btrfs, or choose the "
                "snapshotter overlayfs or native"
            )
        if parents and kind == ACTIVE:
            below = self.files(parents[0])
            await asyncio.to_thread(subvolumes.snapshot, below, path, "fs")
        else:
            await asyncio.to_thread(subvolumes.create, path, "fs")

    async def _after_commit(self, row: Row) -> None:
        try:
            await asyncio.to_thread(subvolumes.freeze, self.files(row.number))
        except OSError as err:
            # It is committed all the same: this only guards it against a mistake.
            logger.warning("make snapshot %s/%d read-only: %s", self.name, row.number, err)

    def _measured(self, row: Row) -> Usage:
        below = "" if row.parent is None else self.files(row.parent)
        return measure(self.files(row.number), below)

    async def _discard(self, path: str) -> bool:
        try:
            await asyncio.to_thread(subvolumes.destroy, path, "fs")
        except OSError as err:
            logger.warning("remove snapshot directory %s: %s", path, err.strerror)
            return False
        return await super()._discard(path)
