"""Which limits this host's kernel can hold a container to, on cgroup v1 and v2.

Read when a limit is asked for: controllers may be mounted or enabled while a manager runs.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass

CGROUPS = "/sys/fs/cgroup"
SYSTEM = "/sys/devices/system"

# A control and the files of which one must be there, for v1 below the controller's hierarchy.
_V1 = {
    "cpu shares": ("cpu", ("cpu.shares",)),
    "cpu quota": ("cpu", ("cpu.cfs_quota_us",)),
    "cpuset": ("cpuset", ("cpuset.cpus",)),
    "memory": ("memory", ("memory.limit_in_bytes",)),
    "swap": ("memory", ("memory.memsw.limit_in_bytes",)),
    "pids": ("pids", ("cgroup.procs",)),
    "block weight": ("blkio", ("blkio.weight", "blkio.bfq.weight")),
    "block throttle": ("blkio", ("blkio.throttle.read_bps_device",)),
}
# The root of the v2 tree has no control files: its list of controllers decides.
_V2 = {
    "cpu shares": "cpu",
    "cpu quota": "cpu",
    "cpuset": "cpuset",
    "memory": "memory",
    "swap": "memory",
    "pids": "pids",
    "block weight": "io",
    "block throttle": "io",
}


@dataclass(frozen=True)
class Controls:
    """`known`: names of limits that can be set; `cpus` and `nodes`: those that are online."""

    known: frozenset[str]
    cpus: frozenset[int]
    nodes: frozenset[int]


def read_controls(cgroups: str = CGROUPS, system: str = SYSTEM) -> Controls:
    return Controls(
        known=frozenset(_known(cgroups)),
        cpus=frozenset(numbers(_first_line(f"{system}/cpu/online"))),
        nodes=frozenset(numbers(_first_line(f"{system}/node/online")) or (0,)),
    )


def numbers(text: str) -> tuple[int, ...]:
    """The numbers in a list as cpuset(7) writes them: "0-2,5". Raises ValueError otherwise."""
    found: list[int] = []
    for part in filter(None, text.strip().split(",")):
        first, dash, last = part.partition("-")
        if not (first.isascii() and first.isdigit()) or (dash and not last.isdigit()):
            raise ValueError(f"{text!r} is no list of numbers")
        end = int(last) if dash else int(first)
        if not int(first) <= end < 1 << 16:
            raise ValueError(f"{text!r} is no list of numbers")
        found += range(int(first), end + 1)
    return tuple(found)


def _known(cgroups: str) -> Iterator[str]:
    if os.path.exists(f"{cgroups}/cgroup.controllers"):
        enabled = _first_line(f"{cgroups}/cgroup.controllers").split()
        yield from (name for name, controller in _V2.items() if controller in enabled)
        return
    for name, (controller, files) in _V1.items():
        if any(_has(f"{cgroups}/{controller}", file) for file in files):
            yield name


def _has(hierarchy: str, file: str) -> bool:
    """Some files are not in a hierarchy's root but in every cgroup below it."""
    if os.path.exists(f"{hierarchy}/{file}"):
        return True
    try:
        with os.scandir(hierarchy) as entries:
            below = next((entry.path for entry in entries if entry.is_dir()), None)
    except OSError:
        return False
    # Without any cgroup there to look at, the kernel decides when the runtime writes.
    return os.path.isdir(hierarchy) and (below is None or os.path.exists(f"{below}/{file}"))


def _first_line(path: str) -> str:
    try:
        with open(path, encoding="ascii") as file:
            return file.readline()
    except OSError:
        return ""
