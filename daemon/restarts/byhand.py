"""Starts, stops, restarts and removals by hand: what somebody asks for goes before any policy.

A start or restart stands in the container's row as owed before it is begun, as one by policy does:
a manager that is killed over it leaves it to the next. A stop is noted before its signal is sent,
and so is the removal of what a policy would start again: the next manager finishes that.
"""

import asyncio
import contextlib
import logging
import signal
import time
from collections.abc import AsyncIterator
from dataclasses import replace

from lighter.daemon.containers.request import signal_number
from lighter.daemon.containers.service import ContainerService
from lighter.daemon.journal import Repeated
from lighter.daemon.restarts.debts import Key
from lighter.daemon.restarts.policy import NO, RestartPolicy
from lighter.daemon.restarts.service import FAILED, Restarts
from lighter.daemon.restarts.store import CONTAINER, WITH_VOLUMES, Restart, RestartStore
from lighter.daemon.tasks.service import TaskService
from lighter.daemon.tasks.supervisor import Supervisor, retries
from lighter.daemon.tasks.types import Exit
from lighter.proto import states
from lighter.proto.errors import FailedPrecondition, InvalidArgument, LighterError, NotFound
from lighter.proto.faults import hit

log = logging.getLogger("lighter.restarts")


class ByHand:
    """What front ends for people ask for. Every method takes the namespace first."""

    def __init__(
        self,
        *,
        restarts: Restarts,
        store: RestartStore,
        containers: ContainerService,
        tasks: TaskService,
        supervisor: Supervisor,
    ) -> None:
        self._restarts = restarts
        self._debts = restarts.debts
        self._store = store
        self._containers = containers
        self._tasks = tasks
        self._supervisor = supervisor

    async def start(self, namespace: str, container_id: str) -> int:
        """Start a container that does not run, an ended task making way; returns init's pid.

        One that runs is left as it is. Raises NotFound, or what the runtime says.
        """
        return await self._start_by_hand((namespace, container_id), None)

    async def restart(
        self, namespace: str, container_id: str, timeout_s: float | None, signum: int | None = None
    ) -> int:
        """End the task, if there is one, as `stop` does, and start another; returns init's pid.

        `timeout_s` None: the container's own. A manager that is killed over it does the rest when
        it is there again.
        """
        return await self._start_by_hand((namespace, container_id), (timeout_s, signum))

    async def _start_by_hand(self, key: Key, stop: tuple[float | None, int | None] | None) -> int:
        namespace, id_ = key
        await self._containers.get(namespace, id_)
        async with self._restarts.alone(key):
            entry = self._supervisor.entries.get(key)
            if entry is not None and not entry.is_task:
                raise FailedPrecondition(f"start container {id_}: it is being created")
            if entry is not None and entry.exit is None and stop is None:
                if entry.state == states.CREATED:
                    return await self._start_task(key, alone=True)
                return entry.pid
            self._debts.release(key)
            settled = entry.incarnation if entry is not None else ""
            row = Restart(namespace, id_, settled=settled, due_at=time.time_ns())
            self._debts.put(row)
            hit("restart.asked")
            try:
                if entry is not None and entry.exit is None:
                    await self._end(key, *(stop or (None, None)))
                return await self._restarts.make(row)
            except asyncio.CancelledError:
                if self._debts.owes(row):  # who asked has gone; what was begun is finished
                    self._debts.arm(row)
                raise
            except Exception as err:
                if self._debts.owes(row):  # who asked hears of the failure: nobody tries on
                    self._debts.put(replace(row, due_at=None, error=str(err)))
                await self._restarts.remove_if_over(key)
                raise

    async def start_task(self, namespace: str, container_id: str) -> int:
        """Start a task that somebody has made; returns init's pid. A count begins anew."""
        return await self._start_task((namespace, container_id), alone=False)

    async def _start_task(self, key: Key, *, alone: bool) -> int:
        return await self._tasks.start(*key, asked=lambda: self._begin_anew(key, alone))

    def _begin_anew(self, key: Key, alone: bool) -> None:
        """Noted before the shim hears of it: a stop that comes while it starts is noted after.

        `alone`: its caller has the container's lock.
        """
        self._debts.release(key)
        row = self._store.get(*key)
        if row is None:
            return
        # It is called off, unless somebody is at it this moment, who ends what starts.
        removal = row.removal if self._restarts.is_busy(key) and not alone else ""
        anew = Restart(*key, settled=row.settled, removal=removal)
        if row != anew:
            self._debts.put(anew)

    async def make_way(self, namespace: str, container_id: str) -> None:
        """Forget an ended task, so that its caller makes the next one. Raises FailedPrecondition
        while it runs.
        """
        key = namespace, container_id
        async with self._restarts.alone(key):
            row = self._store.get(*key)
            if row is not None and row.due_at is not None:
                self._debts.put(replace(row, due_at=None))
            self._debts.release(key)
            entry = self._supervisor.entries.get(key)
            if entry is not None:
                if entry.exit is None:
                    raise FailedPrecondition(
                        f"start container {container_id}: it is {entry.view().status}"
                    )
                await self._tasks.delete(namespace, container_id)
            row = self._store.get(*key)
            if row is not None and row.removal:  # what is made now was not meant
                self._debts.put(replace(row, removal=""))

    async def remove_unstarted(self, namespace: str, container_id: str) -> None:
        """Remove a container whose start failed, if it is to remove itself, as docker does."""
        key = namespace, container_id
        async with self._restarts.alone(key):
            await self._restarts.remove_if_over(key)

    async def _end(self, key: Key, timeout_s: float | None, signum: int | None) -> None:
        """Stop the task; one already gone counts as stopped."""
        try:
            await self._containers.stop(*key, timeout_s, signum)
        except NotFound:
            if key in self._supervisor.entries:
                raise

    async def stop(
        self, namespace: str, container_id: str, timeout_s: float | None, signum: int | None = None
    ) -> Exit:
        """Stop it, and for good; see ContainerService.stop. A restart under way is called off."""
        key = namespace, container_id
        was_owed = self._stopped_by_hand(key)
        try:
            return await self._containers.stop(namespace, container_id, timeout_s, signum)
        except NotFound:
            async with self._restarts.alone(key):  # the next one was being made, and is not started
                if key in self._supervisor.entries:
                    return await self._containers.stop(namespace, container_id, timeout_s, signum)
            row = self._store.get(*key)
            if not was_owed or row is None:
                raise
            return Exit(row.exit_status or 0, 0)

    async def kill(
        self, namespace: str, container_id: str, exec_id: str, signum: int, everyone: bool
    ) -> None:
        """Send a signal. One that ends the container, SIGKILL or its stop signal, ends it for good.

        One that waits to be started again is not any more, and a paused one goes on, as docker's.
        """
        await self._kill(namespace, container_id, exec_id, signum, everyone)
        entry = self._supervisor.entries.get((namespace, container_id))
        ends = not exec_id and self._ends(namespace, container_id, signum)
        if ends and signum != signal.SIGKILL and entry is not None:
            await self._tasks.resume_to_end(entry)

    async def _kill(
        self, namespace: str, container_id: str, exec_id: str, signum: int, everyone: bool
    ) -> None:
        was_owed = False
        if not exec_id and self._ends(namespace, container_id, signum):
            was_owed = self._stopped_by_hand((namespace, container_id))
        try:
            await self._tasks.kill(namespace, container_id, exec_id, signum, everyone)
        except (NotFound, FailedPrecondition):
            if not was_owed:
                raise

    async def signal(
        self, namespace: str, container_id: str, exec_id: str, signum: int, everyone: bool
    ) -> None:
        """`kill` for containerd's clients, who say in a label what they have stopped, where a
        container's labels decide, and who resume themselves what they have paused.
        """
        definition = self._store.definition(namespace, container_id)
        kill = self._tasks.kill if definition is None or definition.by_labels else self._kill
        await kill(namespace, container_id, exec_id, signum, everyone)

    async def delete_task(
        self, namespace: str, container_id: str, exec_id: str, force: bool
    ) -> Exit:
        """See TaskService.delete. By force it is a stop too."""
        key = namespace, container_id
        entry = self._supervisor.entries.get(key)
        alive = entry is not None and entry.is_task and entry.exit is None
        if force and not exec_id and (alive or self._debts.is_owed(*key)):
            self._stopped_by_hand(key)
        return await self._tasks.delete(namespace, container_id, exec_id, force)

    def _ends(self, namespace: str, container_id: str, signum: int) -> bool:
        if signum == signal.SIGKILL:
            return True
        definition = self._store.definition(namespace, container_id)
        named = (definition.options.get("stop_signal") if definition else None) or "SIGTERM"
        try:
            return signum == signal_number(str(named))
        except InvalidArgument:
            return False

    def _stopped_by_hand(self, key: Key) -> bool:
        """Remember it, and forget what is owed; returns whether something was."""
        row = self._store.get(*key)
        if row is None and key not in self._supervisor.entries:
            return False  # it never ran: it is no container that was stopped
        row = row or Restart(*key)
        was_owed = row.due_at is not None
        row = replace(row, stopped=True, due_at=None, error="")
        try:
            self._debts.put(row)
        except LighterError as err:  # a full disk keeps nobody from ending a container
            log.error("note the stop of container %s: %s", row.id, err)
            self._debts.keep(row)
        hit("restart.stop-noted")
        return was_owed

    async def delete(
        self, namespace: str, container_id: str, force: bool, *, volumes: bool = False
    ) -> None:
        """Remove the container. Refused while it waits to be started again, unless `force`.

        By force it is done too if one that removes itself was faster, once it is told to end.
        """
        key = namespace, container_id
        definition = self._store.definition(*key)
        goes = force and definition is not None and bool(definition.options.get("auto_remove"))
        noted = force and self._note_removal(key, WITH_VOLUMES if volumes else CONTAINER)
        try:
            if force and self._restarts.is_busy(key):
                # Who holds it may wait for its end, for as long as the container wants.
                await self._tasks.end_by_force(namespace, container_id)
            async with self.at_rest(namespace, container_id, f"delete container {container_id}"):
                with contextlib.suppress(*((NotFound,) if goes else ())):
                    await self._containers.delete(namespace, container_id, force, volumes=volumes)
        except BaseException:  # who asked hears of it, or has gone: no later manager tries on
            row = self._store.get(*key)
            if noted and row is not None:
                with contextlib.suppress(LighterError):
                    self._debts.put(replace(row, removal=""))
            raise

    async def forget(self, namespace: str, container_id: str) -> None:
        """Remove the container but for its snapshot. Refused while it waits to be started again."""
        async with self.at_rest(namespace, container_id, f"delete container {container_id}"):
            await self._containers.forget(namespace, container_id)

    def _note_removal(self, key: Key, removal: str) -> bool:
        """Note that the record is to be removed, if the container would be started again between
        its end and that. Returns whether it was noted.
        """
        definition, row = self._store.definition(*key), self._store.get(*key)
        if definition is None:
            return False
        try:
            starts_again = definition.policy().name != NO
        except InvalidArgument:
            starts_again = False
        if not starts_again and (row is None or row.due_at is None):
            return False
        row = row or Restart(*key)
        self._debts.put(replace(row, stopped=True, due_at=None, error="", removal=removal))
        hit("restart.removal-noted")
        return True

    def recover(self) -> None:
        """Finish the removals that the manager before had begun."""
        for row in self._store.all():
            if row.removal:
                self._supervisor.in_background(self._finish_removal(row.key))

    async def _finish_removal(self, key: Key) -> None:
        """Remove it; tried until it is done, or until somebody starts the container again."""
        what = f"remove container {key[1]}, as was asked before"
        failures = Repeated(log, what)
        for pause_s in retries():
            try:
                async with self.at_rest(*key, what):
                    row = self._store.get(*key)
                    if row is None or not row.removal:
                        return
                    volumes = row.removal == WITH_VOLUMES
                    await self._containers.delete(*key, force=True, volumes=volumes)
                failures.ended()
                return
            except NotFound:
                return  # somebody else was faster
            except Exception as err:
                failures.failed(err)
            await asyncio.sleep(pause_s)

    @contextlib.asynccontextmanager
    async def at_rest(self, namespace: str, container_id: str, attempt: str) -> AsyncIterator[None]:
        """Hold off restarts during the block. Raises FailedPrecondition if one is owed already."""
        key = namespace, container_id
        if self._debts.is_owed(*key):
            raise FailedPrecondition(f"{attempt}: it is being started again; stop it first")
        async with self._restarts.alone(key):
            yield
        if self._store.definition(*key) is None:
            self._debts.disarm(key)
            self._store.drop(key)

    def set_policy(self, namespace: str, container_id: str, policy: RestartPolicy) -> None:
        """What the record says from now on: a start that it does not want is not owed."""
        row = self._store.get(namespace, container_id)
        if row is not None and row.due_at is not None:
            status = row.exit_status if row.exit_status is not None else FAILED
            if not policy.wants(status, row.count - 1, row.stopped):
                self._debts.put(replace(row, due_at=None))
