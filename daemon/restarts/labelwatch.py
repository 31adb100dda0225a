"""Looking at containerd's restart labels from time to time, as its own monitor does.

The end of a task is dealt with when it comes (service.py). Here is seen what makes no event: labels
that ask for a task which nobody has made, or for the end of one that runs.
"""

import asyncio
import logging
import signal
import time
from dataclasses import replace

from lighter.daemon.restarts import labels
from lighter.daemon.restarts.policy import next_delay_ms
from lighter.daemon.restarts.service import Restarts
from lighter.daemon.restarts.store import Definition, Restart, RestartStore
from lighter.daemon.tasks.service import TaskService
from lighter.daemon.tasks.supervisor import Supervisor
from lighter.proto.errors import LighterError

log = logging.getLogger("lighter.restarts")

LOOK_S = 10.0


class LabelWatch:
    """Looks at all containers that have the labels, every LOOK_S."""

    def __init__(
        self,
        *,
        restarts: Restarts,
        store: RestartStore,
        tasks: TaskService,
        supervisor: Supervisor,
    ) -> None:
        self._debts = restarts.debts
        self._store = store
        self._tasks = tasks
        self._supervisor = supervisor

    async def run(self) -> None:
        """Keep tasks as containerd's labels have them, also where no end of a task was seen."""
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                for definition in self._store.labelled():
                    await self._look_safely(definition.namespace, definition.id)
            except LighterError as err:
                log.warning("look at labels of containers: %s", err)

    async def _look_safely(self, namespace: str, container_id: str) -> None:
        # As it is now: looking at those before it has taken its time.
        definition = self._store.definition(namespace, container_id)
        if definition is None or not definition.by_labels:
            return
        try:
            await self._look(definition)
        except LighterError as err:
            log.warning("look at labels of container %s: %s", container_id, err)
        except Exception:  # a mistake here must not leave all others alone
            log.exception("look at labels of container %s", container_id)

    async def _look(self, of: Definition) -> None:
        key = of.namespace, of.id
        entry = self._supervisor.entries.get(key)
        if of.labels[labels.STATUS] == labels.STOPPED:
            if entry is not None and entry.is_task and entry.exit is None:
                await self._tasks.kill(of.namespace, of.id, "", signal.SIGKILL, True)
            return
        if entry is not None and not entry.closed:
            return
        # Of an update from the future nothing is known: the clock was set back.
        if entry is None and 0 <= time.time_ns() - of.updated_at < LOOK_S * 1e9:
            return  # its client is about to make a task
        row = self._store.get(*key) or Restart(*key)
        if row.due_at is not None or self._debts.is_held(key):
            return
        status = entry.exit.exit_status if entry is not None and entry.exit else 0
        count = of.count(row)
        if of.policy().wants(status, count, of.is_stopped or row.stopped):
            settled = entry.incarnation if entry is not None else row.settled
            delay_ms = next_delay_ms(row.delay_ms, 0)
            self._debts.arm(self._debts.owe(replace(row, settled=settled), of, count + 1, delay_ms))
