"""What is owed to containers: written down, armed for when it is due, crossed out when it is done.

Nothing is done for a container that is held until somebody, or the next manager, starts it.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

from lighter.daemon.events.log import EventLog
from lighter.daemon.restarts.store import Definition, Restart, RestartStore
from lighter.proto import events
from lighter.proto.errors import LighterError
from lighter.proto.faults import hit

log = logging.getLogger("lighter.restarts")

_LATER_S = 5.0  # until a full disk, say, is tried again

Key = tuple[str, str]


class Debts:
    """`pursue` does what is owed to a container, when that is due."""

    def __init__(
        self,
        *,
        store: RestartStore,
        events_log: EventLog,
        pursue: Callable[[Key], Coroutine[Any, Any, None]],
        in_background: Callable[[Coroutine[Any, Any, None]], None],
    ) -> None:
        self._store = store
        self._events = events_log
        self._pursue = pursue
        self._in_background = in_background
        self._timers: dict[Key, asyncio.TimerHandle] = {}
        self._held: set[Key] = set()

    # written

    def owe(self, row: Restart, of: Definition, count: int, delay_ms: int) -> Restart:
        """Record that a start is due after `delay_ms`, and tell."""
        due_at = time.time_ns() + delay_ms * 1_000_000
        row = replace(row, count=count, delay_ms=delay_ms, due_at=due_at)
        body = {
            "id": row.id,
            "count": count,
            "exit_status": row.exit_status,
            "delay_ms": delay_ms,
            "error": row.error,
        }
        with self._store.changes() as tx:
            if not self._store.put(tx, row):
                return replace(row, due_at=None)
            if of.by_labels:
                self._store.set_count_label(tx, of, count)
            told = self._events.append(tx, row.namespace, events.CONTAINER_RESTART, body)
        hit("restart.owed")
        self._events.announce(told)
        return row

    def put(self, row: Restart) -> bool:
        self.disarm(row.key)
        with self._store.changes() as tx:
            return self._store.put(tx, row)

    def keep(self, row: Restart) -> None:
        """As `put`, while the disk is full: it counts at once, and is written when there is space
        again.
        """
        self.disarm(row.key)
        was_behind = self._store.is_behind
        self._store.keep(row)
        if not was_behind:
            self._in_background(self._write_kept())

    async def _write_kept(self) -> None:
        while self._store.is_behind:
            await asyncio.sleep(_LATER_S)
            try:
                with self._store.changes():
                    pass
            except LighterError as err:
                log.warning("write what was done by hand: %s", err)

    def cross_out(self, row: Restart) -> None:
        """What was owed is done, unless another end has come since."""
        now = self._owed_now(row)
        if now is not None:
            self.put(replace(now, due_at=None, error=""))
            hit("restart.settled")

    def owes(self, row: Restart) -> bool:
        """Whether what the row says is still to be done."""
        return self._owed_now(row) is not None

    def _owed_now(self, row: Restart) -> Restart | None:
        """The row as it is now, if the same start is still owed."""
        now = self._store.get(*row.key)
        owed = now is not None and now.due_at is not None and now.settled == row.settled
        return now if owed else None

    def is_owed(self, namespace: str, container_id: str) -> bool:
        """Whether it is being started again, or waits for that."""
        row = self._store.get(namespace, container_id)
        return row is not None and row.due_at is not None

    def recover(self) -> None:
        """Write what the manager before could not."""
        if self._store.is_behind:
            self._in_background(self._write_kept())

    # armed

    def arm(self, row: Restart) -> None:
        """See to what is owed when it is due; never later than its pause after this moment, since
        the clock may have been set meanwhile. Nothing is owed to a container that is gone.
        """
        if row.due_at is None:
            return
        left_s = min((row.due_at - time.time_ns()) / 1e9, row.delay_ms / 1e3)
        self.arm_in(row.key, max(0.0, left_s))

    def arm_in(self, key: Key, delay_s: float) -> None:
        """See to what is owed after `delay_s`, whenever it is due."""
        self.disarm(key)
        loop = asyncio.get_running_loop()
        self._timers[key] = loop.call_later(delay_s, self._on_due, key)

    def arm_undone(self, key: Key) -> None:
        """Try again later what an attempt has not done, unless it has set a time itself."""
        if key not in self._timers and key not in self._held and self.is_owed(*key):
            self.arm_in(key, _LATER_S)

    def _on_due(self, key: Key) -> None:
        self._timers.pop(key, None)
        self._in_background(self._pursue(key))

    def disarm(self, key: Key) -> None:
        timer = self._timers.pop(key, None)
        if timer is not None:
            timer.cancel()

    # held

    def hold(self, namespace: str, container_id: str) -> None:
        """Hold a container that is stopped together with all others: it is not restarted before
        somebody, or the next manager, starts it. Its end is settled then.
        """
        self._held.add((namespace, container_id))
        self.disarm((namespace, container_id))

    def release(self, key: Key) -> None:
        """Hold it no more: somebody starts it."""
        self._held.discard(key)

    def is_held(self, key: Key) -> bool:
        return key in self._held

    def hold_owed(self) -> None:
        """Hold all containers that wait for a restart."""
        for row in self._store.all():
            if row.due_at is not None:
                self.hold(*row.key)
