"""containerd.services.introspection.v1.Introspection."""

import os
from collections.abc import Iterable, Mapping, Sequence
from functools import partial

from google.protobuf.empty_pb2 import Empty

from lighter.daemon.filters import any_of, label_path
from lighter.daemon.grpc import anys
from lighter.daemon.grpc.calls import Call
from lighter.daemon.grpc.pb import introspection_pb2 as pb
from lighter.daemon.grpc.pb.types_pb2 import Platform, RuntimeInfo, RuntimeRequest, RuntimeVersion
from lighter.daemon.grpc.server import Service
from lighter.daemon.plugins import RUNTIME_PLUGIN, plugins
from lighter.daemon.snapshots.types import Snapshotter
from lighter.daemon.tasks.runtimes import NAMES
from lighter.daemon.version import REVISION
from lighter.proto.errors import NotFound
from lighter.proto.version import VERSION

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

    async def plugin_info(
        self, _call: Call, request: pb.PluginInfoRequest
    ) -> pb.PluginInfoResponse:
        """One of them; of the runtimes' also which one a name stands for."""
        for plugin in self._plugins():
            if (plugin.type, plugin.id) == (request.type, request.id):
                answer = pb.PluginInfoResponse(plugin=plugin)
                if plugin.type == RUNTIME_PLUGIN and request.options.type_url:
                    wanted = RuntimeRequest()
                    anys.unpack(request.options, wanted)
                    answer.extra.CopyFrom(anys.pack(_runtime(wanted.runtime_path)))
                return answer
        raise NotFound(f"plugin {request.type}.{request.id}: not found")

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


def _runtime(name: str) -> RuntimeInfo:
    """Every one of them is run by our own shim."""
    if name not in NAMES and not name.startswith("/"):
        raise NotFound(f"find runtime {name}: expected {', '.join(NAMES)} or an absolute path")
    return RuntimeInfo(name=name, version=RuntimeVersion(version=VERSION, revision=REVISION))


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
