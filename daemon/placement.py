"""Where shims live among the cgroups: outside the manager's own, so that stopping it spares them.

A spawner is moved once, and shims are born where it is (moving each would cost 6 ms). Without
systemd it goes to /lighter-shims/<instance> in every hierarchy.
"""

import contextlib
import logging
import os

from lighter.proto.paths import shims_cgroup

log = logging.getLogger("lighter.placement")

MOUNT = "/sys/fs/cgroup"


def hierarchies(mount: str = MOUNT) -> list[str]:
    """The roots of all cgroup hierarchies: one on v2, one per controller on v1, both on hybrid."""
    if os.path.exists(mount + "/cgroup.procs"):
        return [mount]
    try:
        names = sorted(os.listdir(mount))
    except FileNotFoundError:
        return []
    roots = {os.path.realpath(f"{mount}/{name}") for name in names}
    return sorted(root for root in roots if os.path.exists(root + "/cgroup.procs"))


def place_spawner(instance: str, pid: int) -> None:
    """Move a spawner out of the manager's cgroups. What cannot be done is a warning, no failure."""
    for root in hierarchies():
        directory = root + shims_cgroup(instance)
        try:
            os.makedirs(directory, exist_ok=True)
            if root.endswith("/cpuset"):
                _inherit_cpuset(root, directory)
            with open(directory + "/cgroup.procs", "w", encoding="ascii") as file:
                file.write(str(pid))
        except OSError as err:
            log.warning("place spawner in %s: %s", directory, err.strerror)


def _inherit_cpuset(root: str, directory: str) -> None:
    """v1: a new cpuset is empty and takes no process until it has cpus and mems."""
    path = root
    for part in os.path.relpath(directory, root).split("/"):
        parent, path = path, f"{path}/{part}"
        for name in ("cpuset.cpus", "cpuset.mems"):
            with open(f"{path}/{name}", encoding="ascii") as file:
                if file.read(64).strip():
                    continue
            with open(f"{parent}/{name}", encoding="ascii") as file:
                value = file.read(4096)
            with open(f"{path}/{name}", "w", encoding="ascii") as file:
                file.write(value)


def remove_empty(instance: str) -> None:
    """At a stop: remove this instance's cgroups that nothing is in; those in use stay.

    Not below a container's: what a container makes in its own cgroup is its own.
    """
    for root in hierarchies():
        of_containers = f"{root}/lighter/{instance}"
        for directory in (
            *(f"{of_containers}/{namespace}" for namespace in _names(of_containers)),
            of_containers,
            os.path.dirname(of_containers),
            root + shims_cgroup(instance),
            os.path.dirname(root + shims_cgroup(instance)),
        ):
            with contextlib.suppress(OSError):
                os.rmdir(directory)


def _names(directory: str) -> list[str]:
    try:
        return [entry.name for entry in os.scandir(directory) if entry.is_dir()]
    except FileNotFoundError:
        return []
