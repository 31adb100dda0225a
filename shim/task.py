"""A container's life as its shim sees it: create, start, exec, exit, clean up.

Events leave in the order create, start, exit, closed. An exit that is reaped while `runc start`
has not returned is told after the start; an exec's exit is told before that of its container.
"""

import signal
from collections.abc import Callable
from typing import Any

from lighter.proto import events
from lighter.proto.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    LighterError,
    NotFound,
)
from lighter.proto.faults import hit
from lighter.proto.names import check_name
from lighter.proto.paths import cgroup_path
from lighter.shim import exitrecord, runc, runcstate
from lighter.shim.cgroup import Cgroup, gather
from lighter.shim.launch import Launcher
from lighter.shim.link import Link
from lighter.shim.logfile import LogFile
from lighter.shim.loop import Future, Loop
from lighter.shim.oom import OomWatch
from lighter.shim.process import Process
from lighter.shim.reaper import Reaper
from lighter.shim.rootfs import Rootfs
from lighter.shim.sender import SentLog
from lighter.shim.sinks import NEVER_WAIT
from lighter.shim.stdio import Stdio
from lighter.shim.streams import SharedBuffer

RUNTIME_S = 120.0  # for one call of the runtime, unless the order says otherwise
DRAIN_S = 10.0
EXECS_S = 2.0


class Task:
    """One container. Methods are the requests of proto/shim_api.py."""

    def __init__(
        self,
        loop: Loop,
        reaper: Reaper,
        order: dict[str, Any],
        find_cgroup: Callable[[int, str], Cgroup],
    ) -> None:
        self._loop = loop
        self._find_cgroup = find_cgroup
        self.order = order
        self.id: str = order["id"]
        self._bundle: str = order["bundle"]
        self._runtime_s = order["timeout_ns"] / 1e9 if order.get("timeout_ns") else RUNTIME_S
        self._rootfs = Rootfs(self._bundle + "/rootfs")
        self._runc = runc.Runc(
            loop,
            reaper,
            order["runc"],
            order["runc_root"],
            self._bundle + "/runc.log",
            order.get("runtime_flags"),
        )
        self._launcher = Launcher(loop, reaper, self._runc, self.id, self._bundle, self._runtime_s)
        self._cgroup_path: str = order.get("cgroup") or cgroup_path(
            order["instance"], order["namespace"], self.id
        )
        self._buffer = SharedBuffer()
        self._log = _log_file(order["log"], loop)
        self.init = Process("", self._stdio("init-", self._log))
        self._execs: dict[str, Process] = {}
        self._cgroup = Cgroup({}, "")
        self._oom: OomWatch | None = None
        self._starting = False
        self._pausing = False
        self._was_killed = False  # init, by whoever asked for it
        self._start_settled = Future()
        self.closed = Future()
        self._link: Link

    def use(self, link: Link) -> None:
        """Publish through this link from now on."""
        self._link = link

    def identity(self) -> dict[str, Any]:
        """What the hello says: who this is and where it stands."""
        return {
            "state": self.init.state,
            "init_pid": self.init.pid,
            "terminal": bool(self.order["terminal"]),
            "execs": {name: exec_.pid for name, exec_ in self._execs.items() if exec_.pid},
        }

    def _stdio(self, prefix: str, log: LogFile | SentLog | None) -> Stdio:
        policy = self.order.get("io_policy", "drop")
        owner = (self.order.get("io_uid") or 0, self.order.get("io_gid") or 0)
        return Stdio(self._loop, self._buffer, f"{self._bundle}/{prefix}", policy, log, owner)

    # create

    async def create(self) -> dict[str, Any]:
        """Mount the root, let the runtime make the container, leave it ready to start."""
        order = self.order
        self._rootfs.mount(order["mounts"])
        hit("shim.rootfs-mounted")
        self._rootfs.check()
        await self._launcher.create(self.init, order, self._log is not None)
        hit("shim.runc-created")
        if order.get("restore"):
            gather(self.init.pid, self._cgroup_path)
        self._cgroup = self._find_cgroup(self.init.pid, self._cgroup_path)
        self._oom = OomWatch(self._loop, self._cgroup, self._on_oom_kill)
        self.init.step("create", self.id)
        self._link.publish(
            events.CREATE,
            {
                "container_id": self.id,
                "pid": self.init.pid,
                "bundle": self._bundle,
                "terminal": bool(order["terminal"]),
                "stdin": order["stdin"],
                "stdout": order["stdout"],
                "stderr": order["stderr"],
            },
        )
        self._loop.spawn(self._after_init())
        return {"pid": self.init.pid}

    async def abandon(self) -> None:
        """Force-delete the container after a failed create or delete, and release what the shim
        holds.

        Raises DeadlineExceeded when a process of the container does not end; its root stays.
        """
        self._cgroup.kill_all()
        try:
            await self._runc.run(runc.delete_argv(self.id, force=True), self._runtime_s)
        except LighterError:
            pass  # there may be nothing to delete
        state = f"{self.order['runc_root']}/{self.id}"
        await runcstate.remove_traces(self._loop, self.id, state, self._cgroup_path)
        self.init.stdio.close()
        self._release()

    # running

    async def start(self) -> dict[str, Any]:
        self.init.check("start", self.id)
        if self._starting:
            raise AlreadyExists(f"start task {self.id}: a start is under way")
        self._starting = True
        self._start_settled = Future()
        try:
            self.init.stdio.look()
            if not self.order.get("restore"):  # what is restored runs since it was created
                await self._let_go()
            hit("shim.runc-started")
            self.init.step("start", self.id)
            self._link.publish(events.START, {"container_id": self.id, "pid": self.init.pid})
        finally:
            self._starting = False
            # After the answer to the start: an exit that came meanwhile has more to do.
            self._loop.call_soon(self._start_settled.set)
        return {"pid": self.init.pid}

    async def _let_go(self) -> None:
        state = f"{self.order['runc_root']}/{self.id}"
        if not self.order.get("shim_starts") or not await runcstate.start(
            self._loop, state, self.init.ended, self._runtime_s
        ):
            await self._runc.run(["start", self.id], self._runtime_s)

    async def kill(self, exec_id: str, signum: int, everyone: bool) -> dict[str, Any]:
        if not 0 < signum < signal.NSIG:
            raise InvalidArgument(f"kill task {self.id}: there is no signal {signum}")
        process = self._process(exec_id)
        process.check("kill", self.id)
        everyone = everyone and process is self.init  # an exec has no cgroup of its own
        if everyone:
            self._cgroup.kill_all(signum)
        else:
            process.kill(signum)
        if signum == signal.SIGKILL and process is self.init:
            self._note_kill()
            self._cgroup.thaw()  # paused by us, or frozen by somebody else
        return {}

    async def pause(self) -> dict[str, Any]:
        self.init.check("pause", self.id)
        if self._pausing:  # for a caller, or a manager, who has gone
            raise FailedPrecondition(f"pause task {self.id}: a pause is under way")
        self._pausing = True
        try:
            await self._runc.run(["pause", self.id], self._runtime_s)
        except LighterError:
            # runc leaves a v2 cgroup half frozen whose last process it could not freeze in 10 s,
            # as does a runtime that was ended; nobody could resume what is not paused.
            self._cgroup.thaw()
            raise
        finally:
            self._pausing = False
        if self._was_killed:
            self._cgroup.thaw()  # it was frozen before it acted on that
            raise FailedPrecondition(f"pause task {self.id}: it was killed")
        self.init.step("pause", self.id)
        self._link.publish(events.PAUSED, {"container_id": self.id})
        return {}

    async def resume(self) -> dict[str, Any]:
        self.init.check("resume", self.id)
        await self._runc.run(["resume", self.id], self._runtime_s)
        self.init.step("resume", self.id)
        self._link.publish(events.RESUMED, {"container_id": self.id})
        return {}

    async def exec(self, exec_id: str, request: dict[str, Any]) -> dict[str, Any]:
        self.init.check("exec", self.id)
        check_name(exec_id, "exec")
        if exec_id in self._execs:
            raise AlreadyExists(f"exec {exec_id} in {self.id}: the id is in use")
        process = Process(exec_id, self._stdio(f"exec-{exec_id}-", None))
        self._execs[exec_id] = process
        try:
            await self._launcher.exec(process, request)
            hit("shim.runc-execed")
            self._refuse_late(process)
        except BaseException:
            self._launcher.end_unheard(process)
            self._forget(process)
            raise
        finally:
            self._launcher.remove_pid_file(process)
        process.step("start", self.id)
        body = {"container_id": self.id, "exec_id": exec_id, "pid": process.pid}
        self._link.publish(events.EXEC_STARTED, body)
        self._loop.spawn(self._after_exec(process))
        return {"pid": process.pid}

    def _refuse_late(self, process: Process) -> None:
        """An exec that joined after init's end: kill_all may have missed it, its event is late."""
        if self.init.ended.done:
            self._end_rest()
        if self.init.told.done:
            process.stdio.close()
            raise FailedPrecondition(f"exec {process.exec_id} in {self.id}: it has ended")

    def _forget(self, process: Process) -> None:
        del self._execs[process.exec_id]
        process.told.set()
        process.gone.set()

    async def end(self) -> dict[str, Any]:
        """Kill init whatever it is doing; its exit follows as an event."""
        if not self.init.ended.done:
            self.init.kill(signal.SIGKILL)
            self._note_kill()
            self._cgroup.thaw()
        return {}

    async def update(self, resources: str) -> dict[str, Any]:
        self.init.check("update", self.id)
        await self._runc.run(runc.update_argv(self.id, resources), self._runtime_s)
        return {}

    async def checkpoint(self, image: str, leave_running: bool, more: list[str]) -> dict[str, Any]:
        """Have CRIU write the container's state below `image`; without `leave_running` it ends.

        `more` are flags of the runtime's from runc.CHECKPOINT_FLAGS.
        """
        self.init.check("checkpoint", self.id)
        for flag in more:
            if flag not in runc.CHECKPOINT_FLAGS:
                raise InvalidArgument(f"checkpoint task {self.id}: there is no flag {flag}")
        flags = [*(["--leave-running"] if leave_running else []), *more]
        argv = runc.checkpoint_argv(self.id, image, self._bundle, flags)
        await self._runc.run(argv, self._runtime_s)
        return {}

    async def release_output(self) -> dict[str, Any]:
        for process in (self.init, *self._execs.values()):
            process.stdio.release()
        return {}

    async def attach(
        self, exec_id: str, stdin: str, stdout: str, stderr: str, may_drop: bool
    ) -> dict[str, Any]:
        process = self._process(exec_id)
        process.check("attach", self.id)
        process.stdio.attach(stdin, stdout, stderr, NEVER_WAIT if may_drop else "")
        return {"terminal": process.stdio.is_terminal}

    async def resize(self, exec_id: str, rows: int, cols: int) -> dict[str, Any]:
        self._process(exec_id).stdio.resize(rows, cols)
        return {}

    async def close_stdin(self, exec_id: str) -> dict[str, Any]:
        self._process(exec_id).stdio.close_stdin()
        return {}

    def _process(self, exec_id: str) -> Process:
        if not exec_id:
            return self.init
        process = self._execs.get(exec_id)
        if process is None:
            raise NotFound(f"find exec {exec_id} of {self.id}: no such process")
        return process

    # ends

    async def _after_exec(self, process: Process) -> None:
        try:
            exit_status, exited_at = await process.ended
            process.step("exit", self.id)
            await process.stdio.passed_on()
            self._publish_exit(process, exit_status, exited_at, "")
            await process.stdio.drain(DRAIN_S)
        finally:
            self._forget(process)

    async def _after_init(self) -> None:
        try:
            await self._settle(*await self.init.ended)
        except Exception as err:
            self.closed.fail(err)  # the shim ends, and its manager settles the rest

    async def _settle(self, exit_status: int, exited_at: int) -> None:
        """Init has ended: end what is left, tell it, clean up."""
        if self._starting:
            await self._start_settled
        hit("shim.init-exited")
        cause = self._oom_cause(exit_status)
        self._end_rest()
        self.init.step("exit", self.id)
        self._record_exit(exit_status, exited_at, cause)
        await self.init.stdio.passed_on()
        await self._execs_told()
        self._publish_exit(self.init, exit_status, exited_at, cause)
        await self.init.stdio.drain(DRAIN_S)
        if isinstance(self._log, SentLog):
            await self._log.drain()
        for process in list(self._execs.values()):
            await process.gone
        await self._delete()
        hit("shim.runc-deleted")
        self._release()
        hit("shim.unmounted")
        self._link.publish(events.CLOSED, {"container_id": self.id, "error": ""})
        self.closed.set()

    async def _delete(self) -> None:
        """Remove what the runtime keeps of a container that has ended."""
        state = f"{self.order['runc_root']}/{self.id}"
        if not self.order["runtime_deletes"] and runcstate.delete(state, self._cgroup):
            return
        try:
            await self._runc.run(runc.delete_argv(self.id), self._runtime_s)
        except LighterError:
            await self.abandon()

    def _end_rest(self) -> None:
        """Nothing of a container outlives its init, a cgroup of its own or not."""
        self._cgroup.kill_all()
        for process in self._execs.values():
            if process.pid and not process.ended.done:
                process.kill(signal.SIGKILL)

    def _record_exit(self, exit_status: int, exited_at: int, cause: str) -> None:
        record = {
            "incarnation": self.order["incarnation"],
            "exit_status": exit_status,
            "exited_at": exited_at,
            "cause": cause,
            "pid": self.init.pid,
        }
        try:
            exitrecord.write(self.order["exit_record"], record, durable=not self._link.connected)
        except OSError as err:
            # A full or failing disk: the exit is still in memory and goes to the manager.
            self._loop.on_error(err)

    async def _execs_told(self) -> None:
        """An exec's exit is told before init's, unless it shares its pid namespace and goes on."""
        for process in list(self._execs.values()):
            try:
                await self._loop.within(process.told, EXECS_S, "wait for exec")
            except LighterError:
                return

    def _publish_exit(self, process: Process, status: int, at: int, cause: str) -> None:
        body = {
            "container_id": self.id,
            "exec_id": process.exec_id,
            "pid": process.pid,
            "exit_status": status,
            "exited_at": at,
            "cause": cause,
        }
        self._link.publish(events.EXIT, body, at)
        process.told.set()

    def _release(self) -> None:
        """Give back the mounts, the log and the OOM descriptor."""
        if self._oom is not None:
            self._oom.close()
        if self._log is not None:
            self._log.close()
        self._rootfs.umount()

    # out of memory

    def _on_oom_kill(self) -> None:
        # With no manager to hear it, a container that is killed again and again says it once.
        if not self._link.is_waiting(events.OOM):
            self._link.publish(events.OOM, {"container_id": self.id})

    def _note_kill(self) -> None:
        """From now on SIGKILL is the end that was asked for, whatever the OOM killer did before."""
        if not self.init.ended.done:
            self._was_killed = True

    def _oom_cause(self, exit_status: int) -> str:
        if self._oom is None:
            return ""
        self._oom.look_back(self.init.pid)
        # For good: of a cgroup that the runtime removes, v2's memory.events would never be silent.
        self._oom.close()
        if exit_status != 128 + signal.SIGKILL or self._was_killed:
            return ""
        return "oom" if self._oom.killed else ""


def _log_file(log: dict[str, Any] | None, loop: Loop) -> LogFile | SentLog | None:
    if not log:
        return None
    file = LogFile(log["dir"], log["max_bytes"], log["max_files"])
    return SentLog(file, log["send"], loop) if log.get("send") else file
