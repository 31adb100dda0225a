"""A life by containerd's API under faults: tests/integration/test_kill9's, asked of the other front
end. The client keeps snapshot and record itself, as containerd's clients do.
"""

import json
import time
from collections.abc import Callable
from contextlib import suppress
from types import ModuleType
from typing import Any

import grpc
from google.protobuf.any_pb2 import Any as Any_

from lighter.daemon.grpc.anys import SPEC
from lighter.daemon.grpc.pb import containers_pb2, snapshots_pb2, task_types_pb2, tasks_pb2
from lighter.proto import errors
from tests import lives
from tests.grpc.client import Api, code
from tests.grpc.space import SNAPSHOTTER
from tests.grpc.workshop import PROCESS
from tests.integration.test_kill9 import Life

_POLL_S = 0.05
_GONE_S = 2.0
_HAS_RUN = (task_types_pb2.RUNNING, task_types_pb2.STOPPED)
_KINDS = {kind.replace("-", "_").upper(): of for kind, of in errors.BY_CODE.items()}
_KINDS["CANCELLED"] = errors.Canceled
_NAMESPACES = ("pid", "mount", "ipc", "uts")


class ApiLife(Life):
    """As its base; what it asks of the manager goes through Snapshots, Containers and Tasks."""

    def ask(self, call: str, **body: Any) -> Any:
        act: Callable[..., Any] = getattr(self, "_" + call.replace(".", "_"))
        return act(body.pop("id"), **body)

    # --- each call of a life, as a client of containerd's makes it, and may make it again

    def _containers_create(self, name: str, image: str, args: list[str]) -> None:
        (layer,) = self._stream(
            snapshots_pb2, "Snapshots", "List", snapshotter=SNAPSHOTTER, filters=["kind==committed"]
        )
        with suppress(errors.AlreadyExists):
            self._snapshots("Prepare", key=name, parent=layer.info[0].name)
        spec = {
            "ociVersion": "1.0.2",
            "process": _process(args),
            "root": {"path": "rootfs"},
            "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
            "linux": {"namespaces": [{"type": kind} for kind in _NAMESPACES]},
        }
        container = containers_pb2.Container(
            id=name,
            image=image,
            snapshotter=SNAPSHOTTER,
            snapshot_key=name,
            runtime={"name": "io.containerd.runc.v2"},
            spec=Any_(type_url=SPEC, value=json.dumps(spec).encode()),
        )
        self._rpc(containers_pb2, "Containers", "Create", container=container)

    def _containers_delete(self, name: str, **_body: Any) -> None:
        with suppress(errors.NotFound):
            self._rpc(containers_pb2, "Containers", "Delete", id=name)
        with suppress(errors.NotFound):
            self._snapshots("Remove", key=name)

    def _tasks_create(self, name: str, **_body: Any) -> None:
        mounts = self._snapshots("Mounts", key=name).mounts
        self._tasks("Create", container_id=name, rootfs=mounts)

    def _tasks_start(self, name: str) -> None:
        self._tasks("Start", container_id=name)

    def _tasks_exec(self, name: str, exec_id: str, args: list[str], **_body: Any) -> None:
        which = {"container_id": name, "exec_id": exec_id}
        spec = Any_(type_url=PROCESS, value=json.dumps(_process(args)).encode())
        with suppress(errors.AlreadyExists):
            self._tasks("Exec", spec=spec, **which)
        if self._tasks("Get", **which).process.status not in _HAS_RUN:
            self._tasks("Start", **which)

    def _tasks_kill(self, name: str, signal: int, **_body: Any) -> None:
        self._tasks("Kill", container_id=name, signal=signal)

    def _tasks_wait(self, name: str, exec_id: str) -> dict[str, Any]:
        ended = self._tasks("Wait", container_id=name, exec_id=exec_id)
        cause = "" if exec_id else lives.task(self.lighterd, name)["cause"]
        return {"exit_status": ended.exit_status, "cause": cause}

    def _tasks_delete(self, name: str, exec_id: str, **_body: Any) -> None:
        if exec_id:
            self._tasks("DeleteProcess", container_id=name, exec_id=exec_id)
        else:
            self._tasks("Delete", container_id=name)

    # --- calls that notice when nobody will answer

    def _snapshots(self, method: str, **fields: Any) -> Any:
        return self._rpc(snapshots_pb2, "Snapshots", method, snapshotter=SNAPSHOTTER, **fields)

    def _tasks(self, method: str, **fields: Any) -> Any:
        return self._rpc(tasks_pb2, "Tasks", method, **fields)

    def _stream(self, module: ModuleType, service: str, method: str, **fields: Any) -> list[Any]:
        with Api(self.lighterd.grpc_address) as api:
            return list(api.stream(module, service, method, **fields))

    def _rpc(self, module: ModuleType, service: str, method: str, **fields: Any) -> Any:
        """The answer. Raises the error that was answered, or NoAnswer."""
        api = Api(self.lighterd.grpc_address)
        end = time.monotonic() + lives.ANSWER_S
        try:
            call = api.future(module, service, method, **fields)
            while not _done(call):
                lives.look(self.lighterd)
                assert time.monotonic() < end, f"{method}: no answer in {lives.ANSWER_S} s"
            return call.result()
        except grpc.RpcError as err:
            gone_by = time.monotonic() + _GONE_S
            while code(err) == "UNAVAILABLE" and time.monotonic() < gone_by:
                lives.look(self.lighterd)  # its connections go before it does
                time.sleep(_POLL_S)
            kind = _KINDS[code(err)]
            assert isinstance(err, grpc.Call)
            raise kind(err.details() or "") from err
        finally:
            api.close()


def _done(call: Any) -> bool:
    try:
        call.exception(timeout=_POLL_S)
    except grpc.FutureTimeoutError:
        return False
    return True


def _process(args: list[str]) -> dict[str, Any]:
    return {"args": args, "cwd": "/", "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0}}
