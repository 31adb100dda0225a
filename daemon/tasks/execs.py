"""Further processes in a running container, and who listens to a process."""

import asyncio
import secrets
import time
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from typing import Any

from lighter.daemon.events.log import EventLog
from lighter.daemon.metadata.db import Database
from lighter.daemon.tasks.bundle import Bundle
from lighter.daemon.tasks.cgrouplock import CgroupLock
from lighter.daemon.tasks.entry import PROBE_PREFIX, Entry, Exec, is_probe
from lighter.daemon.tasks.reach import SIGNAL_S, connected, has_told
from lighter.daemon.tasks.store import TaskStore
from lighter.daemon.tasks.supervisor import Supervisor
from lighter.daemon.tasks.types import Exit
from lighter.proto import events, states
from lighter.proto.errors import (
    AlreadyExists,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unavailable,
)
from lighter.proto.faults import hit
from lighter.proto.names import check_name

ENDED_KEPT = 256  # of each task


class ExecService:
    """Execs and attached streams of tasks. Every method takes the namespace first."""

    def __init__(
        self,
        *,
        db: Database,
        store: TaskStore,
        log: EventLog,
        supervisor: Supervisor,
        bundle_of: Callable[[str, str], Bundle],
        cgroup_lock: CgroupLock,
    ) -> None:
        self._db = db
        self._store = store
        self._events = log
        self._supervisor = supervisor
        self._bundle_of = bundle_of
        self._cgroup_lock = cgroup_lock

    async def exec(
        self,
        namespace: str,
        container_id: str,
        exec_id: str | None,
        process: Mapping[str, Any],
        stdio: Mapping[str, Any],
        *,
        for_health: bool = False,
    ) -> tuple[str, int]:
        """Run one more process in the container: (exec id, pid). `process` is OCI's."""
        entry = self._supervisor.find(namespace, container_id)
        states.advance(states.TASK, entry.state, "exec", f"in {entry.what}")
        await connected(entry)
        if exec_id is None:
            exec_id = secrets.token_hex(8)
        elif not for_health:
            _check_id(exec_id)
        terminal = bool(process.get("terminal"))
        exec_ = Exec(exec_id, states.CREATING, terminal, time.time_ns())

        async def run() -> int:
            try:
                self._forget_oldest(entry)
                self._record(entry, exec_)
                return await self._ask(entry, exec_id, terminal, process, stdio)
            except Exception:
                # One that was started is there, whatever became of the answer. A manager's end is
                # no answer: the next one asks the shim.
                if exec_.state == states.CREATING and entry.execs.get(exec_id) is exec_:
                    self._forget_exec(entry, exec_id)
                raise

        return exec_id, await _to_its_end(run())

    async def add(
        self,
        namespace: str,
        container_id: str,
        exec_id: str,
        process: Mapping[str, Any],
        terminal: bool,
        stdio: Mapping[str, Any],
    ) -> None:
        """Record a process that `start` will run. It is there for a later manager too."""
        entry = self._supervisor.find(namespace, container_id)
        states.advance(states.TASK, entry.state, "exec", f"in {entry.what}")
        _check_id(exec_id)
        exec_ = Exec(exec_id, states.ADDED, terminal, time.time_ns())
        if exec_id not in entry.execs:
            request = {"process": dict(process), "stdio": dict(stdio)}
            self._bundle_of(namespace, container_id).write_added(exec_id, request)
        try:
            self._record(entry, exec_)
        except BaseException:
            if entry.execs.get(exec_id) is exec_:
                self._forget_exec(entry, exec_id)  # who asked has heard of a failure
            raise

    async def start(self, namespace: str, container_id: str, exec_id: str) -> int:
        """Run a process that was added; returns its pid. One that fails stays added, and who has
        waited for its end hears that it did not run."""
        entry = self._supervisor.find(namespace, container_id)
        _startable(entry, exec_id)
        # A manager that died may have asked for it: the shim tells that before it is asked again.
        await connected(entry)
        exec_ = _startable(entry, exec_id)
        request = self._bundle_of(namespace, container_id).added(exec_id)
        if request is None:
            raise FailedPrecondition(
                f"start exec {exec_id} of {container_id}: how to start it is no longer known"
            )
        exec_.starting = True
        exec_.ended.clear()  # of a start that has failed

        async def ask() -> int:
            try:
                return await self._ask(
                    entry, exec_id, exec_.terminal, request["process"], request["stdio"]
                )
            except Exception as err:
                # Without the shim's word the runtime may be at it still.
                silent = isinstance(err, DeadlineExceeded | Unavailable) and not err.answered
                if exec_.state == states.ADDED and not silent:
                    exec_.ended.set()
                raise
            finally:
                exec_.starting = False

        return await _to_its_end(ask())

    def stdio(self, namespace: str, container_id: str, exec_id: str) -> Mapping[str, Any]:
        """The paths that a process was added with; {} for one that was run at once."""
        request = self._bundle_of(namespace, container_id).added(exec_id)
        return request["stdio"] if request else {}

    def _record(self, entry: Entry, exec_: Exec) -> None:
        """Raises AlreadyExists, and FailedPrecondition when the task has ended meanwhile."""
        states.advance(states.TASK, entry.state, "exec", f"in {entry.what}")
        exec_id = exec_.exec_id
        if exec_id in entry.execs:
            # An ended one counts too: a call that is repeated must not run the program again.
            raise AlreadyExists(f"exec {exec_id} in {entry.id}: the id is in use until deleted")
        entry.execs[exec_id] = exec_
        body = {"container_id": entry.id, "exec_id": exec_id}
        seen = []
        try:
            with self._db.fast_transaction() as tx:
                self._store.save_exec(tx, entry, exec_)
                if not is_probe(exec_id):
                    seen.append(self._events.append(tx, entry.namespace, events.EXEC_ADDED, body))
        except BaseException:
            del entry.execs[exec_id]
            raise
        self._events.announce(*seen)
        hit("exec.row-committed")

    async def _ask(
        self,
        entry: Entry,
        exec_id: str,
        terminal: bool,
        process: Mapping[str, Any],
        stdio: Mapping[str, Any],
    ) -> int:
        """Have the shim run it; returns its pid."""
        self._cgroup_lock.take_soon()
        peer = await connected(entry)
        bundle = self._bundle_of(entry.namespace, entry.id)
        console = bundle.console() if terminal else ""

        def tidy() -> None:
            bundle.remove_process(exec_id)
            bundle.remove_console(console)

        try:
            path = bundle.write_process(exec_id, process)
            hit("exec.asked")
            request = {
                "exec_id": exec_id,
                "process": path,
                "terminal": terminal,
                "console": console,
                **stdio,
            }
            with bundle.room_for_runtime():
                async with entry.exec_turns:
                    answer = await peer.call("exec", request)
            hit("exec.done")
        except Exception:  # not a manager's end: the runtime is at it still, and may not have read
            tidy()
            raise
        tidy()
        pid = int(answer["pid"])
        # It runs for whoever asks, also while its start cannot be recorded: on a full disk.
        exec_ = entry.execs.get(exec_id)
        if exec_ is not None and exec_.state in (states.CREATING, states.ADDED):
            exec_.pid, exec_.state = pid, states.RUNNING
        return pid

    def _forget_oldest(self, entry: Entry) -> None:
        """Of the ended ones that were run at once the newest stay, for who still asks for them.

        One that was added is its client's to delete.
        """
        ended = [one for one in entry.execs.values() if one.exit is not None]
        if len(ended) < ENDED_KEPT:
            return
        bundle = self._bundle_of(entry.namespace, entry.id)
        own = [one for one in ended if not bundle.is_added(one.exec_id)]
        own.sort(key=lambda one: one.exit.exited_at if one.exit else 0)
        for one in own[: len(own) - ENDED_KEPT + 1]:
            self._forget_exec(entry, one.exec_id)

    def _forget_exec(self, entry: Entry, exec_id: str) -> None:
        gone = entry.execs.pop(exec_id, None)
        if gone is not None:
            gone.ended.set()
        self._bundle_of(entry.namespace, entry.id).remove_added(exec_id)
        with self._db.fast_transaction() as tx:
            self._store.delete_exec(tx, entry, exec_id)

    async def attach(
        self,
        namespace: str,
        container_id: str,
        exec_id: str,
        stdio: Mapping[str, Any],
        may_drop: bool = False,
    ) -> bool:
        """Let the caller's pipes take part; returns whether the process has a terminal.

        With `may_drop` a caller who reads slowly loses output, and the container does not wait.
        """
        entry = self._supervisor.find(namespace, container_id)
        if not exec_id:
            states.advance(states.TASK, entry.state, "attach", entry.what)
        body = {"exec_id": exec_id, **stdio, "may_drop": may_drop}
        answer = await (await connected(entry)).call("attach", body, timeout_s=SIGNAL_S)
        return bool(answer["terminal"])

    async def resize(
        self, namespace: str, container_id: str, exec_id: str, rows: int, cols: int
    ) -> None:
        """Tell a terminal its size; one of a process that was only added begins with it."""
        entry = self._supervisor.find(namespace, container_id)
        exec_ = entry.execs.get(exec_id)
        if exec_ is not None and exec_.state == states.ADDED and not exec_.starting:
            bundle = self._bundle_of(namespace, container_id)
            if request := bundle.added(exec_id):
                request["stdio"].update(rows=rows, cols=cols)
                # The runtime's part of it: the program may ask before the shim has the terminal.
                request["process"]["consoleSize"] = {"height": rows, "width": cols}
                bundle.write_added(exec_id, request)
            return
        peer = await connected(entry)
        body = {"exec_id": exec_id, "rows": rows, "cols": cols}
        await peer.call("resize", body, timeout_s=SIGNAL_S)

    async def close_stdin(self, namespace: str, container_id: str, exec_id: str) -> None:
        peer = await connected(self._supervisor.find(namespace, container_id))
        await peer.call("close_stdin", {"exec_id": exec_id}, timeout_s=SIGNAL_S)

    async def hear(self, entry: Entry, exec_id: str) -> None:
        """Before a `delete`: one that was only added may have been started for a manager that died.

        Raises NotFound, and Unavailable while its shim cannot tell.
        """
        added = find_exec(entry, exec_id).state == states.ADDED
        if added and not (entry.peer is not None and has_told(entry, entry.peer)):
            with suppress(FailedPrecondition):  # the task has ended: it has told all
                await connected(entry)

    def delete(self, entry: Entry, exec_id: str) -> Exit:
        """Forget an ended exec, or one that was only added (its Exit is all 0).

        Raises NotFound, FailedPrecondition.
        """
        exec_ = find_exec(entry, exec_id)
        states.advance(states.EXEC, exec_.state, "delete", f"exec {exec_id} of {entry.id}")
        if exec_.starting:
            raise FailedPrecondition(f"delete exec {exec_id} of {entry.id}: it is being started")
        self._forget_exec(entry, exec_id)
        return exec_.exit or Exit(0, 0)


def _startable(entry: Entry, exec_id: str) -> Exec:
    """Raises NotFound, FailedPrecondition, and AlreadyExists while it is being started."""
    exec_ = find_exec(entry, exec_id)
    what = f"exec {exec_id} of {entry.id}"
    states.advance(states.EXEC, exec_.state, "start", what)
    if exec_.starting:
        raise AlreadyExists(f"start {what}: a start is under way")
    states.advance(states.TASK, entry.state, "exec", f"in {entry.what}")
    return exec_


async def _to_its_end(asking: Coroutine[Any, Any, int]) -> int:
    """The pid that a runtime is asked for.

    A caller who goes leaves the runtime at it: the process may be there in the end, so it is not
    forgotten, nor its id given to another, before that is known.
    """
    asked = asyncio.ensure_future(asking)
    asked.add_done_callback(lambda done: done.cancelled() or done.exception())
    return await asyncio.shield(asked)


def _check_id(exec_id: str) -> None:
    """Whether a client may choose it: one of a probe's would run unseen. Raises InvalidArgument."""
    check_name(exec_id, "exec")
    if is_probe(exec_id):
        raise InvalidArgument(
            f"check exec name {exec_id}: those that begin with {PROBE_PREFIX} are of health checks"
        )


def find_exec(entry: Entry, exec_id: str) -> Exec:
    """The exec of this id. Raises NotFound; one that is only asked for is none yet."""
    exec_ = entry.execs.get(exec_id)
    if exec_ is None or exec_.state == states.CREATING:
        raise NotFound(f"find exec {exec_id} of task {entry.id}: no such process")
    return exec_
