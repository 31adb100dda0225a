"""The manager's parts by the names that containerd's plugins have: one list for every front end."""

import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from lighter.daemon.snapshots.types import Snapshotter

SNAPSHOT_PLUGIN = "io.containerd.snapshotter.v1"
RUNTIME_PLUGIN = "io.containerd.runtime.v2"
GRPC_PLUGIN = "io.containerd.grpc.v1"
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}

# (type, id, whether it is for this kind of host alone)
_PARTS = (
    ("io.containerd.content.v1", "content", False),
    ("io.containerd.metadata.v1", "bolt", False),
    ("io.containerd.differ.v1", "walking", True),
    ("io.containerd.gc.v1", "scheduler", False),
    (RUNTIME_PLUGIN, "task", True),
    ("io.containerd.sandbox.store.v1", "local", False),
    ("io.containerd.streaming.v1", "manager", False),
    ("io.containerd.transfer.v1", "local", False),
)

# containerd's services that daemon/grpc answers.
SERVICES = (
    *("containers", "content", "diff", "events", "images", "introspection", "leases"),
    *("namespaces", "sandbox-controllers", "sandboxes", "snapshots", "streaming", "tasks"),
    *("transfer", "version"),
)


@dataclass(frozen=True)
class Plugin:
    """`problem`: why it cannot be used on this host, "" when it can."""

    type: str
    id: str
    architecture: str = ""
    problem: str = ""


def plugins(snapshotters: Mapping[str, Snapshotter], services: tuple[str, ...]) -> Iterator[Plugin]:
    """All plugins; `services` are the ids of containerd's services that are answered."""
    machine = platform.machine()
    host = ARCHITECTURES.get(machine, machine)
    for type_, id_, of_host in _PARTS:
        yield Plugin(type_, id_, host if of_host else "")
    for name, snapshotter in sorted(snapshotters.items()):
        yield Plugin(SNAPSHOT_PLUGIN, name, host, snapshotter.unusable)
    for id_ in sorted(services):
        yield Plugin(GRPC_PLUGIN, id_)
