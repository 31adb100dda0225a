"""Methods about the manager itself: its parts and processes, its configuration, its last one."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import aclosing
from dataclasses import asdict
from typing import Any

import psutil

from lighter.daemon.containers.stopping import StopAll
from lighter.daemon.plugins import Plugin
from lighter.daemon.reload import Reloader
from lighter.daemon.rpc.fields import Fields
from lighter.daemon.rpc.methods import Call, Method, Result

STOP_S = 60.0


def system_methods(
    reloader: Reloader,
    stop_all: StopAll,
    accept_loss: Callable[[], str],
    parts: Callable[[], Iterable[Plugin]],
    own_pids: Callable[[], Mapping[str, int]],
) -> dict[str, Method]:
    async def plugins(_call: Call, _body: Mapping[str, Any]) -> Any:
        return {"plugins": [asdict(part) for part in parts()]}

    async def processes(_call: Call, _body: Mapping[str, Any]) -> Any:
        pids = own_pids()
        measured = await asyncio.to_thread(lambda: [_measure(pid) for pid in pids.values()])
        return {"processes": dict(zip(pids, measured, strict=True))}

    async def doctor(_call: Call, _body: Mapping[str, Any]) -> Any:
        # Nobody asks for this often: no start loads it.
        from lighter.daemon.doctor.examination import examine

        found = await asyncio.to_thread(examine, reloader.running)
        return {"findings": [asdict(finding) for finding in found]}

    async def configuration(_call: Call, _body: Mapping[str, Any]) -> Any:
        from lighter.daemon.config.view import shown

        return {"config": await asyncio.to_thread(shown, reloader.running)}

    async def reload(_call: Call, _body: Mapping[str, Any]) -> Any:
        return asdict(await reloader.reload())

    async def accept_loss_(_call: Call, _body: Mapping[str, Any]) -> Any:
        return {"loss": accept_loss()}

    async def stop_containers(_call: Call, body: Mapping[str, Any]) -> AsyncIterator[Any]:
        timeout_s = Fields("system.stop_containers", body).seconds("timeout_s", STOP_S)
        stopped = failed = 0
        async with aclosing(stop_all.run(timeout_s)) as ends:
            async for end in ends:
                stopped, failed = stopped + (end.exit is not None), failed + (end.exit is None)
                yield {
                    "namespace": end.namespace,
                    "id": end.id,
                    "exit_status": end.exit.exit_status if end.exit else None,
                    "error": end.error,
                }
        yield Result({"stopped": stopped, "failed": failed})

    return {
        "system.reload": Method(unary=reload),
        "system.doctor": Method(unary=doctor),
        "system.configuration": Method(unary=configuration),
        "system.plugins": Method(unary=plugins),
        "system.processes": Method(unary=processes),
        "system.accept_loss": Method(unary=accept_loss_),
        "system.stop_containers": Method(stream=stop_containers, uncounted=True),
    }


def _measure(pid: int) -> dict[str, Any]:
    """What a process of ours costs: pss counts a page that n processes share as 1/n."""
    try:
        process = psutil.Process(pid)
        memory, times = process.memory_full_info(), process.cpu_times()
        return {
            "pid": pid,
            "pss_bytes": int(memory.pss),
            "rss_bytes": int(memory.rss),
            "cpu_s": times.user + times.system,
            "threads": process.num_threads(),
            "fds": process.num_fds(),
        }
    except psutil.Error:  # it is gone
        return {"pid": pid, "pss_bytes": 0, "rss_bytes": 0, "cpu_s": 0.0, "threads": 0, "fds": 0}
