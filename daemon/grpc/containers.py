"""containerd.services.containers.v1.Containers: the records, as the client writes them.

But for labels that steer the manager and that the client has copied from the image: those are left
out, with a warning.
"""

import logging
from collections.abc import AsyncIterator, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from typing import Any

from google.protobuf.empty_pb2 import Empty

from lighter.daemon.containers.records import STOP_SIGNAL_LABEL, ContainerRecords
from lighter.daemon.filterfields import of_container
from lighter.daemon.filters import any_of
from lighter.daemon.grpc import anys
from lighter.daemon.grpc.calls import Call
from lighter.daemon.grpc.containerbytes import fill, parts
from lighter.daemon.grpc.options import understood
from lighter.daemon.grpc.pb import containers_pb2 as pb
from lighter.daemon.grpc.translate import labels_of_new
from lighter.daemon.grpc.words import identifier, quoted
from lighter.daemon.images.imposed import ImposedLabels
from lighter.daemon.metadata.containers import Stored
from lighter.daemon.oci.config import RESERVED_LABELS
from lighter.daemon.restarts.labels import EXPLICITLY_STOPPED
from lighter.daemon.types import Container
from lighter.proto.errors import AlreadyExists, InvalidArgument, NotFound
from lighter.proto.names import check_labels

log = logging.getLogger("lighter.grpc")

# An image has a field for the one; the other can but keep its own container stopped.
_HARMLESS = (STOP_SIGNAL_LABEL, EXPLICITLY_STOPPED)
_ALL = ("labels", "spec", "extensions", "image", "snapshotkey")
_CREATE, _UPDATE = "create container", "update"
_NO_SPEC = "container.Spec must be set: invalid argument"


class ContainersService:
    NAME = "containerd.services.containers.v1.Containers"

    def __init__(self, records: ContainerRecords, imposed: ImposedLabels) -> None:
        self._records = records
        self._imposed = imposed

    async def get(self, call: Call, request: pb.GetContainerRequest) -> bytes:
        """A GetContainerResponse."""
        namespace = call.namespace
        with container_words(namespace, request.id):
            return b"".join(parts(self._records.stored(namespace, request.id)))

    async def list(self, call: Call, request: pb.ListContainersRequest) -> bytes:
        """A ListContainersResponse."""
        return b"".join(chain.from_iterable(map(parts, self._matching(call, request))))

    async def list_stream(
        self, call: Call, request: pb.ListContainersRequest
    ) -> AsyncIterator[bytes]:
        """Of ListContainerMessages."""
        for stored in self._matching(call, request):
            yield b"".join(parts(stored))

    def _matching(self, call: Call, request: pb.ListContainersRequest) -> Iterator[Stored]:
        listed = self._records.list_stored(call.namespace)
        if not request.filters:
            return listed
        wanted = any_of(request.filters)
        return (stored for stored in listed if wanted(of_container(stored.read())))

    async def create(
        self, call: Call, request: pb.CreateContainerRequest
    ) -> pb.CreateContainerResponse:
        given = request.container
        namespace = call.namespace
        _check(given)
        await self._leave_out_imposed(namespace, given, given.image, {})
        options: dict[str, Any] = {"spec_type": given.spec.type_url}
        if given.extensions:
            options["extensions"] = _extensions(given)
        if given.sandbox:
            options["sandbox"] = given.sandbox
        if given.runtime.HasField("options"):
            options["runtime_options"] = anys.to_record(given.runtime.options)
            options["runc"] = understood(given.runtime.options)
        with container_words(namespace, given.id):
            made = self._records.create(
                Container(
                    namespace=namespace,
                    id=given.id,
                    image=given.image,
                    runtime=given.runtime.name,
                    snapshotter=given.snapshotter,
                    snapshot_key=given.snapshot_key,
                    spec=given.spec.value,
                    labels=labels_of_new(given.labels),
                    options=options,
                    created_at=0,
                    updated_at=0,
                )
            )
        answer = pb.CreateContainerResponse()
        fill(answer.container, made)
        return answer

    async def update(
        self, call: Call, request: pb.UpdateContainerRequest
    ) -> pb.UpdateContainerResponse:
        given = request.container
        with container_words(call.namespace, given.id):
            paths = list(request.update_mask.paths)
            old = self._records.get(call.namespace, given.id)
            image = given.image if not paths or "image" in paths else old.image
            await self._leave_out_imposed(call.namespace, given, image, old.labels)
            old = self._records.get(call.namespace, given.id)
            changed = _changed(old, given, paths)
            made = self._records.update(changed)
        answer = pb.UpdateContainerResponse()
        fill(answer.container, made)
        return answer

    async def _leave_out_imposed(
        self, namespace: str, given: pb.Container, image: str, before: Mapping[str, str]
    ) -> None:
        """Take away what the client was given by the image, unless the record has had it."""
        reserved = [
            key
            for key, value in given.labels.items()
            if key.startswith(RESERVED_LABELS) and key not in _HARMLESS and before.get(key) != value
        ]
        if not reserved or not image:
            return
        imposed = await self._imposed.of(namespace, image)
        for key in reserved:
            if imposed.has(key, given.labels[key]):
                del given.labels[key]
                log.warning(
                    "container %s: drop label %r, which is image %s's: only a caller may set it",
                    *(given.id, key[:80], image[:200]),
                )

    async def delete(self, call: Call, request: pb.DeleteContainerRequest) -> Empty:
        with container_words(call.namespace, request.id):
            self._records.delete(call.namespace, request.id)
        return Empty()


@contextmanager
def container_words(namespace: str, container_id: str) -> Iterator[None]:
    """containerd's, since ctr prints them as they come."""
    try:
        yield
    except NotFound as err:
        what = f"container {quoted(container_id)} in namespace {quoted(namespace)}"
        raise NotFound(f"{what}: not found") from err
    except AlreadyExists as err:
        raise AlreadyExists(f"container {quoted(container_id)}: already exists") from err


def _check(given: pb.Container) -> None:
    """Of a new one. Raises InvalidArgument."""
    try:
        identifier(given.id)
    except InvalidArgument as err:
        raise _invalid(_CREATE, f"container.ID: {err.message}") from err
    if not given.runtime.name:
        raise _invalid(_CREATE, "container.Runtime.Name must be set: invalid argument")
    if not given.HasField("spec"):
        raise _invalid(_CREATE, _NO_SPEC)
    _check_changeable(
        _CREATE, given.labels, given.extensions, given.snapshotter, given.snapshot_key
    )


def _check_changeable(
    doing: str,
    labels: Mapping[str, str],
    extensions: Collection[str],
    snapshotter: str,
    snapshot_key: str,
) -> None:
    if "" in extensions:
        raise _invalid(doing, "container.Extensions keys must not be zero-length: invalid argument")
    try:
        check_labels(dict(labels))
    except InvalidArgument as err:
        raise _invalid(doing, f"containers.Labels: {err.message}") from err
    if snapshot_key and not snapshotter:
        raise _invalid(
            doing,
            "container.Snapshotter must be set if container.SnapshotKey is set: invalid argument",
        )


def _invalid(doing: str, cause: str) -> InvalidArgument:
    return InvalidArgument(f"{doing} failed validation: {cause}")


def _changed(old: Container, given: pb.Container, paths: list[str]) -> Container:
    """`old` with the fields of the mask as they are given; all that may change without one, when
    the rest is as it was. Raises InvalidArgument.
    """
    if not paths:
        if given.snapshotter != old.snapshotter:
            raise InvalidArgument("container.Snapshotter field is immutable: invalid argument")
        if given.runtime.name != old.runtime:
            raise InvalidArgument("container.Runtime.Name field is immutable: invalid argument")
    labels = dict(old.labels)
    options = dict(old.options)
    changes: dict[str, Any] = {}
    for path in paths or _ALL:
        kind, _, name = path.partition(".")
        if path == "labels":
            labels = dict(given.labels)
        elif kind == "labels" and name:
            labels[name] = given.labels.get(name, "")
        elif path == "extensions":
            options["extensions"] = _extensions(given)
        elif kind == "extensions" and name:
            kept = dict(options.get("extensions") or {})
            kept.pop(name, None)
            if name in given.extensions:
                kept[name] = anys.to_record(given.extensions[name])
            options["extensions"] = kept
        elif path == "spec":
            if not given.HasField("spec"):
                raise _invalid(_UPDATE, _NO_SPEC)
            changes["spec"] = given.spec.value
            options["spec_type"] = given.spec.type_url
        elif path == "image":
            changes["image"] = given.image
        elif path == "snapshotkey":
            changes["snapshot_key"] = given.snapshot_key
        else:
            raise InvalidArgument(
                f"cannot update {quoted(path)} field on {quoted(old.id)}: invalid argument"
            )
    kept_labels = {key: value for key, value in labels.items() if value}
    new = replace(old, labels=kept_labels, options=options, **changes)
    _check_changeable(
        _UPDATE, new.labels, options.get("extensions") or (), new.snapshotter, new.snapshot_key
    )
    return new


def _extensions(given: pb.Container) -> dict[str, list[str]]:
    return {name: anys.to_record(value) for name, value in given.extensions.items()}
