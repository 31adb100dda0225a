"""containerd.services.sandbox.v1: Store keeps the records; Controller has nothing to run yet.

A sandbox here is a record alone: the runtime that containerd asks for one, its shim for runc, has
no sandboxes either, and answers the same. So what is recorded can be looked at, stopped and
removed, and what would run one is unimplemented.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, NoReturn

from lighter.daemon.filters import any_of, label_path
from lighter.daemon.grpc import anys
from lighter.daemon.grpc.calls import Call
from lighter.daemon.grpc.pb import sandbox_pb2 as pb
from lighter.daemon.grpc.pb.sandbox_types_pb2 import Sandbox as Message
from lighter.daemon.grpc.pb.types_pb2 import Platform
from lighter.daemon.grpc.translate import labels_of_new, set_time, timestamp
from lighter.daemon.grpc.words import identifier, quoted
from lighter.daemon.images.platforms import host
from lighter.daemon.metadata.sandboxes import SandboxStore
from lighter.daemon.types import Sandbox
from lighter.proto.errors import AlreadyExists, InvalidArgument, NotFound, Unimplemented

_ALL = ("labels", "extensions", "spec", "runtime")
# What Kubernetes calls a sandbox that does not run.
NOT_READY = "SANDBOX_NOTREADY"


class SandboxesService:
    NAME = "containerd.services.sandbox.v1.Store"

    def __init__(self, sandboxes: SandboxStore) -> None:
        self._sandboxes = sandboxes

    async def create(self, call: Call, request: pb.StoreCreateRequest) -> pb.StoreCreateResponse:
        given = request.sandbox
        identifier(given.sandbox_id)
        with _words(given.sandbox_id):
            made = self._sandboxes.create(_sandbox(call.namespace, given))
        return pb.StoreCreateResponse(sandbox=_message(made))

    async def update(self, call: Call, request: pb.StoreUpdateRequest) -> pb.StoreUpdateResponse:
        given = request.sandbox
        with _words(given.sandbox_id):
            old = self._sandboxes.get(call.namespace, given.sandbox_id)
            made = self._sandboxes.update(_changed(old, given, request.fields))
        return pb.StoreUpdateResponse(sandbox=_message(made))

    async def delete(self, call: Call, request: pb.StoreDeleteRequest) -> pb.StoreDeleteResponse:
        with _words(request.sandbox_id):
            self._sandboxes.delete(call.namespace, request.sandbox_id)
        return pb.StoreDeleteResponse()

    async def list(self, call: Call, request: pb.StoreListRequest) -> pb.StoreListResponse:
        wanted = any_of(request.filters)
        found = self._sandboxes.list(call.namespace)
        return pb.StoreListResponse(
            list=[_message(sandbox) for sandbox in found if wanted(partial(_field, sandbox))]
        )

    async def get(self, call: Call, request: pb.StoreGetRequest) -> pb.StoreGetResponse:
        with _words(request.sandbox_id):
            found = self._sandboxes.get(call.namespace, request.sandbox_id)
        return pb.StoreGetResponse(sandbox=_message(found))


class SandboxControllerService:
    NAME = "containerd.services.sandbox.v1.Controller"

    def __init__(self, sandboxes: SandboxStore) -> None:
        self._sandboxes = sandboxes

    async def create(
        self, _call: Call, request: pb.ControllerCreateRequest
    ) -> pb.ControllerCreateResponse:
        _refuse("create", request.sandbox_id)

    async def start(
        self, _call: Call, request: pb.ControllerStartRequest
    ) -> pb.ControllerStartResponse:
        _refuse("start", request.sandbox_id)

    async def update(
        self, _call: Call, request: pb.ControllerUpdateRequest
    ) -> pb.ControllerUpdateResponse:
        _refuse("update", request.sandbox_id)

    async def platform(
        self, _call: Call, _request: pb.ControllerPlatformRequest
    ) -> pb.ControllerPlatformResponse:
        ours = host()
        return pb.ControllerPlatformResponse(
            platform=Platform(os=ours.os, architecture=ours.architecture, variant=ours.variant)
        )

    async def status(
        self, call: Call, request: pb.ControllerStatusRequest
    ) -> pb.ControllerStatusResponse:
        found = self._recorded(call, request.sandbox_id)
        return pb.ControllerStatusResponse(
            sandbox_id=found.id, state=NOT_READY, created_at=timestamp(found.created_at)
        )

    async def stop(
        self, call: Call, request: pb.ControllerStopRequest
    ) -> pb.ControllerStopResponse:
        self._recorded(call, request.sandbox_id)
        return pb.ControllerStopResponse()

    async def shutdown(
        self, call: Call, request: pb.ControllerShutdownRequest
    ) -> pb.ControllerShutdownResponse:
        self._recorded(call, request.sandbox_id)
        return pb.ControllerShutdownResponse()

    async def wait(
        self, call: Call, request: pb.ControllerWaitRequest
    ) -> pb.ControllerWaitResponse:
        self._recorded(call, request.sandbox_id)
        raise NotFound(f"wait for sandbox {request.sandbox_id}: it was never started")

    async def metrics(
        self, call: Call, request: pb.ControllerMetricsRequest
    ) -> pb.ControllerMetricsResponse:
        self._recorded(call, request.sandbox_id)
        raise NotFound(f"read metrics of sandbox {request.sandbox_id}: it was never started")

    def _recorded(self, call: Call, sandbox_id: str) -> Sandbox:
        with _words(sandbox_id):
            return self._sandboxes.get(call.namespace, sandbox_id)


def _refuse(verb: str, sandbox_id: str) -> NoReturn:
    raise Unimplemented(f"{verb} sandbox {sandbox_id}: no runtime here runs sandboxes yet")


@contextmanager
def _words(sandbox_id: str) -> Iterator[None]:
    """containerd's, since ctr prints them as they come."""
    try:
        yield
    except NotFound as err:
        raise NotFound(f"sandbox {quoted(sandbox_id)}: not found") from err
    except AlreadyExists as err:
        raise AlreadyExists(f"sandbox {quoted(sandbox_id)}: already exists") from err


def _sandbox(namespace: str, given: Message) -> Sandbox:
    return Sandbox(
        namespace=namespace,
        id=given.sandbox_id,
        runtime=given.runtime.name,
        sandboxer=given.sandboxer,
        labels=labels_of_new(given.labels),
        options=_kept(given.runtime, "options"),
        spec=_kept(given, "spec"),
        extensions={name: anys.to_record(value) for name, value in given.extensions.items()},
    )


def _kept(message: Any, name: str) -> list[str]:
    return anys.to_record(getattr(message, name)) if message.HasField(name) else []


def _changed(old: Sandbox, given: Message, paths: Sequence[str]) -> Sandbox:
    """`old` with these fields as they are given; all that may change without any."""
    new = _sandbox(old.namespace, given)
    if not paths and new.runtime != old.runtime:
        raise InvalidArgument("sandbox.Runtime.Name field is immutable: invalid argument")
    labels, extensions = dict(old.labels), dict(old.extensions)
    changes: dict[str, Any] = {}
    for path in paths or _ALL:
        kind, _, name = path.partition(".")
        if kind == "labels":
            labels = {**labels, name: new.labels.get(name, "")} if name else dict(new.labels)
        elif kind == "extensions":
            extensions.pop(name, None)
            if not name:
                extensions = dict(new.extensions)
            elif name in new.extensions:
                extensions[name] = new.extensions[name]
        elif path == "spec":
            changes["spec"] = new.spec
        elif path == "runtime":
            changes |= {"runtime": new.runtime, "options": new.options}
        else:
            raise InvalidArgument(
                f"cannot update {quoted(path)} field on sandbox {quoted(old.id)}: invalid argument"
            )
    kept = {key: value for key, value in labels.items() if value}
    return replace(old, labels=kept, extensions=extensions, **changes)


def _message(sandbox: Sandbox) -> Message:
    message = Message(
        sandbox_id=sandbox.id, sandboxer=sandbox.sandboxer, labels=dict(sandbox.labels)
    )
    message.runtime.name = sandbox.runtime
    if sandbox.options:
        anys.fill(message.runtime.options, sandbox.options)
    if sandbox.spec:
        anys.fill(message.spec, sandbox.spec)
    for name, value in sandbox.extensions.items():
        anys.fill(message.extensions[name], value)
    set_time(message.created_at, sandbox.created_at)
    set_time(message.updated_at, sandbox.updated_at)
    return message


def _field(sandbox: Sandbox, path: tuple[str, ...]) -> str | None:
    """What a filter asks of a sandbox (containerd's adaptSandbox)."""
    match path:
        case ("id",):
            return sandbox.id
        case ("labels", *label) if label:
            return sandbox.labels.get(label_path(label))
        case ("runtime", "name"):
            return sandbox.runtime
    return None
