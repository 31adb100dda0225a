"""Methods about the manager itself: its shims, its health, its configuration, and its last one."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing
from dataclasses import asdict
from typing import Any

import psutil

from lighter.daemon.reload import Reloader
from lighter.daemon.rpc.fields import Fields
from lighter.daemon.rpc.server import Call, Method, Result
from lighter.daemon.stopping import StopAll
from lighter.daemon.tasks.supervisor import Supervisor

STOP_S = 60.0


def system_methods(
    supervisor: Supervisor,
    health: Callable[[], dict[str, Any]],
    reloader: Reloader,
    stop_all: StopAll,
) -> dict[str, Method]:
    async def shims(_call: Call, _body: Mapping[str, Any]) -> Any:
        found: list[dict[str, Any]] = [
            {
                "namespace": entry.namespace,
                "id": entry.id,
                "pid": entry.shim_pid,
                "incarnation": entry.incarnation,
                "version": entry.peer.identity.get("version", "") if entry.peer else "",
                "state": "connected" if entry.peer else "silent",
            }
            for entry in supervisor.entries.values()
            if entry.pidfd >= 0
        ]
        # The kernel walks a process's page tables for this: a millisecond for each.
        sizes = await asyncio.to_thread(lambda: [_pss_bytes(shim["pid"]) for shim in found])
        return {
            "shims": [{**shim, "pss_bytes": size} for shim, size in zip(found, sizes, strict=True)]
        }

    async def health_(_call: Call, _body: Mapping[str, Any]) -> Any:
        return health()

    async def reload(_call: Call, _body: Mapping[str, Any]) -> Any:
        return asdict(reloader.reload())

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
        "system.shims": Method(unary=shims),
        "system.health": Method(unary=health_),
        "system.reload": Method(unary=reload),
        "system.stop_containers": Method(stream=stop_containers),
    }


def _pss_bytes(pid: int) -> int:
    """Proportional set size, which counts a page shared by n processes as 1/n; 0 if it is gone."""
    try:
        return int(psutil.Process(pid).memory_full_info().pss)
    except psutil.Error:
        return 0
