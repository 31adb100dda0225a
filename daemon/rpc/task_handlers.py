"""Methods about tasks and their execs: the maps of proto/daemon_api around TaskService."""

import asyncio
import contextlib
import os
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from signal import SIGKILL
from typing import Any

from lighter.daemon.checkpoints.service import ENDED_S, Checkpoints
from lighter.daemon.containers.service import ContainerService
from lighter.daemon.looks import Looks
from lighter.daemon.oci.process import ExecRequest
from lighter.daemon.restarts.byhand import ByHand
from lighter.daemon.rpc.fields import SIGNALS, Fields
from lighter.daemon.rpc.methods import Call, Method, methods, namespace_of
from lighter.daemon.rpc.owners import is_owned
from lighter.daemon.tasks import criu, processes
from lighter.daemon.tasks.clientstdio import log_streams
from lighter.daemon.tasks.execs import ExecService
from lighter.daemon.tasks.service import TaskService
from lighter.daemon.tasks.types import Exit
from lighter.proto.errors import InvalidArgument, LighterError

STDIO = ("stdin", "stdout", "stderr")
Body = Mapping[str, Any]


def task_methods(
    tasks: TaskService,
    execs: ExecService,
    containers: ContainerService,
    by_hand: ByHand,
    checkpoints: Checkpoints,
) -> dict[str, Method]:
    looks = Looks()

    async def create(call: Call, body: Body) -> Any:
        fields = Fields("tasks.create", body)
        namespace, id_, stdio = namespace_of(call), fields.id(), _stdio(fields, call)
        if directory := fields.text("checkpoint"):
            where = f"go on from {directory}"
            await looks.at(where, partial(criu.check_written, directory))
            stdio["restore"] = directory
        if fields.flag("replace"):
            await by_hand.make_way(namespace, id_)
        async with contextlib.AsyncExitStack() as undo:
            if name := fields.text("checkpoint_image"):
                opened = checkpoints.opened(namespace, name, trust=fields.flag("trust"))
                stdio["restore"] = await undo.enter_async_context(opened)
            try:
                pid = await containers.start_task(namespace, id_, stdio, fields.text("log_uri"))
            except Exception:
                await by_hand.remove_unstarted(namespace, id_)
                raise
        return {"pid": pid}

    async def checkpoint(call: Call, body: Body) -> Any:
        fields = Fields("tasks.checkpoint", body)
        namespace, id_ = namespace_of(call), fields.id()
        end = partial(by_hand.stop, namespace, id_, timeout_s=ENDED_S, signum=SIGKILL)
        goes_on = fields.flag("leave_running", True)
        directory = fields.needed("directory")
        await checkpoints.dump(namespace, id_, directory, None if goes_on else end)
        return {}

    async def start(call: Call, body: Body) -> Any:
        pid = await by_hand.start_task(namespace_of(call), Fields("tasks.start", body).id())
        return {"pid": pid}

    async def kill(call: Call, body: Body) -> Any:
        fields = Fields("tasks.kill", body)
        signum = fields.integer("signal", 15)
        if signum not in SIGNALS:
            raise InvalidArgument(f"kill task: {signum} is no signal number")
        id_, exec_id, everyone = fields.id(), fields.exec_id(), fields.flag("all")
        if exec_id and everyone:
            raise InvalidArgument(f"kill task {id_}: either exec {exec_id} or all, not both")
        await by_hand.kill(namespace_of(call), id_, exec_id, signum, everyone)
        return {}

    async def stop(call: Call, body: Body) -> Any:
        fields = Fields("tasks.stop", body)
        ended = await by_hand.stop(
            namespace_of(call),
            fields.id(),
            fields.seconds_or_none("timeout_s"),
            fields.signal_or_none("signal"),
        )
        return _exit(ended)

    async def pause(call: Call, body: Body) -> Any:
        await tasks.pause(namespace_of(call), Fields("tasks.pause", body).id())
        return {}

    async def resume(call: Call, body: Body) -> Any:
        await tasks.resume(namespace_of(call), Fields("tasks.resume", body).id())
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
        namespace, id_ = namespace_of(call), fields.id()
        if uri := fields.text("log_uri"):
            stdio |= {**log_streams(uri), "logger_for": [namespace, id_]}
        tasks.find(namespace, id_)
        process = await containers.exec_spec(namespace, id_, request, fields.text_or_none("user"))
        exec_id, pid = await execs.exec(
            namespace, id_, fields.name_or_none("exec_id"), process, stdio
        )
        return {"exec_id": exec_id, "pid": pid}

    async def attach(call: Call, body: Body) -> Any:
        fields = Fields("tasks.attach", body)
        stdio = {name: value for name, value in _stdio(fields, call).items() if name in STDIO}
        namespace = namespace_of(call)
        may_drop = is_owned(namespace)
        terminal = await execs.attach(namespace, fields.id(), fields.exec_id(), stdio, may_drop)
        return {"terminal": terminal}

    async def resize(call: Call, body: Body) -> Any:
        fields = Fields("tasks.resize", body)
        await execs.resize(
            namespace_of(call),
            fields.id(),
            fields.exec_id(),
            _size(fields, "rows"),
            _size(fields, "cols"),
        )
        return {}

    async def close_stdin(call: Call, body: Body) -> Any:
        fields = Fields("tasks.close_stdin", body)
        await execs.close_stdin(namespace_of(call), fields.id(), fields.exec_id())
        return {}

    async def wait(call: Call, body: Body) -> Any:
        fields = Fields("tasks.wait", body)
        ended = await tasks.wait(
            namespace_of(call),
            fields.id(),
            fields.exec_id(),
            fields.flag("reissued"),
            fields.flag("until_removed"),
        )
        if fields.flag("delete") and fields.exec_id():
            with contextlib.suppress(LighterError):  # how it ended is told whatever becomes of it
                await by_hand.delete_task(namespace_of(call), fields.id(), fields.exec_id(), False)
            return {**_exit(ended), "deleted": True}
        return _exit(ended)

    async def delete(call: Call, body: Body) -> Any:
        fields = Fields("tasks.delete", body)
        ended = await by_hand.delete_task(
            namespace_of(call), fields.id(), fields.exec_id(), fields.flag("force")
        )
        return _exit(ended)

    async def pids(call: Call, body: Body) -> Any:
        entry = tasks.find(namespace_of(call), Fields("tasks.pids", body).id())
        found = await asyncio.to_thread(processes.of_task, entry)
        return {"processes": [{"pid": pid, "exec_id": exec_id} for pid, exec_id in found.items()]}

    return {
        **methods("tasks", create=create, start=start, kill=kill, stop=stop),
        **methods("tasks", pause=pause, resume=resume, exec=exec_, attach=attach, resize=resize),
        **methods("tasks", close_stdin=close_stdin, wait=wait, delete=delete, pids=pids),
        **methods("tasks", checkpoint=checkpoint),
    }


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


def _exit(ended: Exit) -> dict[str, Any]:
    return asdict(ended)
