"""Methods about networks: the maps of proto/daemon_api around NetworkCatalog and LiveNetworks."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from lighter.daemon.containers.service import ContainerService
from lighter.daemon.network.attachments import Wanted
from lighter.daemon.network.catalog import Listed, NetworkCatalog
from lighter.daemon.network.live import Checked, LiveNetworks
from lighter.daemon.network.made import NewNetwork
from lighter.daemon.network.request import parse
from lighter.daemon.rpc.fields import Fields
from lighter.daemon.rpc.methods import Call, Method, methods, namespace_of

Body = Mapping[str, Any]


def network_methods(
    catalog: NetworkCatalog, live: LiveNetworks, containers: ContainerService
) -> dict[str, Method]:
    async def list_(_call: Call, _body: Body) -> Any:
        networks, unusable = await catalog.list()
        return {
            "networks": [_listed(network) for network in networks],
            "unusable": [asdict(one) for one in unusable],
        }

    async def get(_call: Call, body: Body) -> Any:
        network, config, attached = await catalog.get(Fields("networks.get", body).needed("name"))
        return {"network": {**_listed(network), "config": config, "containers": attached}}

    async def create(_call: Call, body: Body) -> Any:
        fields = Fields("networks.create", body)
        made = await catalog.create(
            NewNetwork(
                name=fields.needed("name"),
                driver=fields.text("driver", "bridge"),
                subnets=fields.texts("subnets"),
                gateways=fields.texts("gateways"),
                ip_range=fields.text("ip_range"),
                ipv6=fields.flag("ipv6"),
                internal=fields.flag("internal"),
                parent=fields.text("parent"),
                mtu=fields.integer("mtu"),
            )
        )
        return {"name": made.name, "path": made.path}

    async def delete(_call: Call, body: Body) -> Any:
        await catalog.remove(Fields("networks.delete", body).needed("name"))
        return {}

    async def connect(call: Call, body: Body) -> Any:
        fields = Fields("networks.connect", body)
        name = fields.needed("name")
        asked = parse({"networks": [name], **{k: fields.text(k) for k in ("ip", "ip6", "mac")}})
        wanted = Wanted(tuple(ip for ip in (asked.ip, asked.ip6) if ip), asked.mac)
        one = await live.connect(namespace_of(call), fields.id(), name, wanted)
        if one is None:
            return {"ifname": "", "addresses": []}
        return {
            "ifname": one.ifname,
            "addresses": [address.address for address in one.view().addresses],
        }

    async def disconnect(call: Call, body: Body) -> Any:
        fields = Fields("networks.disconnect", body)
        await live.disconnect(namespace_of(call), fields.id(), fields.needed("name"))
        return {}

    async def check(call: Call, body: Body) -> Any:
        fields = Fields("networks.check", body)
        await containers.get(namespace_of(call), fields.id())
        return {"checked": _checked(await live.check(namespace_of(call), fields.id()))}

    async def reload(call: Call, body: Body) -> Any:
        fields = Fields("networks.reload", body)
        await containers.get(namespace_of(call), fields.id())
        done = await live.reload(namespace_of(call), fields.id(), fields.flag("force"))
        return {"checked": _checked(done)}

    return {
        **methods("networks", list=list_, get=get, create=create, delete=delete),
        **methods("networks", connect=connect, disconnect=disconnect, check=check, reload=reload),
    }


def _listed(network: Listed) -> dict[str, Any]:
    return {**asdict(network), "types": list(network.types), "subnets": list(network.subnets)}


def _checked(all_of_them: list[Checked]) -> list[dict[str, Any]]:
    return [asdict(one) for one in all_of_them]
