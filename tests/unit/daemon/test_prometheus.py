"""The text format, and the names that containerd's metrics have on either version of cgroups."""

from lighter.daemon.prometheus import Family, Sample, of_containers, text
from lighter.daemon.tasks.metrics import Metrics

V1 = {
    "pids": {"limit": 0, "current": 1},
    "cpu": {
        "usage": {"total": 9, "kernel": 1, "user": 2, "per_cpu": [3, 4]},
        "throttling": {"periods": 5, "throttled_periods": 6, "throttled_time": 7},
    },
    "memory": {
        "rss": 1,
        "total_pg_maj_fault": 2,
        "hierarchical_swap_limit": 3,
        "usage": {"limit": 4, "usage": 5, "max": 6, "failcnt": 7},
        "kernel_tcp": {"limit": 4, "usage": 5, "max": 6, "failcnt": 7},
    },
    "memory_oom_control": {"oom_kill": 1},
    "blkio": {
        "io_service_bytes_recursive": [
            {"op": "Read", "device": "/dev/sda", "major": 8, "minor": 0, "value": 10}
        ]
    },
    "hugetlb": [{"usage": 1, "max": 2, "failcnt": 3, "pagesize": "2MB"}],
}
V2 = {
    "pids": {"limit": 0, "current": 1},
    "cpu": {"usage_usec": 1, "nr_throttled": 2},
    "memory": {"usage": 1, "usage_limit": 2, "file_mapped": 3},
    "memory_events": {"oom": 1, "oom_kill": 2},
    "io": {"usage": [{"major": 8, "minor": 0, "rbytes": 1, "wbytes": 2, "rios": 3, "wios": 4}]},
}


def names(metrics: Metrics) -> set[str]:
    families = of_containers([("default", "box", metrics)])
    assert all(
        sample.labels["container_id"] == "box" and sample.labels["namespace"] == "default"
        for family in families
        for sample in family.samples
    )
    return {family.name.removeprefix("container_") for family in families}


def test_names_on_cgroup_v1() -> None:
    assert names(Metrics(1, V1)) == {
        *("pids_limit", "pids_current"),
        *("cpu_total_nanoseconds", "cpu_kernel_nanoseconds", "cpu_user_nanoseconds"),
        *("per_cpu_nanoseconds", "cpu_throttle_periods_total", "cpu_throttled_periods_total"),
        "cpu_throttled_time_nanoseconds",
        *("memory_rss_bytes", "memory_total_pgmajfault_bytes"),
        *("memory_hierarchical_memsw_limit_bytes", "memory_oom_total"),
        *("memory_usage_limit_bytes", "memory_usage_usage_bytes", "memory_usage_max_bytes"),
        *("memory_usage_failcnt_total", "memory_kerneltcp_failcnt_total"),
        *("memory_kerneltcp_limit_bytes", "memory_kerneltcp_usage_bytes"),
        "memory_kerneltcp_max_bytes",
        "blkio_io_service_bytes_recursive_bytes",
        *("hugetlb_usage_bytes", "hugetlb_failcnt_total", "hugetlb_max_bytes"),
    }


def test_names_on_cgroup_v2() -> None:
    assert names(Metrics(2, V2)) == {
        *("pids_limit", "pids_current"),
        *("cpu_usage_usec_microseconds", "cpu_nr_throttled_total"),
        *("memory_usage_bytes", "memory_usage_limit_bytes", "memory_file_mapped_bytes"),
        "memory_oom_total",
        *("io_rbytes_bytes", "io_wbytes_bytes", "io_rios_total", "io_wios_total"),
    }


def test_one_family_for_all_containers_and_labels_that_need_quotes() -> None:
    (family, *_) = of_containers([("a", "1", Metrics(2, V2)), ("b", "2", Metrics(2, V2))])
    assert [sample.labels["container_id"] for sample in family.samples] == ["1", "2"]
    odd = Family("x", "gauge", [Sample({"device": 'a"b\\c\nd'}, (1 << 64) - 1)])
    assert text([odd]) == ('# TYPE x gauge\nx{device="a\\"b\\\\c\\nd"} 18446744073709551615\n')
