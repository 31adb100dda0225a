"""containerd.services.snapshots.v1.Snapshots."""

from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, suppress
from functools import partial

from google.protobuf.empty_pb2 import Empty

from lighter.daemon.content.gc import Collector
from lighter.daemon.filters import any_of, label_path
from lighter.daemon.grpc.calls import Call
from lighter.daemon.grpc.leases import hold, holder
from lighter.daemon.grpc.pb import snapshots_pb2 as pb
from lighter.daemon.grpc.translate import (
    label_changes,
    labels_of_new,
    mount_message,
    timestamp,
)
from lighter.daemon.grpc.words import quoted, saying
from lighter.daemon.leases import SNAPSHOTS, Leases
from lighter.daemon.snapshots.service import TARGET_LABEL, SnapshotService
from lighter.daemon.snapshots.types import ACTIVE, COMMITTED, VIEW
from lighter.daemon.types import SnapshotInfo
from lighter.proto.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound

LIST_ROWS = 100  # one message of List

_KINDS = {ACTIVE: pb.ACTIVE, VIEW: pb.VIEW, COMMITTED: pb.COMMITTED}


class SnapshotsService:
    NAME = "containerd.services.snapshots.v1.Snapshots"

    def __init__(self, snapshots: SnapshotService, leases: Leases, collector: Collector) -> None:
        self._snapshots = snapshots
        self._leases = leases
        self._collector = collector

    async def prepare(
        self, call: Call, request: pb.PrepareSnapshotRequest
    ) -> pb.PrepareSnapshotResponse:
        name, namespace = self._snapshotter(request.snapshotter), call.namespace
        lease = holder(self._leases, namespace, call.lease)
        await self._check_parent(namespace, name, request.parent)
        with self._collector.pin() as pin:
            pin.snapshot(namespace, name, request.key)
            target = request.labels.get(TARGET_LABEL, "")
            if target:
                pin.snapshot(namespace, name, target)
            known = await self._is_there(namespace, name, target)
            with _making(request):
                try:
                    mounts = await self._snapshots.prepare(
                        namespace,
                        name,
                        request.key,
                        request.parent,
                        labels_of_new(request.labels),
                        lease=lease,
                    )
                except AlreadyExists:
                    if not known and await self._is_there(namespace, name, target):
                        hold(self._leases, namespace, lease, SNAPSHOTS + name, target)
                    raise
        return pb.PrepareSnapshotResponse(mounts=map(mount_message, mounts))

    async def _is_there(self, namespace: str, snapshotter: str, key: str) -> bool:
        with suppress(NotFound):
            return bool(key and await self._snapshots.get(namespace, snapshotter, key))
        return False

    async def view(self, call: Call, request: pb.ViewSnapshotRequest) -> pb.ViewSnapshotResponse:
        name, namespace = self._snapshotter(request.snapshotter), call.namespace
        lease = holder(self._leases, namespace, call.lease)
        await self._check_parent(namespace, name, request.parent)
        with _making(request):
            mounts = await self._snapshots.view(
                namespace,
                name,
                request.key,
                request.parent,
                labels_of_new(request.labels),
                lease=lease,
            )
        return pb.ViewSnapshotResponse(mounts=map(mount_message, mounts))

    async def mounts(self, call: Call, request: pb.MountsRequest) -> pb.MountsResponse:
        name, key = self._snapshotter(request.snapshotter), request.key
        with _of(key):
            if (await self._snapshots.get(call.namespace, name, key)).kind == COMMITTED:
                raise FailedPrecondition(
                    f"failed to get active mount: requested snapshot {key} not active or view: "
                    "failed precondition"
                )
            mounts = await self._snapshots.mounts(call.namespace, name, key)
        return pb.MountsResponse(mounts=map(mount_message, mounts))

    async def commit(self, call: Call, request: pb.CommitSnapshotRequest) -> Empty:
        name, namespace = self._snapshotter(request.snapshotter), call.namespace
        lease = holder(self._leases, namespace, call.lease)
        with self._collector.pin() as pin:
            pin.snapshot(namespace, name, request.name)
            with _committing(request), _of(request.key):
                await self._snapshots.commit(
                    namespace, name, request.name, request.key, labels_of_new(request.labels)
                )
            hold(self._leases, namespace, lease, SNAPSHOTS + name, request.name)
        return Empty()

    async def remove(self, call: Call, request: pb.RemoveSnapshotRequest) -> Empty:
        name = self._snapshotter(request.snapshotter)
        try:
            with _of(request.key):
                await self._snapshots.delete(
                    call.namespace, name, request.key, under_container=True
                )
        except FailedPrecondition as err:
            if "children" not in err.details:
                raise
            raise FailedPrecondition(
                "cannot remove snapshot with child: failed precondition"
            ) from err
        self._collector.on_deleted()
        return Empty()

    async def stat(self, call: Call, request: pb.StatSnapshotRequest) -> pb.StatSnapshotResponse:
        name = self._snapshotter(request.snapshotter)
        with _of(request.key):
            info = await self._snapshots.get(call.namespace, name, request.key)
        return pb.StatSnapshotResponse(info=_message(info))

    async def update(
        self, call: Call, request: pb.UpdateSnapshotRequest
    ) -> pb.UpdateSnapshotResponse:
        name, key = self._snapshotter(request.snapshotter), request.info.name
        with _of(key):
            old = await self._snapshots.get(call.namespace, name, key)
            changes = label_changes(
                old.labels, request.info.labels, request.update_mask, f"snapshot {quoted(key)}"
            )
            changed = await self._snapshots.label(call.namespace, name, key, changes)
        return pb.UpdateSnapshotResponse(info=_message(changed))

    async def list(
        self, call: Call, request: pb.ListSnapshotsRequest
    ) -> AsyncIterator[pb.ListSnapshotsResponse]:
        name, namespace = self._snapshotter(request.snapshotter), call.namespace
        wanted, cursor, more = any_of(request.filters), "", True
        while more:
            page, cursor = await self._snapshots.list(namespace, name, cursor, LIST_ROWS)
            rows = [_message(info) for info in page if wanted(partial(_field, info))]
            if rows:
                yield pb.ListSnapshotsResponse(info=rows)
            more = bool(cursor)

    async def usage(self, call: Call, request: pb.UsageRequest) -> pb.UsageResponse:
        name = self._snapshotter(request.snapshotter)
        with _of(request.key):
            used = await self._snapshots.usage(call.namespace, name, request.key)
        return pb.UsageResponse(size=used.size_bytes, inodes=used.inodes)

    async def cleanup(self, _call: Call, request: pb.CleanupRequest) -> Empty:
        name = self._snapshotter(request.snapshotter)
        await self._snapshots.snapshotter(name).sweep()
        return Empty()

    def _snapshotter(self, name: str) -> str:
        """Raises InvalidArgument for one that there is not, as for none."""
        if not name:
            raise InvalidArgument("snapshotter argument missing")
        try:
            return self._snapshots.snapshotter(name).name
        except NotFound as err:
            raise InvalidArgument(f"snapshotter not loaded: {name}: invalid argument") from err

    async def _check_parent(self, namespace: str, name: str, parent: str) -> None:
        if not parent:
            return
        with saying({NotFound: f"parent snapshot {parent} does not exist: not found"}):
            info = await self._snapshots.get(namespace, name, parent)
        if info.kind != COMMITTED:
            raise InvalidArgument(
                f"failed to create snapshot: parent {quoted(parent)} is not committed snapshot: "
                "invalid argument"
            )


def _making(
    request: pb.PrepareSnapshotRequest | pb.ViewSnapshotRequest,
) -> AbstractContextManager[None]:
    return saying({AlreadyExists: f"snapshot {quoted(request.key)}: already exists"})


def _committing(request: pb.CommitSnapshotRequest) -> AbstractContextManager[None]:
    return saying({AlreadyExists: f"snapshot {quoted(request.name)}: already exists"})


def _of(key: str) -> AbstractContextManager[None]:
    return saying({NotFound: f"snapshot {key} does not exist: not found"})


def _message(info: SnapshotInfo) -> pb.Info:
    return pb.Info(
        name=info.key,
        parent=info.parent,
        kind=_KINDS.get(info.kind, pb.UNKNOWN),
        created_at=timestamp(info.created_at),
        updated_at=timestamp(info.updated_at),
        labels=info.labels,
    )


def _field(info: SnapshotInfo, path: tuple[str, ...]) -> str | None:
    """What a filter asks of a snapshot (containerd's adaptSnapshot)."""
    match path:
        case ("name",):
            return info.key
        case ("parent",):
            return info.parent
        case ("kind",):
            return info.kind
        case ("labels", *label):
            return info.labels.get(label_path(label))
    return None
