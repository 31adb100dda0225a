"""Methods about containers: the maps of proto/daemon_api around ContainerService."""

from collections.abc import Callable, Mapping
from typing import Any

from lighter.daemon.containers.service import ContainerService
from lighter.daemon.filterfields import of_container
from lighter.daemon.filters import any_of
from lighter.daemon.health.service import HealthService
from lighter.daemon.restarts.byhand import ByHand
from lighter.daemon.restarts.service import Restarts
from lighter.daemon.rpc.create_request import create_request
from lighter.daemon.rpc.fields import Fields
from lighter.daemon.rpc.methods import Call, Method, methods, namespace_of
from lighter.daemon.types import Container
from lighter.proto.daemon_api import PAGE_ROWS

Body = Mapping[str, Any]


def container_methods(
    containers: ContainerService,
    by_hand: ByHand,
    restarts: Restarts,
    health: HealthService,
    network_of: Callable[[str, str], dict[str, Any]],
) -> dict[str, Method]:
    async def create(call: Call, body: Body) -> Any:
        request = create_request(Fields("containers.create", body))
        container, warnings = await containers.create(namespace_of(call), request)
        return {"id": container.id, "warnings": list(warnings)}

    async def list_(call: Call, body: Body) -> Any:
        fields = Fields("containers.list", body)
        wanted = any_of(fields.texts("filters"))
        page, cursor = await containers.list(
            namespace_of(call), fields.text("cursor"), fields.integer("limit", PAGE_ROWS)
        )
        rows = [_container(item) for item in page if wanted(of_container(item))]
        return {"containers": rows, "next": cursor or None}

    async def get(call: Call, body: Body) -> Any:
        fields = Fields("containers.get", body)
        namespace, id_ = namespace_of(call), fields.id()
        found = await containers.get(namespace, id_)
        extra = {
            "spec": found.spec.decode(),
            "options": dict(found.options),
            "restart": restarts.describe(namespace, id_),
            "health": health.get(namespace, id_),
            **network_of(namespace, id_),
        }
        return {"container": {**_container(found), **extra}}

    async def resolve(call: Call, body: Body) -> Any:
        ref = Fields("containers.resolve", body).text("ref")
        return {"id": await containers.resolve(namespace_of(call), ref)}

    async def label(call: Call, body: Body) -> Any:
        fields = Fields("containers.label", body)
        changed = await containers.label(namespace_of(call), fields.id(), fields.labels())
        return {"container": _container(changed)}

    async def delete(call: Call, body: Body) -> Any:
        fields = Fields("containers.delete", body)
        await by_hand.delete(
            namespace_of(call), fields.id(), fields.flag("force"), volumes=fields.flag("volumes")
        )
        return {}

    async def forget(call: Call, body: Body) -> Any:
        await by_hand.forget(namespace_of(call), Fields("containers.forget", body).id())
        return {}

    return {
        **methods("containers", create=create, list=list_, get=get, resolve=resolve),
        **methods("containers", label=label, delete=delete, forget=forget),
    }


def _container(container: Container) -> dict[str, Any]:
    return {
        "id": container.id,
        "image": container.image,
        "runtime": container.runtime,
        "snapshotter": container.snapshotter,
        "snapshot_key": container.snapshot_key,
        "labels": dict(container.labels),
        "created_at": container.created_at,
        "updated_at": container.updated_at,
    }
