"""containerd.services.introspection.v1.Introspection."""

import os
from collections.abc import Iterable, Mapping, Sequence
from functools import partial

from google.protobuf.empty_pb2 import Empty

from lighter.daemon.filters import any_of, label_path
from lighter.daemon.grpc.calls import Call
from lighter.daemon.grpc.pb import introspection_pb2 as pb
from lighter.daemon.grpc.pb.types_pb2 import Platform
from lighter.daemon.grpc.server import Service
from lighter.daemon.plugins import plugins
from lighter.daemon.snapshots.types import Snapshotter

# The one service file of containerd's that has two services, and two plugins.
_SANDBOX_PLUGINS = {
    "containerd.services.sandbox.v1.Store": "sandboxes",
    "containerd.services.sandbox.v1.Controller": "sandbox-controllers",
}


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
        ids = tuple(_plugin_of(service.NAME) for service in self._services)
        for part in plugins(self._snapshotters, ids):
            host = [Platform(os="linux", architecture=part.architecture)]
            plugin = pb.Plugin(
                type=part.type, id=part.id, platforms=host if part.architecture else []
            )
            if part.problem:
                # With containerd's words for what the host is not made for: ctr shows "skip".
                plugin.init_err.message = f"{part.problem}: skip plugin"
                plugin.init_err.code = 2  # UNKNOWN, as of all errors without a kind
            yield plugin


def _plugin_of(service: str) -> str:
    """ "containerd.services.images.v1.Images" is the plugin "images"."""
    return _SANDBOX_PLUGINS.get(service) or service.split(".")[2]


def _look(plugin: pb.Plugin, path: tuple[str, ...]) -> str | None:
    if path == ("type",):
        return plugin.type
    if path == ("id",):
        return plugin.id
    if path[0] == "capabilities" and label_path(path[1:]) in plugin.capabilities:
        return ""
    return None
