"""containerd.services.leases.v1.Leases, and what the lease header of other calls means."""

from contextlib import AbstractContextManager

from google.protobuf.empty_pb2 import Empty

from lighter.daemon.content.digest import Digest
from lighter.daemon.content.gc import Collector
from lighter.daemon.filterfields import of_lease
from lighter.daemon.filters import any_of
from lighter.daemon.grpc.calls import Call
from lighter.daemon.grpc.pb import leases_pb2 as pb
from lighter.daemon.grpc.translate import labels_of_new, timestamp
from lighter.daemon.grpc.words import quoted, saying
from lighter.daemon.leases import CONTENT, IMAGES, INGESTS, SNAPSHOTS, Lease, Leases
from lighter.proto.errors import AlreadyExists, InvalidArgument, NotFound, Unimplemented


def holder(leases: Leases, namespace: str, lease: str) -> str:
    """The lease of a call's header, once it was found to exist; "" for none. Raises NotFound."""
    if lease:
        with saying({NotFound: "lease does not exist: not found"}):
            leases.get(namespace, lease)
    return lease


def hold(leases: Leases, namespace: str, lease: str, type_: str, resource: str) -> None:
    """Let a call's lease, if it has one, hold what the call has made."""
    if lease:
        with saying({NotFound: "lease does not exist: not found"}):
            leases.add(namespace, lease, type_, resource)


class LeasesService:
    NAME = "containerd.services.leases.v1.Leases"

    def __init__(self, leases: Leases, collector: Collector) -> None:
        self._leases = leases
        self._collector = collector

    async def create(self, call: Call, request: pb.CreateRequest) -> pb.CreateResponse:
        with saying({AlreadyExists: f"lease {quoted(request.id)}: already exists"}):
            labels = labels_of_new(request.labels)
            made = self._leases.create(call.namespace, request.id, labels)
        return pb.CreateResponse(lease=_message(made))

    async def delete(self, call: Call, request: pb.DeleteRequest) -> Empty:
        namespace = call.namespace
        with _of(request.id):
            self._leases.delete(namespace, request.id)
        if request.sync:
            await self._collector.collect(namespace)
        else:
            self._collector.on_deleted()
        return Empty()

    async def list(self, call: Call, request: pb.ListRequest) -> pb.ListResponse:
        wanted = any_of(request.filters)
        return pb.ListResponse(
            leases=[
                _message(lease)
                for lease in self._leases.list(call.namespace)
                if wanted(of_lease(lease))
            ]
        )

    async def add_resource(self, call: Call, request: pb.AddResourceRequest) -> Empty:
        _check(request.resource)
        with _of(request.id):
            self._leases.add(call.namespace, request.id, request.resource.type, request.resource.id)
        return Empty()

    async def delete_resource(self, call: Call, request: pb.DeleteResourceRequest) -> Empty:
        _check(request.resource)
        namespace, held = call.namespace, (request.resource.type, request.resource.id)
        with _of(request.id):
            # What it does not hold is no error to containerd.
            if held in self._leases.resources(namespace, request.id):
                self._leases.remove(namespace, request.id, *held)
        self._collector.on_deleted()
        return Empty()

    async def list_resources(
        self, call: Call, request: pb.ListResourcesRequest
    ) -> pb.ListResourcesResponse:
        with _of(request.id):
            held = self._leases.resources(call.namespace, request.id)
        return pb.ListResourcesResponse(
            resources=[pb.Resource(id=name, type=type_) for type_, name in held]
        )


def _of(lease: str) -> AbstractContextManager[None]:
    return saying({NotFound: f"lease {quoted(lease)}: not found"})


def _message(lease: Lease) -> pb.Lease:
    return pb.Lease(id=lease.id, created_at=timestamp(lease.created_at), labels=lease.labels)


def _check(resource: pb.Resource) -> None:
    """Raises as containerd does for what no lease can hold."""
    kind, slash, rest = resource.type.partition("/")
    if kind in (CONTENT, INGESTS, IMAGES):
        if slash:
            raise InvalidArgument(f"invalid resource type {resource.type}")
        if kind == CONTENT:
            Digest.parse(resource.id)
    elif kind + "/" == SNAPSHOTS:
        if not rest or "/" in rest:
            raise InvalidArgument(f"invalid snapshot resource type {resource.type}")
    else:
        raise Unimplemented(f"resource type {resource.type} not supported yet")
