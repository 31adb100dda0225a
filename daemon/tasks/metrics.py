"""What a container has used, read from its cgroup: no shim is asked.

Kernel: Documentation/admin-guide/cgroup-v1/{memory,blkio-controller,hugetlb}.rst, cpuacct.rst,
cgroup-v2.rst. The numbers are those that containerd's cgroups library reports, by the names of its
messages; a file that is not there leaves its fields out.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lighter.daemon.tasks.entry import Entry
from lighter.daemon.tasks.processes import cgroups_of, own_cgroup
from lighter.proto.errors import NotFound

_MOUNT = "/sys/fs/cgroup"
_TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")

_V1_MEMORY_NAMES = {
    "pgpgin": "pg_pg_in",
    "pgpgout": "pg_pg_out",
    "pgfault": "pg_fault",
    "pgmajfault": "pg_maj_fault",
    "total_pgpgin": "total_pg_pg_in",
    "total_pgpgout": "total_pg_pg_out",
    "total_pgfault": "total_pg_fault",
    "total_pgmajfault": "total_pg_maj_fault",
    "hierarchical_memsw_limit": "hierarchical_swap_limit",
}
_V1_MEMORY_PARTS = {
    "usage": "memory.",
    "swap": "memory.memsw.",
    "kernel": "memory.kmem.",
    "kernel_tcp": "memory.kmem.tcp.",
}
_V1_BLKIO = {
    "io_service_bytes_recursive": "io_service_bytes",
    "io_serviced_recursive": "io_serviced",
    "io_queued_recursive": "io_queued",
    "io_service_time_recursive": "io_service_time",
    "io_wait_time_recursive": "io_wait_time",
    "io_merged_recursive": "io_merged",
    "io_time_recursive": "time",
    "sectors_recursive": "sectors",
}
_MAX_UINT32 = (1 << 32) - 1


@dataclass(frozen=True)
class Metrics:
    """`version` is 1 or 2; `values` nests as io.containerd.cgroups.v<version>.Metrics does."""

    version: int
    values: Mapping[str, Any]


def of_task(entry: Entry) -> Metrics:
    """Raises NotFound when the cgroup is gone: with its task's end, or its processes'."""
    v1: dict[str, str] = {}
    v2 = ""
    for _number, controllers, at in cgroups_of(entry.pid) if entry.exit is None else []:
        path = own_cgroup(entry, at)
        if path == "/":
            continue
        if not controllers:
            v2 = next(
                (top + path for top in (_MOUNT, f"{_MOUNT}/unified") if os.path.isdir(top + path)),
                "",
            )
            continue
        for name in controllers.split(","):
            for folder in (controllers, name):
                if os.path.isdir(f"{_MOUNT}/{folder}{path}"):
                    v1[name] = f"{_MOUNT}/{folder}{path}"
    if v1:
        return Metrics(1, of_v1(v1))
    if not v2:
        raise NotFound(f"measure {entry.what}: it has no cgroup any more")
    return Metrics(2, of_v2(v2))


def of_v1(at: Mapping[str, str]) -> dict[str, Any]:
    """The values of a cgroup of version 1, whose directory of each controller is given."""
    values: dict[str, Any] = {}
    if "pids" in at:
        values["pids"] = _v1_pids(at["pids"])
    if "cpuacct" in at or "cpu" in at:
        values["cpu"] = _v1_cpu(at.get("cpuacct", ""), at.get("cpu", ""))
    if "memory" in at:
        values["memory"] = _v1_memory(at["memory"])
        values["memory_oom_control"] = _keyed(at["memory"] + "/memory.oom_control")
    if "blkio" in at:
        values["blkio"] = _v1_blkio(at["blkio"])
    if "hugetlb" in at:
        values["hugetlb"] = list(_v1_hugetlb(at["hugetlb"]))
    if "rdma" in at:
        values["rdma"] = _rdma(at["rdma"])
    return values


def _v1_pids(directory: str) -> dict[str, int]:
    # "max" reads 0: no limit, as containerd says it of this version alone.
    return {
        "current": _number(directory + "/pids.current"),
        "limit": _number(directory + "/pids.max"),
    }


def _v1_cpu(cpuacct: str, cpu: str) -> dict[str, Any]:
    ticks = _keyed(cpuacct + "/cpuacct.stat")
    throttled = _keyed(cpu + "/cpu.stat")
    return {
        "usage": {
            "total": _number(cpuacct + "/cpuacct.usage"),
            "kernel": ticks.get("system", 0) * _TICK_NS,
            "user": ticks.get("user", 0) * _TICK_NS,
            "per_cpu": [int(word) for word in _text(cpuacct + "/cpuacct.usage_percpu").split()],
        },
        "throttling": {
            "periods": throttled.get("nr_periods", 0),
            "throttled_periods": throttled.get("nr_throttled", 0),
            "throttled_time": throttled.get("throttled_time", 0),
        },
    }


def _v1_memory(directory: str) -> dict[str, Any]:
    values: dict[str, Any] = {
        _V1_MEMORY_NAMES.get(name, name): number
        for name, number in _keyed(directory + "/memory.stat").items()
    }
    for part, prefix in _V1_MEMORY_PARTS.items():
        files = f"{directory}/{prefix}"
        if os.path.exists(files + "usage_in_bytes"):
            values[part] = {
                "limit": _number(files + "limit_in_bytes"),
                "usage": _number(files + "usage_in_bytes"),
                "max": _number(files + "max_usage_in_bytes"),
                "failcnt": _number(files + "failcnt"),
            }
    return values


def _v1_blkio(directory: str) -> dict[str, list[dict[str, Any]]]:
    """Of the scheduler that counts (CFQ, BFQ), else what the throttler has seen."""
    for prefix, suffix in (("", "_recursive"), ("bfq.", "_recursive"), ("throttle.", "")):
        if os.path.exists(f"{directory}/blkio.{prefix}io_serviced{suffix}"):
            read = {
                field: list(_v1_devices(f"{directory}/blkio.{prefix}{name}{suffix}"))
                for field, name in _V1_BLKIO.items()
            }
            return {field: entries for field, entries in read.items() if entries}
    return {}


def _v1_devices(path: str) -> Iterator[dict[str, Any]]:
    for line in _text(path).splitlines():
        number, *op, value = line.split() or ("", "")
        if ":" not in number or len(op) > 1 or not value.isdigit():
            continue  # "Total", of all devices
        major, minor = map(int, number.split(":"))
        device = {"device": _device(major, minor), "major": major, "minor": minor}
        yield {"op": "".join(op), "value": int(value), **device}


def _device(major: int, minor: int) -> str:
    try:
        return "/dev/" + os.path.basename(os.readlink(f"/sys/dev/block/{major}:{minor}"))
    except OSError:
        return ""


def _v1_hugetlb(directory: str) -> Iterator[dict[str, Any]]:
    for entry in sorted(os.listdir(directory)):
        if entry.startswith("hugetlb.") and entry.endswith("B.usage_in_bytes"):
            size = entry.split(".")[1]
            files = f"{directory}/hugetlb.{size}."
            yield {
                "usage": _number(files + "usage_in_bytes"),
                "max": _number(files + "max_usage_in_bytes"),
                "failcnt": _number(files + "failcnt"),
                "pagesize": size,
            }


_V2_MEMORY = (
    *("anon", "file", "kernel_stack", "slab", "sock", "shmem", "file_mapped", "file_dirty"),
    *("file_writeback", "inactive_anon", "active_anon", "inactive_file", "active_file"),
    *("unevictable", "slab_reclaimable", "slab_unreclaimable", "pgfault", "pgmajfault"),
    *("workingset_refault", "workingset_activate", "workingset_nodereclaim", "pgrefill"),
    *("pgscan", "pgsteal", "pgactivate", "pgdeactivate", "pglazyfree", "pglazyfreed"),
    *("thp_fault_alloc", "thp_collapse_alloc"),
)


def of_v2(directory: str) -> dict[str, Any]:
    """The values of a cgroup of version 2."""
    cpu = _keyed(directory + "/cpu.stat")
    stat = _keyed(directory + "/memory.stat")
    memory = {name: stat[name] for name in _V2_MEMORY if name in stat}
    memory |= {
        "anon_thp": stat.get("anon_thp", 0),
        "usage": _number(directory + "/memory.current"),
        "usage_limit": _limit(directory + "/memory.max"),
        "max_usage": _number(directory + "/memory.peak"),
        "swap_usage": _number(directory + "/memory.swap.current"),
        "swap_limit": _limit(directory + "/memory.swap.max"),
    }
    events = _keyed(directory + "/memory.events")
    counted = ("usage_usec", "user_usec", "system_usec", "nr_periods", "nr_throttled")
    values: dict[str, Any] = {
        "pids": {
            "current": _number(directory + "/pids.current"),
            "limit": _limit(directory + "/pids.max"),
        },
        "cpu": {name: cpu[name] for name in (*counted, "throttled_usec") if name in cpu},
        "memory": memory,
        "memory_events": {
            name: events[name]
            for name in ("low", "high", "max", "oom", "oom_kill")
            if name in events
        },
        "io": {"usage": list(_v2_io(directory + "/io.stat"))},
        "hugetlb": list(_v2_hugetlb(directory)),
    }
    for part in ("cpu", "memory", "io"):
        if pressure := _pressure(f"{directory}/{part}.pressure"):
            values[part]["psi"] = pressure
    if os.path.exists(directory + "/rdma.current"):
        values["rdma"] = _rdma(directory)
    return values


def _v2_hugetlb(directory: str) -> Iterator[dict[str, Any]]:
    for entry in sorted(os.listdir(directory)):
        if entry.startswith("hugetlb.") and entry.endswith("B.current"):
            size = entry.split(".")[1]
            files = f"{directory}/hugetlb.{size}."
            current, limit = _number(files + "current"), _limit(files + "max")
            yield {"current": current, "max": limit, "pagesize": size}


def _pressure(path: str) -> dict[str, dict[str, float]]:
    """How long tasks have waited (Documentation/accounting/psi.rst); nothing where that is off."""
    found = {}
    for line in _text(path).splitlines():
        kind, *words = line.split()
        numbers = dict(word.split("=", 1) for word in words)
        found[kind] = {name: float(numbers[name]) for name in ("avg10", "avg60", "avg300")}
        found[kind]["total"] = int(numbers["total"])
    return found


def _rdma(directory: str) -> dict[str, list[dict[str, Any]]]:
    return {
        field: list(_rdma_devices(f"{directory}/rdma.{name}"))
        for field, name in (("current", "current"), ("limit", "max"))
    }


def _rdma_devices(path: str) -> Iterator[dict[str, Any]]:
    for line in _text(path).splitlines():
        device, *words = line.split()
        counts = {
            f"{name}s": _MAX_UINT32 if number == "max" else int(number)
            for name, _, number in (word.partition("=") for word in words)
        }
        yield {"device": device, **counts}


def _v2_io(path: str) -> Iterator[dict[str, int]]:
    for line in _text(path).splitlines():
        device, *words = line.split()
        major, _, minor = device.partition(":")
        seen = dict(word.split("=", 1) for word in words if "=" in word)
        if major.isdigit() and minor.isdigit():
            counts = {name: int(seen.get(name, 0)) for name in ("rbytes", "wbytes", "rios", "wios")}
            yield {"major": int(major), "minor": int(minor), **counts}


def _limit(path: str) -> int:
    """No limit is the largest number, as containerd says it."""
    return (1 << 64) - 1 if _text(path).strip() == "max" else _number(path)


def _number(path: str) -> int:
    text = _text(path).strip()
    return int(text) if text.isdigit() else 0


def _keyed(path: str) -> dict[str, int]:
    """A file of "name number" lines."""
    pairs = (line.split() for line in _text(path).splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}


def _text(path: str) -> str:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read(1 << 16)
    except OSError:
        return ""
