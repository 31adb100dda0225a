"""How a process of a container comes to be: the runtime is run, and what it started is watched."""

import os
from collections.abc import Callable
from typing import Any

from lighter.proto.errors import Internal
from lighter.shim.logger import start_logger
from lighter.shim.loop import Loop
from lighter.shim.process import Process, read_pid
from lighter.shim.reaper import Reaper
from lighter.shim.runc import Runc
from lighter.shim.stdio import ConsoleSocket

CONSOLE_S = 10.0
SILENT_S = 1.0  # from then on a runtime's own output is passed on: a full pipe would hold it up


class Launcher:
    """Runs the runtime's create and exec, with the streams of the new process."""

    __slots__ = ("_loop", "_reaper", "_runc")

    def __init__(self, loop: Loop, reaper: Reaper, runc: Runc) -> None:
        self._loop = loop
        self._reaper = reaper
        self._runc = runc

    async def launch(
        self,
        process: Process,
        argv: Callable[[str], list[str]],
        pid_file: str,
        request: dict[str, Any],
        wanted: tuple[bool, bool, bool],
        timeout_s: float,
    ) -> None:
        """Run the runtime's create or exec; afterwards `process` has a pid and its streams.

        `argv` takes the path of a console socket, "" without a terminal; `request` is the order or
        the exec's; `wanted` says which of stdin, stdout, stderr are pipes. Raises LighterError,
        OSError; nothing of the streams is open then.
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
                await self._runc.run(argv(console.path), timeout_s)
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
                await self._runc.run(argv(""), timeout_s, child)
                stdio.release_child_fds()
            process.pid = read_pid(pid_file)
            if not process.pid:
                raise Internal(f"run container process: runc {argv('')[0]} wrote no pid file")
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
            raise Internal(f"run container process: pid {pid} is no child of this shim") from err
