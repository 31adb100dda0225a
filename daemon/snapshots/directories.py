"""Snapshots that are directories: what all snapshotters here have in common.

    snapshots/<name>/new-<number>   being made
    snapshots/<name>/<number>/fs    a snapshot's own files (mode 0700 above them)

The order that makes every crash harmless: the directory is made as `new-<number>`, the row is
recorded, the directory is renamed. A start renames what has a row and removes what has none. It is
not synced: nobody was promised that what is written to an active snapshot survives a power cut, so
one whose directory was lost in it is made again, empty; a commit syncs the files. Removal: one
transaction drops the row and notes the number in `trash`; then the files go, then the note. A
directory that neither row nor note knows is kept and reported: it may belong to a database that
was put back from an old copy.
"""

import asyncio
import logging
import os
import re
from abc import abstractmethod
from collections.abc import Mapping, Sequence

from lighter.daemon.errors import from_os
from lighter.daemon.events.log import EventLog
from lighter.daemon.metadata.db import Database
from lighter.daemon.snapshots.disk import measure, remove_if_empty, sync_file_system
from lighter.daemon.snapshots.recorded import RecordedSnapshotter
from lighter.daemon.snapshots.rows import Row, SnapshotRows
from lighter.daemon.snapshots.types import (
    ACTIVE,
    COMMITTED,
    LayerTarget,
    TreeRemover,
    shown_by,
)
from lighter.daemon.types import Mount, Usage
from lighter.proto.errors import (
    FailedPrecondition,
    InvalidArgument,
    LighterError,
    Unavailable,
)
from lighter.proto.faults import hit

_ENTRY = re.compile(r"(new-)?([1-9][0-9]*)", re.ASCII)

logger = logging.getLogger(__name__)


class DirectorySnapshotter(RecordedSnapshotter):
    """Base of them; a subclass says how a directory is filled and how it is mounted.

    `snapshots_dir` is the directory of all snapshotters (made with mode 0700); `remove_tree`
    deletes a directory of hostile content.
    """

    name = ""
    max_layers = 0
    layers_apart = False
    has_directories = True

    def __init__(
        self, snapshots_dir: str, db: Database, events_log: EventLog, remove_tree: TreeRemover
    ) -> None:
        if set(snapshots_dir) & set(",:\\"):
            raise InvalidArgument(
                f"open snapshots directory {snapshots_dir}: mount options cannot hold its "
                "commas, colons or backslashes"
            )
        self.dir = f"{snapshots_dir}/{self.name}"
        self._rows = SnapshotRows(db, events_log, self.name)
        self._remove_tree = remove_tree
        self._sweeping = asyncio.Lock()
        self._background: asyncio.Task[None] | None = None
        try:
            for path in (snapshots_dir, self.dir):
                os.makedirs(path, 0o700, exist_ok=True)
                os.chmod(path, 0o700)
            self._left_behind, self._lost = self._take_stock()
        except OSError as err:
            raise from_os("open snapshots directory", err) from err
        # A directory without a record may be of a database that was lost: its number is not used.
        self._highest = max([0, *(number for _, number in self._entries())])

    # --- for the subclass

    @abstractmethod
    async def _fill(self, path: str, parents: tuple[int, ...], kind: str) -> None:
        """Make what a new snapshot at `path` begins with; the directory itself is there."""

    @abstractmethod
    def _mounts(self, key: str, row: Row, parents: tuple[int, ...]) -> tuple[Mount, ...]:
        """How the snapshot is mounted; raises FailedPrecondition when it cannot be."""

    @abstractmethod
    def _target(self, row: Row, parents: tuple[int, ...]) -> LayerTarget:
        """Where a layer is applied to an active snapshot."""

    def _check(self, key: str, number: int, parents: tuple[int, ...]) -> None:
        """Refuse at once what could not be mounted later."""

    async def _before_commit(self, row: Row, usage: Usage | None) -> Usage | None:
        """Make on disk what a committed snapshot has besides its files. Returns what the snapshot
        takes, None when that is to be measured."""
        return usage

    async def _after_commit(self, row: Row) -> None:
        """What is to be done once the commit is recorded."""

    def _measured(self, row: Row) -> Usage:
        """What a snapshot takes on the disk without its parents; for a thread."""
        return measure(self.files(row.number))

    def _forget(self, number: int) -> None:
        """A snapshot's directory goes: drop what else carries its number."""

    @property
    def unusable(self) -> str:
        """Why no snapshot can be made here, "" when nothing speaks against it."""
        return ""

    def files(self, number: int) -> str:
        """The directory of a snapshot's own files."""
        return f"{self.dir}/{number}/fs"

    # --- the interface, what recorded.py has of it aside; contracts in types.Snapshotter

    async def _make(
        self,
        namespace: str,
        key: str,
        parent: str,
        kind: str,
        labels: Mapping[str, str],
        lease: str,
    ) -> tuple[Mount, ...]:
        below = self._rows.below_new(namespace, key, parent)
        parents = self._rows.chain(below.number) if below else ()
        number = self._rows.new_number(self._highest)
        self._check(key, number, parents)
        path = f"{self.dir}/new-{number}"
        try:
            os.mkdir(path, 0o700)
            await self._fill(path, parents, kind)
            hit("snapshot.directory-made")
            on = below.number if below else None
            self._rows.insert(namespace, key, number, on, kind, labels, lease)
        except BaseException as err:
            await self._discard(path)
            if isinstance(err, OSError):
                raise from_os(f"prepare snapshot {key}", err) from err
            raise
        try:
            hit("snapshot.recorded")
            os.rename(path, f"{self.dir}/{number}")
        except BaseException as err:
            self._rows.delete(namespace, key)
            await self._discard(path)
            if isinstance(err, OSError):
                raise from_os(f"prepare snapshot {key}", err) from err
            raise
        return self._mounts(key, self._rows.find("prepare", namespace, key), parents)

    async def commit(
        self,
        namespace: str,
        name: str,
        key: str,
        labels: Mapping[str, str] | None = None,
        usage: Usage | None = None,
        parent: str = "",
    ) -> None:
        self._rows.check_absent("commit", namespace, name)
        row = self._active("commit", namespace, key)
        below = self._place(namespace, key, row, parent) if parent else None
        usage = await self._before_commit(row, usage)
        if usage is None:
            try:
                await asyncio.to_thread(sync_file_system, self.files(row.number))
                usage = await asyncio.to_thread(self._measured, row)
            except OSError as err:
                raise from_os(f"commit snapshot {key}", err) from err
        self._rows.commit(namespace, name, row, labels or {}, usage, below)
        await self._after_commit(row)

    def _place(self, namespace: str, key: str, row: Row, parent: str) -> int:
        """The number of the parent that an active snapshot without one gets."""
        if not self.layers_apart or row.parent is not None:
            raise FailedPrecondition(f"commit snapshot {key}: it has its place already")
        below = self._rows.find("commit on", namespace, parent)
        if below.info.kind != COMMITTED:
            raise FailedPrecondition(
                f"commit snapshot {key}: its parent {parent} is {below.info.kind}, not committed"
            )
        if below.number > row.number:
            # Rows go highest number first, children before parents.
            raise Unavailable(f"commit snapshot {key}: {parent} is newer; try again")
        self._check(key, row.number, self._rows.chain(below.number))
        return below.number

    async def mounts(self, namespace: str, key: str) -> tuple[Mount, ...]:
        row = self._mountable(namespace, key)
        return self._mounts(key, row, self._rows.chain(row.parent))

    async def find(self, namespace: str, mounts: Sequence[Mount]) -> str:
        given = shown_by(mounts)
        named = " ".join(text for mount in mounts for text in (mount.source, *mount.options))
        numbers = {int(number) for number in re.findall(rf"{re.escape(self.dir)}/([0-9]+)/", named)}
        for row in self._rows.mountable(namespace, numbers):
            try:
                of_row = self._mounts(row.info.key, row, self._rows.chain(row.parent))
                if shown_by(of_row) == given:
                    return row.info.key
            except FailedPrecondition:
                continue  # it cannot be mounted any more
        return ""

    async def remove(self, namespace: str, key: str) -> None:
        self._rows.delete(namespace, key)
        hit("snapshot.row-deleted")
        if self._background is None or self._background.done():
            self._background = asyncio.ensure_future(self._sweep_later())

    async def usage(self, namespace: str, key: str) -> Usage:
        row = self._rows.find("measure", namespace, key)
        if row.info.kind != ACTIVE:
            return row.usage
        try:
            return await asyncio.to_thread(self._measured, row)
        except OSError as err:
            raise from_os(f"measure snapshot {key}", err) from err

    async def layer_target(self, namespace: str, key: str) -> LayerTarget:
        row = self._active("apply to", namespace, key)
        return self._target(row, self._rows.chain(row.parent))

    # --- what is left over

    async def sweep(self) -> None:
        await self._sweep()
        if self._background is not None:
            await asyncio.wait([self._background])

    async def _sweep_later(self) -> None:
        try:
            await self._sweep()
        except LighterError as err:
            logger.warning("sweep snapshots of %s: %s", self.name, err.message)

    async def _sweep(self) -> None:
        async with self._sweeping:
            stuck: set[str] = set()
            while names := [name for name in self._rows.trash() if name not in stuck]:
                for name in names:
                    if not await self._discard(f"{self.dir}/{name}"):
                        stuck.add(name)  # stays noted, for the next sweep
                        continue
                    self._forget(int(name))
                    hit("snapshot.removed")
                    self._rows.forget_trash(name)

    async def _discard(self, path: str) -> bool:
        if remove_if_empty(path):
            return True
        try:
            if await asyncio.to_thread(os.path.lexists, path):
                await self._remove_tree(path)
        except LighterError as err:
            logger.warning("remove snapshot directory %s: %s", path, err.message)
            return False
        return True

    async def recover(self) -> None:
        while self._left_behind:
            await self._discard(self._left_behind.pop())
        while self._lost:
            await self._make_again(self._lost.pop())
        await self.sweep()

    async def _make_again(self, number: int) -> None:
        row = self._rows.by_number(number)
        if row is None:
            return  # removed meanwhile
        if row.info.kind == COMMITTED:
            logger.error("snapshot %s/%d: its directory is missing", self.name, number)
            return
        logger.warning("snapshot %s: its directory is missing and made again", row.info.key)
        # Under a number that no row has: one that is left half made is no snapshot.
        path = f"{self.dir}/new-{self._rows.new_number(self._highest)}"
        try:
            os.mkdir(path, 0o700)
            await self._fill(path, self._rows.chain(row.parent), row.info.kind)
            os.rename(path, f"{self.dir}/{number}")
        except (OSError, LighterError) as err:
            logger.error("make snapshot %s again: %s", row.info.key, err)
            await self._discard(path)

    def _take_stock(self) -> tuple[list[str], list[int]]:
        """Finish what only lacks its rename; returns the directories that never became a snapshot,
        and the numbers of recorded ones without a directory.

        Done before anything new is made, so `recover` may run beside new work.
        """
        recorded, noted = self._rows.numbers(), self._rows.trash()
        left, complete = [], set()
        for name, number in self._entries():
            path = f"{self.dir}/{name}"
            if number in recorded:
                complete.add(number)
                if name.startswith("new-"):
                    os.rename(path, f"{self.dir}/{number}")
            elif name.startswith("new-"):
                left.append(path)
            elif name not in noted:
                logger.warning("snapshot directory %s has no record: it is kept", path)
        return left, sorted(recorded - complete)

    def _entries(self) -> list[tuple[str, int]]:
        """(name, number) of all directories, whole ones and new ones."""
        found = ((name, _ENTRY.fullmatch(name)) for name in os.listdir(self.dir))
        return [(name, int(match[2])) for name, match in found if match]
