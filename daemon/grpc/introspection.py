"""containerd.services.introspection.v1.Introspection."""

import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from functools import partial

from google.protobuf.empty_pb2 import Empty

from lighter.daemon.filters import any_of, label_path
from lighter.daemon.grpc.calls import Call
from lighter.daemon.grpc.pb import introspection_pb2 as pb
from lighter.daemon.grpc.pb.types_pb2 import Platform
from lighter.daemon.grpc.server import Service
from lighter.daemon.snapshots.types import Snapshotter

# What containerd calls the parts that this manager has under one roof.
_PARTS = (
    ("io.containerd.content.v1", "content", False),
    ("io.containerd.metadata.v1", "bolt", False),
    ("io.containerd.differ.v1", "walking", True),
    ("io.containerd.gc.v1", "scheduler", False),
    ("io.containerd.runtime.v2", "task", True),
)
GRPC_PLUGIN = "io.containerd.grpc.v1"
SNAPSHOT_PLUGIN = "io.containerd.snapshotter.v1"
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


class IntrospectionService:
    """Tells which parts there are, by the names that containerd's plugins have."""

    NAME = "containerd.services.introspection.v1.Introspection"

    def __init__(
        self, uuid: str, services: Sequence[Service], snapshotters: Mapping[str, Snapshotter]
    ) -> None:
        self._uuid = uuid
        self._services = services
        self._snapshotters = snapshotters

    async def plugins(self, _call: Call, request: pb.PluginsRequest) -> pb.PluginsResponse:
        wanted = any_of(request.filters)
        return pb.PluginsResponse(
            plugins=[plugin for plugin in self._plugins() if wanted(partial(_look, plugin))]
        )

    async def server(self, _call: Call, _request: Empty) -> pb.ServerResponse:
        return pb.ServerResponse(
            uuid=self._uuid, pid=os.getpid(), pidns=os.stat("/proc/self/ns/pid").st_ino
        )

    def _plugins(self) -> Iterable[pb.Plugin]:
        machine = platform.machine()
        host = [Platform(os="linux", architecture=_ARCHITECTURES.get(machine, machine))]
        for type_, id_, of_host in _PARTS:
            yield pb.Plugin(type=type_, id=id_, platforms=host if of_host else [])
        for name, snapshotter in sorted(self._snapshotters.items()):
            plugin = pb.Plugin(type=SNAPSHOT_PLUGIN, id=name, platforms=host)
            if reason := snapshotter.unusable:
                # With containerd's words for what the host is not made for: ctr shows "skip".
                plugin.init_err.message = f"{reason}: skip plugin"
                plugin.init_err.code = 2  # UNKNOWN, as of all errors without a kind
            yield plugin
        # "containerd.services.images.v1.Images" is the plugin "images".
        for id_ in sorted(service.NAME.split(".")[2] for service in self._services):
            yield pb.Plugin(type=GRPC_PLUGIN, id=id_)


def _look(plugin: pb.Plugin, path: tuple[str, ...]) -> str | None:
    if path == ("type",):
        return plugin.type
    if path == ("id",):
        return plugin.id
    if path[0] == "capabilities" and label_path(path[1:]) in plugin.capabilities:
        return ""
    return None
