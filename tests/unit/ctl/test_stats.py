"""The arithmetic of stats, on what either version of cgroups tells."""

from typing import Any

from lighter.ctl.stats import block_bytes, cpu_percent, memory
from lighter.ctl.task import go_time, metric_rows

GIB = 1 << 30


def sample(version: int, timestamp: int, **values: Any) -> dict[str, Any]:
    return {"id": "c", "version": version, "timestamp": timestamp, "values": values}


def test_processor_time_is_a_share_of_what_passed() -> None:
    first = sample(1, 10**9, cpu={"usage": {"total": 5 * 10**8}})
    second = sample(1, 2 * 10**9, cpu={"usage": {"total": 20 * 10**8}})
    assert cpu_percent(second, first) == 150.0
    first = sample(2, 10**9, cpu={"usage_usec": 1000})
    second = sample(2, 3 * 10**9, cpu={"usage_usec": 501_000})
    assert cpu_percent(second, first) == 25.0
    assert cpu_percent(second, None) == 0.0
    assert cpu_percent(first, second) == 0.0, "a container that was started anew"
    assert cpu_percent(sample(0, 5, cpu={}), first) == 0.0


def test_memory_is_without_idle_file_cache_and_never_more_than_the_host_has() -> None:
    v1 = sample(
        1, 1, memory={"usage": {"usage": 300, "limit": 1 << 63}, "total_inactive_file": 100}
    )
    assert memory(v1, GIB) == (200, GIB)
    v2 = sample(2, 1, memory={"usage": 300, "usage_limit": 1000, "inactive_file": 400})
    assert memory(v2, GIB) == (0, 1000), "counters are read one after another"
    assert memory(sample(2, 1), GIB) == (0, 0)


def test_bytes_of_disks_are_added_up() -> None:
    rows = [{"op": op, "value": value} for op, value in (("Read", 1), ("Write", 2), ("Sync", 4))]
    v1 = sample(1, 1, blkio={"io_service_bytes_recursive": [*rows, {"op": "Read", "value": 8}]})
    assert block_bytes(v1) == (9, 2)
    v2 = sample(2, 1, io={"usage": [{"rbytes": 1, "wbytes": 2}, {"rbytes": 4, "wbytes": 8}]})
    assert block_bytes(v2) == (5, 10)


def test_metrics_of_version_2_have_ctrs_names_in_its_order() -> None:
    values = {
        "pids": {"current": 1, "limit": 0},
        "cpu": {"usage_usec": 7, "nr_periods": 3},
        "memory": {"usage": 5, "usage_limit": 6},
    }
    assert metric_rows(2, values) == [
        *(("pids.current", 1), ("pids.limit", 0)),
        *(("cpu.usage_usec", 7), ("cpu.user_usec", 0), ("cpu.system_usec", 0)),
        *(("cpu.nr_periods", 3), ("cpu.nr_throttled", 0), ("cpu.throttled_usec", 0)),
        *(("memory.usage", 5), ("memory.usage_limit", 6)),
        *(("memory.swap_usage", 0), ("memory.swap_limit", 0)),
    ]
    assert go_time(1_700_000_000_500_000_000) == "2023-11-14 22:13:20.5 +0000 UTC"
