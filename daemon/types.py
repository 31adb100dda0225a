"""The plain typed objects that services take and return, and front ends translate.

Times are nanoseconds since the epoch (int). All are frozen: a service hands out values, never its
own state. Those of tasks are in tasks/types.py.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

# A runtime spec travels in messages of at most 16 MiB.
MAX_SPEC_BYTES = 16 << 20


@dataclass(frozen=True)
class Descriptor:
    """OCI image-spec, "Content Descriptors"."""

    media_type: str
    digest: str
    size: int
    annotations: Mapping[str, str] = field(default_factory=dict)
    platform: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Namespace:
    name: str
    labels: Mapping[str, str]
    created_at: int


@dataclass(frozen=True)
class Image:
    """A name for a tree of content. `name` is stored exactly as it was given."""

    namespace: str
    name: str
    target: Descriptor
    labels: Mapping[str, str]
    created_at: int
    updated_at: int


@dataclass(frozen=True)
class ContentInfo:
    digest: str
    size: int
    labels: Mapping[str, str]
    created_at: int
    updated_at: int


@dataclass(frozen=True)
class Sandbox:
    """What a client records of a group of containers that share what a pod shares.

    `options`, `spec` and each of `extensions` are values of protobuf's Any: [type url, base64 of
    the value], [] for none.
    """

    namespace: str
    id: str
    runtime: str
    sandboxer: str
    labels: Mapping[str, str]
    options: Sequence[str] = ()
    spec: Sequence[str] = ()
    extensions: Mapping[str, Sequence[str]] = field(default_factory=dict)
    created_at: int = 0
    updated_at: int = 0


@dataclass(frozen=True)
class Mount:
    """One call of mount(2): `options` holds flags and data, as in fstab."""

    type: str
    source: str
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class SnapshotInfo:
    """`kind` is "active", "view" or "committed"."""

    key: str
    parent: str
    kind: str
    labels: Mapping[str, str]
    created_at: int
    updated_at: int


@dataclass(frozen=True)
class Usage:
    size_bytes: int
    inodes: int


@dataclass(frozen=True)
class ImageConfig:
    """What OCI image-spec "config" says that a container is made from."""

    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    user: str = ""
    working_dir: str = ""
    stop_signal: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    volumes: tuple[str, ...] = ()
    health: Mapping[str, Any] = field(default_factory=dict)
    shell: tuple[str, ...] = ()
    diff_ids: tuple[str, ...] = ()
    architecture: str = ""
    os: str = "linux"


@dataclass(frozen=True)
class RuntimeOptions:
    """How a container's runtime is called: what of containerd.runc.v1.Options is honoured.

    `binary_name` is a path or a word that PATH finds, "" for the configured one; `root` is where
    it keeps its state, one directory for each namespace below that, "" for ours.
    """

    binary_name: str = ""
    root: str = ""
    systemd_cgroup: bool = False
    no_pivot_root: bool = False
    no_new_keyring: bool = False
    io_uid: int = 0
    io_gid: int = 0


@dataclass(frozen=True)
class Container:
    """The recorded definition. `spec` is the OCI runtime spec as JSON bytes.

    `options` holds what only this manager knows: log (driver, max_size, max_file), auto_remove,
    stdin_open, stop_signal, stop_timeout_s, terminal, restart (restarts/policy.py), health
    (health/check.py). One that a client recorded itself (daemon/containers/records.py) has
    more: cgroup, spec_type, extensions, sandbox, runtime_options as given and runc, which is what
    is understood of them.
    """

    namespace: str
    id: str
    image: str
    runtime: str
    snapshotter: str
    snapshot_key: str
    spec: bytes
    labels: Mapping[str, str]
    options: Mapping[str, Any]
    created_at: int
    updated_at: int
