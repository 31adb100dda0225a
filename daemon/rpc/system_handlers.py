"""Methods about the manager itself: its shims and its health."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import psutil

from lighter.daemon.rpc.server import Call, Method
from lighter.daemon.tasks.supervisor import Supervisor


def system_methods(
    supervisor: Supervisor, health: Callable[[], dict[str, Any]]
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

    return {"system.shims": Method(unary=shims), "system.health": Method(unary=health_)}


def _pss_bytes(pid: int) -> int:
    """Proportional set size, which counts a page shared by n processes as 1/n; 0 if it is gone."""
    try:
        return int(psutil.Process(pid).memory_full_info().pss)
    except psutil.Error:
        return 0
