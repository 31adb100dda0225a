"""Methods that start containers and start them again: the maps of proto/daemon_api."""

from collections.abc import Mapping
from typing import Any

from lighter.daemon.restarts.service import Restarts
from lighter.daemon.rpc.fields import Fields
from lighter.daemon.rpc.methods import methods, namespace_of
from lighter.daemon.rpc.server import Call, Method

Body = Mapping[str, Any]


def restart_methods(restarts: Restarts) -> dict[str, Method]:
    async def start(call: Call, body: Body) -> Any:
        pid = await restarts.start(namespace_of(call), Fields("containers.start", body).id())
        return {"pid": pid}

    async def restart(call: Call, body: Body) -> Any:
        fields = Fields("containers.restart", body)
        pid = await restarts.restart(
            namespace_of(call),
            fields.id(),
            fields.seconds_or_none("timeout_s"),
            fields.signal_or_none("signal"),
        )
        return {"pid": pid}

    return methods("containers", start=start, restart=restart)
