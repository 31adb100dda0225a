"""Methods that measure tasks: by files of the kernel, so that no shim is asked or waited for."""

import asyncio
import os
import time
from collections.abc import Mapping
from functools import partial
from typing import Any

from lighter.daemon.looks import Looks
from lighter.daemon.rpc.fields import Fields
from lighter.daemon.rpc.methods import Call, Method, methods, namespace_of
from lighter.daemon.tasks import metrics, netstat, processes
from lighter.daemon.tasks.entry import Entry
from lighter.daemon.tasks.service import TaskService
from lighter.proto.errors import NotFound

Body = Mapping[str, Any]


def metrics_methods(tasks: TaskService) -> dict[str, Method]:
    looks = Looks(who="a process")

    async def measure(call: Call, body: Body) -> Any:
        namespace = namespace_of(call)
        ids = Fields("tasks.metrics", body).texts("ids")
        entries = [tasks.find(namespace, id_) for id_ in ids] if ids else tasks.entries(namespace)
        found = await asyncio.to_thread(lambda: [_measured(entry) for entry in entries])
        return {
            "metrics": found,
            "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        }

    async def top(call: Call, body: Body) -> Any:
        id_ = Fields("tasks.top", body).id()
        entry = tasks.find(namespace_of(call), id_)
        look = partial(processes.described, entry)
        return {"processes": await looks.at(f"read processes of {id_}", look)}

    return methods("tasks", metrics=measure, top=top)


def _measured(entry: Entry) -> dict[str, Any]:
    """`version` is 0 and `values` empty of a task that has ended."""
    row: dict[str, Any] = {
        "id": entry.id,
        "status": entry.view().status,
        "timestamp": time.time_ns(),
        "version": 0,
        "values": {},
        "network": None,
    }
    try:
        measured = metrics.of_task(entry)
    except (NotFound, OSError):
        return row
    return {
        **row,
        "version": measured.version,
        "values": dict(measured.values),
        "network": netstat.of_process(entry.pid),
    }
