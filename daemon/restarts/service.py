"""Restarts by policy and by containerd's labels; none is lost and none doubled.

What is owed stands in the container's row before anything is done for it, and is crossed out when
the task runs. Between the two each step looks at what there is and does what is next, so a manager
that finds a row with something owed goes on wherever the one before was killed:

    the end of a task   row: count, settled = its incarnation, due_at      one durable transaction
    due_at              the ended task is deleted, another made and started
    the start           row: due_at = NULL, if it still is about the same end

The end of an incarnation that is settled is never counted again.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any
from weakref import WeakValueDictionary

from lighter.daemon.containers.service import ContainerService
from lighter.daemon.events.log import EventLog
from lighter.daemon.network.ports import NoSuchAddress
from lighter.daemon.restarts import labels
from lighter.daemon.restarts.debts import Debts, Key
from lighter.daemon.restarts.policy import (
    FIRST_DELAY_MS,
    NO,
    RestartPolicy,
    next_delay_ms,
)
from lighter.daemon.restarts.store import Definition, Restart, RestartStore
from lighter.daemon.tasks.clientstdio import stdio_of
from lighter.daemon.tasks.entry import Entry
from lighter.daemon.tasks.service import TaskService
from lighter.daemon.tasks.supervisor import Supervisor
from lighter.proto import states
from lighter.proto.errors import (
    Aborted,
    Internal,
    InvalidArgument,
    LighterError,
    NotFound,
)
from lighter.proto.faults import hit

log = logging.getLogger("lighter.restarts")

_AGAIN_S = 0.2
FAILED = 1  # a start that fails is a failure of the container's
_NO_STREAMS = {"stdin": "", "stdout": "", "stderr": "", "rows": 0, "cols": 0}

# (state of the task that is there, "" for none; whether its end is dealt with) -> what an owed
# start needs next.
_NEXT: dict[tuple[str, bool], str] = {
    ("", True): "make",
    (states.CREATING, False): "wait",
    (states.CREATED, False): "start",
    (states.RUNNING, False): "done",
    (states.PAUSED, False): "done",
    (states.CREATING, True): "wait",
    (states.CREATED, True): "stop",
    (states.RUNNING, True): "stop",
    (states.PAUSED, True): "stop",
    (states.STOPPED, True): "make",
    (states.STOPPED, False): "settle",
}


class Restarts:
    """Keeps containers up as they ask for it, and does what `ByHand` asks for on the same rows."""

    def __init__(
        self,
        *,
        store: RestartStore,
        containers: ContainerService,
        tasks: TaskService,
        supervisor: Supervisor,
        events_log: EventLog,
    ) -> None:
        self._store = store
        self._containers = containers
        self._tasks = tasks
        self._supervisor = supervisor
        self.debts = Debts(
            store=store,
            events_log=events_log,
            pursue=self._pursue,
            in_background=supervisor.in_background,
        )
        self._locks: WeakValueDictionary[Key, asyncio.Lock] = WeakValueDictionary()
        self._ours: set[str] = set()  # incarnations that are made for something owed

    # what the supervisor tells

    def on_exit(self, entry: Entry) -> None:
        """A task has ended: what follows from that is decided before anybody can ask."""
        self._settled(entry)

    def on_closed(self, entry: Entry) -> None:
        """An ended task is cleaned up, so that another may be made."""
        self._ours.discard(entry.incarnation)
        row = self._settled(entry)
        if row is not None and row.due_at is not None:
            self.debts.arm(row)

    def _settled(self, entry: Entry) -> Restart | None:
        if entry.options.get("auto_remove"):
            return None
        try:
            return self._settle(entry)
        except LighterError as err:  # a full disk: when it is cleaned up, or at the next start
            log.error("settle the end of %s: %s", entry.what, err)
            return None

    def on_started(self, entry: Entry) -> None:
        """A task runs, perhaps one that was made for what is owed."""
        row = self._store.get(entry.namespace, entry.id)
        if row is not None and entry.incarnation in self._ours:
            self.debts.cross_out(row)

    # deciding

    def _settle(self, entry: Entry) -> Restart | None:
        """Decide once what follows from the end of this task; returns what is known after it."""
        before = self._store.get(entry.namespace, entry.id)
        if before is not None and before.settled == entry.incarnation:
            return before
        definition = self._store.definition(entry.namespace, entry.id)
        if definition is None or entry.started_at is None or entry.exit is None:
            return before  # of one that never ran: what was owed for it still is
        try:
            policy = definition.policy()
            count = definition.count(before)
        except InvalidArgument as err:
            log.error("restart container %s: %s", entry.id, err)
            return before
        if self.debts.is_held(entry.key) or (before is None and policy.name == NO):
            return before
        row = before or Restart(entry.namespace, entry.id)
        ended = entry.exit
        row = replace(
            row, settled=entry.incarnation, exit_status=ended.exit_status, due_at=None, error=""
        )
        stopped = row.stopped or definition.is_stopped
        if not policy.wants(ended.exit_status, count, stopped):
            self.debts.put(replace(row, count=count))
            return row
        ran_s = (ended.exited_at - entry.started_at) / 1e9
        return self.debts.owe(row, definition, count + 1, next_delay_ms(row.delay_ms, ran_s))

    # doing what is owed

    async def _pursue(self, key: Key) -> None:
        async with self.alone(key):
            row = self._store.get(*key)
            if row is None or row.due_at is None or self.debts.is_held(key):
                return
            try:
                await self._attempt(row)
            except Exception as err:  # a full disk, or a mistake here: it is owed all the same
                log.exception("start container %s again: %s", row.id, err)
            self.debts.arm_undone(key)

    async def _attempt(self, row: Restart) -> None:
        try:
            await self._step(row)
        except NotFound as err:
            if self._store.definition(*row.key) is not None:
                self._failed(row, err)
        except LighterError as err:
            if self._containers.has_writer(*row.key):
                self.debts.arm_in(row.key, _AGAIN_S)
            else:
                self._failed(row, err)
        except Exception as err:
            log.exception("start container %s again", row.id)
            self._failed(row, Internal(f"start container {row.id}: {err}"))

    async def _step(self, row: Restart) -> None:
        """The next step towards what is owed."""
        entry = self._supervisor.entries.get(row.key)
        match _NEXT[_found(row, entry)]:
            case "make":
                if self._containers.has_writer(*row.key):
                    self.debts.arm_in(row.key, _AGAIN_S)
                else:
                    await self.make(row)
            case "start":
                assert entry is not None
                if entry.incarnation in self._ours:
                    await self._tasks.start(row.namespace, row.id)
                    self.debts.cross_out(row)
                else:
                    self.debts.arm_in(row.key, _AGAIN_S)  # a client is about to
            case "wait":
                self.debts.arm_in(row.key, _AGAIN_S)
            case "stop":  # of a restart by hand, whose manager died over it
                self.debts.arm_in(row.key, _AGAIN_S)
                try:
                    await self._containers.stop(row.namespace, row.id, None)
                except LighterError as err:
                    log.warning("stop container %s, to start it again: %s", row.id, err)
            case "settle":
                assert entry is not None
                if entry.closed:
                    self.on_closed(entry)
            case "done":
                self.debts.cross_out(row)

    async def make(self, row: Restart) -> int:
        """Put another task in the place of the ended one; returns init's pid.

        Raises Aborted when it was stopped meanwhile, or what making or starting it raises.
        """
        namespace, id_ = row.key
        definition = self._store.definition(namespace, id_)
        if definition is None:
            raise NotFound(f"start container {id_}: it was deleted")
        self._containers.check_free(namespace, id_)
        if row.key in self._supervisor.entries:
            with suppress(NotFound):  # a client that had waited for it was faster
                await self._tasks.delete(namespace, id_)
        hit("restart.task-deleted")
        streams = self._streams(definition)
        pid = await self._containers.start_task(namespace, id_, streams)
        entry = self._supervisor.entries[row.key]
        self._ours.add(entry.incarnation)
        hit("restart.task-created")
        try:
            if not self.debts.owes(row) or self.debts.is_held(row.key):
                raise Aborted(f"start container {id_}: it was stopped")
            await self._tasks.start(namespace, id_)
        except BaseException:
            if entry.started_at is None:
                await asyncio.shield(self._remove(entry))
            raise
        hit("restart.task-started")
        self.debts.cross_out(row)
        return pid

    def _streams(self, of: Definition) -> Mapping[str, Any]:
        uri = of.labels.get(labels.LOG_URI) if of.by_labels else None
        if not uri:
            return _NO_STREAMS
        return stdio_of("", uri, uri, bool(of.options.get("terminal")))

    async def _remove(self, entry: Entry) -> None:
        """A task that could not be started does not stay."""
        try:
            await self._tasks.delete(entry.namespace, entry.id, force=True)
        except LighterError as err:
            log.warning("remove %s, which was not started: %s", entry.what, err)

    def _failed(self, row: Restart, error: LighterError) -> None:
        """An attempt at a start failed: as an end of the container, it has its pause and limit."""
        definition = self._store.definition(*row.key)
        if definition is None or not self.debts.owes(row) or self.debts.is_held(row.key):
            return
        log.warning("start container %s again: %s", row.id, error.message)
        row = replace(row, error=error.message)
        try:
            policy, count = definition.policy(), definition.count(row)
        except InvalidArgument:
            policy, count = RestartPolicy(), row.count
        # An address that the host has not got (yet, at a boot) is no failure of the container's.
        uncounted = isinstance(error, NoSuchAddress)
        if policy.wants(FAILED, 0 if uncounted else count, row.stopped):
            delay_ms = next_delay_ms(row.delay_ms or FIRST_DELAY_MS, 0)
            count = count if uncounted else count + 1
            self.debts.arm(self.debts.owe(row, definition, count, delay_ms))
        else:
            self.debts.put(replace(row, due_at=None))
            self._supervisor.in_background(self.remove_if_over(row.key))

    def goes_on(self, entry: Entry) -> bool:
        """Whether another task is owed in the place of this one: a restart by hand is under way."""
        row = self._store.get(*entry.key)
        return row is not None and row.due_at is not None and row.settled == entry.incarnation

    async def remove_if_over(self, key: Key) -> None:
        """Remove a container that is to remove itself and was not started again after all."""
        definition, entry = self._store.definition(*key), self._supervisor.entries.get(key)
        if definition is None or not definition.options.get("auto_remove"):
            return
        if self.debts.is_owed(*key) or self._containers.has_writer(*key):  # or copied into
            return
        if self._containers.is_starting(*key):  # by another than who has failed
            return
        if entry is None or entry.closed:
            try:
                await self._containers.delete(*key, force=True, volumes=True)
            except LighterError as err:
                log.warning("remove container %s: %s", key[1], err)

    @asynccontextmanager
    async def alone(self, key: Key) -> AsyncIterator[None]:
        """Hold the container's lock: one caller at a time makes and deletes its tasks."""
        lock = self._locks.setdefault(key, asyncio.Lock())
        async with lock:
            yield

    def is_busy(self, key: Key) -> bool:
        """Whether somebody is at it `alone`."""
        lock = self._locks.get(key)
        return lock is not None and lock.locked()

    # looking

    def describe(self, namespace: str, container_id: str) -> dict[str, Any]:
        """What `inspect` shows."""
        return self._store.describe(namespace, container_id)

    # a manager's start

    def recover(self) -> None:
        """Go on with what the manager before owed, and start what is to run when one starts."""
        self.debts.recover()
        for row in self._store.all():
            entry = self._supervisor.entries.get(row.key)
            if row.removal:
                continue
            if row.due_at is not None:
                if entry is not None and entry.incarnation != row.settled:
                    self._ours.add(entry.incarnation)
                self.debts.arm(row)
            elif entry is None or (entry.closed and row.settled == entry.incarnation):
                self._start_with_manager(row)

    def _start_with_manager(self, row: Restart) -> None:
        definition = self._store.definition(*row.key)
        if definition is None:
            return
        try:
            policy = definition.policy()
        except InvalidArgument as err:
            log.error("restart container %s: %s", row.id, err)
            return
        stopped = row.stopped or definition.is_stopped
        if definition.by_labels and stopped:
            return
        if policy.wants_at_start(stopped):
            again = replace(row, stopped=False, error="")
            count = definition.count(row) + 1 if definition.by_labels else 0
            self.debts.arm(self.debts.owe(again, definition, count, 0))


def _found(row: Restart, entry: Entry | None) -> tuple[str, bool]:
    """Which of the lines of _NEXT it is. A task that ended before it ran is no end to settle."""
    if entry is None:
        return "", True
    never_ran = entry.state == states.STOPPED and entry.started_at is None
    return entry.state, never_ran or entry.incarnation == row.settled
