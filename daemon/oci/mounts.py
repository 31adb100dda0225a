"""The mounts of a container: containerd's default ones or Docker's, and a caller's in their places.

Docker's differ in two. It has no tmpfs on /run, which would hide what an image has there, such as
/run/mysqld with its owner. And it shows the container's own cgroups, where the JVM, .NET and others
read their limits.
"""

import posixpath
from collections.abc import Iterable, Mapping
from typing import Any

from lighter.daemon.oci.checks import check_mount
from lighter.proto.errors import InvalidArgument

SHM_BYTES = 64 << 20

_CGROUPS = "/sys/fs/cgroup"
_STRICT = ("nosuid", "noexec", "nodev")
_SMALL = ("nosuid", "strictatime", "mode=755", "size=65536k")


def mount(destination: str, kind: str, source: str, *options: str) -> dict[str, Any]:
    return {"destination": destination, "type": kind, "source": source, "options": list(options)}


def container_mounts(
    asked: Iterable[Mapping[str, Any]],
    *,
    privileged: bool = False,
    shm_bytes: int = SHM_BYTES,
    host_ipc: bool = False,
    host_files: Iterable[str] = (),
    bind_sys: bool = False,
    as_docker: bool = False,
) -> list[dict[str, Any]]:
    """Default mounts in an order that nests; a caller's on the same place keeps that place.

    `host_files` are the host's own at the same paths, read-only. With the host's IPC namespace its
    shared memory is bound; a new mqueue shows the queues of the namespace as it is. `bind_sys`: the
    kernel refuses a new sysfs to a user namespace that does not own the network namespace.
    A caller's /sys (cAdvisor's is the host's) is shown with the cgroups that it has.

    Raises InvalidArgument.
    """
    mounts = {entry["destination"]: entry for entry in _defaults(privileged, shm_bytes)}
    if as_docker:
        del mounts["/run"]
        mounts[_CGROUPS] = mount(
            *(_CGROUPS, "cgroup", "cgroup", *_STRICT, "relatime", "rw" if privileged else "ro")
        )
    if host_ipc:
        mounts["/dev/shm"] = mount("/dev/shm", "bind", "/dev/shm", "rbind", *_STRICT)  # noqa: S108
    if bind_sys:
        mounts["/sys"] = mount("/sys", "bind", "/sys", "rbind", *_STRICT, "ro")
    for path in host_files:
        mounts[path] = mount(path, "bind", path, "rbind", "ro")
    places = set()
    for entry in map(check_mount, asked):
        place = posixpath.normpath(entry["destination"])
        if place in places:
            raise InvalidArgument(f"mount {place}: two mounts are asked for at this place")
        places.add(place)
        if _CGROUPS.startswith(f"{place}/") and _CGROUPS not in places:
            mounts.pop(_CGROUPS, None)
        mounts[entry["destination"]] = entry
    return list(mounts.values())


def _defaults(privileged: bool, shm_bytes: int) -> tuple[dict[str, Any], ...]:
    shm_size = f"size={shm_bytes >> 10}k" if shm_bytes % 1024 == 0 else f"size={shm_bytes}"
    return (
        mount("/proc", "proc", "proc", *_STRICT),
        mount("/dev", "tmpfs", "tmpfs", *_SMALL),
        mount(
            *("/dev/pts", "devpts", "devpts", "nosuid", "noexec"),
            *("newinstance", "ptmxmode=0666", "mode=0620", "gid=5"),
        ),
        mount("/dev/shm", "tmpfs", "shm", *_STRICT, "mode=1777", shm_size),  # noqa: S108
        mount("/dev/mqueue", "mqueue", "mqueue", *_STRICT),
        mount("/sys", "sysfs", "sysfs", *_STRICT, "rw" if privileged else "ro"),
        mount("/run", "tmpfs", "tmpfs", *_SMALL),
    )
