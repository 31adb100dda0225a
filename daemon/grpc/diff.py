"""containerd.services.diff.v1.Diff."""

from lighter.daemon.content.gc import Collector
from lighter.daemon.grpc.calls import Call
from lighter.daemon.grpc.leases import hold, holder
from lighter.daemon.grpc.pb import diff_pb2 as pb
from lighter.daemon.grpc.translate import descriptor, mount, nanoseconds, target
from lighter.daemon.images.layers import OCI_LAYER, Layers
from lighter.daemon.leases import CONTENT, Leases
from lighter.daemon.types import Descriptor
from lighter.proto.errors import Unimplemented


class DiffService:
    NAME = "containerd.services.diff.v1.Diff"

    def __init__(self, layers: Layers, leases: Leases, collector: Collector) -> None:
        self._layers = layers
        self._leases = leases
        self._collector = collector

    async def apply(self, call: Call, request: pb.ApplyRequest) -> pb.ApplyResponse:
        applied = await self._layers.apply(
            call.namespace,
            target(request.diff),
            [mount(given) for given in request.mounts],
            sync=request.sync_fs,
            payloads={name: any_.SerializeToString() for name, any_ in request.payloads.items()},
        )
        return pb.ApplyResponse(
            applied=descriptor(Descriptor(OCI_LAYER, applied.diff_id, applied.size_bytes))
        )

    async def diff(self, call: Call, request: pb.DiffRequest) -> pb.DiffResponse:
        if nanoseconds(request.source_date_epoch):
            raise Unimplemented("compare snapshots: source_date_epoch is not taken")
        namespace = call.namespace
        lease = holder(self._leases, namespace, call.lease)
        with self._collector.pin() as pin:
            made = await self._layers.compare(
                namespace,
                [mount(given) for given in request.left],
                [mount(given) for given in request.right],
                request.media_type,
                dict(request.labels),
                pin,
            )
            hold(self._leases, namespace, lease, CONTENT, made.digest)
        return pb.DiffResponse(diff=descriptor(made))
