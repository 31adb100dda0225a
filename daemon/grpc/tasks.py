"""containerd.services.tasks.v1.Tasks: the running side of containers."""

import asyncio
import json
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

from google.protobuf.any_pb2 import Any as Any_
from google.protobuf.empty_pb2 import Empty
from google.protobuf.json_format import ParseDict

from lighter.daemon.containers.records import ContainerRecords
from lighter.daemon.containers.service import ContainerService
from lighter.daemon.filters import any_of
from lighter.daemon.grpc import anys
from lighter.daemon.grpc.calls import Call
from lighter.daemon.grpc.checkpoints import TaskCheckpoints
from lighter.daemon.grpc.containers import container_words
from lighter.daemon.grpc.options import runtime_options
from lighter.daemon.grpc.pb import cgroups_v1_pb2, cgroups_v2_pb2, runc_options_pb2
from lighter.daemon.grpc.pb import task_types_pb2 as types
from lighter.daemon.grpc.pb import tasks_pb2 as pb
from lighter.daemon.grpc.pb.types_pb2 import Metric
from lighter.daemon.grpc.taskwords import check_runtime, of_runtime, refused
from lighter.daemon.grpc.translate import moment, mount, timestamp
from lighter.daemon.procfs import has_ended
from lighter.daemon.restarts.byhand import ByHand
from lighter.daemon.tasks import metrics, processes
from lighter.daemon.tasks.clientstdio import stdio_of
from lighter.daemon.tasks.entry import Entry, Exec
from lighter.daemon.tasks.execs import ExecService, find_exec
from lighter.daemon.tasks.service import TaskService
from lighter.daemon.tasks.types import Exit
from lighter.proto import states
from lighter.proto.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    LighterError,
    NotFound,
    Unavailable,
)

_STATUS = {
    states.CREATED: types.Status.CREATED,
    states.ADDED: types.Status.CREATED,
    states.CREATING: types.Status.CREATED,
    states.RUNNING: types.Status.RUNNING,
    states.PAUSED: types.Status.PAUSED,
    states.STOPPED: types.Status.STOPPED,
}
_MAX_SIGNAL = 64
_NOT_CREATED = "process not created: failed precondition"
_FINISHED = "process already finished: not found"


class TasksService:
    NAME = "containerd.services.tasks.v1.Tasks"

    def __init__(
        self,
        records: ContainerRecords,
        containers: ContainerService,
        tasks: TaskService,
        execs: ExecService,
        by_hand: ByHand,
        checkpoints: TaskCheckpoints,
    ) -> None:
        self._by_hand = by_hand
        self._checkpoints = checkpoints
        self._records = records
        self._containers = containers
        self._tasks = tasks
        self._execs = execs

    def _entry(self, call: Call, container_id: str) -> Entry:
        """The task, in containerd's words when there is none."""
        try:
            return self._tasks.find(call.namespace, container_id)
        except NotFound as err:
            with container_words(call.namespace, container_id):
                self._records.get(call.namespace, container_id)
            raise NotFound(f"task {container_id} not found: not found") from err

    # -- life

    async def create(self, call: Call, request: pb.CreateTaskRequest) -> pb.CreateTaskResponse:
        namespace, id_ = call.namespace, request.container_id
        with container_words(namespace, id_):
            container = self._records.get(namespace, id_)
        runtime = request.runtime_path or container.runtime
        check_runtime(runtime)
        # As containerd (core/runtime/v2, Create): a value that is empty stands for the record's.
        options = runtime_options(request.options) if request.options.value else None
        mounts = tuple(map(mount, request.rootfs))
        stdio = stdio_of(request.stdin, request.stdout, request.stderr, request.terminal)
        try:
            async with AsyncExitStack() as undo:
                if request.HasField("checkpoint"):
                    opened = self._checkpoints.opened(namespace, request.checkpoint)
                    stdio["restore"] = await undo.enter_async_context(opened)
                pid = await self._containers.start_recorded(
                    namespace, id_, mounts, request.terminal, stdio, runtime, options
                )
        except AlreadyExists as err:
            raise AlreadyExists(f"task {id_}: already exists") from err
        except LighterError as err:
            raise of_runtime(err, "failed to create shim task: OCI runtime create failed") from err
        return pb.CreateTaskResponse(container_id=id_, pid=pid)

    async def start(self, call: Call, request: pb.StartRequest) -> pb.StartResponse:
        entry = self._entry(call, request.container_id)
        id_, exec_id = request.container_id, request.exec_id
        if exec_id:
            exec_ = _exec(entry, exec_id)
            with refused(entry, "exec"), refused(exec_, "start"):
                try:
                    pid = await self._execs.start(call.namespace, id_, exec_id)
                except LighterError as err:
                    raise of_runtime(err, "OCI runtime exec failed") from err
        else:
            with refused(entry, "start"):
                try:
                    pid = await self._by_hand.start_task(call.namespace, id_)
                except LighterError as err:
                    raise of_runtime(err, "OCI runtime start failed") from err
        return pb.StartResponse(pid=pid)

    async def delete(self, call: Call, request: pb.DeleteTaskRequest) -> pb.DeleteResponse:
        entry = self._entry(call, request.container_id)
        with refused(entry, "delete"):
            ended = await self._tasks.delete(call.namespace, request.container_id)
        return _deleted(entry.pid, ended)

    async def delete_process(
        self, call: Call, request: pb.DeleteProcessRequest
    ) -> pb.DeleteResponse:
        entry = self._entry(call, request.container_id)
        _exec(entry, request.exec_id)
        await self._execs.hear(entry, request.exec_id)
        exec_ = _exec(entry, request.exec_id)
        with refused(exec_, "delete"):
            ended = self._execs.delete(entry, request.exec_id)
        answer = _deleted(exec_.pid, ended)
        answer.id = request.exec_id
        return answer

    async def exec(self, call: Call, request: pb.ExecProcessRequest) -> Empty:
        entry = self._entry(call, request.container_id)
        if not request.exec_id:
            raise InvalidArgument("exec ID cannot be empty: invalid argument")
        process = _json(request.spec, anys.PROCESS)
        terminal = request.terminal
        process["terminal"] = terminal
        stdio = stdio_of(request.stdin, request.stdout, request.stderr, terminal)
        stdio["logger_for"] = [call.namespace, request.container_id]
        with refused(entry, "exec"):
            try:
                await self._execs.add(
                    call.namespace, request.container_id, request.exec_id, process, terminal, stdio
                )
            except AlreadyExists as err:
                raise AlreadyExists(f"id {request.exec_id}: already exists") from err
        return Empty()

    async def wait(self, call: Call, request: pb.WaitRequest) -> pb.WaitResponse:
        entry = self._entry(call, request.container_id)
        process = _process(entry, request.exec_id)
        try:
            ended = await self._tasks.wait(call.namespace, request.container_id, request.exec_id)
        except Unavailable:
            if process.state != states.ADDED:
                raise
            ended = Exit(0, 0)  # its start has failed, or it was deleted: containerd's answer
        return pb.WaitResponse(exit_status=ended.exit_status, exited_at=moment(ended.exited_at))

    # -- looking

    async def get(self, call: Call, request: pb.GetRequest) -> pb.GetResponse:
        entry = self._entry(call, request.container_id)
        if request.exec_id:
            exec_ = _exec(entry, request.exec_id)
            stdio = self._execs.stdio(call.namespace, request.container_id, request.exec_id)
            return pb.GetResponse(process=_exec_message(entry, exec_, stdio))
        return pb.GetResponse(process=_task_message(entry))

    async def list(self, call: Call, _request: pb.ListTasksRequest) -> pb.ListTasksResponse:
        entries = self._tasks.entries(call.namespace)
        return pb.ListTasksResponse(tasks=map(_task_message, entries))

    async def list_pids(self, call: Call, request: pb.ListPidsRequest) -> pb.ListPidsResponse:
        entry = self._entry(call, request.container_id)
        answer = pb.ListPidsResponse()
        found = await asyncio.to_thread(processes.of_task, entry)
        for pid, exec_id in found.items():
            info = answer.processes.add(pid=pid)
            if exec_id:
                details = runc_options_pb2.ProcessDetails(exec_id=exec_id)
                info.info.CopyFrom(anys.pack(details))
        return answer

    async def metrics(self, call: Call, request: pb.MetricsRequest) -> pb.MetricsResponse:
        wanted = any_of(request.filters)
        entries = self._tasks.entries(call.namespace)
        asked = [entry for entry in entries if wanted(partial(_field, entry))]
        found = await asyncio.to_thread(lambda: [*map(_measured, asked)])
        return pb.MetricsResponse(metrics=filter(None, found))

    # -- acts

    async def kill(self, call: Call, request: pb.KillRequest) -> Empty:
        entry = self._entry(call, request.container_id)
        if request.signal > _MAX_SIGNAL:
            raise InvalidArgument(f"unknown signal {request.signal}: invalid argument")
        process = _process(entry, request.exec_id)
        if not request.signal:  # it asks whether there is somebody to hear one
            if process.state == states.ADDED:
                raise FailedPrecondition(_NOT_CREATED)
            if process.state == states.STOPPED or has_ended(process.pid):
                raise NotFound(_FINISHED)
            return Empty()
        try:
            await self._by_hand.signal(
                call.namespace,
                request.container_id,
                request.exec_id,
                request.signal,
                request.all and not request.exec_id,
            )
        except (NotFound, FailedPrecondition) as err:
            ended = find_exec(entry, request.exec_id) if request.exec_id else entry
            if ended.state in (states.ADDED, states.CREATING):
                raise FailedPrecondition(_NOT_CREATED) from err
            # A shim refuses a kill only of what has ended, also before it has told the end.
            raise NotFound(_FINISHED) from err
        return Empty()

    async def pause(self, call: Call, request: pb.PauseTaskRequest) -> Empty:
        entry = self._entry(call, request.container_id)
        with refused(entry, "pause"):
            try:
                await self._tasks.pause(call.namespace, request.container_id)
            except LighterError as err:
                raise of_runtime(err, "OCI runtime pause failed") from err
        return Empty()

    async def resume(self, call: Call, request: pb.ResumeTaskRequest) -> Empty:
        entry = self._entry(call, request.container_id)
        with refused(entry, "resume"):
            try:
                await self._tasks.resume(call.namespace, request.container_id)
            except LighterError as err:
                raise of_runtime(err, "OCI runtime resume failed") from err
        return Empty()

    async def resize_pty(self, call: Call, request: pb.ResizePtyRequest) -> Empty:
        entry = self._entry(call, request.container_id)
        process = _process(entry, request.exec_id)
        if process.state == states.STOPPED:
            return Empty()  # it has no terminal any more
        for size in (request.width, request.height):
            if size > 0xFFFF:
                raise InvalidArgument(f"resize terminal: {size} is more than 65535")
        try:
            await self._execs.resize(
                call.namespace, request.container_id, request.exec_id, request.height, request.width
            )
        except FailedPrecondition:
            if process.terminal and process.state != states.STOPPED:
                raise  # it may not have it yet, and its client asks again
        return Empty()

    async def close_io(self, call: Call, request: pb.CloseIORequest) -> Empty:
        entry = self._entry(call, request.container_id)
        if _process(entry, request.exec_id).state in (states.ADDED, states.STOPPED):
            return Empty()
        if request.stdin:
            await self._execs.close_stdin(call.namespace, request.container_id, request.exec_id)
        return Empty()

    async def update(self, call: Call, request: pb.UpdateTaskRequest) -> Empty:
        entry = self._entry(call, request.container_id)
        resources = _json(request.resources, anys.RESOURCES)
        with refused(entry, "update"):
            try:
                await self._tasks.update(call.namespace, request.container_id, resources)
            except LighterError as err:
                raise of_runtime(err, "OCI runtime update failed") from err
        return Empty()

    async def checkpoint(
        self, call: Call, request: pb.CheckpointTaskRequest
    ) -> pb.CheckpointTaskResponse:
        entry = self._entry(call, request.container_id)
        with refused(entry, "checkpoint"):
            return await self._checkpoints.make(call, request)


def _exec(entry: Entry, exec_id: str) -> Exec:
    try:
        return find_exec(entry, exec_id)
    except NotFound as err:
        raise NotFound(f"process does not exist {exec_id}: not found") from err


def _process(entry: Entry, exec_id: str) -> Entry | Exec:
    return _exec(entry, exec_id) if exec_id else entry


def _json(value: Any_, type_url: str) -> dict[str, Any]:
    if value.type_url.rpartition("/")[2] != type_url.rpartition("/")[2]:
        raise InvalidArgument(f"expected {type_url}, got {value.type_url or 'nothing'}")
    try:
        content = json.loads(value.value)
    except (ValueError, RecursionError) as err:
        raise InvalidArgument(f"read {type_url}: it is no JSON") from err
    if not isinstance(content, dict):
        raise InvalidArgument(f"read {type_url}: it is no object")
    return content


def _measured(entry: Entry) -> Metric | None:
    """None of a task that has ended. Many tasks are many files: a thread reads them."""
    try:
        measured = metrics.of_task(entry)
    except (NotFound, OSError):
        return None
    message = (cgroups_v1_pb2 if measured.version == 1 else cgroups_v2_pb2).Metrics()
    ParseDict(dict(measured.values), message, ignore_unknown_fields=True)
    metric = Metric(id=entry.id, timestamp=timestamp(time.time_ns()))
    metric.data.CopyFrom(anys.pack(message))
    return metric


def _deleted(pid: int, ended: Exit) -> pb.DeleteResponse:
    return pb.DeleteResponse(
        pid=pid, exit_status=ended.exit_status, exited_at=moment(ended.exited_at)
    )


def _task_message(entry: Entry) -> types.Process:
    stdin, stdout, stderr = entry.options.get("stdio") or ("", "", "")
    view = entry.view()
    message = types.Process(
        id=entry.id,
        pid=entry.pid,
        status=_STATUS.get(view.status, types.Status.UNKNOWN),
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        terminal=entry.terminal,
    )
    _add_exit(message, entry.exit)
    return message


def _exec_message(entry: Entry, exec_: Exec, stdio: Mapping[str, Any]) -> types.Process:
    # One that runs is paused with its task. An ended one is not: its client may delete it.
    is_paused = (exec_.state, entry.state) == (states.RUNNING, states.PAUSED)
    state = states.PAUSED if is_paused else exec_.state
    message = types.Process(
        id=exec_.exec_id,
        pid=exec_.pid,
        status=_STATUS.get(state, types.Status.UNKNOWN),
        stdin=stdio.get("stdin", ""),
        stdout=stdio.get("stdout", ""),
        stderr=stdio.get("stderr", ""),
        terminal=exec_.terminal,
    )
    _add_exit(message, exec_.exit)
    return message


def _add_exit(message: types.Process, ended: Exit | None) -> None:
    message.exit_status = ended.exit_status if ended else 0
    message.exited_at.CopyFrom(moment(ended.exited_at if ended else 0))


def _field(entry: Entry, path: tuple[str, ...]) -> str | None:
    """What a filter asks of a task."""
    match path:
        case ("id",):
            return entry.id
        case ("namespace",):
            return entry.namespace
        case _:
            return None
