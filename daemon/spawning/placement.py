"""Where shims live among the cgroups: outside the manager's own, so that stopping it spares them.

A spawner is placed once, and shims are born where it is (moving each would cost 6 ms). A manager
that is a unit of systemd starts each spawner in a transient scope; the scope ends by itself with
its last shim. Elsewhere a spawner is moved by hand to /lighter-shims/<instance> in every hierarchy.
"""

import contextlib
import logging
import os
import time

from lighter.proto.errors import FailedPrecondition
from lighter.proto.paths import shims_cgroup

log = logging.getLogger("lighter.placement")

_POLL_S = 0.005
MOUNT = "/sys/fs/cgroup"
SYSTEMD_RUN = "/usr/bin/systemd-run"
SLICE = "lighter.slice"
# Its stop ends all containers in time. See packaging/rpm/lighter-containers.service.
STOPS_CONTAINERS = "lighter-containers.service"


class Placement:
    """Gets the spawners of one manager out of its cgroups: by a scope each, or by hand."""

    def __init__(self, instance: str, generation: int, scopes: bool) -> None:
        self._instance = instance
        self._generation = generation
        self._scopes = scopes
        self._refused = False
        self._count = 0

    @classmethod
    def of_this_process(cls, instance: str, generation: int) -> "Placement":
        return cls(instance, generation, under_systemd())

    def launcher(self) -> list[str]:
        """What the next spawner's command line begins with; [] when it is moved by hand.

        `systemd-run --scope` becomes the command that it is given, in the same process and with
        the descriptors that it was given.
        """
        if not self._scopes or self._refused:
            return []
        self._count += 1
        name = f"{_scopes_of(self._instance)}{self._generation}"
        return scope_argv(f"{name}.scope" if self._count == 1 else f"{name}-{self._count}.scope")

    @property
    def wants_scope(self) -> bool:
        return self._scopes

    def started(self, pid: int, launcher: list[str]) -> None:
        """A spawner runs, started with `launcher`."""
        if not launcher:
            place_by_hand(self._instance, pid)

    def refuse(self) -> None:
        """No scope came about: the next spawner is moved by hand."""
        self._refused = True

    def loaded(self) -> None:
        """A spawner serves. What stood in a scope's way may be over when the next is started."""
        self._refused = False


def _scopes_of(instance: str) -> str:
    """What the names of its scopes begin with."""
    return f"lighter-shims-{instance}-"


def is_place_of_shims(cgroup: str, instance: str) -> bool:
    """Whether shims of this instance are born there, or below: one of its scopes, or by hand."""
    by_hand, scope = shims_cgroup(instance), _scopes_of(instance)
    # Below the place of an outer container the kernel's paths begin with that.
    return f"{by_hand}/" in f"{cgroup}/" or f"/{scope}" in cgroup


def under_systemd() -> bool:
    """Whether systemd runs this machine (sd_booted(3)) and this process as a service."""
    if not (os.path.isdir("/run/systemd/system") and os.access(SYSTEMD_RUN, os.X_OK)):
        return False
    with open("/proc/self/cgroup", encoding="ascii", errors="replace") as file:
        return service_of(file.read(64 * 1024)) != ""


def service_of(cgroups: str) -> str:
    """The service that a process with this /proc/<pid>/cgroup belongs to, "" for none."""
    for line in cgroups.splitlines():
        _number, controllers, path = line.split(":", 2)
        # systemd keeps its own names in the one without controllers: v2's, or v1's named one.
        if controllers in ("", "name=systemd"):
            for part in reversed(path.split("/")):
                if part.endswith(".service"):
                    return part
    return ""


def scope_argv(unit: str) -> list[str]:
    """systemd-run(1) for a scope of shims; the command follows."""
    return [
        *(SYSTEMD_RUN, "--scope", "--quiet", "--collect", "--no-ask-password"),
        *(f"--slice={SLICE}", f"--unit={unit}", "--description=Shims of Lighter's containers"),
        "--property=TasksMax=infinity",
        # Without it systemd would stop all shims of a scope when one process is out of memory.
        "--property=OOMPolicy=continue",
        # At shutdown what comes first is stopped last: containers still have their shims then.
        f"--property=Before={STOPS_CONTAINERS}",
        # Shims do not end at SIGTERM; without their containers they have ended by themselves.
        "--property=TimeoutStopSec=10s",
        "--",
    ]


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


def place_by_hand(instance: str, pid: int) -> None:
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


def remove_empty(instance: str, patience_s: float = 0.0) -> None:
    """At a stop: remove this instance's cgroups that nothing is in; those in use stay.

    Not below a container's: what a container makes in its own cgroup is its own. `patience_s`: how
    long a shim, a spawner or a child of it may take to end, when none of them is to stay.
    """
    end = time.monotonic() + patience_s
    while not _remove_empty(instance) and time.monotonic() < end:
        time.sleep(_POLL_S)


def _remove_empty(instance: str) -> bool:
    """Whether that of the shims is gone."""
    roots = hierarchies()
    places = [root + shims_cgroup(instance) for root in roots]
    for root, place in zip(roots, places, strict=True):
        of_containers = f"{root}/lighter/{instance}"
        for directory in (
            *(f"{of_containers}/{namespace}" for namespace in _names(of_containers)),
            of_containers,
            os.path.dirname(of_containers),
            place,
            os.path.dirname(place),
        ):
            with contextlib.suppress(OSError):
                os.rmdir(directory)
    return not any(os.path.exists(place) for place in places)


def remove_namespace(instance: str, namespace: str) -> None:
    """Remove the cgroup of a namespace that is gone. Raises FailedPrecondition: it is in use."""
    for root in hierarchies():
        directory = f"{root}/lighter/{instance}/{namespace}"
        try:
            os.rmdir(directory)
        except FileNotFoundError:
            pass
        except OSError as err:
            raise FailedPrecondition(f"remove cgroup {directory}: {err.strerror}") from err


def _names(directory: str) -> list[str]:
    try:
        return [entry.name for entry in os.scandir(directory) if entry.is_dir()]
    except FileNotFoundError:
        return []
