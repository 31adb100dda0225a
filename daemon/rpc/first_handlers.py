"""Methods that are answered from the first moment on: who this manager is, how it is, its tasks.

What they need is loaded before the socket is there, and counts for every client as an interruption:
so nothing here takes more than the core has.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

from lighter.daemon.core import Core
from lighter.daemon.rpc.fields import Fields
from lighter.daemon.rpc.methods import Call, Method, methods, namespace_of
from lighter.daemon.tasks.types import Task
from lighter.daemon.version import NAME, REVISION
from lighter.proto.version import VERSION

Body = Mapping[str, Any]


def first_methods(core: Core, health: Callable[[], dict[str, Any]]) -> dict[str, Method]:
    started_at = time.time_ns()
    facts = {
        "name": NAME,
        "version": VERSION,
        "revision": REVISION,
        "uuid": core.db.uuid,
        "generation": core.generation,
        "instance": core.root.instance,
        "root": core.root.dir,
        "state": core.state.dir,
        "started_at": started_at,
    }

    async def version(_call: Call, _body: Body) -> Any:
        return facts

    async def system_health(_call: Call, _body: Body) -> Any:
        return health()

    def shown(task: Task) -> dict[str, Any]:
        values = dict(vars(task))  # plain values; asdict would copy each, 20 times slower
        del values["namespace"]
        return {**values, **core.network_of(task.namespace, task.id)}

    async def get(call: Call, body: Body) -> Any:
        namespace, id_ = namespace_of(call), Fields("tasks.get", body).id()
        return {"task": shown(core.views.get(namespace, id_))}

    async def list_(call: Call, _body: Body) -> Any:
        return {"tasks": [shown(task) for task in core.views.list(namespace_of(call))]}

    return {
        **methods("version", get=version),
        **methods("system", health=system_health),
        **methods("tasks", get=get, list=list_),
    }
