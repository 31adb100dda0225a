"""What a spec may ask for: working directory, mounts, joined namespaces, sysctls, sizes.

Each check returns the value as it goes into the spec, or raises InvalidArgument. They hold before
any runtime is started, because runtimes in use lack the newest fixes.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from lighter.daemon.oci.host import RLIMITS, UNLIMITED, Host
from lighter.daemon.types import MAX_SPEC_BYTES
from lighter.proto.errors import InvalidArgument

MAX_PATH_BYTES = 4096  # PATH_MAX, linux/limits.h
MAX_ID_MAPPINGS = 340  # user_namespaces(7)
MAX_HOSTNAME_BYTES = 64  # HOST_NAME_MAX

# Names that clients use beside the runtime spec's (config-linux.md, "Namespaces").
_NAMESPACES = {
    "cgroup": "cgroup",
    "ipc": "ipc",
    "mnt": "mount",
    "mount": "mount",
    "net": "network",
    "network": "network",
    "pid": "pid",
    "time": "time",
    "user": "user",
    "uts": "uts",
}

# What may be mounted below /proc: single files that say how large the machine is, as lxcfs does.
# Anything else could stand where the runtime writes security labels (CVE-2019-16884).
_PROC_FILES = frozenset(
    (
        *("/proc/cpuinfo", "/proc/diskstats", "/proc/loadavg", "/proc/meminfo", "/proc/net/dev"),
        *("/proc/slabinfo", "/proc/stat", "/proc/swaps", "/proc/uptime"),
    )
)

# Links of procfs that lead out of the container's tree when a runtime leaks a descriptor
# (CVE-2024-21626): /proc/<pid>/fd/7, /proc/self/cwd, …
_PROC_LINKS = frozenset(("cwd", "exe", "fd", "fdinfo", "map_files", "ns", "root"))

_HOSTNAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?", re.ASCII)
_SYSCTL_NAME = re.compile(r"[a-z0-9_]+(\.[A-Za-z0-9_-]+)+", re.ASCII)
_SYSCTL_VALUE = re.compile(r"[A-Za-z0-9 \t._:,/-]*", re.ASCII)
# Kept per network or per IPC namespace by the kernel; everything else is the host's.
_SYSCTL_IPC = re.compile(
    r"kernel\.(msgmax|msgmnb|msgmni|sem|shmall|shmmax|shmmni|shm_rmid_forced)|fs\.mqueue\..+"
)


def check_path(path: object, what: str) -> str:
    """Return an absolute path without repeated slashes, "." and a trailing slash.

    ".." is refused and not resolved: what it means depends on links inside the container.
    """
    if not isinstance(path, str) or not path.startswith("/"):
        raise InvalidArgument(f"check {what} {str(path)[:80]!r}: an absolute path is expected")
    if "\0" in path or len(path.encode(errors="surrogatepass")) >= MAX_PATH_BYTES:
        raise InvalidArgument(f"check {what} {path[:80]!r}: a NUL byte or over {MAX_PATH_BYTES}")
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise InvalidArgument(f"check {what} {path[:80]!r}: '..' is not allowed")
    return "/" + "/".join(parts)


def check_cwd(path: str) -> str:
    """Return a working directory that names nothing by way of an open descriptor."""
    cwd = check_path(path, "working directory")
    parts = cwd.split("/")[1:]
    through_proc = parts[0] == "proc" and not _PROC_LINKS.isdisjoint(parts[1:])
    if through_proc or parts[:2] == ["dev", "fd"]:
        raise InvalidArgument(
            f"check working directory {path[:80]!r}: it goes through an open file of a process"
        )
    return cwd


def check_mount(mount: Mapping[str, Any]) -> dict[str, Any]:
    """Return a caller's OCI mount (destination, type, source, options) in a clean form.

    On /proc only procfs may be mounted, on /sys only sysfs, or the host's own by a bind; below
    /proc only the files that lxcfs replaces. A bind that does not say bind or rbind gets rbind.
    """
    destination = check_path(mount.get("destination"), "mount destination")
    if destination == "/":
        raise InvalidArgument("check mount destination '/': the container's root is no mount")
    kind = mount.get("type") or ""
    source = mount.get("source") or ""
    options = mount.get("options") or ()
    if not isinstance(kind, str) or not isinstance(source, str) or "\0" in kind + source:
        raise InvalidArgument(f"check mount {destination!r}: type and source must be text")
    if not isinstance(options, list | tuple) or not all(isinstance(o, str) for o in options):
        raise InvalidArgument(f"check mount {destination!r}: options must be a list of texts")
    bind = kind == "bind" or "bind" in options or "rbind" in options
    if bind:
        source = check_path(source, f"source of mount {destination!r}")
    for root, filesystem in (("/proc", "proc"), ("/sys", "sysfs")):
        if destination == root and not (source == root if bind else kind == filesystem):
            raise InvalidArgument(f"check mount {destination!r}: only {filesystem} may be there")
    if destination.startswith("/proc/") and not (bind and destination in _PROC_FILES):
        raise InvalidArgument(f"check mount {destination!r}: nothing may be mounted below /proc")
    clean: dict[str, Any] = {"destination": destination, "type": kind, "source": source}
    if bind and "bind" not in options and "rbind" not in options:
        options = ["rbind", *options]
    if options:
        clean["options"] = list(options)
    return clean


def check_namespace(kind: str, path: str) -> tuple[str, str]:
    """Return the runtime spec's name for a kind of Linux namespace, and the path to join."""
    if kind not in _NAMESPACES:
        raise InvalidArgument(f"join namespace {kind[:40]!r}: there is no such kind")
    return _NAMESPACES[kind], check_path(path, f"path of {kind} namespace")


def check_hostname(name: str) -> str:
    if len(name) > MAX_HOSTNAME_BYTES or not _HOSTNAME.fullmatch(name):
        raise InvalidArgument(
            f"check hostname {name[:80]!r}: 1 to {MAX_HOSTNAME_BYTES} letters, digits, '-' and '.'"
        )
    return name


def check_sysctls(
    sysctls: Mapping[str, str], *, own_network: bool, own_ipc: bool
) -> dict[str, str]:
    """Return the sysctls when the kernel keeps each per namespace, in one that is not the host's.

    Names are dotted. A '+', a '=' or a line break would set others than the one that was named
    (CVE-2022-0811).
    """
    for name, value in sysctls.items():
        if not _SYSCTL_NAME.fullmatch(name) or not _SYSCTL_VALUE.fullmatch(value):
            raise InvalidArgument(f"set sysctl {name[:80]!r}: name or value has other characters")
        if name.startswith("net."):
            allowed, what = own_network, "the network is the host's"
        elif _SYSCTL_IPC.fullmatch(name):
            allowed, what = own_ipc, "the IPC namespace is the host's"
        else:
            allowed, what = False, "it belongs to the whole host"
        if not allowed:
            raise InvalidArgument(f"set sysctl {name!r}: {what}")
    return dict(sysctls)


def check_rlimit(limit: Mapping[str, Any], host: Host) -> None:
    """A caller's OCI rlimit, {type, soft, hard}: of a known type, and one that can be set here."""
    kind, soft, hard = (limit.get(key) for key in ("type", "soft", "hard"))
    if kind not in RLIMITS:
        known = ", ".join(sorted(name.removeprefix("RLIMIT_").lower() for name in RLIMITS))
        raise InvalidArgument(f"set ulimit {str(kind)[:40]!r}: there are {known}")
    name = kind.removeprefix("RLIMIT_").lower()
    if not all(type(value) is int and 0 <= value <= UNLIMITED for value in (soft, hard)):
        raise InvalidArgument(f"set ulimit {name}: expected numbers, -1 for no limit")
    if soft > hard:  # type: ignore[operator]
        raise InvalidArgument(f"set ulimit {name}: the soft limit is above the hard one")
    most = host.hard_limits.get(kind, UNLIMITED)
    if hard > most and "CAP_SYS_RESOURCE" not in host.capabilities:  # type: ignore[operator]
        raise InvalidArgument(
            f"set ulimit {name}: the manager's own hard limit is {most}, and it has no "
            "CAP_SYS_RESOURCE, without which the kernel raises none"
        )


def encode(spec: Mapping[str, Any]) -> bytes:
    """Return a spec of any origin as the bytes of config.json, its sizes checked.

    Namespace paths beyond 4096 bytes and id maps beyond 340 lines once overflowed a length in
    runc, which then started the container without the namespaces (CVE-2021-43784).
    """
    linux = spec.get("linux") or {}
    for namespace in linux.get("namespaces") or ():
        path = namespace.get("path") or ""
        if len(path.encode(errors="surrogatepass")) > MAX_PATH_BYTES:
            kind = namespace.get("type")
            raise InvalidArgument(f"check spec: {kind} namespace: path over {MAX_PATH_BYTES} bytes")
    for key in ("uidMappings", "gidMappings"):
        if len(linux.get(key) or ()) > MAX_ID_MAPPINGS:
            raise InvalidArgument(f"check spec: {key} has over {MAX_ID_MAPPINGS} entries")
    raw = json.dumps(spec, separators=(",", ":")).encode()
    if len(raw) > MAX_SPEC_BYTES:
        raise InvalidArgument(f"check spec: {len(raw)} bytes, at most {MAX_SPEC_BYTES}")
    return raw
