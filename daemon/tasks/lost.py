"""Tasks whose shims ended before they said `closed`: what they held is freed, their end recorded.

The exit record that the shim has left decides how the task ended; without one the exit is our word.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Protocol

from lighter.daemon.journal import Repeated
from lighter.daemon.tasks.bundle import Bundle
from lighter.daemon.tasks.entry import Entry
from lighter.daemon.tasks.supervisor import LOST_UNKNOWN, Supervisor, retries
from lighter.daemon.tasks.types import Exit
from lighter.proto import states
from lighter.proto.faults import hit

log = logging.getLogger("lighter.tasks")

LOST_KILLED = 137


class Freer(Protocol):
    """How the resources of a task whose shim is gone are freed."""

    async def free(self, entry: Entry, bundle: Bundle) -> bool:
        """Free everything; True when processes of the container had to be ended.

        Raises Unavailable, with the reason, while something of it cannot be freed.
        """


class LostTasks:
    """Settles the tasks of shims that are gone, for the supervisor."""

    def __init__(
        self, supervisor: Supervisor, bundle_of: Callable[[str, str], Bundle], freer: Freer
    ) -> None:
        self._supervisor = supervisor
        self._bundle_of = bundle_of
        self._freer = freer

    async def settle(self, entry: Entry) -> None:
        """Free what the shim held, then record how its task ended.

        Tried until it is done: a full disk, for one, must not leave waiters without an answer.
        """
        failures = Repeated(log, f"settle {entry.what}")
        for pause_s in retries():
            try:
                await self._settle(entry)
                failures.ended()
                return
            except Exception as err:
                failures.failed(err)
                entry.stuck = str(err) or repr(err)
                entry.is_stuck.set()
                await asyncio.sleep(pause_s)

    async def _settle(self, entry: Entry) -> None:
        if not self._is_ours(entry):
            return
        bundle = self._bundle_of(entry.namespace, entry.id)
        known = bundle.exit_of(entry.incarnation)
        killed = await self.free(entry, bundle)
        if not self._is_ours(entry):
            return
        entry.stuck = ""
        entry.is_stuck.clear()
        hit("settle.freed")
        if entry.state != states.CREATING:
            lost = (
                Exit(LOST_KILLED, time.time_ns(), "lost-shim")
                if killed
                else Exit(LOST_UNKNOWN, time.time_ns(), "unknown")
            )
            self._supervisor.record_exit(entry, known or lost, lost)
            hit("settle.exit-recorded")
        self._supervisor.record_closed(entry)
        bundle.remove_exit_record()

    def _is_ours(self, entry: Entry) -> bool:
        """False once it is forgotten: what has its name now is another task. One that is closed is
        settled again, when the removal that follows has failed.
        """
        return self._supervisor.entry(*entry.key) is entry

    async def free(self, entry: Entry, bundle: Bundle) -> bool:
        """Give back what a dead shim held; True when processes had to be ended for it."""
        return await self._freer.free(entry, bundle)
