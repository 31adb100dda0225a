"""Prometheus' text format 0.0.4, and what containers use under containerd's names.

(https://prometheus.io/docs/instrumenting/exposition_formats/) Of a container: its cgroup's numbers
as daemon/tasks/metrics.py reads them. A name is containerd's field and unit below `container_`.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lighter.daemon.tasks.metrics import Metrics

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Labels = Mapping[str, str]


@dataclass(frozen=True)
class Sample:
    labels: Labels
    value: int


@dataclass(frozen=True)
class Family:
    """`kind` is counter or gauge."""

    name: str
    kind: str
    samples: list[Sample]


def text(families: Iterable[Family]) -> str:
    lines = []
    for family in families:
        lines.append(f"# TYPE {family.name} {family.kind}")
        for sample in family.samples:
            pairs = ",".join(f'{key}="{_escaped(value)}"' for key, value in sample.labels.items())
            lines.append(f"{family.name}{{{pairs}}} {sample.value}")
    return "\n".join(lines) + "\n"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


Named = tuple[str, Labels, int]


def named(metrics: Metrics) -> list[Named]:
    """A container's numbers by name and labels; what is no whole number, as pressure, is not."""
    read = _v1 if metrics.version == 1 else _v2
    return [one for one in read(metrics.values) if isinstance(one[2], int)]


def of_containers(measured: Iterable[tuple[str, str, Iterable[Named]]]) -> list[Family]:
    """Of (namespace, container, what `named` says); a name's samples stand together."""
    families: dict[str, Family] = {}
    for namespace, container, numbers in measured:
        of = {"container_id": container, "namespace": namespace}
        for name, labels, value in numbers:
            family = families.setdefault(name, Family(f"container_{name}", "gauge", []))
            family.samples.append(Sample({**of, **labels}, value))
    return list(families.values())


_V1_MEMORY = {
    "pg_pg_in": "pgpgin",
    "pg_pg_out": "pgpgout",
    "pg_fault": "pgfault",
    "pg_maj_fault": "pgmajfault",
    "total_pg_pg_in": "total_pgpgin",
    "total_pg_pg_out": "total_pgpgout",
    "total_pg_fault": "total_pgfault",
    "total_pg_maj_fault": "total_pgmajfault",
    "hierarchical_swap_limit": "hierarchical_memsw_limit",
}
_V1_ENTRIES = {"usage": "usage", "swap": "swap", "kernel": "kernel", "kernel_tcp": "kerneltcp"}
_V1_CPU = {"total": "cpu_total", "kernel": "cpu_kernel", "user": "cpu_user"}
_V1_BLKIO_UNITS = {"io_service_bytes_recursive": "bytes"}


def _v1(values: Mapping[str, Any]) -> Iterator[Named]:
    yield from _pids(values)
    if cpu := values.get("cpu"):
        for field, name in _V1_CPU.items():
            yield f"{name}_nanoseconds", {}, cpu["usage"][field]
        for number, used in enumerate(cpu["usage"]["per_cpu"]):
            yield "per_cpu_nanoseconds", {"cpu": str(number)}, used
        yield "cpu_throttle_periods_total", {}, cpu["throttling"]["periods"]
        yield "cpu_throttled_periods_total", {}, cpu["throttling"]["throttled_periods"]
        yield "cpu_throttled_time_nanoseconds", {}, cpu["throttling"]["throttled_time"]
    for field, value in values.get("memory", {}).items():
        if field in _V1_ENTRIES and isinstance(value, dict):
            entry = f"memory_{_V1_ENTRIES[field]}"
            yield f"{entry}_failcnt_total", {}, value["failcnt"]
            for part in ("limit", "max", "usage"):
                yield f"{entry}_{part}_bytes", {}, value[part]
        else:
            yield f"memory_{_V1_MEMORY.get(field, field)}_bytes", {}, value
    if oom := values.get("memory_oom_control"):
        yield "memory_oom_total", {}, oom.get("oom_kill", 0)
    for field, entries in values.get("blkio", {}).items():
        for one in entries:
            labels = {name: str(one[name]) for name in ("op", "device", "major", "minor")}
            yield f"blkio_{field}_{_V1_BLKIO_UNITS.get(field, 'total')}", labels, one["value"]
    for one in values.get("hugetlb", ()):
        page = {"page": one["pagesize"]}
        yield "hugetlb_usage_bytes", page, one["usage"]
        yield "hugetlb_failcnt_total", page, one["failcnt"]
        yield "hugetlb_max_bytes", page, one["max"]


_V2_CPU_UNITS = dict.fromkeys(
    ("usage_usec", "user_usec", "system_usec", "throttled_usec"), "microseconds"
)
_V2_IO_UNITS = {"rbytes": "bytes", "wbytes": "bytes", "rios": "total", "wios": "total"}


def _v2(values: Mapping[str, Any]) -> Iterator[Named]:
    yield from _pids(values)
    for field, value in values.get("cpu", {}).items():
        yield f"cpu_{field}_{_V2_CPU_UNITS.get(field, 'total')}", {}, value
    for field, value in values.get("memory", {}).items():
        yield f"memory_{field}_bytes", {}, value
    if events := values.get("memory_events"):
        yield "memory_oom_total", {}, events.get("oom", 0)
    for one in values.get("io", {}).get("usage", ()):
        device = {"major": str(one["major"]), "minor": str(one["minor"])}
        for field, unit in _V2_IO_UNITS.items():
            yield f"io_{field}_{unit}", device, one[field]


def _pids(values: Mapping[str, Any]) -> Iterator[Named]:
    if pids := values.get("pids"):
        yield "pids_limit", {}, pids["limit"]
        yield "pids_current", {}, pids["current"]
