"""Methods about OCI specs that belong to no container."""

import json
from collections.abc import Mapping
from typing import Any

from lighter.daemon.oci.host import Host
from lighter.daemon.oci.spec import default
from lighter.daemon.rpc.methods import Call, Method, methods, namespace_of


def oci_methods(host: Host) -> dict[str, Method]:
    async def spec(call: Call, _body: Mapping[str, Any]) -> Any:
        return {"spec": json.dumps(default(host, namespace_of(call)))}

    return methods("oci", spec=spec)
