"""Methods about the manager itself: its health, its configuration, and its last one."""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing
from dataclasses import asdict
from typing import Any

from lighter.daemon.reload import Reloader
from lighter.daemon.rpc.fields import Fields
from lighter.daemon.rpc.server import Call, Method, Result
from lighter.daemon.stopping import StopAll

STOP_S = 60.0


def system_methods(
    health: Callable[[], dict[str, Any]],
    reloader: Reloader,
    stop_all: StopAll,
    accept_loss: Callable[[], str],
) -> dict[str, Method]:
    async def health_(_call: Call, _body: Mapping[str, Any]) -> Any:
        return health()

    async def reload(_call: Call, _body: Mapping[str, Any]) -> Any:
        return asdict(reloader.reload())

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
        "system.health": Method(unary=health_),
        "system.reload": Method(unary=reload),
        "system.accept_loss": Method(unary=accept_loss_),
        "system.stop_containers": Method(stream=stop_containers),
    }
