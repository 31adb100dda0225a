"""How a process of a container comes to be: the runtime is run, and what it started is watched."""

import os
import signal
from collections.abc import Callable
from typing import Any

from lighter.proto.errors import Internal
from lighter.shim.logger import start_logger
from lighter.shim.loop import Loop
from lighter.shim.process import Process, read_pid
from lighter.shim.reaper import Reaper
from lighter.shim.runc import Runc, attempt, create_argv, exec_argv, restore_argv
from lighter.shim.stdio import ConsoleSocket

CONSOLE_S = 10.0
SILENT_S = 1.0  # from then on a runtime's own output is passed on: a full pipe would hold it up


class Launcher:
    """Runs the runtime's create and exec for one container, with the streams of the new process.

    Afterwards the process has a pid and its streams. After a LighterError or OSError nothing of
    the streams is open.
    """

    __slots__ = ("_bundle", "_id", "_loop", "_reaper", "_runc", "_timeout_s")

    def __init__(
        self,
        loop: Loop,
        reaper: Reaper,
        runc: Runc,
        container_id: str,
        bundle: str,
        timeout_s: float,
    ) -> None:
        self._loop = loop
        self._reaper = reaper
        self._runc = runc
        self._id = container_id
        self._bundle = bundle
        self._timeout_s = timeout_s

    async def create(self, init: Process, order: dict[str, Any], is_logged: bool) -> None:
        """Run the runtime's create, or restore; `is_logged`: the output goes to a file of ours."""
        bundle, pid_file = self._bundle, self._pid_file(init)

        def argv(console: str) -> list[str]:
            if image := order.get("restore"):
                return restore_argv(bundle, pid_file, console, self._id, image, bundle)
            flags = order.get("create_flags") or ()
            return create_argv(bundle, pid_file, console, self._id, flags)

        listens = is_logged or bool(order.get("logger"))
        wanted = (
            bool(order["stdin"] or order["stdin_open"]),
            bool(order["stdout"]) or listens,
            bool(order["stderr"]) or listens,
        )
        await self._launch(init, argv, order, wanted)

    async def exec(self, process: Process, request: dict[str, Any]) -> None:
        """Run the runtime's exec. The caller removes the pid file."""
        oci_process, pid_file = request["process"], self._pid_file(process)

        def argv(console: str) -> list[str]:
            return exec_argv(oci_process, pid_file, console, self._id)

        listens = bool(request.get("logger"))
        wanted = (
            bool(request["stdin"]),
            bool(request["stdout"]) or listens,
            bool(request["stderr"]) or listens,
        )
        await self._launch(process, argv, request, wanted)

    def _pid_file(self, process: Process) -> str:
        name = f"exec-{process.exec_id}" if process.exec_id else "init"
        return f"{self._bundle}/{name}.pid"

    def end_unheard(self, process: Process) -> None:
        """Kill what an exec has started that failed, as far as it came: nobody has heard of it."""
        # The pid file is a runtime's word, so the kernel is asked.
        pid = process.pid or read_pid(self._pid_file(process))
        if pid and not process.ended.done and self._reaper.has(pid):
            os.kill(pid, signal.SIGKILL)

    def remove_pid_file(self, process: Process) -> None:
        try:
            os.unlink(self._pid_file(process))
        except FileNotFoundError:
            pass

    async def _launch(
        self,
        process: Process,
        argv: Callable[[str], list[str]],
        request: dict[str, Any],
        wanted: tuple[bool, bool, bool],
    ) -> None:
        """`argv` takes the path of a console socket, "" without a terminal; `request` is the order
        or the exec's; `wanted` says which of stdin, stdout, stderr are pipes.
        """
        stdio = process.stdio
        console = full = None
        self._reaper.hold()
        logger: tuple[int, ...] = ()
        try:
            if request.get("logger"):
                logger = await start_logger(
                    self._loop, self._reaper, request["logger"], *request["logger_for"]
                )
                # Pipes of ours, reached like those of a caller: a program that ends is not missed.
                stdout, stderr = (f"/proc/self/fd/{fd}" for fd in logger)
                request = {**request, "stdout": stdout, "stderr": stderr}
            if request["terminal"]:
                console = ConsoleSocket(self._loop, request["console"])
                await self._runc.run(argv(console.path), self._timeout_s)
                master = await console.master(CONSOLE_S)
                stdio.set_terminal(master, request["rows"], request["cols"])
                stdio.attach(request["stdin"], request["stdout"], "")
                await stdio.readers_come()
            else:
                child = stdio.open_pipes(*wanted)
                # Listeners first: what the process writes at once must find them.
                stdio.attach(request["stdin"], request["stdout"], request["stderr"])
                await stdio.readers_come()
                full = self._loop.call_later(SILENT_S, stdio.begin)
                await self._runc.run(argv(""), self._timeout_s, child)
                stdio.release_child_fds()
            process.pid = read_pid(self._pid_file(process))
            if not process.pid:
                raise Internal(f"{attempt(argv(''))}: the runtime wrote no pid file")
            self._expect(process)
            stdio.begin()
        except BaseException:
            stdio.close()
            raise
        finally:
            if full is not None:
                full.cancel()
            self._reaper.release()
            for fd in logger:
                os.close(fd)
            if console is not None:
                console.close()

    def _expect(self, process: Process) -> None:
        try:
            self._reaper.expect(process.pid, process.on_exit)
        except ChildProcessError as err:
            pid, process.pid = process.pid, 0
            raise Internal(
                f"watch pid {pid} of task {self._id}: it is no child of this shim"
            ) from err
