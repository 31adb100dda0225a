"""Tasks: start, kill, stop, pause, wait, delete and looking, for every front end.

One lock per task orders what changes it; waiting and listing take none. A request that reaches a
shim changes the entry only by the event that the shim sends, so a lost answer loses nothing.
"""

import asyncio
import builtins
import contextlib
import logging
import signal
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any

from lighter.daemon.events.log import EventLog
from lighter.daemon.looks import Looks
from lighter.daemon.metadata.db import Database
from lighter.daemon.tasks import criu
from lighter.daemon.tasks.alive import why_alive
from lighter.daemon.tasks.bundle import Bundle
from lighter.daemon.tasks.entry import Entry, Exec
from lighter.daemon.tasks.execs import ExecService, find_exec
from lighter.daemon.tasks.processes import cgroup_members
from lighter.daemon.tasks.reach import (
    CLOSED_S,
    SIGNAL_S,
    cleaned_or_stuck,
    connected,
    ended_or_stuck,
    kill_shim,
)
from lighter.daemon.tasks.store import TaskStore
from lighter.daemon.tasks.supervisor import Supervisor
from lighter.daemon.tasks.types import Exit, Task
from lighter.proto import events, states
from lighter.proto.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    LighterError,
    NotFound,
    Unavailable,
)
from lighter.proto.faults import hit

log = logging.getLogger("lighter.tasks")

_LOOK_S = 1.0  # from one look at what is being stopped to the next
FORCE_S = 12.0  # for a shim to clean up, a little more than it drains output for


class TaskService:
    """The living side of containers. Every method takes the namespace first."""

    def __init__(
        self,
        *,
        db: Database,
        store: TaskStore,
        log: EventLog,
        supervisor: Supervisor,
        execs: ExecService,
        bundle_of: Callable[[str, str], Bundle],
        network_released: Callable[[Entry], Awaitable[None]],
        network_ready: Callable[[Entry], Awaitable[None]],
    ) -> None:
        self._looks = Looks()
        self._network_ready = network_ready
        self._network_released = network_released
        self._db = db
        self._store = store
        self._events = log
        self._supervisor = supervisor
        self._execs = execs
        self._bundle_of = bundle_of

    # looking

    def find(self, namespace: str, container_id: str) -> Entry:
        """The task's entry. Raises NotFound; a create under way is not a task yet."""
        return self._supervisor.find(namespace, container_id)

    async def get(self, namespace: str, container_id: str) -> Task:
        return self.find(namespace, container_id).view()

    async def list(self, namespace: str) -> "builtins.list[Task]":
        """All tasks of a namespace, from memory: no container can hold this up."""
        return [entry.view() for entry in self.entries(namespace)]

    def entries(self, namespace: str) -> "builtins.list[Entry]":
        """The entries behind `list`."""
        return [
            entry
            for entry in self._supervisor.entries.values()
            if entry.namespace == namespace and entry.is_task
        ]

    def all_entries(self) -> "builtins.list[Entry]":
        """The entries of all namespaces."""
        return [entry for entry in self._supervisor.entries.values() if entry.is_task]

    def look_up(self, namespace: str, container_id: str) -> Entry | None:
        """The entry, or None when there is no such task."""
        return self._supervisor.entries.get((namespace, container_id))

    def exists(self, namespace: str, container_id: str) -> bool:
        return (namespace, container_id) in self._supervisor.entries

    async def start(
        self, namespace: str, container_id: str, asked: Callable[[], None] = lambda: None
    ) -> int:
        """Let init run; returns its pid. `asked` is called before the shim is."""
        entry = self.find(namespace, container_id)
        async with entry.lock:
            states.advance(states.TASK, entry.state, "start", entry.what)
            asked()
            await self._network_ready(entry)
            hit("start.asked")
            await (await connected(entry)).call("start")
            hit("start.done")
            return entry.pid

    # signals and the freezer

    async def kill(
        self, namespace: str, container_id: str, exec_id: str, signum: int, everyone: bool
    ) -> None:
        """Send a signal. Takes no lock: a stuck start must not keep a container alive."""
        entry = self.find(namespace, container_id)
        if exec_id:
            exec_ = find_exec(entry, exec_id)
            states.advance(states.EXEC, exec_.state, "kill", f"exec {exec_id}")
        else:
            states.advance(states.TASK, entry.state, "kill", entry.what)
        peer = await connected(entry, to_end=True)
        body = {"exec_id": exec_id, "signal": signum, "all": everyone}
        await peer.call("kill", body, timeout_s=SIGNAL_S)
        if signum == signal.SIGKILL and not exec_id and entry.killed_at is None:
            entry.killed_at = time.monotonic()

    async def stop(
        self, namespace: str, container_id: str, stop_signal: int, timeout_s: float | None
    ) -> Exit:
        """Ask init to end, and end it after `timeout_s` (None: never); a created one at once."""
        entry = self.find(namespace, container_id)
        if entry.exit is None:
            entry.stops += 1
            try:
                await self._signal_unless_ended(entry, stop_signal)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(timeout_s):
                        await self._wait_going_on(entry)
            finally:
                entry.stops -= 1
        if entry.exit is None and not entry.ended.is_set():
            await self._signal_unless_ended(entry, signal.SIGKILL)
            try:
                async with asyncio.timeout(CLOSED_S):
                    await entry.ended.wait()
            except TimeoutError as err:
                why = entry.stuck or _why_alive(entry)
                raise DeadlineExceeded(
                    f"stop task {container_id}: it did not end {CLOSED_S:g} s after SIGKILL"
                    + (why and f": {why}")
                ) from err
        if entry.exit is None:
            raise NotFound(f"stop task {container_id}: its create was undone")
        return entry.exit

    async def _wait_going_on(self, entry: Entry) -> None:
        """Wait for its end, and let it go on whenever it is paused: by a user before a reader came,
        or late by a runtime that nobody waits for any more.
        """
        while not entry.ended.is_set():
            await self.resume_to_end(entry)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_S):
                    await entry.ended.wait()

    async def resume_to_end(self, entry: Entry) -> None:
        """Let a paused task go on, unless somebody reads it: a signal that was sent to end it waits
        for that.
        """
        if entry.state == states.PAUSED and not entry.readers:
            try:
                await self.resume(entry.namespace, entry.id)
            except LighterError as err:
                if entry.state == states.PAUSED:  # else another has resumed or ended it
                    log.warning("resume %s, so that it ends: %s", entry.what, err.message)

    async def _signal_unless_ended(self, entry: Entry, signum: int) -> None:
        try:
            await self.kill(entry.namespace, entry.id, "", signum, False)
        except (NotFound, FailedPrecondition, Unavailable) as err:
            if entry.exit is None and not entry.ended.is_set():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(1):
                        await entry.ended.wait()
            # A shim that has gone with its task is no failure; one that cannot be reached is.
            if isinstance(err, Unavailable) and entry.exit is None:
                raise

    async def pause(self, namespace: str, container_id: str) -> None:
        """Raises FailedPrecondition while it is being stopped, which it could not hear of then. Who
        reads it may hold it still all the same: it goes on by itself when that is done.
        """
        entry = self.find(namespace, container_id)
        refusal = f"pause {entry.what}: it is being stopped"
        if entry.stops and not entry.readers:
            raise FailedPrecondition(refusal)
        await self._step(namespace, container_id, "pause")
        if entry.stops and not entry.readers:  # by one that came meanwhile, and found it running
            await self.resume_to_end(entry)
            raise FailedPrecondition(refusal)

    async def resume(self, namespace: str, container_id: str) -> None:
        """Raises Unavailable while it is held still for who reads its files or its memory."""
        entry = self.find(namespace, container_id)
        if entry.readers:
            raise Unavailable(f"resume {entry.what}: it is held still until a copy of it is made")
        await self._step(namespace, container_id, "resume")

    async def update(self, namespace: str, container_id: str, resources: Mapping[str, Any]) -> None:
        """Give the container other limits. `resources` are OCI's, `linux.resources` of a spec."""
        entry = self.find(namespace, container_id)
        async with entry.lock:
            states.advance(states.TASK, entry.state, "update", entry.what)
            peer = await connected(entry)
            with self._bundle_of(namespace, container_id).resources(resources) as path:
                await peer.call("update", {"resources": path})

    async def checkpoint(
        self, namespace: str, container_id: str, directory: str, flags: Sequence[str] = ()
    ) -> None:
        """Write the task's processes and memory to a directory; it goes on after that.

        `flags`: what CRIU takes along besides, as the runtime spells it.

        Raises FailedPrecondition with the reason where CRIU cannot do it.
        """
        await self._looks.at(f"write checkpoint to {directory}", partial(criu.check_new, directory))
        entry = self.find(namespace, container_id)
        async with entry.lock:
            states.advance(states.TASK, entry.state, "checkpoint", entry.what)
            peer = await connected(entry)
            body = {"image": directory, "leave_running": True, "flags": list(flags)}
            try:
                await peer.call("checkpoint", body)
            except FailedPrecondition as err:
                log_path = f"{self._bundle_of(namespace, container_id).dir}/dump.log"
                why = await asyncio.to_thread(criu.why_not, log_path)
                why = why or err.details.get("said") or err.message
                raise FailedPrecondition(f"checkpoint {entry.what}: {why}") from err
        told = {"container_id": container_id, "checkpoint": directory}
        self._events.publish(namespace, events.CHECKPOINTED, told)

    async def _step(self, namespace: str, container_id: str, step: str) -> None:
        entry = self.find(namespace, container_id)
        async with entry.lock:
            states.advance(states.TASK, entry.state, step, entry.what)
            await (await connected(entry)).call(step)

    # ends

    async def wait(
        self,
        namespace: str,
        container_id: str,
        exec_id: str,
        reissued: bool = False,
        until_removed: bool = False,
    ) -> Exit:
        """How the process ends, whenever that is; at once if it has.

        `until_removed`: of a container that removes itself, wait for that too, so that its id is
        free when this returns.

        `reissued`: the caller waited already when the last manager went away. Its task may have
        ended and be removed since, so the event log is asked too.
        """
        try:
            entry = self.find(namespace, container_id)
            waited: Entry | Exec = find_exec(entry, exec_id) if exec_id else entry
        except NotFound:
            ended = self._last_exit(namespace, container_id, exec_id) if reissued else None
            if ended is None:
                raise
            return ended
        await waited.ended.wait()
        if until_removed and not exec_id and entry.options.get("auto_remove"):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CLOSED_S):
                    await entry.removed.wait()
        if waited.exit is None:
            what = f"exec {exec_id} of {container_id}" if exec_id else f"task {container_id}"
            raise Unavailable(f"wait for {what}: it was never started")
        return waited.exit

    def _last_exit(self, namespace: str, container_id: str, exec_id: str) -> Exit | None:
        exit_ = self._events.find_last(
            namespace, events.EXIT, {"container_id": container_id, "exec_id": exec_id}
        )
        if exit_ is None:
            return None
        for topic in (events.CONTAINER_CREATE, events.CONTAINER_RENAME):
            # By number, which no clock that is set changes.
            if self._events.find_last(namespace, topic, {"id": container_id}, since=exit_.sequence):
                return None  # another container had this name before
        body = exit_.body
        return Exit(int(body["exit_status"]), int(body["exited_at"]), str(body["cause"]))

    async def delete(
        self, namespace: str, container_id: str, exec_id: str = "", force: bool = False
    ) -> Exit:
        """Forget an ended task (`force`: end it first) or exec; returns how it ended.

        Raises FailedPrecondition while it runs, DeadlineExceeded when the shim cannot clean up.
        """
        entry = self.find(namespace, container_id)
        if exec_id:
            await self._execs.hear(entry, exec_id)
            return self._execs.delete(entry, exec_id)
        if force and entry.exit is None:
            await self._end_by_force(entry)
        async with entry.lock:
            if self._supervisor.entries.get((namespace, container_id)) is not entry:
                raise NotFound(f"delete task {container_id}: it is deleted already")
            if entry.state == states.CREATED:
                await self._end_created(entry)
            else:
                states.advance(states.TASK, entry.state, "delete", entry.what)
            await self._wait_closed(entry, force)
            # So that who starts it again at once can have its address and ports again.
            await self._network_released(entry)
            assert entry.exit is not None
            hit("delete.closed")
            self._supervisor.forget(entry)
            hit("delete.row-gone")
            return entry.exit

    async def end_by_force(self, namespace: str, container_id: str) -> None:
        """End its processes, if there are any; who waits for its end does the rest.

        Raises FailedPrecondition, DeadlineExceeded with the reason when it does not end.
        """
        entry = self.look_up(namespace, container_id)
        if entry is not None and entry.is_task and entry.exit is None:
            await self._end_by_force(entry)

    async def _end_by_force(self, entry: Entry) -> None:
        """SIGKILL to init; when its shim does not do it any more, to that.

        Raises DeadlineExceeded with the reason when even that does not end the container.
        """
        with contextlib.suppress(DeadlineExceeded, Unavailable):
            await self._signal_unless_ended(entry, signal.SIGKILL)
            if await ended_or_stuck(entry, FORCE_S):
                return
            if why := _why_alive(entry):
                # Its shim could do no more, and will tell of its end when that comes.
                raise FailedPrecondition(f"delete {entry.what}: {why}")
        kill_shim(entry)
        # Its end is noticed, and settled as a lost one's.
        if not await ended_or_stuck(entry, CLOSED_S):
            why = entry.stuck or "it did not end"
            raise DeadlineExceeded(f"delete {entry.what}: {why}")

    async def end_creation(self, namespace: str, container_id: str, force: bool) -> None:
        """Before its container is deleted: there is no task that is only being created.

        `force` ends a create of a dead manager, which nobody waits for and a stopped shim never
        ends. Raises FailedPrecondition for any other.
        """
        entry = self._supervisor.entries.get((namespace, container_id))
        if entry is None or entry.is_task:
            return
        if not (force and entry.orphan):
            raise FailedPrecondition(f"delete {entry.what}: it is being created")
        kill_shim(entry)
        if not await cleaned_or_stuck(entry, CLOSED_S):
            why = entry.stuck or f"it is not undone after {CLOSED_S:g} s"
            raise DeadlineExceeded(f"delete {entry.what}: {why}")

    async def _end_created(self, entry: Entry) -> None:
        """End a task that was never started. A shim that dies over it is settled all the same."""
        try:
            await (await connected(entry)).call("end", timeout_s=SIGNAL_S)
        except (Unavailable, FailedPrecondition):
            if entry.pidfd >= 0:
                raise

    async def _release_output(self, entry: Entry) -> None:
        """Tell the shim to wait for no reader: a client that deletes a task has read its FIFOs."""
        if entry.options.get("stdio") and not entry.cleaned.is_set() and entry.peer is not None:
            with contextlib.suppress(LighterError):  # a shim of the first release cannot
                await entry.peer.call("release_output", timeout_s=SIGNAL_S)

    async def _wait_closed(self, entry: Entry, force: bool) -> None:
        await self._release_output(entry)
        if await cleaned_or_stuck(entry, FORCE_S if force else CLOSED_S):
            return
        if not force and not entry.stuck:
            raise DeadlineExceeded(
                f"delete {entry.what}: its shim has not cleaned up in {CLOSED_S:g} s; "
                "--force ends the shim"
            )
        kill_shim(entry)
        if not await cleaned_or_stuck(entry, CLOSED_S):
            why = entry.stuck or f"it is not cleaned up after {CLOSED_S:g} s"
            raise DeadlineExceeded(f"delete {entry.what}: {why}")


def _why_alive(entry: Entry) -> str:
    """Why SIGKILL has not ended the container: what init waits for may be another of its own."""
    return why_alive(entry.pid) or why_alive(*cgroup_members(entry))
