"""The text format, and the names that containerd's metrics have on either version of cgroups."""

import asyncio
import logging
import socket
import threading
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from lighter.daemon.config.listening import tcp_address
from lighter.daemon.metrics import server
from lighter.daemon.metrics.prometheus import Family, Sample, named, of_containers, text
from lighter.daemon.tasks.metrics import Metrics, of_v1, of_v2
from tests.registries import free_port
from tests.unit.daemon import cgroups
from tests.unit.daemon.test_recovery import comes_true

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
    families = of_containers([("default", "box", named(metrics))])
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
    (family, *_) = of_containers(
        [("a", "1", named(Metrics(2, V2))), ("b", "2", named(Metrics(2, V2)))]
    )
    assert [sample.labels["container_id"] for sample in family.samples] == ["1", "2"]
    odd = Family("x", "gauge", [Sample({"device": 'a"b\\c\nd'}, (1 << 64) - 1)])
    assert text([odd]) == ('# TYPE x gauge\nx{device="a\\"b\\\\c\\nd"} 18446744073709551615\n')


def test_what_a_kernel_shows_of_version_2(tmp_path: Path) -> None:
    """With pressure, which has no place on the page."""
    shown = names(Metrics(2, of_v2(cgroups.files(tmp_path / "c", cgroups.V2))))
    assert not any("psi" in name for name in shown)
    assert {
        *("cpu_usage_usec_microseconds", "cpu_throttled_usec_microseconds"),
        *("cpu_nr_periods_total", "cpu_nr_throttled_total", "pids_current", "memory_oom_total"),
        *("memory_anon_bytes", "memory_pgmajfault_bytes", "memory_swap_limit_bytes"),
        *("io_rbytes_bytes", "io_wios_total"),
    } <= shown


def test_what_a_kernel_shows_of_version_1(tmp_path: Path) -> None:
    assert {
        *("pids_current", "cpu_total_nanoseconds", "memory_oom_total", "memory_pgpgin_bytes"),
        *("blkio_io_serviced_recursive_total", "blkio_io_merged_recursive_total"),
        *("blkio_io_time_recursive_total", "blkio_sectors_recursive_total"),
        "hugetlb_usage_bytes",
    } <= names(Metrics(1, of_v1(cgroups.directories(tmp_path / "c"))))


def test_numbers_that_cannot_be_read_leave_those_of_the_others(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    numbers = {"good": Metrics(2, V2), "bad": Metrics(2, {"cpu": None})}
    monkeypatch.setattr(server.metrics, "of_task", lambda entry: numbers[entry.id])
    entries = [
        SimpleNamespace(namespace="default", id=name, what=f"task {name}")
        for name in sorted(numbers)
    ]
    page = server.MetricServer(tcp_address("127.0.0.1:1"), cast("Any", None), list)
    with caplog.at_level(logging.ERROR):
        for _look in range(2):
            body = page._written(cast("Any", entries), []).decode()
            assert 'container_pids_current{container_id="good",namespace="default"} 1' in body
            assert 'container_id="bad"' not in body
    (complaint,) = (record.getMessage() for record in caplog.records)
    assert complaint.startswith("measure task bad: it is left out: AttributeError")


def heard(port: int, asked: bytes) -> bytes:
    """All that is answered, though what was asked may not be read and the connection be reset."""
    said = b""
    with socket.create_connection(("127.0.0.1", port), 30) as one, suppress(ConnectionResetError):
        one.sendall(asked)
        while some := one.recv(65536):
            said += some
    return said


def test_f58_a_connection_too_many_to_the_page_hears_so() -> None:
    async def hear(port: int, asked: bytes) -> bytes:
        return await asyncio.to_thread(heard, port, asked)

    held: list[asyncio.StreamWriter] = []

    async def work() -> None:
        port = free_port()
        supervisor = SimpleNamespace(entries={})
        page = server.MetricServer(
            tcp_address(f"127.0.0.1:{port}"), cast("Any", supervisor), list, lambda: 2
        )
        await page.start()
        asked = b"GET /v1/metrics HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
        try:
            assert (await hear(port, asked)).startswith(b"HTTP/1.1 200 ")
            for _ in range(2):
                _reader, writer = await asyncio.open_connection("127.0.0.1", port)
                held.append(writer)
            served = page._runner
            assert served is not None and served.server is not None
            connections = served.server
            await comes_true(lambda: len(connections.connections) == 2)
            refused = await hear(port, b"\r\n")
            assert refused.startswith(b"HTTP/1.1 503 ") and refused.endswith(b"try again\n")
            for one in held:
                one.close()
            await comes_true(lambda: not connections.connections)
            assert (await hear(port, asked)).startswith(b"HTTP/1.1 200 ")
        finally:
            await page.close()

    asyncio.run(asyncio.wait_for(work(), 60))


def test_f58_a_reader_of_the_page_that_does_not_read_keeps_no_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nor one that asks for more: Prometheus would be refused for good."""
    monkeypatch.setattr(server, "LIFE_S", 3.0)
    monkeypatch.setattr(server, "IDLE_S", 600.0)
    loop_thread = threading.get_ident()
    large = Family("large", "gauge", [Sample({"pad": "x" * (16 << 20)}, 1)])

    def more() -> list[Family]:
        assert threading.get_ident() == loop_thread, "what it counts is changed there"
        return [large]

    async def work() -> None:
        port = free_port()
        supervisor = SimpleNamespace(entries={})
        page = server.MetricServer(tcp_address(f"127.0.0.1:{port}"), cast("Any", supervisor), more)
        await page.start()
        asked = b"GET /v1/metrics HTTP/1.1\r\nHost: h\r\n\r\n"
        try:
            served = page._runner
            assert served is not None and served.server is not None
            connections = served.server
            with socket.socket() as silent:
                silent.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                silent.connect(("127.0.0.1", port))
                silent.sendall(asked * 3)
                await comes_true(lambda: len(connections.connections) == 1)
                await comes_true(lambda: not connections.connections)
            large.samples[0].labels["pad"] = ""
            monkeypatch.setattr(server, "LIFE_S", 60.0)
            for request in (asked * 3, asked.replace(b"v1", b"v2") * 3):
                said = await asyncio.to_thread(heard, port, request)
                assert said.count(b"HTTP/1.1 ") == said.count(b"Connection: close") == 1
        finally:
            await page.close()

    asyncio.run(asyncio.wait_for(work(), 60))
