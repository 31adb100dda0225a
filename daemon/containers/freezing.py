"""A container's processes frozen while something of it is read, and never longer.

Several may read at a time: the first freezes, the last one thaws, and meanwhile nobody else does
(`Entry.readers`). That they are frozen is noted durably before, so that the manager that comes
after one that died thaws them. A task that a user has paused is left as it is.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from weakref import WeakValueDictionary

from lighter.daemon.metadata.db import Database
from lighter.daemon.tasks.entry import Entry
from lighter.daemon.tasks.reach import connected
from lighter.daemon.tasks.service import TaskService
from lighter.daemon.tasks.supervisor import retries
from lighter.proto import states
from lighter.proto.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    LighterError,
    NotFound,
    Unavailable,
)
from lighter.proto.faults import hit

log = logging.getLogger("lighter.freezing")

# A runtime is ended by its shim after its own deadline, which is minutes at most.
LATE_S = 600.0
_NOTES = "frozen:"  # in meta: namespace/container's id -> incarnation of the frozen task


class Freezing:
    """Freezes tasks for the length of a block."""

    def __init__(self, db: Database, tasks: TaskService) -> None:
        self._db = db
        self._tasks = tasks
        self._later: set[asyncio.Task[None]] = set()
        self._frozen: set[str] = set()  # incarnations that are ours to thaw
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    @contextlib.asynccontextmanager
    async def frozen(self, namespace: str, container_id: str) -> AsyncIterator[None]:
        """Keep the task frozen during the block, if it runs. Raises Unavailable when its shim does
        not freeze it.
        """
        try:
            entry = self._tasks.find(namespace, container_id)
        except NotFound:
            yield
            return
        key = f"{_NOTES}{namespace}/{container_id}"
        late = False
        entry.readers += 1
        try:
            try:
                async with self._turn(entry):
                    if entry.state == states.RUNNING:
                        await self._freeze(key, entry)
            except (DeadlineExceeded, Unavailable, asyncio.CancelledError):
                late = True  # its shim, or the runtime, may freeze it yet
                raise
            yield
        finally:
            entry.readers -= 1
            if late:
                self._in_background(self._thaw_what_froze_late(key, entry))
            elif entry.incarnation in self._frozen:
                await asyncio.shield(self._in_background(self._thaw(key, entry)))

    async def _freeze(self, key: str, entry: Entry) -> None:
        with self._db.durable_transaction() as tx:
            tx.execute(
                "INSERT OR REPLACE INTO meta(key, value) VALUES(?, ?)", (key, entry.incarnation)
            )
        self._frozen.add(entry.incarnation)
        try:
            await self._tasks.pause(entry.namespace, entry.id)
        except FailedPrecondition:  # somebody else has paused it: that is not ours to undo
            self._frozen.discard(entry.incarnation)
            self._forget(key, entry.incarnation)
            raise
        hit("freeze.frozen")

    def _turn(self, entry: Entry) -> asyncio.Lock:
        """Freezing and thawing of one task, one at a time."""
        return self._turns.setdefault(entry.incarnation, asyncio.Lock())

    async def recover(self, entry_of: Callable[[str, str], Entry | None]) -> None:
        """Thaw what the manager before has left frozen; its shim is waited for."""
        for row in self._db.rows(
            "SELECT key, value FROM meta WHERE substr(key, 1, ?) = ?", (len(_NOTES), _NOTES)
        ):
            namespace, _, container_id = row["key"].removeprefix(_NOTES).partition("/")
            entry = entry_of(namespace, container_id)
            if entry is not None and entry.incarnation == row["value"]:
                # Its runtime may be at it still.
                self._frozen.add(entry.incarnation)
                self._in_background(self._thaw_what_froze_late(row["key"], entry))
            else:
                self._forget(row["key"], row["value"])

    async def _thaw(self, key: str, entry: Entry) -> None:
        """Resume the task, or leave that to whoever still reads it. Tried until it is done."""
        if not await self._has_thawed(key, entry):
            self._in_background(self._thaw_later(key, entry))

    async def _has_thawed(self, key: str, entry: Entry) -> bool:
        """Try it once; what fails is logged."""
        try:
            async with self._turn(entry):
                await self._resume(entry)
                if entry.incarnation not in self._frozen:
                    self._forget(key, entry.incarnation)
        except LighterError as error:
            log.warning("thaw %s: %s; trying on", entry.what, error.message)
            return False
        return True

    def _in_background(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._later.add(task)
        task.add_done_callback(self._later.discard)
        return task

    async def _thaw_what_froze_late(self, key: str, entry: Entry) -> None:
        """Thaw it after a pause that was given up, once the runtime cannot freeze it any more."""
        with contextlib.suppress(LighterError):
            await connected(entry)  # after a start: what is known of it is from before
        end = time.monotonic() + LATE_S
        for pause_s in retries():
            if time.monotonic() > end or entry.exit is not None or entry.state == states.PAUSED:
                break
            await asyncio.sleep(pause_s)
        await self._thaw(key, entry)

    async def _thaw_later(self, key: str, entry: Entry) -> None:
        for pause_s in retries():
            await asyncio.sleep(pause_s)
            if await self._has_thawed(key, entry):
                return

    async def _resume(self, entry: Entry) -> None:
        if entry.readers or entry.incarnation not in self._frozen:
            return  # else it is a user's own pause
        try:
            await connected(entry)  # from then on it is known whether it is frozen
            if entry.state == states.PAUSED and not entry.readers:
                await self._tasks.resume(entry.namespace, entry.id)
        except (FailedPrecondition, NotFound):
            pass  # it has ended, or somebody else has resumed it
        if not entry.readers:
            self._frozen.discard(entry.incarnation)

    def _forget(self, key: str, incarnation: str) -> None:
        with self._db.durable_transaction() as tx:
            tx.execute("DELETE FROM meta WHERE key = ? AND value = ?", (key, incarnation))
