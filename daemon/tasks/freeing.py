"""Frees what a lost shim held: ends the container's processes, unmounts, deletes runtime state.

The work that needs system calls which Python lacks is a worker's job; the runtime is run as a
program with a deadline.
"""

import asyncio
import contextlib
import json
import logging
import shutil
from typing import Any

from lighter.daemon.images.worker import Worker
from lighter.daemon.tasks import processes
from lighter.daemon.tasks.alive import all_alive
from lighter.daemon.tasks.bundle import Bundle
from lighter.daemon.tasks.entry import Entry
from lighter.daemon.tasks.reach import is_alive
from lighter.proto.errors import LighterError, Unavailable
from lighter.proto.paths import RUNTIME_PATH, State, cgroup_path

log = logging.getLogger("lighter.tasks")

KILLED_S = 2.0
WORKER_TRIES = 3
MOST_S = 30.0  # for a runtime to delete what is dead already


class WorkerFreer:
    """Frees what a lost shim held, with a worker process and the runtime's own `delete --force`."""

    def __init__(
        self, worker: Worker, instance: str, state: State, boot_id: str, runtime_s: float
    ) -> None:
        self._worker = worker
        self._instance = instance
        self._state = state
        self._boot_id = boot_id
        self._runtime_s = min(runtime_s, MOST_S)

    async def free(self, entry: Entry, bundle: Bundle) -> bool:
        called = bundle.runtime()
        cgroup = str(called.get("cgroup") or _cgroup_of(bundle) or self._cgroup_by_row(entry))
        root = str(called.get("root") or self._state.runc_root(entry.namespace))
        # Noted before the act: who does this after a manager that died meanwhile finds none left.
        if await asyncio.to_thread(processes.in_cgroup, cgroup):
            bundle.note_lost()
        job = {
            "job": "free",
            "cgroup": cgroup,
            "rootfs": bundle.rootfs,
            "pid": entry.pid,
        }
        # A runtime that outlived its shim would go on making what is freed here.
        shim = bundle.shim_record() or {}
        if shim.get("boot_id") == self._boot_id:
            await asyncio.to_thread(processes.end_session, int(shim["pid"]), self._instance)
        done = await self._run_worker(entry, job)
        if done["left"]:
            raise Unavailable(f"end {entry.what}: {all_alive(done['left'])}")
        await self._delete(entry, root, called.get("flags") or [])
        # A runtime that fails over it would refuse the next container of this id.
        await asyncio.to_thread(shutil.rmtree, f"{root}/{entry.id}", ignore_errors=True)
        return bool(done["killed"]) or bundle.is_lost()

    def _cgroup_by_row(self, entry: Entry) -> str:
        """The cgroup of a task whose bundle somebody has removed; "" unless its shim is known to be
        dead.

        After a reboot another program's processes may be there.
        """
        shim = {"pid": entry.shim_pid, "start": entry.shim_start}
        if entry.boot_id != self._boot_id or not entry.shim_pid or is_alive(shim):
            return ""
        default = cgroup_path(self._instance, entry.namespace, entry.id)
        return str(entry.options.get("cgroup") or default)

    async def _run_worker(self, entry: Entry, job: dict[str, Any]) -> dict[str, Any]:
        """The worker's answer; a worker that died with its spawner is run again."""
        for attempt in range(1, WORKER_TRIES):
            try:
                return await self._worker.run(job, ())
            except LighterError as err:
                log.warning("free %s, attempt %d: %s", entry.what, attempt, err)
                await asyncio.sleep(0.3 * attempt)
        return await self._worker.run(job, ())

    async def _delete(self, entry: Entry, root: str, flags: list[str]) -> None:
        named = str(entry.options.get("runtime", "runc"))
        runtime = shutil.which(named) or named
        try:
            process = await asyncio.create_subprocess_exec(
                runtime,
                *("--root", root, *flags, "delete", "--force", entry.id),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.DEVNULL,
                env={"PATH": RUNTIME_PATH},  # as its shim has run it
            )
        except OSError as err:
            log.warning("delete runtime state of %s: %s", entry.what, err)
            return
        try:
            async with asyncio.timeout(self._runtime_s):
                await process.wait()
        except TimeoutError:
            process.kill()
            with contextlib.suppress(TimeoutError):  # in uninterruptible sleep it ends much later
                async with asyncio.timeout(KILLED_S):
                    await process.wait()
            log.warning("delete runtime state of %s: %s took too long", entry.what, runtime)


def _cgroup_of(bundle: Bundle) -> str:
    try:
        with open(bundle.dir + "/config.json", "rb") as file:
            return str(json.load(file)["linux"]["cgroupsPath"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""
