"""One probe: a process added to the container, its output up to a limit, its end or its deadline.

A probe is an exec like any other, but that its coming and going are no events: a check every few
seconds would push all else out of the event log.
"""

import asyncio
import contextlib
import logging
import os
import secrets
import signal
import time
from collections.abc import Mapping
from typing import Any

from lighter.daemon.containers.service import ContainerService
from lighter.daemon.health.check import ABORTED, MAX_OUTPUT_BYTES, HealthCheck, Probe
from lighter.daemon.oci.process import ExecRequest
from lighter.daemon.tasks.entry import PROBE_PREFIX, Entry
from lighter.daemon.tasks.execs import ExecService, find_exec
from lighter.daemon.tasks.service import TaskService
from lighter.proto import states
from lighter.proto.errors import LighterError

log = logging.getLogger("lighter.health")

_READ_BYTES = 64 * 1024
_DRAIN_S = 0.2  # what a process wrote at last is read when its end is known
_KILLED_S = 5.0


class Prober:
    """Runs probes."""

    def __init__(
        self, containers: ContainerService, tasks: TaskService, execs: ExecService
    ) -> None:
        self._containers = containers
        self._tasks = tasks
        self._execs = execs
        self._ending: dict[str, asyncio.Task[None]] = {}  # by the task's incarnation

    def is_ending(self, entry: Entry) -> bool:
        """Whether a probe that took too long is about to be ended."""
        return entry.incarnation in self._ending

    async def run(self, entry: Entry, check: HealthCheck) -> Probe:
        """Ask once, and leave no process behind that can be ended. Raises no error of the
        container's: one that cannot be asked is not healthy. Raises OSError when this process
        could not ask.
        """
        began = time.time_ns()
        if self.is_ending(entry):
            return Probe(began, time.time_ns(), ABORTED, "the check before has not ended yet")
        exec_id = PROBE_PREFIX + secrets.token_hex(8)
        output = _Output()
        try:
            code = await self._run(entry, exec_id, check, output)
            text = output.text()
        except TimeoutError:
            code, text = ABORTED, f"Health check exceeded timeout ({check.timeout_s:g}s)"
            if output.text():
                text += f": {output.text()}"
        except LighterError as err:
            code, text = ABORTED, err.message
        finally:
            if not self.is_ending(entry):
                output.close()
        return Probe(began, time.time_ns(), code, text)

    async def _run(self, entry: Entry, exec_id: str, check: HealthCheck, output: "_Output") -> int:
        """The exit code. Raises TimeoutError."""
        request = ExecRequest(args=check.argv)
        process = await self._containers.exec_spec(entry.namespace, entry.id, request, None)
        # Not cancelled at the deadline: the process may be there in the end, and must be ended.
        asked = asyncio.ensure_future(
            self._execs.exec(
                entry.namespace, entry.id, exec_id, process, output.stdio(), for_health=True
            )
        )
        try:
            async with asyncio.timeout(check.timeout_s):
                await asyncio.shield(asked)
                output.give_away()
                exec_ = find_exec(entry, exec_id)
                await exec_.ended.wait()
        except BaseException:
            asked.add_done_callback(lambda done: done.cancelled() or done.exception())
            self._end_later(entry, exec_id, asked, output)
            raise
        await output.drained(_DRAIN_S)
        code = exec_.exit.exit_status if exec_.exit is not None else ABORTED
        self._forget(entry, exec_id)
        return code

    def _end_later(
        self, entry: Entry, exec_id: str, asked: "asyncio.Future[Any]", output: "_Output"
    ) -> None:
        """End it in the background: with a stuck shim that may take as long as the shim is stuck.
        The output stays open until then: the shim opens it by its number, which must not become
        another file's.
        """

        def ended(_done: "asyncio.Task[None]") -> None:
            del self._ending[entry.incarnation]
            output.close()

        task = asyncio.get_running_loop().create_task(self._end(entry, exec_id, asked))
        self._ending[entry.incarnation] = task
        task.add_done_callback(ended)

    async def _end(self, entry: Entry, exec_id: str, asked: "asyncio.Future[Any]") -> None:
        """End a probe that took too long, as soon as its exec is there."""
        with contextlib.suppress(LighterError):
            await asyncio.wait((asked,))
            if asked.exception() is None:
                await self.end(entry, exec_id)

    async def end(self, entry: Entry, exec_id: str) -> None:
        """SIGKILL to a probe; its output is dropped. Raises what reaching its shim does."""
        exec_ = find_exec(entry, exec_id)
        if exec_.state != states.STOPPED:
            await self._tasks.kill(entry.namespace, entry.id, exec_id, signal.SIGKILL, False)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_KILLED_S):
                    await exec_.ended.wait()
        self._forget(entry, exec_id)

    def _forget(self, entry: Entry, exec_id: str) -> None:
        with contextlib.suppress(LighterError):
            self._execs.delete(entry, exec_id)


class _Output:
    """A pipe for what a probe writes, read to its end and kept up to MAX_OUTPUT_BYTES."""

    def __init__(self) -> None:
        self._kept = bytearray()
        self._more = False
        self._ended = asyncio.Event()
        self._read_fd, self._write_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        asyncio.get_running_loop().add_reader(self._read_fd, self._on_readable)

    def stdio(self) -> Mapping[str, Any]:
        path = f"/proc/{os.getpid()}/fd/{self._write_fd}"
        return {"stdin": "", "stdout": path, "stderr": path, "rows": 0, "cols": 0}

    def give_away(self) -> None:
        """Close our copy of the write end, which the shim has opened by now."""
        if self._write_fd >= 0:
            os.close(self._write_fd)
            self._write_fd = -1

    def _on_readable(self) -> None:
        try:
            data = os.read(self._read_fd, _READ_BYTES)
        except BlockingIOError:
            return
        if not data:
            self._ended.set()
            asyncio.get_running_loop().remove_reader(self._read_fd)
            return
        room = MAX_OUTPUT_BYTES - len(self._kept)
        self._kept += data[:room]
        self._more |= len(data) > room

    async def drained(self, timeout_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._ended.wait()

    def text(self) -> str:
        return bytes(self._kept).decode(errors="replace") + ("..." if self._more else "")

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._read_fd)
        os.close(self._read_fd)
        self.give_away()
