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
from lighter.daemon.oci.environ import container_environment
from lighter.daemon.oci.host import Host
from lighter.daemon.oci.paths import masked, readonly
from lighter.daemon.oci.users import Identity
from lighter.daemon.types import ImageConfig
from lighter.proto.errors import InvalidArgument
from lighter.proto.names import check_name

OCI_VERSION = "1.0.2"

# runc's systemd driver hands these to systemd, which would run ExecStopPost on the host
# (CVE-2024-3154).
_SYSTEMD_PROPERTY = "org.systemd.property."

_RLIMITS = ({"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024},)
_NAMESPACES = ("pid", "ipc", "uts", "mount", "network")

# null random full tty zero urandom console pts/* ptmx (admin-guide/devices.txt).
_DEVICES: tuple[tuple[int, int | None], ...] = (
    *((1, 3), (1, 8), (1, 7), (5, 0), (1, 5), (1, 9), (5, 1)),
    *((136, None), (5, 2)),
)


@dataclass(frozen=True)
class SpecRequest:
    """What a container is asked to be.

    `args` are the caller's words and `entrypoint` the caller's choice (args.args_from); `cwd` None
    is the image's; `mounts`, `devices` and `rlimits` are OCI objects, `resources` is merged into
    linux.resources; `with_ns` maps a kind of Linux namespace to the path to join; `seccomp` is
    "default", "unconfined" or a profile's JSON text; `host_devices` are those that a privileged
    container sees.
    """

    id: str
    namespace: str
    cgroups_path: str
    image: ImageConfig
    identity: Identity
    host: Host
    args: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] | None = None
    env: tuple[str, ...] = ()
    cwd: str | None = None
    terminal: bool = False
    mounts: tuple[Mapping[str, Any], ...] = ()
    devices: tuple[Mapping[str, Any], ...] = ()
    net_host: bool = False
    read_only: bool = False
    hostname: str | None = None
    privileged: bool = False
    host_devices: tuple[Mapping[str, Any], ...] = ()
    cap_add: tuple[str, ...] = ()
    cap_drop: tuple[str, ...] = ()
    seccomp: str = "default"
    allow_new_privs: bool = False
    with_ns: Mapping[str, str] = field(default_factory=dict)
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
        "root": {"path": "rootfs"},
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
        "args": list(args_from(image, request.args, request.entrypoint)),
        "env": container_environment(
            image.env,
            request.env,
            terminal=request.terminal,
            hostname=request.host.hostname if request.net_host else None,
        ),
        "cwd": checks.check_cwd(request.cwd or image.working_dir or "/"),
        "capabilities": capability_sets(_capabilities(request)),
        "rlimits": _rlimits(request),
        "oomScoreAdj": 0,
    }
    if request.terminal:
        process["terminal"] = True
    if not request.allow_new_privs:
        process["noNewPrivileges"] = True
    return process


def oci_user(identity: Identity) -> dict[str, Any]:
    """Return OCI `process.user`, the primary group among the additional ones."""
    gids = dict.fromkeys((identity.gid, *identity.additional_gids))
    return {"uid": identity.uid, "gid": identity.gid, "additionalGids": list(gids)}


def _rlimits(request: SpecRequest) -> list[dict[str, Any]]:
    """containerd's one default, with the caller's limits in place of those of the same type."""
    limits = {limit["type"]: dict(limit) for limit in (*_RLIMITS, *request.rlimits)}
    return list(limits.values())


def _mounts(request: SpecRequest) -> list[dict[str, Any]]:
    """Default mounts in an order that nests; a caller's on the same place keeps that place."""
    mounts = {mount["destination"]: mount for mount in _default_mounts(request.privileged)}
    if request.net_host:
        for path in request.host.network_files:
            mounts[path] = _mount(path, "bind", path, "rbind", "ro")
    for mount in map(checks.check_mount, request.mounts):
        mounts[mount["destination"]] = mount
    return list(mounts.values())


def _default_mounts(privileged: bool) -> tuple[dict[str, Any], ...]:
    strict = ("nosuid", "noexec", "nodev")
    small = ("nosuid", "strictatime", "mode=755", "size=65536k")
    return (
        _mount("/proc", "proc", "proc", *strict),
        _mount("/dev", "tmpfs", "tmpfs", *small),
        _mount(
            *("/dev/pts", "devpts", "devpts", "nosuid", "noexec"),
            *("newinstance", "ptmxmode=0666", "mode=0620", "gid=5"),
        ),
        _mount("/dev/shm", "tmpfs", "shm", *strict, "mode=1777", "size=65536k"),  # noqa: S108
        _mount("/dev/mqueue", "mqueue", "mqueue", *strict),
        _mount("/sys", "sysfs", "sysfs", *strict, "rw" if privileged else "ro"),
        _mount("/run", "tmpfs", "tmpfs", *small),
    )


def _mount(destination: str, kind: str, source: str, *options: str) -> dict[str, Any]:
    return {"destination": destination, "type": kind, "source": source, "options": list(options)}


def _linux(request: SpecRequest) -> dict[str, Any]:
    namespaces = _namespaces(request)
    linux: dict[str, Any] = {
        "resources": {**copy.deepcopy(dict(request.resources)), "devices": _device_rules(request)},
        "cgroupsPath": request.cgroups_path,
        "namespaces": [
            {"type": kind, "path": path} if path else {"type": kind}
            for kind, path in namespaces.items()
        ],
    }
    devices = [*request.devices, *(request.host_devices if request.privileged else ())]
    if devices:
        linux["devices"] = [dict(device) for device in devices]
    if not request.privileged:
        linux["maskedPaths"] = masked(request.host.thermal_throttle_dirs)
        linux["readonlyPaths"] = readonly()
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
    """Return kind → path, "" for a new one; a kind that is not there is the host's."""
    kinds = dict.fromkeys(_NAMESPACES, "")
    if request.net_host:
        del kinds["network"]
    for name, path in request.with_ns.items():
        kind, joined = checks.check_namespace(name, path)
        if kind == "network" and request.net_host:
            raise InvalidArgument("join network namespace: the host's network was asked for too")
        kinds[kind] = joined
    return kinds


def _device_rules(request: SpecRequest) -> list[dict[str, Any]]:
    """Return the device cgroup's rules: all denied first, then what is allowed.

    Without the first rule the rest would be read as additions to "everything" on cgroup v1.
    """
    if request.privileged:
        return [{"allow": True, "access": "rwm"}]
    rules: list[dict[str, Any]] = [{"allow": False, "access": "rwm"}]
    for major, minor in _DEVICES:
        rule: dict[str, Any] = {"allow": True, "type": "c", "major": major, "access": "rwm"}
        if minor is not None:
            rule["minor"] = minor
        rules.append(rule)
    for device in request.devices:
        kept = {key: device[key] for key in ("type", "major", "minor")}
        rules.append({"allow": True, **kept, "access": "rwm"})
    return rules
