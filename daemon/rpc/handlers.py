"""Methods about namespaces, events and logs. Nothing is decided here."""

from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import asdict
from typing import Any

from lighter.daemon.containers.service import ContainerService
from lighter.daemon.events.log import EventLog
from lighter.daemon.events.wishes import wishes
from lighter.daemon.namespaces import NamespaceService
from lighter.daemon.rpc.fields import Fields
from lighter.daemon.rpc.methods import Call, Method, methods, namespace_of
from lighter.daemon.tasks.logs import LogReader
from lighter.daemon.tasks.service import TaskService
from lighter.proto.errors import NotFound
from lighter.proto.paths import Root

Body = Mapping[str, Any]


def namespace_methods(
    namespaces: NamespaceService, remove_cgroup: Callable[[str], None]
) -> dict[str, Method]:
    async def list_(_call: Call, _body: Body) -> Any:
        return {"namespaces": [asdict(namespace) for namespace in namespaces.list()]}

    async def create(_call: Call, body: Body) -> Any:
        fields = Fields("namespaces.create", body)
        namespaces.create(fields.text("name"), fields.labels())
        return {}

    async def label(_call: Call, body: Body) -> Any:
        fields = Fields("namespaces.label", body)
        namespaces.label(fields.text("name"), fields.labels())
        return {}

    async def delete(_call: Call, body: Body) -> Any:
        fields = Fields("namespaces.delete", body)
        name = fields.text("name")
        await namespaces.delete(name)
        if fields.flag("cgroup"):
            remove_cgroup(name)
        return {}

    return methods("namespaces", list=list_, create=create, label=label, delete=delete)


def event_methods(events_log: EventLog) -> dict[str, Method]:
    async def subscribe(call: Call, body: Body) -> AsyncIterator[Any]:
        fields = Fields("events.subscribe", body)
        async for event in events_log.subscribe(
            call.namespace,
            fields.integer_or_none("since"),
            fields.flag("follow", True),
            wanted=wishes(fields.texts("filters"), fields.texts("expressions")),
            since_time=fields.integer_or_none("since_time"),
            until=fields.integer_or_none("until"),
            until_time=fields.integer_or_none("until_time"),
        ):
            yield {
                "sequence": event.sequence,
                "timestamp": event.timestamp,
                "namespace": event.namespace,
                "topic": event.topic,
                "event": event.body,
            }

    async def newest(_call: Call, _body: Body) -> Any:
        return {"sequence": events_log.newest()}

    return {"events.subscribe": Method(stream=subscribe), **methods("events", newest=newest)}


def log_methods(
    root: Root,
    tasks: TaskService,
    containers: ContainerService,
    is_owed: Callable[[str, str], bool],
) -> dict[str, Method]:
    """`is_owed`: whether a container is being started again, so that its log goes on."""

    async def read(call: Call, body: Body) -> AsyncIterator[Any]:
        fields = Fields("logs.read", body)
        namespace, id_ = namespace_of(call), fields.id()
        container = await containers.get(namespace, id_)
        log = container.options.get("log") or {}
        if log.get("uri"):
            raise NotFound(f"read log of {id_}: its output goes to {log['uri']}")
        if log.get("driver") == "none":
            raise NotFound(f"read log of {id_}: it was created without one (log driver none)")

        def ended() -> bool:
            try:
                over = tasks.find(namespace, id_).cleaned.is_set()
            except NotFound:
                over = True
            return over and not is_owed(namespace, id_)

        def is_anothers() -> bool:
            try:
                return containers.created_at(namespace, id_) != container.created_at
            except NotFound:
                return False  # what is left of its log is still its own

        reader = LogReader(root.logs(namespace, id_))
        async for chunk in reader.read(
            fields.integer_or_none("tail"),
            fields.integer_or_none("since"),
            fields.flag("follow"),
            ended,
            until=fields.integer_or_none("until"),
            is_anothers=is_anothers,
        ):
            yield {"timestamp": chunk.timestamp, "stream": chunk.stream, "data": chunk.data}

    return {"logs.read": Method(stream=read)}
