"""`--rm`: the manager removes such a container when its task is over."""

import asyncio
import logging
import sqlite3
from collections.abc import Callable
from dataclasses import replace

from lighter.daemon.containers.service import ContainerService
from lighter.daemon.journal import Repeated
from lighter.daemon.restarts.store import WITH_VOLUMES, Restart, RestartStore
from lighter.daemon.tasks.entry import Entry
from lighter.daemon.tasks.supervisor import Supervisor, retries
from lighter.proto import states
from lighter.proto.errors import NotFound

log = logging.getLogger("lighter.containers")


class AutoRemoval:
    """Told by the supervisor of each task that is over and cleaned up.

    `goes_on`: whether another takes its place, as somebody restarts the container.
    """

    def __init__(
        self,
        *,
        supervisor: Supervisor,
        containers: ContainerService,
        store: RestartStore,
        goes_on: Callable[[Entry], bool],
    ) -> None:
        self._goes_on = goes_on
        self._supervisor = supervisor
        self._containers = containers
        self._store = store

    def on_closed(self, entry: Entry) -> None:
        if not _removes_itself(entry):
            return
        if self._goes_on(entry):
            entry.removed.set()  # who waits for that has waited for the end
        else:
            self._supervisor.in_background(self._remove(entry))

    def on_forgetting(self, tx: sqlite3.Connection, entry: Entry) -> None:
        """Note the removal in the transaction that forgets the task, since its row was all that
        told of its end: if this manager is killed before it has removed the record, the next one
        does.
        """
        if _removes_itself(entry) and not self._goes_on(entry):
            row = self._store.get(*entry.key) or Restart(*entry.key)
            row = replace(row, due_at=None, removal=WITH_VOLUMES)
            self._store.put(tx, row)
            if self._store.is_kept(entry.key):  # which counts before what is written
                self._store.keep(row)

    async def _remove(self, entry: Entry) -> None:
        """Remove it; tried until it is done, or until somebody starts it again or makes another of
        its id.
        """
        failures = Repeated(log, f"remove container {entry.id}")
        try:
            made_at = self._containers.created_at(*entry.key)
            for pause_s in retries():
                try:
                    await self._containers.delete(*entry.key, force=True, volumes=True)
                    failures.ended()
                    return
                except NotFound:
                    return  # the caller was faster
                except Exception as err:
                    failures.failed(err)
                entry.removed.set()  # who waits is not held up by that
                await asyncio.sleep(pause_s)
                if not self._is_over(entry, made_at):
                    return
        except NotFound:
            pass
        finally:
            entry.removed.set()

    def _is_over(self, entry: Entry, made_at: int) -> bool:
        """Raises NotFound when there is no container of this id."""
        there = self._supervisor.entry(*entry.key)
        same = self._containers.created_at(*entry.key) == made_at
        return same and there in (None, entry) and not self._goes_on(entry)


def _removes_itself(entry: Entry) -> bool:
    """Whether its container is removed with it. Not after a create that never became a task: who
    asked for its start removes the container.
    """
    was_task = entry.state != states.CREATING and not entry.is_abandoned
    return was_task and bool(entry.options.get("auto_remove"))
