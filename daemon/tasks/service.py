"""Tasks: create, start, exec, kill, pause, wait, delete, for every front end.

One lock per task orders what changes it; waiting and listing take none. A request that reaches a
shim changes the entry only by the event that the shim sends, so a lost answer loses nothing.
"""

import asyncio
import contextlib
import secrets
import signal
import time
from collections.abc import Callable, Mapping
from typing import Any

from lighter.daemon.events import EventLog
from lighter.daemon.metadata.db import Database
from lighter.daemon.spawn import Spawner
from lighter.daemon.tasks.bundle import Bundle, create_order
from lighter.daemon.tasks.entry import Entry, Exec
from lighter.daemon.tasks.shims import Peer, ShimRouter
from lighter.daemon.tasks.store import TaskStore
from lighter.daemon.tasks.supervisor import Supervisor
from lighter.daemon.types import Container, Exit, Mount, Task
from lighter.proto import events, states
from lighter.proto.errors import (
    AlreadyExists,
    DeadlineExceeded,
    FailedPrecondition,
    LighterError,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from lighter.proto.faults import hit
from lighter.proto.names import check_name
from lighter.proto.paths import Root, State

CREATE_S = 140.0
START_S = 70.0
SIGNAL_S = 10.0  # kill, attach, resize: nothing in the shim takes long
AT_ONCE = 8  # creates under way; more only make each other slow
CLOSED_S = 30.0
STOP_S = 10.0
HELLO_S = 5.0


class TaskService:
    """The living side of containers. Every method takes the namespace first."""

    def __init__(
        self,
        *,
        root: Root,
        state: State,
        db: Database,
        store: TaskStore,
        log: EventLog,
        supervisor: Supervisor,
        router: ShimRouter,
        spawner: Spawner,
        generation: int,
        boot_id: str,
        find_runtime: Callable[[str], str],
        has_room: Callable[[], bool],
    ) -> None:
        self._root = root
        self._state = state
        self._db = db
        self._store = store
        self._events = log
        self._supervisor = supervisor
        self._router = router
        self._spawner = spawner
        self._generation = generation
        self._boot_id = boot_id
        self._find_runtime = find_runtime
        self._has_room = has_room
        self._at_once = asyncio.Semaphore(AT_ONCE)

    def bundle(self, namespace: str, container_id: str) -> Bundle:
        return Bundle(self._state, self._root, namespace, container_id)

    # looking

    def find(self, namespace: str, container_id: str) -> Entry:
        """The task's entry. Raises NotFound; a create under way is not a task yet."""
        entry = self._supervisor.entries.get((namespace, container_id))
        if entry is None or entry.state == states.CREATING:
            raise NotFound(f"find task {container_id}: no such task in namespace {namespace}")
        return entry

    async def get(self, namespace: str, container_id: str) -> Task:
        return self.find(namespace, container_id).view()

    async def list(self, namespace: str) -> list[Task]:
        """All tasks of a namespace, from memory: no container can hold this up."""
        return [
            entry.view()
            for entry in self._supervisor.entries.values()
            if entry.namespace == namespace and entry.state != states.CREATING
        ]

    def exists(self, namespace: str, container_id: str) -> bool:
        return (namespace, container_id) in self._supervisor.entries

    # create and start

    async def create(
        self,
        container: Container,
        mounts: tuple[Mount, ...],
        terminal: bool,
        stdio: Mapping[str, Any],
    ) -> int:
        """Fork a shim that makes the container; returns init's pid. It runs nothing yet.

        Raises AlreadyExists, ResourceExhausted when descriptors run out, NotFound for the runtime,
        or what the shim reports (FailedPrecondition with the runtime's last words).
        """
        namespace, id_ = container.namespace, container.id
        if self.exists(namespace, id_):
            raise AlreadyExists(f"create task {id_}: it exists already")
        if not self._has_room():
            raise ResourceExhausted(
                f"create task {id_}: the manager has used 80 % of its file descriptors "
                "(RLIMIT_NOFILE)"
            )
        runtime = self._find_runtime(container.runtime)
        entry = Entry(
            namespace=namespace,
            id=id_,
            incarnation=secrets.token_hex(8),
            state=states.CREATING,
            image=container.image,
            boot_id=self._boot_id,
            created_at=time.time_ns(),
            terminal=terminal,
            options={
                "image": container.image,
                "runtime": runtime,
                "auto_remove": bool(container.options.get("auto_remove")),
            },
        )
        with self._db.fast_transaction() as tx:
            self._store.save(tx, entry)
        self._supervisor.add(entry)
        hit("create.row-committed")
        async with entry.lock, self._at_once:
            try:
                return await self._create(entry, container, mounts, stdio)
            except BaseException:
                # Shielded: a caller that gives up does not leave half a task behind.
                await asyncio.shield(self._undo_create(entry))
                raise

    async def _create(
        self,
        entry: Entry,
        container: Container,
        mounts: tuple[Mount, ...],
        stdio: Mapping[str, Any],
    ) -> int:
        bundle = self.bundle(entry.namespace, entry.id)
        log = self._log_settings(container)
        bundle.write(container.spec, entry.incarnation, log["dir"] if log else "")
        hit("create.bundle-made")
        ident = self._router.next_ident()
        order = create_order(
            bundle,
            self._state,
            container,
            mounts,
            instance=self._root.instance,
            incarnation=entry.incarnation,
            generation=self._generation,
            ident=ident,
            terminal=entry.terminal,
            runtime=str(entry.options["runtime"]),
            log=log,
            stdio=stdio,
        )
        answer = self._router.expect_created(ident)
        try:
            child = await self._spawner.fork_shim(order)
            hit("create.shim-forked")
            self._supervisor.watch_shim(entry, child.pid, child.start, child.pidfd)
            async with asyncio.timeout(CREATE_S):
                created = await self._answer_or_end(entry, answer)
        except TimeoutError as err:
            raise DeadlineExceeded(
                f"create task {entry.id}: its shim did not answer in {CREATE_S:g} s"
            ) from err
        finally:
            answer.cancel()
        hit("create.done")
        return int(created["pid"])

    async def _answer_or_end(self, entry: Entry, answer: "asyncio.Future[Any]") -> Any:
        """The shim's answer, or Unavailable when its process ends without one."""
        cleaned = asyncio.ensure_future(entry.cleaned.wait())
        try:
            await asyncio.wait((answer, cleaned), return_when=asyncio.FIRST_COMPLETED)
            if answer.done():
                return answer.result()
            raise Unavailable(f"create task {entry.id}: its shim died")
        finally:
            cleaned.cancel()

    async def _undo_create(self, entry: Entry) -> None:
        """After a failed create: no shim, no bundle, no row."""
        bundle = self.bundle(entry.namespace, entry.id)
        withdrawn = bundle.withdraw(entry.incarnation)
        if not withdrawn and not entry.cleaned.is_set():
            peer = entry.peer
            if peer is not None and entry.pid:
                with contextlib.suppress(LighterError):
                    await peer.call("end", timeout_s=HELLO_S)
            try:
                async with asyncio.timeout(CLOSED_S):
                    await entry.cleaned.wait()
            except TimeoutError:
                self._kill_shim(entry)
                await entry.cleaned.wait()
        with self._db.fast_transaction() as tx:
            self._store.delete(tx, entry)
        self._supervisor.remove(entry)
        bundle.remove()
        bundle.remove_exit_record()

    def _kill_shim(self, entry: Entry) -> None:
        """The last resort for a shim that does not clean up; its end is settled as a lost one's."""
        if entry.pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(entry.pidfd, signal.SIGKILL)

    def _log_settings(self, container: Container) -> dict[str, Any] | None:
        log = container.options.get("log") or {}
        if log.get("driver", "none") == "none":
            return None
        return {
            "dir": self._root.logs(container.namespace, container.id),
            "max_bytes": int(log["max_size"]),
            "max_files": int(log["max_file"]),
        }

    async def start(self, namespace: str, container_id: str) -> int:
        """Let init run; returns its pid."""
        entry = self.find(namespace, container_id)
        async with entry.lock:
            states.advance(states.TASK, entry.state, "start", entry.what)
            hit("start.asked")
            await (await self._peer(entry)).call("start", timeout_s=START_S)
            hit("start.done")
            return entry.pid

    # signals and the freezer

    async def kill(
        self, namespace: str, container_id: str, exec_id: str, signum: int, everyone: bool
    ) -> None:
        """Send a signal. Takes no lock: a stuck start must not keep a container alive."""
        entry = self.find(namespace, container_id)
        if exec_id:
            exec_ = self._exec(entry, exec_id)
            states.advance(states.EXEC, exec_.state, "kill", f"exec {exec_id}")
        else:
            states.advance(states.TASK, entry.state, "kill", entry.what)
        peer = await self._peer(entry)
        body = {"exec_id": exec_id, "signal": signum, "all": everyone}
        await peer.call("kill", body, timeout_s=SIGNAL_S)

    async def stop(
        self, namespace: str, container_id: str, stop_signal: int, timeout_s: float
    ) -> Exit:
        """Ask init to end; after `timeout_s` end it. A created task is ended at once."""
        entry = self.find(namespace, container_id)
        if entry.exit is None:
            await self._signal_unless_ended(entry, stop_signal)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await entry.ended.wait()
        if entry.exit is None:
            await self._signal_unless_ended(entry, signal.SIGKILL)
            try:
                async with asyncio.timeout(CLOSED_S):
                    await entry.ended.wait()
            except TimeoutError as err:
                raise DeadlineExceeded(
                    f"stop task {container_id}: it did not end {CLOSED_S:g} s after SIGKILL"
                ) from err
        assert entry.exit is not None
        return entry.exit

    async def _signal_unless_ended(self, entry: Entry, signum: int) -> None:
        try:
            await self.kill(entry.namespace, entry.id, "", signum, False)
        except (NotFound, FailedPrecondition):
            if entry.exit is None and not entry.ended.is_set():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(1):
                        await entry.ended.wait()

    async def pause(self, namespace: str, container_id: str) -> None:
        await self._step(namespace, container_id, "pause")

    async def resume(self, namespace: str, container_id: str) -> None:
        await self._step(namespace, container_id, "resume")

    async def _step(self, namespace: str, container_id: str, step: str) -> None:
        entry = self.find(namespace, container_id)
        async with entry.lock:
            states.advance(states.TASK, entry.state, step, entry.what)
            await (await self._peer(entry)).call(step)

    # exec and streams

    async def exec(
        self,
        namespace: str,
        container_id: str,
        exec_id: str | None,
        process: Mapping[str, Any],
        stdio: Mapping[str, Any],
    ) -> tuple[str, int]:
        """Run one more process in the container: (exec id, pid). `process` is OCI's."""
        entry = self.find(namespace, container_id)
        states.advance(states.TASK, entry.state, "exec", f"in {entry.what}")
        exec_id = check_name(exec_id, "exec") if exec_id is not None else secrets.token_hex(8)
        known = entry.execs.get(exec_id)
        if known is not None and known.exit is None:
            raise AlreadyExists(f"exec {exec_id} in {container_id}: the id is in use")
        terminal = bool(process.get("terminal"))
        exec_ = Exec(exec_id, states.CREATING, terminal, time.time_ns())
        entry.execs[exec_id] = exec_
        bundle = self.bundle(namespace, container_id)
        try:
            with self._db.fast_transaction() as tx:
                self._store.save_exec(tx, entry, exec_)
                added = self._events.append(
                    tx,
                    namespace,
                    events.EXEC_ADDED,
                    {"container_id": container_id, "exec_id": exec_id},
                )
            self._events.announce(added)
            hit("exec.row-committed")
            path = bundle.write_process(exec_id, process)
            peer = await self._peer(entry)
            hit("exec.asked")
            answer = await peer.call(
                "exec",
                {
                    "exec_id": exec_id,
                    "process": path,
                    "terminal": terminal,
                    "console": bundle.console() if terminal else "",
                    **stdio,
                },
            )
            hit("exec.done")
        except BaseException:
            self._forget_exec(entry, exec_id)
            raise
        finally:
            bundle.remove_process(exec_id)
        return exec_id, int(answer["pid"])

    def _forget_exec(self, entry: Entry, exec_id: str) -> None:
        entry.execs.pop(exec_id, None)
        with self._db.fast_transaction() as tx:
            self._store.delete_exec(tx, entry, exec_id)

    async def attach(
        self, namespace: str, container_id: str, exec_id: str, stdio: Mapping[str, Any]
    ) -> bool:
        """Let the caller's pipes take part; returns whether the process has a terminal."""
        entry = self.find(namespace, container_id)
        if not exec_id:
            states.advance(states.TASK, entry.state, "attach", entry.what)
        body = {"exec_id": exec_id, **stdio}
        answer = await (await self._peer(entry)).call("attach", body, timeout_s=SIGNAL_S)
        return bool(answer["terminal"])

    async def resize(
        self, namespace: str, container_id: str, exec_id: str, rows: int, cols: int
    ) -> None:
        peer = await self._peer(self.find(namespace, container_id))
        body = {"exec_id": exec_id, "rows": rows, "cols": cols}
        await peer.call("resize", body, timeout_s=SIGNAL_S)

    async def close_stdin(self, namespace: str, container_id: str, exec_id: str) -> None:
        peer = await self._peer(self.find(namespace, container_id))
        await peer.call("close_stdin", {"exec_id": exec_id}, timeout_s=SIGNAL_S)

    # ends

    async def wait(
        self, namespace: str, container_id: str, exec_id: str, reissued: bool = False
    ) -> Exit:
        """How the process ends, whenever that is; at once if it has.

        `reissued`: the caller waited already when the last manager went away. Its task may have
        ended and be removed since, so the event log is asked too.
        """
        try:
            entry = self.find(namespace, container_id)
            waited: Entry | Exec = self._exec(entry, exec_id) if exec_id else entry
        except NotFound:
            ended = self._last_exit(namespace, container_id, exec_id) if reissued else None
            if ended is None:
                raise
            return ended
        await waited.ended.wait()
        if waited.exit is None:
            raise Unavailable(f"wait for task {container_id}: it was never started")
        return waited.exit

    def _last_exit(self, namespace: str, container_id: str, exec_id: str) -> Exit | None:
        body = self._events.find_last(
            namespace, events.EXIT, {"container_id": container_id, "exec_id": exec_id}
        )
        if body is None:
            return None
        return Exit(int(body["exit_status"]), int(body["exited_at"]), str(body["cause"]))

    async def delete(
        self, namespace: str, container_id: str, exec_id: str = "", force: bool = False
    ) -> Exit:
        """Forget an ended task (`force`: end it first) or exec; returns how it ended.

        Raises FailedPrecondition while it runs, DeadlineExceeded when the shim cannot clean up.
        """
        entry = self.find(namespace, container_id)
        if exec_id:
            return self._delete_exec(entry, exec_id)
        if force and entry.exit is None:
            try:
                await self.stop(namespace, container_id, signal.SIGKILL, STOP_S)
            except (DeadlineExceeded, Unavailable):
                # The shim does not do it any more. Its end is noticed, and settled as a lost one's.
                self._kill_shim(entry)
                async with asyncio.timeout(CLOSED_S):
                    await entry.ended.wait()
        async with entry.lock:
            if self._supervisor.entries.get((namespace, container_id)) is not entry:
                raise NotFound(f"delete task {container_id}: it is deleted already")
            if entry.state == states.CREATED:
                await (await self._peer(entry)).call("end", timeout_s=SIGNAL_S)
            else:
                states.advance(states.TASK, entry.state, "delete", entry.what)
            await self._wait_closed(entry, force)
            assert entry.exit is not None
            hit("delete.closed")
            bundle = self.bundle(namespace, container_id)
            bundle.remove()
            hit("delete.bundle-gone")
            self._delete_rows(entry, entry.exit)
            hit("delete.row-gone")
            return entry.exit

    def _delete_exec(self, entry: Entry, exec_id: str) -> Exit:
        exec_ = self._exec(entry, exec_id)
        states.advance(states.EXEC, exec_.state, "delete", f"exec {exec_id} of {entry.id}")
        assert exec_.exit is not None
        self._forget_exec(entry, exec_id)
        return exec_.exit

    async def _wait_closed(self, entry: Entry, force: bool) -> None:
        try:
            async with asyncio.timeout(CLOSED_S):
                await entry.cleaned.wait()
        except TimeoutError as err:
            if not force:
                raise DeadlineExceeded(
                    f"delete {entry.what}: its shim has not cleaned up in {CLOSED_S:g} s; "
                    "--force ends the shim"
                ) from err
            self._kill_shim(entry)
            await entry.cleaned.wait()

    def _delete_rows(self, entry: Entry, exit_: Exit) -> None:
        body = {
            "container_id": entry.id,
            "pid": entry.pid,
            "exit_status": exit_.exit_status,
            "exited_at": exit_.exited_at,
        }
        with self._db.durable_transaction() as tx:
            self._store.delete(tx, entry)
            if entry.pidfd < 0:
                self._store.drop_tombstone(tx, entry.incarnation)
            event = self._events.append(tx, entry.namespace, events.DELETE, body)
        self._supervisor.remove(entry)
        self._events.announce(event)

    # inside

    def _exec(self, entry: Entry, exec_id: str) -> Exec:
        exec_ = entry.execs.get(exec_id)
        if exec_ is None:
            raise NotFound(f"find exec {exec_id} of task {entry.id}: no such process")
        return exec_

    async def _peer(self, entry: Entry) -> Peer:
        """The connected shim. After a restart of the manager it is given time to come back."""
        deadline = time.monotonic() + HELLO_S
        while entry.peer is None:
            if entry.closed or (entry.pidfd < 0 and entry.exit is not None):
                raise FailedPrecondition(f"call shim of {entry.what}: the task has ended")
            if time.monotonic() > deadline:
                raise Unavailable(f"call shim of {entry.what}: it has not connected")
            await asyncio.sleep(0.01)
        if entry.peer.version == 0:
            raise Unavailable(f"call shim of {entry.what}: {entry.unknown_reason}")
        return entry.peer
