"""containerd.services.snapshots.v1.Snapshots from the other side: a plugin that is asked.

Every call has a deadline. What a plugin answers is told with its name and its socket, since it is
another program's word.
"""

from collections.abc import Mapping
from typing import Any

import grpc
import grpc.aio
from google.protobuf.empty_pb2 import Empty

from lighter.daemon.grpc.errors import error_of
from lighter.daemon.grpc.pb import snapshots_pb2 as pb
from lighter.daemon.grpc.pb import types_pb2
from lighter.daemon.grpc.translate import mount
from lighter.daemon.types import Mount, Usage
from lighter.proto.errors import InvalidArgument, NotFound, Unimplemented

CALL_S = 60.0  # making a snapshot may mean to fetch it
_SERVICE = "/containerd.services.snapshots.v1.Snapshots/"
_OPTIONS = (("grpc.use_local_subchannel_pool", 1),)


class SnapshotClient:
    """A Backend of lighter.daemon.snapshots.backend. To be used on the loop."""

    def __init__(self, name: str, address: str, timeout_s: float = CALL_S) -> None:
        self.address = address
        self._name = name
        self._timeout_s = timeout_s
        self._channel: grpc.aio.Channel | None = None

    async def prepare(
        self, namespace: str, key: str, parent: str, labels: Mapping[str, str]
    ) -> tuple[Mount, ...]:
        request = pb.PrepareSnapshotRequest(
            snapshotter=self._name, key=key, parent=parent, labels=labels
        )
        return self._mounts(
            await self._call("Prepare", namespace, request, pb.PrepareSnapshotResponse)
        )

    async def view(
        self, namespace: str, key: str, parent: str, labels: Mapping[str, str]
    ) -> tuple[Mount, ...]:
        request = pb.ViewSnapshotRequest(
            snapshotter=self._name, key=key, parent=parent, labels=labels
        )
        return self._mounts(await self._call("View", namespace, request, pb.ViewSnapshotResponse))

    async def mounts(self, namespace: str, key: str) -> tuple[Mount, ...]:
        request = pb.MountsRequest(snapshotter=self._name, key=key)
        return self._mounts(await self._call("Mounts", namespace, request, pb.MountsResponse))

    async def commit(self, namespace: str, name: str, key: str, labels: Mapping[str, str]) -> None:
        request = pb.CommitSnapshotRequest(
            snapshotter=self._name, name=name, key=key, labels=labels
        )
        await self._call("Commit", namespace, request, Empty)

    async def remove(self, namespace: str, key: str) -> None:
        request = pb.RemoveSnapshotRequest(snapshotter=self._name, key=key)
        await self._call("Remove", namespace, request, Empty)

    async def usage(self, namespace: str, key: str) -> Usage:
        request = pb.UsageRequest(snapshotter=self._name, key=key)
        used = await self._call("Usage", namespace, request, pb.UsageResponse)
        return Usage(max(0, used.size), max(0, used.inodes))

    async def is_committed(self, namespace: str, key: str) -> bool:
        request = pb.StatSnapshotRequest(snapshotter=self._name, key=key)
        try:
            found = await self._call("Stat", namespace, request, pb.StatSnapshotResponse)
        except NotFound:
            return False
        return bool(found.info.kind == pb.COMMITTED)

    async def close(self) -> None:
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()

    async def _call(self, method: str, namespace: str, request: Any, answer: Any) -> Any:
        call = self._connected().unary_unary(
            _SERVICE + method,
            request_serializer=type(request).SerializeToString,
            response_deserializer=answer.FromString,
        )
        try:
            return await call(
                request,
                timeout=self._timeout_s,
                metadata=(("containerd-namespace", namespace),),
            )
        except grpc.aio.AioRpcError as err:
            what = f"{method} of snapshotter plugin {self._name} at {self.address}"
            if err.code() == grpc.StatusCode.DEADLINE_EXCEEDED:
                raise error_of(err.code(), f"{what}: no answer in {self._timeout_s:g} s") from err
            raise error_of(err.code(), f"{what}: {err.details()}") from err

    def _connected(self) -> grpc.aio.Channel:
        """The channel, or a new one in place of one that waits after a failure: so a plugin that
        is started again is found at once."""
        channel = self._channel
        if channel is None or channel.get_state() == grpc.ChannelConnectivity.TRANSIENT_FAILURE:
            channel = grpc.aio.insecure_channel(f"unix:{self.address}", options=_OPTIONS)
            self._channel = channel
        return channel

    def _mounts(self, answer: Any) -> tuple[Mount, ...]:
        given: list[types_pb2.Mount] = list(answer.mounts)
        for one in given:
            if one.target:
                raise Unimplemented(
                    f"snapshotter plugin {self._name} at {self.address}: it wants a mount at "
                    f"{one.target[:200]!a} within the snapshot"
                )
            if any("\0" in text for text in (one.type, one.source, *one.options)):
                raise InvalidArgument(
                    f"snapshotter plugin {self._name} at {self.address}: its mounts have NUL in "
                    "their texts"
                )
        return tuple(map(mount, given))
