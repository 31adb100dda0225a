"""The OCI runtime spec of a container (runtime-spec 1.0.2, config.md and config-linux.md).

What `ctr run` gives, with these differences, each on purpose:

- our seccomp profile is on, unless it is turned off;
- more paths are masked: what the newest containerd and Docker mask;
- process.oomScoreAdj is 0, so that a container does not inherit the manager's protection;
- a mount of the caller takes the place of the default one it hides, instead of lying on top of it;
- an image without PATH gets the default one, even when it sets other variables;
- "NAME" without "=" removes a variable of the image;
- annotations that a runtime would take for properties of a systemd unit of the host are left out.

Everything in the result is new: no two specs share a mutable object.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lighter.daemon.oci import checks, seccomp
from lighter.daemon.oci.args import args_from
from lighter.daemon.oci.capabilities import capability_sets, select
from lighter.daemon.oci.devices import DeviceGrant, device_rules
from lighter.daemon.oci.environ import container_environment
from lighter.daemon.oci.host import Host
from lighter.daemon.oci.idmaps import IdMaps
from lighter.daemon.oci.mounts import SHM_BYTES, container_mounts
from lighter.daemon.oci.paths import masked, readonly
from lighter.daemon.oci.selinux import Labels
from lighter.daemon.oci.sharing import HOST, Sharing
from lighter.daemon.oci.users import Identity
from lighter.daemon.types import ImageConfig
from lighter.proto.errors import InvalidArgument
from lighter.proto.names import check_name

OCI_VERSION = "1.0.2"

# runc's systemd driver hands these to systemd, which would run ExecStopPost on the host
# (CVE-2024-3154).
_SYSTEMD_PROPERTY = "org.systemd.property."

_RLIMITS = ({"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024},)
_PROPAGATIONS = ("private", "rprivate", "shared", "rshared", "slave", "rslave")
OOM_SCORES = range(-1000, 1001)  # proc_pid_oom_score_adj(5)


@dataclass(frozen=True)
class SpecRequest:
    """What a container is asked to be.

    `args`, `entrypoint` and `keep_entrypoint` are as of args.args_from; `cwd` None is the image's;
    `mounts` and `rlimits` are OCI objects, `resources` is merged into
    linux.resources; `seccomp` is "default", "unconfined" or a profile's JSON text; `unmask` leaves
    kernel files as they are; `root_path` "" is the snapshot; `host_devices` are those that a
    privileged container sees, unless it is one `without_host_devices`; `as_docker`: mounts and
    cgroup namespace are Docker's where those differ from ctr's.
    """

    id: str
    namespace: str
    cgroups_path: str
    image: ImageConfig
    identity: Identity
    host: Host
    args: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] | None = None
    keep_entrypoint: bool = False
    as_docker: bool = False
    env: tuple[str, ...] = ()
    cwd: str | None = None
    terminal: bool = False
    mounts: tuple[Mapping[str, Any], ...] = ()
    devices: tuple[DeviceGrant, ...] = ()
    net_host: bool = False
    read_only: bool = False
    hostname: str | None = None
    privileged: bool = False
    host_devices: tuple[Mapping[str, Any], ...] = ()
    without_host_devices: bool = False
    cap_add: tuple[str, ...] = ()
    cap_drop: tuple[str, ...] = ()
    seccomp: str = "default"
    allow_new_privs: bool = False
    sharing: Sharing = field(default_factory=Sharing)
    id_maps: IdMaps = field(default_factory=IdMaps)
    shm_bytes: int = SHM_BYTES
    oom_score_adj: int = 0
    unmask: bool = False
    apparmor: str = ""
    selinux: Labels = field(default_factory=Labels)
    rdt_class: str = ""
    root_path: str = ""
    rootfs_propagation: str = ""
    annotations: Mapping[str, str] = field(default_factory=dict)
    sysctls: Mapping[str, str] = field(default_factory=dict)
    rlimits: tuple[Mapping[str, Any], ...] = ()
    resources: Mapping[str, Any] = field(default_factory=dict)


def generate(request: SpecRequest) -> dict[str, Any]:
    """Return a container's OCI spec. Raises InvalidArgument; Unimplemented for an architecture
    without default seccomp rules.

    Annotations and privileges come from the request alone; of the image only entrypoint, command,
    environment and working directory are used.
    """
    check_name(request.id, "container")
    check_name(request.namespace, "namespace")
    spec: dict[str, Any] = {
        "ociVersion": OCI_VERSION,
        "process": _process(request),
        "root": {"path": request.root_path or "rootfs"},
        "mounts": _mounts(request),
        "linux": _linux(request),
    }
    if request.read_only:
        spec["root"]["readonly"] = True
    if request.hostname is not None:
        spec["hostname"] = checks.check_hostname(request.hostname)
    annotations = {
        key: value
        for key, value in request.annotations.items()
        if not key.startswith(_SYSTEMD_PROPERTY)
    }
    if annotations:
        spec["annotations"] = annotations
    checks.encode(spec)
    return spec


def default(host: Host, namespace: str) -> dict[str, Any]:
    """The spec that a container starts from, before anything is asked: `ctr oci spec`."""
    plain = SpecRequest(
        id="default",
        namespace=namespace,
        cgroups_path=f"/{namespace}",
        image=ImageConfig(cmd=("-",)),
        identity=Identity(0, 0, ()),
        host=host,
    )
    spec = generate(plain)
    # What only a container's own wishes bring in.
    del spec["process"]["args"], spec["process"]["env"]
    spec["process"]["user"] = {"uid": 0, "gid": 0}
    spec["linux"]["resources"]["devices"] = spec["linux"]["resources"]["devices"][:1]
    return spec


def _capabilities(request: SpecRequest) -> tuple[str, ...]:
    return select(
        request.cap_add,
        request.cap_drop,
        privileged=request.privileged,
        available=request.host.capabilities,
    )


def _process(request: SpecRequest) -> dict[str, Any]:
    image, identity = request.image, request.identity
    process: dict[str, Any] = {
        "user": oci_user(identity),
        "args": list(
            args_from(
                image,
                request.args,
                request.entrypoint,
                keep_entrypoint=request.keep_entrypoint,
            )
        ),
        "env": container_environment(
            image.env,
            request.env,
            terminal=request.terminal,
            hostname=request.host.hostname if request.net_host else None,
        ),
        "cwd": checks.check_cwd(request.cwd or image.working_dir or "/"),
        "capabilities": capability_sets(_capabilities(request)),
        "rlimits": _rlimits(request),
        "oomScoreAdj": _oom_score_adj(request),
    }
    if request.terminal:
        process["terminal"] = True
    if not request.allow_new_privs:
        process["noNewPrivileges"] = True
    if request.apparmor:
        process["apparmorProfile"] = request.apparmor
    if request.selinux.process:
        process["selinuxLabel"] = request.selinux.process
    return process


def oci_user(identity: Identity) -> dict[str, Any]:
    """Return OCI `process.user`, the primary group among the additional ones."""
    gids = dict.fromkeys((identity.gid, *identity.additional_gids))
    return {"uid": identity.uid, "gid": identity.gid, "additionalGids": list(gids)}


def _rlimits(request: SpecRequest) -> list[dict[str, Any]]:
    """containerd's one default, with the caller's limits in place of those of the same type."""
    limits = {limit["type"]: dict(limit) for limit in (*_RLIMITS, *request.rlimits)}
    for limit in request.rlimits:
        checks.check_rlimit(limit, request.host)
    return list(limits.values())


def _oom_score_adj(request: SpecRequest) -> int:
    score = request.oom_score_adj
    if score not in OOM_SCORES:
        raise InvalidArgument(f"set oom score {score}: expected -1000 to 1000")
    return score


def _mounts(request: SpecRequest) -> list[dict[str, Any]]:
    namespaces = _namespaces(request)
    shares_network = "network" not in namespaces
    return container_mounts(
        request.mounts,
        privileged=request.privileged,
        shm_bytes=request.shm_bytes,
        host_ipc=request.sharing.modes.get("ipc") == HOST,
        host_files=request.host.network_files if request.net_host else (),
        bind_sys="user" in namespaces and shares_network,
        as_docker=request.as_docker,
    )


def _linux(request: SpecRequest) -> dict[str, Any]:
    namespaces = _namespaces(request)
    has_hosts = request.privileged and not request.without_host_devices
    host_devices = request.host_devices if has_hosts else ()
    grants = (*request.devices, *map(DeviceGrant, host_devices))
    linux: dict[str, Any] = {
        "resources": {
            **copy.deepcopy(dict(request.resources)),
            "devices": device_rules(request.devices, has_hosts),
        },
        "cgroupsPath": request.cgroups_path,
        "namespaces": [
            {"type": kind, "path": path} if path else {"type": kind}
            for kind, path in namespaces.items()
        ],
    }
    if request.id_maps:
        linux["uidMappings"] = [one.as_oci() for one in request.id_maps.uids]
        linux["gidMappings"] = [one.as_oci() for one in request.id_maps.gids]
    if grants:
        linux["devices"] = [dict(grant.node) for grant in grants]
    if not request.privileged and not request.unmask:
        linux["maskedPaths"] = masked(request.host.thermal_throttle_dirs)
        linux["readonlyPaths"] = readonly()
    if request.rootfs_propagation:
        if request.rootfs_propagation not in _PROPAGATIONS:
            raise InvalidArgument(
                f"set propagation of the root {request.rootfs_propagation[:20]!r}: "
                f"expected {', '.join(_PROPAGATIONS)}"
            )
        linux["rootfsPropagation"] = request.rootfs_propagation
    if request.selinux.mount:
        linux["mountLabel"] = request.selinux.mount
    if request.rdt_class:
        linux["intelRdt"] = {"closID": request.rdt_class}
    if request.sysctls:
        linux["sysctl"] = checks.check_sysctls(
            request.sysctls, own_network="network" in namespaces, own_ipc="ipc" in namespaces
        )
    profile = _seccomp(request)
    if profile is not None:
        linux["seccomp"] = profile
    return linux


def _seccomp(request: SpecRequest) -> dict[str, Any] | None:
    """A privileged container has no default profile, as in ctr; one that was handed in applies."""
    if request.seccomp == "unconfined" or (request.seccomp == "default" and request.privileged):
        return None
    capabilities = frozenset(_capabilities(request))
    if request.seccomp == "default":
        return seccomp.profile(capabilities, request.host.arch)
    return seccomp.read_profile(request.seccomp, capabilities, request.host.arch)


def _namespaces(request: SpecRequest) -> dict[str, str]:
    return request.sharing.namespaces(
        net_host=request.net_host,
        user=bool(request.id_maps),
        own_cgroup=request.as_docker and request.host.unified,
    )
