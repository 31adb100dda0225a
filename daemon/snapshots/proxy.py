"""Snapshots that another process makes: a snapshotter of `[proxy_plugins]`, behind its socket.

What there is, whose it is and what keeps it are our records, as with every other snapshotter; the
plugin is asked to prepare, view, mount, commit, remove and measure. It knows a snapshot as

    <uuid of the database>/<number>     an active one or a view
    <uuid of the database>/<number>c    a committed one

so a number says all that the plugin may have of it. The number is noted in `trash` before the
plugin is asked, and the note goes once there is a record: what a crash leaves is swept by the next
manager. A commit asks the plugin first; when it did that in an earlier life, the record follows.

A client that says which layer it prepares for (`containerd.io/snapshot.ref`) may be told that
there is nothing to unpack: the plugin has committed it, under the name that we gave it, and it is
recorded.

A plugin that does not answer fails what needs it, and holds up nothing else.
"""

import asyncio
import logging
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress

from lighter.daemon.events.log import EventLog
from lighter.daemon.metadata.db import Database
from lighter.daemon.snapshots.backend import Backend, check_mounts
from lighter.daemon.snapshots.recorded import RecordedSnapshotter
from lighter.daemon.snapshots.rows import Row, SnapshotRows
from lighter.daemon.snapshots.service import TARGET_LABEL
from lighter.daemon.snapshots.types import (
    ACTIVE,
    COMMITTED,
    UNDER_LEASE_LABEL,
    LayerTarget,
    shown_by,
)
from lighter.daemon.types import Mount, Usage
from lighter.daemon.whole import whole
from lighter.proto.errors import (
    AlreadyExists,
    DeadlineExceeded,
    FailedPrecondition,
    LighterError,
    NotFound,
    Unavailable,
    Unimplemented,
)
from lighter.proto.faults import hit

logger = logging.getLogger(__name__)

SWEEP_S = 10.0  # with a plugin that hangs, whoever waits for a sweep
REST_S = 60.0  # after which it is swept again
NO_NAMESPACE = "default"  # of a snapshot whose record is gone; for the plugin's log

# Labels that are meant for the snapshotter itself (containerd's FilterInheritedLabels).
_INHERITED = "containerd.io/snapshot/"


class ProxySnapshotter(RecordedSnapshotter):
    """A Snapshotter. `guarded`: a directory that no mount may let others write to."""

    max_layers = 0
    layers_apart = False
    has_directories = False

    def __init__(
        self, name: str, backend: Backend, db: Database, events_log: EventLog, guarded: str
    ) -> None:
        self.name = name
        self._backend = backend
        self._prefix = db.uuid
        self._rows = SnapshotRows(db, events_log, name)
        self._guarded = os.path.realpath(guarded)
        self._making: set[int] = set()
        self._late: dict[int, float] = {}  # not to be swept before
        self._known: dict[int, tuple[Mount, ...]] = {}
        self._sweeping = asyncio.Lock()
        self._rests_until = 0.0
        self._background: asyncio.Task[None] | None = None

    @property
    def unusable(self) -> str:
        if os.path.exists(self._backend.address):
            return ""
        return f"nothing is served at {self._backend.address}"

    def _key(self, row_or_number: Row | int) -> str:
        """What the plugin calls it."""
        if isinstance(row_or_number, int):
            return f"{self._prefix}/{row_or_number}"
        committed = "c" if row_or_number.info.kind == COMMITTED else ""
        return f"{self._prefix}/{row_or_number.number}{committed}"

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
        ask = self._backend.prepare if kind == ACTIVE else self._backend.view
        # A number that the manager before has noted, and not recorded, may be taken there.
        noted = (int(name) for name in self._rows.trash() if name.isdigit())
        number = self._rows.new_number(max(noted, default=0))
        self._making.add(number)
        try:
            self._rows.note(number)
            hit("snapshot.noted")
            told = _inherited(labels)
            target = labels.get(TARGET_LABEL, "") if kind == ACTIVE else ""
            if target:
                told[TARGET_LABEL] = self._key(number) + "c"
            try:
                mounts = await ask(
                    namespace, self._key(number), self._key(below) if below else "", told
                )
            except AlreadyExists:
                parent_number = below.number if below else None
                if target:
                    await self._take_over(namespace, key, number, parent_number, target, labels)
                raise
            check_mounts(f"prepare snapshot {key}", self.name, mounts, self._guarded)
            hit("snapshot.proxied")
            on = below.number if below else None
            self._rows.insert(namespace, key, number, on, kind, labels, lease)
        except BaseException as err:
            self._making.discard(number)
            if isinstance(err, DeadlineExceeded):
                self._late[number] = time.monotonic() + REST_S  # it may be made all the same
            self._sweep_soon()
            raise
        hit("snapshot.recorded")
        self._rows.forget_trash(str(number))
        self._making.discard(number)
        self._known[number] = mounts
        if self._rests_until:
            self._rests_until = 0.0  # it is back
            self._sweep_soon()
        return mounts

    async def _take_over(
        self,
        namespace: str,
        key: str,
        number: int,
        parent: int | None,
        target: str,
        labels: Mapping[str, str],
    ) -> None:
        """Record what the plugin has committed in place of a snapshot to unpack into: a remote
        one, whose files come when they are read. Nothing when it has not."""
        committed = self._key(number) + "c"
        if not await self._backend.is_committed(namespace, committed):
            return
        usage = await self._measure(namespace, committed)
        kept = {name: value for name, value in labels.items() if name != UNDER_LEASE_LABEL}
        self._rows.insert(namespace, key, number, parent, ACTIVE, labels)
        try:
            row = self._rows.find("commit", namespace, key)
            self._rows.commit(namespace, target, row, kept, usage, None)
        except LighterError:
            self._rows.delete(namespace, key)
            raise

    async def commit(
        self,
        namespace: str,
        name: str,
        key: str,
        labels: Mapping[str, str] | None = None,
        usage: Usage | None = None,
        parent: str = "",
    ) -> None:
        if parent:
            raise FailedPrecondition(f"commit snapshot {key}: it has its place already")
        await whole(self._commit(namespace, name, key, labels or {}, usage))

    async def _commit(
        self, namespace: str, name: str, key: str, labels: Mapping[str, str], usage: Usage | None
    ) -> None:
        self._rows.check_absent("commit", namespace, name)
        row = self._active("commit", namespace, key)
        active = self._key(row)
        committed = active + "c"
        try:
            await self._backend.commit(namespace, committed, active, _inherited(labels))
        except (NotFound, AlreadyExists):
            if not await self._backend.is_committed(namespace, committed):
                raise
        hit("snapshot.proxy-committed")
        if usage is None:
            usage = await self._measure(namespace, committed)
        self._rows.commit(namespace, name, row, labels, usage, None)
        self._known.pop(row.number, None)

    async def mounts(self, namespace: str, key: str) -> tuple[Mount, ...]:
        return await self._mounts(namespace, self._mountable(namespace, key))

    async def _mounts(self, namespace: str, row: Row) -> tuple[Mount, ...]:
        mounts = await self._backend.mounts(namespace, self._key(row))
        check_mounts(f"mount snapshot {row.info.key}", self.name, mounts, self._guarded)
        self._known[row.number] = mounts
        return mounts

    async def find(self, namespace: str, mounts: Sequence[Mount]) -> str:
        given = shown_by(mounts)
        rows = self._rows.mountable(namespace, self._rows.numbers())
        for row in rows:
            if row.number in self._known and shown_by(self._known[row.number]) == given:
                return row.info.key
        for row in rows:
            if row.number in self._known:
                continue
            try:
                if shown_by(await self._mounts(namespace, row)) == given:
                    return row.info.key
            except (Unavailable, DeadlineExceeded):
                break  # a plugin that does not answer is nobody's else hindrance
            except LighterError:
                continue
        return ""

    async def remove(self, namespace: str, key: str) -> None:
        self._rows.delete(namespace, key)
        hit("snapshot.row-deleted")
        self._sweep_soon()

    async def usage(self, namespace: str, key: str) -> Usage:
        row = self._rows.find("measure", namespace, key)
        if row.info.kind != ACTIVE:
            return row.usage
        return await self._measure(namespace, self._key(row))

    async def _measure(self, namespace: str, key: str) -> Usage:
        with suppress(Unimplemented):
            return await self._backend.usage(namespace, key)
        return Usage(0, 0)

    async def layer_target(self, namespace: str, key: str) -> LayerTarget:
        row = self._active("apply to", namespace, key)
        return LayerTarget("", (), "plain", await self._mounts(namespace, row))

    # --- what is left over

    def _sweep_soon(self) -> None:
        if self._background is None or self._background.done():
            self._background = asyncio.ensure_future(self.sweep())

    async def sweep(self) -> None:
        """Bounded: one that does not answer is left alone for a while."""
        if time.monotonic() < self._rests_until:
            return
        try:
            async with asyncio.timeout(SWEEP_S), self._sweeping:
                await self._sweep()
        except (TimeoutError, Unavailable, DeadlineExceeded) as err:
            self._rests_until = time.monotonic() + REST_S
            cause = err.message if isinstance(err, LighterError) else f"{SWEEP_S:g} s are over"
            logger.warning("sweep snapshots of %s: %s; again later", self.name, cause)
        except LighterError as err:
            logger.warning("sweep snapshots of %s: %s", self.name, err.message)

    async def _sweep(self) -> None:
        now = time.monotonic()
        stuck = {number for number, at in self._late.items() if now < at}
        while numbers := {int(name) for name in self._rows.trash()} - stuck - self._making:
            number = max(numbers)  # a child's is above its parent's
            # A note of what was recorded after all is nothing.
            if self._rows.by_number(number) is None and not await self._discard(number):
                stuck.add(number)  # stays noted, for the next sweep
                continue
            self._known.pop(number, None)
            self._late.pop(number, None)
            hit("snapshot.removed")
            self._rows.forget_trash(str(number))

    async def _discard(self, number: int) -> bool:
        key = self._key(number)
        for name in (key, key + "c"):
            try:
                await self._backend.remove(NO_NAMESPACE, name)
            except NotFound:
                continue
            except (Unavailable, DeadlineExceeded):
                raise
            except LighterError as err:
                logger.warning("remove snapshot %s: %s", name, err.message)
                return False
        return True

    async def recover(self) -> None:
        await self.sweep()

    async def close(self) -> None:
        """Nothing is asked of the plugin any more."""
        if self._background is not None:
            self._background.cancel()
            await asyncio.gather(self._background, return_exceptions=True)
        await self._backend.close()


def _inherited(labels: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in labels.items() if name.startswith(_INHERITED)}
