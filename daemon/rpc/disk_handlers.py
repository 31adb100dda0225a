"""Methods about the disk: who uses it, and giving back what nobody needs."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from lighter.daemon.content.housekeeping import Housekeeping
from lighter.daemon.rpc.fields import Fields
from lighter.daemon.rpc.server import Call, Method


def disk_methods(housekeeping: Housekeeping) -> dict[str, Method]:
    async def df(_call: Call, _body: Mapping[str, Any]) -> Any:
        return {"usage": [asdict(used) for used in await housekeeping.usage()]}

    async def prune(_call: Call, body: Mapping[str, Any]) -> Any:
        dry_run = Fields("system.prune", body).flag("dry_run")
        return {
            "pruned": [
                {
                    "namespace": one.namespace,
                    "content": list(one.collected.content),
                    "snapshots": [
                        {"snapshotter": snapshotter, "key": key}
                        for snapshotter, key in one.collected.snapshots
                    ],
                    "images": list(one.collected.images),
                    "ingests": list(one.ingests),
                    "size_bytes": one.collected.size_bytes + one.ingest_bytes,
                }
                for one in await housekeeping.prune(dry_run=dry_run)
            ]
        }

    return {"system.df": Method(unary=df), "system.prune": Method(unary=prune)}
