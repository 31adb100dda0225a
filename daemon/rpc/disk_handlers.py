"""Methods about the disk: who uses it, giving back what nobody needs, and whether it is sound."""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from lighter.daemon.content.housekeeping import Housekeeping
from lighter.daemon.rpc.fields import Fields
from lighter.daemon.rpc.methods import Call, Method, Result

if TYPE_CHECKING:
    from lighter.daemon.storecheck.service import StoreCheck


def disk_methods(
    housekeeping: Housekeeping, check: "Callable[[], StoreCheck]"
) -> dict[str, Method]:
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

    async def check_(_call: Call, body: Mapping[str, Any]) -> AsyncIterator[Any]:
        from lighter.daemon.storecheck.found import REPAIRED, Counted

        repair = Fields("system.check", body).flag("repair")
        counted, found, repaired = Counted(), 0, 0
        async with aclosing(check().run(counted, repair=repair)) as items:
            async for one in items:
                found, repaired = found + 1, repaired + (one.outcome == REPAIRED)
                yield asdict(one)
        yield Result({**asdict(counted), "found": found, "repaired": repaired})

    return {
        "system.df": Method(unary=df),
        "system.prune": Method(unary=prune),
        "system.check": Method(stream=check_),
    }
