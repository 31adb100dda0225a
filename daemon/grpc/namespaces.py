"""containerd.services.namespaces.v1.Namespaces."""

from collections.abc import Iterator
from contextlib import contextmanager

from google.protobuf.empty_pb2 import Empty

from lighter.daemon.grpc.calls import Call
from lighter.daemon.grpc.pb import namespaces_pb2 as pb
from lighter.daemon.grpc.translate import label_changes
from lighter.daemon.grpc.words import identifier, quoted
from lighter.daemon.namespaces import NamespaceService
from lighter.daemon.types import Namespace
from lighter.proto.errors import AlreadyExists, FailedPrecondition, NotFound


class NamespacesService:
    NAME = "containerd.services.namespaces.v1.Namespaces"

    def __init__(self, namespaces: NamespaceService) -> None:
        self._namespaces = namespaces

    async def get(self, _call: Call, request: pb.GetNamespaceRequest) -> pb.GetNamespaceResponse:
        """A namespace that does not exist yet has no labels: dockerd asks for them before its first
        use.
        """
        try:
            found = self._namespaces.get(request.name)
        except NotFound:
            found = Namespace(identifier(request.name), {}, 0)
        return pb.GetNamespaceResponse(namespace=_message(found))

    async def list(
        self, _call: Call, _request: pb.ListNamespacesRequest
    ) -> pb.ListNamespacesResponse:
        return pb.ListNamespacesResponse(namespaces=map(_message, self._namespaces.list()))

    async def create(
        self, _call: Call, request: pb.CreateNamespaceRequest
    ) -> pb.CreateNamespaceResponse:
        wanted = request.namespace
        with _words(wanted.name):
            made = self._namespaces.create(identifier(wanted.name), dict(wanted.labels))
        return pb.CreateNamespaceResponse(namespace=_message(made))

    async def update(
        self, _call: Call, request: pb.UpdateNamespaceRequest
    ) -> pb.UpdateNamespaceResponse:
        wanted = request.namespace
        what = f"namespace {quoted(wanted.name)}"
        with _words(wanted.name):
            try:
                old = self._namespaces.get(wanted.name).labels
            except NotFound:  # which containerd then makes, as every other use of one does
                old = self._namespaces.create(identifier(wanted.name), {}).labels
            changes = label_changes(old, wanted.labels, request.update_mask, what)
            changed = self._namespaces.label(wanted.name, changes)
        return pb.UpdateNamespaceResponse(namespace=_message(changed))

    async def delete(self, _call: Call, request: pb.DeleteNamespaceRequest) -> Empty:
        with _words(request.name):
            await self._namespaces.delete(request.name)
        return Empty()


def _message(namespace: Namespace) -> pb.Namespace:
    return pb.Namespace(name=namespace.name, labels=namespace.labels)


@contextmanager
def _words(name: str) -> Iterator[None]:
    """containerd's, since ctr prints them as they come."""
    what = f"namespace {quoted(name)}"
    try:
        yield
    except NotFound as err:
        raise NotFound(f"{what}: not found") from err
    except AlreadyExists as err:
        raise AlreadyExists(f"{what}: already exists") from err
    except FailedPrecondition as err:
        cause = _held(err) or err.message
        raise FailedPrecondition(f"{what} {cause}: failed precondition") from err


def _held(err: FailedPrecondition) -> str:
    """What a namespace that is to go still has; "" when it is refused for something else."""
    held = dict.fromkeys(err.details.get("held", ()))
    words = {"images": "images", "content": "blobs", "containers": "containers"}
    known = [words[table] for table in words if table in held]
    known += [
        f"snapshots on {quoted(name)} snapshotter" for name in err.details.get("snapshotters", ())
    ]
    known += [table for table in ("tasks", "leases", "sandboxes") if table in held]
    return f"must be empty, but it still has {', '.join(known)}" if known else ""
