"""The kernel and this process's powers: what every container needs of the host."""

import os
import re
import resource
from collections.abc import Iterator

from lighter.daemon.config.schema import Config
from lighter.daemon.doctor.findings import OK, PROBLEM, WARNING, Finding
from lighter.daemon.limits import FLOOR

OLDEST_KERNEL = (5, 14)  # CentOS Stream 9; what is older was never tried
_CGROUPS = "/sys/fs/cgroup"
_CONTROLLERS = ("cpu", "cpuset", "memory", "pids")
# linux/capability.h: number, whether nothing works without it, what it is for.
_CAPABILITIES = {
    "CAP_SYS_ADMIN": (21, True, "mounts and namespaces"),
    "CAP_NET_ADMIN": (12, True, "networks"),
    "CAP_DAC_OVERRIDE": (1, True, "other users' files"),
    "CAP_CHOWN": (0, True, "the owners of an image's files"),
    "CAP_MKNOD": (27, True, "devices of an image"),
    "CAP_SYS_RESOURCE": (24, False, "limits above the hard ones, lower oom scores"),
}


def kernel(_config: Config) -> Iterator[Finding]:
    release = os.uname().release
    numbers = tuple(map(int, re.findall(r"\d+", release)[:2]))
    if numbers < OLDEST_KERNEL:
        wanted = ".".join(map(str, OLDEST_KERNEL))
        yield Finding("kernel", WARNING, f"Linux {release}", f"nothing below {wanted} was tried")
    else:
        yield Finding("kernel", OK, f"Linux {release}")


def cgroups(_config: Config) -> Iterator[Finding]:
    """cgroups(7): which version, and whether the controllers of the common limits are there."""
    unified = f"{_CGROUPS}/cgroup.controllers"
    if os.path.exists(unified):
        version, found = "v2", set(_read(unified).split())
    elif os.path.isdir(f"{_CGROUPS}/memory") or os.path.isdir(f"{_CGROUPS}/pids"):
        # v1: a hierarchy is a directory, or a link to the one that it shares.
        version = "v1"
        found = {name for name in _CONTROLLERS if os.path.isdir(f"{_CGROUPS}/{name}")}
    else:
        advice = "mount it: containers cannot be made without"
        yield Finding("cgroups", PROBLEM, f"nothing is mounted at {_CGROUPS}", advice)
        return
    missing = [name for name in _CONTROLLERS if name not in found]
    if missing:
        lack = ", ".join(missing)
        yield Finding("cgroups", WARNING, f"{version} without {lack}", "those limits are refused")
    else:
        yield Finding("cgroups", OK, f"{version} with {', '.join(_CONTROLLERS)}")


def namespaces(_config: Config) -> Iterator[Finding]:
    """namespaces(7), and how many the kernel may make: /proc/sys/user/max_*_namespaces."""
    wanted = ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts")
    missing = [name for name in wanted if not os.path.exists(f"/proc/self/ns/{name}")]
    none = [
        name
        for name in wanted
        if name not in missing and _read(f"/proc/sys/user/max_{name}_namespaces", "1") == "0"
    ]
    vital = [name for name in (*missing, *none) if name != "user"]
    if vital:
        yield Finding("namespaces", PROBLEM, f"none of kind {', '.join(vital)} can be made")
    elif missing or none:
        advice = "sysctl user.max_user_namespaces; --userns and mapped ids are refused until then"
        yield Finding("namespaces", WARNING, "user namespaces are switched off", advice)
    else:
        yield Finding("namespaces", OK, ", ".join(wanted))


def filters(_config: Config) -> Iterator[Finding]:
    """seccomp(2), which the default profile needs."""
    actions = _read("/proc/sys/kernel/seccomp/actions_avail")
    if "errno" in actions:
        yield Finding("seccomp", OK, actions)
    else:
        advice = "containers need --seccomp-profile unconfined here"
        yield Finding("seccomp", PROBLEM, "the kernel has no seccomp filters", advice)


def security_modules(config: Config) -> Iterator[Finding]:
    """Documentation/admin-guide/LSM: which are on, and whether the configuration fits."""
    active = [name for name in _read("/sys/kernel/security/lsm").split(",") if name]
    found = ", ".join(active) or "none is told of"
    has_selinux = os.path.exists("/sys/fs/selinux/enforce")
    if config.selinux and not has_selinux:
        advice = "selinux = true in the configuration is without effect here"
        yield Finding("security modules", WARNING, f"{found}; no SELinux", advice)
    elif has_selinux and not config.selinux and _read("/sys/fs/selinux/enforce") == "1":
        advice = "selinux = true in the configuration gives each container a label of its own"
        yield Finding("security modules", WARNING, f"{found}; SELinux enforces", advice)
    else:
        yield Finding("security modules", OK, found)


def powers(_config: Config) -> Iterator[Finding]:
    """capabilities(7) of this process, and its descriptors: getrlimit(2)."""
    if os.geteuid() != 0:
        yield Finding("privileges", PROBLEM, f"user id {os.geteuid()}", "run it as root")
    else:
        effective = int(re.findall(r"(?m)^CapEff:\s*(\w+)", _read("/proc/self/status"))[0], 16)
        missing = {
            name: (vital, what)
            for name, (number, vital, what) in _CAPABILITIES.items()
            if not effective >> number & 1
        }
        for name, (vital, what) in missing.items():
            status = PROBLEM if vital else WARNING
            yield Finding("privileges", status, f"without {name}", f"it is needed for {what}")
        if not missing:
            yield Finding("privileges", OK, "root with all capabilities that are needed")
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    shown = "without a limit" if hard == resource.RLIM_INFINITY else str(hard)
    if hard != resource.RLIM_INFINITY and hard < FLOOR:
        advice = f"at least {FLOOR} are needed: LimitNOFILE= in the unit, ulimit -n in a shell"
        yield Finding("descriptors", PROBLEM, shown, advice)
    else:
        yield Finding("descriptors", OK, shown)


def _read(path: str, otherwise: str = "") -> str:
    """A short file of the kernel's, stripped; `otherwise` when it is not there."""
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read(1 << 16).strip()
    except OSError:
        return otherwise
