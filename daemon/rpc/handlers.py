"""The methods of proto/daemon_api: maps in, service calls, maps out. Nothing is decided here."""

import os
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import asdict
from typing import Any

from lighter.daemon.containers import ContainerService, CreateRequest
from lighter.daemon.events import EventLog
from lighter.daemon.logs import LogReader
from lighter.daemon.namespaces import NamespaceService
from lighter.daemon.oci.process import ExecRequest
from lighter.daemon.rpc.fields import Fields
from lighter.daemon.rpc.server import Call, Method
from lighter.daemon.tasks import processes
from lighter.daemon.tasks.execs import ExecService
from lighter.daemon.tasks.service import TaskService
from lighter.daemon.types import Container, Exit, Task
from lighter.proto.daemon_api import PAGE_ROWS
from lighter.proto.errors import InvalidArgument, NotFound
from lighter.proto.names import check_name
from lighter.proto.paths import Root

STDIO = ("stdin", "stdout", "stderr")
SIGNALS = range(1, 65)
Body = Mapping[str, Any]


def namespace_methods(namespaces: NamespaceService) -> dict[str, Method]:
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
        await namespaces.delete(Fields("namespaces.delete", body).text("name"))
        return {}

    return _methods("namespaces", list=list_, create=create, label=label, delete=delete)


def container_methods(containers: ContainerService) -> dict[str, Method]:
    async def create(call: Call, body: Body) -> Any:
        request = _create_request(Fields("containers.create", body))
        container, warnings = await containers.create(_namespace(call), request)
        return {"id": container.id, "warnings": list(warnings)}

    async def list_(call: Call, body: Body) -> Any:
        fields = Fields("containers.list", body)
        page, cursor = await containers.list(
            _namespace(call), fields.text("cursor"), fields.integer("limit", PAGE_ROWS)
        )
        return {"containers": [_container(item) for item in page], "next": cursor or None}

    async def get(call: Call, body: Body) -> Any:
        fields = Fields("containers.get", body)
        found = await containers.get(_namespace(call), fields.id())
        extra = {"spec": found.spec.decode(), "options": dict(found.options)}
        return {"container": {**_container(found), **extra}}

    async def resolve(call: Call, body: Body) -> Any:
        ref = Fields("containers.resolve", body).text("ref")
        return {"id": await containers.resolve(_namespace(call), ref)}

    async def label(call: Call, body: Body) -> Any:
        fields = Fields("containers.label", body)
        changed = await containers.label(_namespace(call), fields.id(), fields.labels())
        return {"container": _container(changed)}

    async def delete(call: Call, body: Body) -> Any:
        fields = Fields("containers.delete", body)
        await containers.delete(_namespace(call), fields.id(), fields.flag("force"))
        return {}

    return {
        **_methods("containers", create=create, list=list_, get=get, resolve=resolve),
        **_methods("containers", label=label, delete=delete),
    }


def task_methods(
    tasks: TaskService, execs: ExecService, containers: ContainerService
) -> dict[str, Method]:
    async def create(call: Call, body: Body) -> Any:
        fields = Fields("tasks.create", body)
        pid = await containers.start_task(_namespace(call), fields.id(), _stdio(fields, call))
        return {"pid": pid}

    async def start(call: Call, body: Body) -> Any:
        pid = await tasks.start(_namespace(call), Fields("tasks.start", body).id())
        return {"pid": pid}

    async def get(call: Call, body: Body) -> Any:
        task = await tasks.get(_namespace(call), Fields("tasks.get", body).id())
        return {"task": _task(task)}

    async def list_(call: Call, _body: Body) -> Any:
        return {"tasks": [_task(task) for task in await tasks.list(_namespace(call))]}

    async def kill(call: Call, body: Body) -> Any:
        fields = Fields("tasks.kill", body)
        signum = fields.integer("signal", 15)
        if signum not in SIGNALS:
            raise InvalidArgument(f"kill task: {signum} is no signal number")
        await tasks.kill(
            _namespace(call),
            fields.id(),
            fields.exec_id(),
            signum,
            fields.flag("all"),
        )
        return {}

    async def stop(call: Call, body: Body) -> Any:
        fields = Fields("tasks.stop", body)
        ended = await containers.stop(
            _namespace(call), fields.id(), fields.seconds("timeout_s", 10.0)
        )
        return _exit(ended)

    async def pause(call: Call, body: Body) -> Any:
        await tasks.pause(_namespace(call), Fields("tasks.pause", body).id())
        return {}

    async def resume(call: Call, body: Body) -> Any:
        await tasks.resume(_namespace(call), Fields("tasks.resume", body).id())
        return {}

    async def exec_(call: Call, body: Body) -> Any:
        fields = Fields("tasks.exec", body)
        stdio = _stdio(fields, call)
        request = ExecRequest(
            args=fields.texts("args"),
            env=fields.texts("env"),
            cwd=fields.text_or_none("cwd"),
            terminal=fields.flag("terminal"),
        )
        namespace, id_ = _namespace(call), fields.id()
        tasks.find(namespace, id_)
        process = await containers.exec_spec(namespace, id_, request, fields.text_or_none("user"))
        exec_id, pid = await execs.exec(
            namespace, id_, fields.name_or_none("exec_id"), process, stdio
        )
        return {"exec_id": exec_id, "pid": pid}

    async def attach(call: Call, body: Body) -> Any:
        fields = Fields("tasks.attach", body)
        stdio = {name: value for name, value in _stdio(fields, call).items() if name in STDIO}
        terminal = await execs.attach(_namespace(call), fields.id(), fields.exec_id(), stdio)
        return {"terminal": terminal}

    async def resize(call: Call, body: Body) -> Any:
        fields = Fields("tasks.resize", body)
        await execs.resize(
            _namespace(call),
            fields.id(),
            fields.exec_id(),
            _size(fields, "rows"),
            _size(fields, "cols"),
        )
        return {}

    async def close_stdin(call: Call, body: Body) -> Any:
        fields = Fields("tasks.close_stdin", body)
        await execs.close_stdin(_namespace(call), fields.id(), fields.exec_id())
        return {}

    async def wait(call: Call, body: Body) -> Any:
        fields = Fields("tasks.wait", body)
        ended = await tasks.wait(
            _namespace(call),
            fields.id(),
            fields.exec_id(),
            fields.flag("reissued"),
            fields.flag("until_removed"),
        )
        return _exit(ended)

    async def delete(call: Call, body: Body) -> Any:
        fields = Fields("tasks.delete", body)
        ended = await tasks.delete(
            _namespace(call), fields.id(), fields.exec_id(), fields.flag("force")
        )
        return _exit(ended)

    async def pids(call: Call, body: Body) -> Any:
        entry = tasks.find(_namespace(call), Fields("tasks.pids", body).id())
        return {"processes": processes.of_task(entry)}

    return {
        **_methods("tasks", create=create, start=start, get=get, list=list_, kill=kill, stop=stop),
        **_methods("tasks", pause=pause, resume=resume, exec=exec_, attach=attach, resize=resize),
        **_methods("tasks", close_stdin=close_stdin, wait=wait, delete=delete, pids=pids),
    }


def event_methods(events_log: EventLog) -> dict[str, Method]:
    async def subscribe(call: Call, body: Body) -> AsyncIterator[Any]:
        fields = Fields("events.subscribe", body)
        async for event in events_log.subscribe(
            call.namespace, fields.integer_or_none("since"), fields.flag("follow", True)
        ):
            yield {
                "sequence": event.sequence,
                "timestamp": event.timestamp,
                "namespace": event.namespace,
                "topic": event.topic,
                "event": event.body,
            }

    return {"events.subscribe": Method(stream=subscribe)}


def log_methods(root: Root, tasks: TaskService, containers: ContainerService) -> dict[str, Method]:
    async def read(call: Call, body: Body) -> AsyncIterator[Any]:
        fields = Fields("logs.read", body)
        namespace, id_ = _namespace(call), fields.id()
        container = await containers.get(namespace, id_)
        if (container.options.get("log") or {}).get("driver") == "none":
            raise NotFound(f"read log of {id_}: it was created without one (log driver none)")

        def ended() -> bool:
            try:
                return tasks.find(namespace, id_).cleaned.is_set()
            except NotFound:
                return True

        reader = LogReader(root.logs(namespace, id_))
        async for chunk in reader.read(
            fields.integer_or_none("tail"),
            fields.integer_or_none("since"),
            fields.flag("follow"),
            ended,
        ):
            yield {"timestamp": chunk.timestamp, "stream": chunk.stream, "data": chunk.data}

    return {"logs.read": Method(stream=read)}


def _methods(service: str, **methods: Any) -> dict[str, Method]:
    return {f"{service}.{name}": Method(unary=method) for name, method in methods.items()}


def _namespace(call: Call) -> str:
    return check_name(call.namespace, "namespace")


def _size(fields: Fields, name: str) -> int:
    value = fields.integer(name)
    if not 0 <= value <= 0xFFFF:
        raise InvalidArgument(f"read request: {name} is {value}, a terminal has 0 to 65535")
    return value


def _stdio(fields: Fields, call: Call) -> dict[str, Any]:
    """The caller's streams. /proc paths are taken only for the caller's own descriptors."""
    stdio: dict[str, Any] = {"rows": _size(fields, "rows"), "cols": _size(fields, "cols")}
    for name in STDIO:
        uri = stdio[name] = fields.text(name)
        path = uri.removeprefix("file://")
        if uri and not path.startswith("/"):
            raise InvalidArgument(f"use {uri!r} as {name}: expected an absolute path or file://")
        plain = "/" + os.path.normpath(path).lstrip("/")
        own = plain.startswith(f"/proc/{call.pid}/fd/")
        if plain.startswith("/proc/") and (uri != plain or not own):
            raise InvalidArgument(f"use {uri} as {name}: it is no descriptor of process {call.pid}")
    return stdio


def _create_request(fields: Fields) -> CreateRequest:
    return CreateRequest(
        image=fields.needed("image"),
        id=fields.name_or_none("id"),
        args=fields.texts("args"),
        entrypoint=fields.texts_or_none("entrypoint"),
        env=fields.texts("env"),
        cwd=fields.text_or_none("cwd"),
        user=fields.text_or_none("user"),
        terminal=fields.flag("terminal"),
        mounts=fields.mappings("mounts"),
        net_host=fields.flag("net_host"),
        read_only=fields.flag("read_only"),
        hostname=fields.text_or_none("hostname"),
        labels=fields.labels(),
        snapshotter=fields.text("snapshotter"),
        privileged=fields.flag("privileged"),
        cap_add=fields.texts("cap_add"),
        cap_drop=fields.texts("cap_drop"),
        seccomp=fields.text("seccomp", "default"),
        allow_new_privs=fields.flag("allow_new_privs"),
        runtime=fields.text("runtime"),
        with_ns=fields.labels("with_ns"),
        auto_remove=fields.flag("auto_remove"),
        stdin_open=fields.flag("stdin_open"),
        stop_signal=fields.text("stop_signal"),
        log=fields.mapping("log"),
    )


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


def _task(task: Task) -> dict[str, Any]:
    values = asdict(task)
    del values["namespace"]
    return values


def _exit(ended: Exit) -> dict[str, Any]:
    return asdict(ended)


def version_method(facts: Mapping[str, Any]) -> dict[str, Method]:
    started_at = time.time_ns()

    async def get(_call: Call, _body: Body) -> Any:
        return {**facts, "started_at": started_at}

    return _methods("version", get=get)
