"""Further processes in a running container, and who listens to a process."""

import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any

from lighter.daemon.events import EventLog
from lighter.daemon.metadata.db import Database
from lighter.daemon.tasks.bundle import Bundle
from lighter.daemon.tasks.entry import Entry, Exec
from lighter.daemon.tasks.reach import SIGNAL_S, connected
from lighter.daemon.tasks.store import TaskStore
from lighter.daemon.tasks.supervisor import Supervisor
from lighter.daemon.types import Exit
from lighter.proto import events, states
from lighter.proto.errors import AlreadyExists, NotFound
from lighter.proto.faults import hit
from lighter.proto.names import check_name


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
    ) -> None:
        self._db = db
        self._store = store
        self._events = log
        self._supervisor = supervisor
        self._bundle_of = bundle_of

    async def exec(
        self,
        namespace: str,
        container_id: str,
        exec_id: str | None,
        process: Mapping[str, Any],
        stdio: Mapping[str, Any],
    ) -> tuple[str, int]:
        """Run one more process in the container: (exec id, pid). `process` is OCI's."""
        entry = self._supervisor.find(namespace, container_id)
        states.advance(states.TASK, entry.state, "exec", f"in {entry.what}")
        peer = await connected(entry)
        exec_id = check_name(exec_id, "exec") if exec_id is not None else secrets.token_hex(8)
        if exec_id in entry.execs:
            # An ended one counts too: a call that is repeated must not run the program again.
            raise AlreadyExists(f"exec {exec_id} in {container_id}: the id is in use until deleted")
        terminal = bool(process.get("terminal"))
        exec_ = Exec(exec_id, states.CREATING, terminal, time.time_ns())
        entry.execs[exec_id] = exec_
        bundle = self._bundle_of(namespace, container_id)
        console = bundle.console() if terminal else ""
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
            hit("exec.asked")
            answer = await peer.call(
                "exec",
                {
                    "exec_id": exec_id,
                    "process": path,
                    "terminal": terminal,
                    "console": console,
                    **stdio,
                },
            )
            hit("exec.done")
        except BaseException:
            # One that was started is there, whatever became of the answer.
            if exec_.state == states.CREATING:
                self._forget_exec(entry, exec_id)
            raise
        finally:
            bundle.remove_process(exec_id)
            bundle.remove_console(console)
        return exec_id, int(answer["pid"])

    def _forget_exec(self, entry: Entry, exec_id: str) -> None:
        entry.execs.pop(exec_id, None)
        with self._db.fast_transaction() as tx:
            self._store.delete_exec(tx, entry, exec_id)

    async def attach(
        self, namespace: str, container_id: str, exec_id: str, stdio: Mapping[str, Any]
    ) -> bool:
        """Let the caller's pipes take part; returns whether the process has a terminal."""
        entry = self._supervisor.find(namespace, container_id)
        if not exec_id:
            states.advance(states.TASK, entry.state, "attach", entry.what)
        body = {"exec_id": exec_id, **stdio}
        answer = await (await connected(entry)).call("attach", body, timeout_s=SIGNAL_S)
        return bool(answer["terminal"])

    async def resize(
        self, namespace: str, container_id: str, exec_id: str, rows: int, cols: int
    ) -> None:
        peer = await connected(self._supervisor.find(namespace, container_id))
        body = {"exec_id": exec_id, "rows": rows, "cols": cols}
        await peer.call("resize", body, timeout_s=SIGNAL_S)

    async def close_stdin(self, namespace: str, container_id: str, exec_id: str) -> None:
        peer = await connected(self._supervisor.find(namespace, container_id))
        await peer.call("close_stdin", {"exec_id": exec_id}, timeout_s=SIGNAL_S)

    def delete(self, entry: Entry, exec_id: str) -> Exit:
        """Forget an ended exec; returns how it ended. Raises NotFound, FailedPrecondition."""
        exec_ = find_exec(entry, exec_id)
        states.advance(states.EXEC, exec_.state, "delete", f"exec {exec_id} of {entry.id}")
        assert exec_.exit is not None
        self._forget_exec(entry, exec_id)
        return exec_.exit


def find_exec(entry: Entry, exec_id: str) -> Exec:
    """The exec of this id. Raises NotFound; one that is only asked for is none yet."""
    exec_ = entry.execs.get(exec_id)
    if exec_ is None or exec_.state == states.CREATING:
        raise NotFound(f"find exec {exec_id} of task {entry.id}: no such process")
    return exec_
