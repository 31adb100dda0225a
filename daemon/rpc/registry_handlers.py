"""Methods about registries themselves: whether one takes a credential, and how it is reached."""

from collections.abc import AsyncIterator, Mapping
from typing import Any

from lighter.daemon.images.reference import Reference
from lighter.daemon.registry.registries import Registries
from lighter.daemon.rpc.access import access_of
from lighter.daemon.rpc.fields import Fields
from lighter.daemon.rpc.methods import Call, Method, Result
from lighter.proto.errors import InvalidArgument

Body = Mapping[str, Any]

_ANY_NAME = "x"


def registry_methods(registries: Registries) -> dict[str, Method]:
    async def login(_call: Call, body: Body) -> Any:
        from lighter.daemon.registry import probe

        fields = Fields("registry.login", body)
        server = fields.needed("server")
        reference = Reference.parse(f"{server}/{_ANY_NAME}")
        if "/" in server or reference.repository not in (_ANY_NAME, f"library/{_ANY_NAME}"):
            raise InvalidArgument(
                f"log in to {server!r}: expected a host that image names can begin with, such as "
                "harbor.example or localhost:5000"
            )
        access = access_of(fields.mapping("access"))
        host, asked = await probe.login(registries, reference.domain, access)
        return {"host": host, "asked": asked}

    async def test(_call: Call, body: Body) -> AsyncIterator[Any]:
        from lighter.daemon.registry import probe

        fields = Fields("registry.test", body)
        reference = Reference.parse(fields.needed("name"))
        access = access_of(fields.mapping("access"))
        reached = False
        async for item in probe.test(registries, reference, access):
            reached = reached or bool(item.fields.get("digest"))
            yield {"kind": item.kind, **item.fields}
        yield Result({"name": str(reference), "reached": reached})

    return {"registry.login": Method(unary=login), "registry.test": Method(stream=test)}
