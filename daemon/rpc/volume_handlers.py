"""Methods about volumes: the maps of proto/daemon_api around Volumes."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from lighter.daemon.metadata.volumes import Volume
from lighter.daemon.rpc.fields import Fields
from lighter.daemon.rpc.methods import Call, Method, methods, namespace_of
from lighter.daemon.volumes.service import Volumes, check_driver

Body = Mapping[str, Any]


def volume_methods(volumes: Volumes) -> dict[str, Method]:
    def row(volume: Volume, users: Mapping[str, list[str]]) -> dict[str, Any]:
        return {
            "name": volume.name,
            "labels": dict(volume.labels),
            "anonymous": volume.anonymous,
            "created_at": volume.created_at,
            "mountpoint": volumes.path(volume.namespace, volume.name),
            "containers": users.get(volume.name, []),
        }

    async def create(call: Call, body: Body) -> Any:
        fields = Fields("volumes.create", body)
        check_driver(fields.text("driver"), fields.labels("options"))
        name, namespace = fields.name_or_none("name"), namespace_of(call)
        made, _is_new = volumes.create(
            namespace, volumes.new_name() if name is None else name, fields.labels()
        )
        return {"volume": row(made, volumes.users(namespace))}

    async def list_(call: Call, _body: Body) -> Any:
        namespace = namespace_of(call)
        users = volumes.users(namespace)
        return {"volumes": [row(volume, users) for volume in volumes.list(namespace)]}

    async def get(call: Call, body: Body) -> Any:
        fields = Fields("volumes.get", body)
        namespace, name = namespace_of(call), fields.id("name", "volume")
        found = row(volumes.get(namespace, name), volumes.users(namespace))
        if fields.flag("size"):
            found["size_bytes"] = await volumes.size_bytes(namespace, name)
        return {"volume": found}

    async def delete(call: Call, body: Body) -> Any:
        fields = Fields("volumes.delete", body)
        await volumes.delete(namespace_of(call), fields.id("name", "volume"))
        return {}

    async def prune(call: Call, body: Body) -> Any:
        fields = Fields("volumes.prune", body)
        done = await volumes.prune(namespace_of(call), everything=fields.flag("all"))
        return asdict(done)

    return methods("volumes", create=create, list=list_, get=get, delete=delete, prune=prune)
