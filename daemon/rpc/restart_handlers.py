"""Methods that start containers again, and change what is recorded of them."""

from collections.abc import Mapping
from typing import Any

from lighter.daemon.containers.changing import ContainerChanges
from lighter.daemon.oci.limits import read_limits
from lighter.daemon.restarts import policy as restart_policy
from lighter.daemon.restarts.byhand import ByHand
from lighter.daemon.rpc.fields import Fields
from lighter.daemon.rpc.methods import Call, Method, methods, namespace_of

Body = Mapping[str, Any]


def restart_methods(by_hand: ByHand, changes: ContainerChanges) -> dict[str, Method]:
    async def start(call: Call, body: Body) -> Any:
        pid = await by_hand.start(namespace_of(call), Fields("containers.start", body).id())
        return {"pid": pid}

    async def restart(call: Call, body: Body) -> Any:
        fields = Fields("containers.restart", body)
        pid = await by_hand.restart(
            namespace_of(call),
            fields.id(),
            fields.seconds_or_none("timeout_s"),
            fields.signal_or_none("signal"),
        )
        return {"pid": pid}

    async def update(call: Call, body: Body) -> Any:
        fields = Fields("containers.update", body)
        namespace, id_ = namespace_of(call), fields.id()
        policy = fields.text("restart")
        restart_policy.parse(policy)  # before anything is changed
        if limits := fields.mapping("limits"):
            await changes.limit(namespace, id_, read_limits(limits))
        if policy:
            by_hand.set_policy(namespace, id_, changes.set_restart(namespace, id_, policy))
        return {}

    async def rename(call: Call, body: Body) -> Any:
        fields = Fields("containers.rename", body)
        namespace, id_, name = namespace_of(call), fields.id(), fields.id("name")
        async with by_hand.at_rest(namespace, id_, f"rename container {id_}"):
            await changes.rename(namespace, id_, name)
        return {}

    return methods("containers", start=start, restart=restart, update=update, rename=rename)
