"""The numbers of cgroups as containerd's messages, from files as a kernel shows them."""

import asyncio
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from google.protobuf.json_format import MessageToDict, ParseDict

from lighter.daemon.grpc.pb import cgroups_v1_pb2, cgroups_v2_pb2, tasks_pb2
from lighter.daemon.grpc.tasks import TasksService
from lighter.daemon.rpc.methods import Call
from lighter.daemon.rpc.metrics_handlers import metrics_methods
from lighter.daemon.rpc.task_handlers import task_methods
from lighter.daemon.tasks import metrics, processes
from lighter.daemon.tasks.entry import Entry
from lighter.daemon.tasks.metrics import of_v1, of_v2
from lighter.proto import states
from tests.unit.daemon.cgroups import V2, directories, files

NO_LIMIT = str((1 << 64) - 1)


def shown(values: Mapping[str, Any], message: Any) -> Any:
    """The message's fields as they arrive. A name that it does not have raises."""
    ParseDict(dict(values), message)
    arrived = type(message).FromString(message.SerializeToString())
    return MessageToDict(arrived, preserving_proto_field_name=True)


def test_version_2(tmp_path: Path) -> None:
    values = shown(of_v2(files(tmp_path / "c", V2)), cgroups_v2_pb2.Metrics())
    assert values["pids"] == {"current": "3", "limit": NO_LIMIT}
    assert values["cpu"]["usage_usec"] == "700" and values["cpu"]["throttled_usec"] == "40"
    some, full = values["cpu"]["psi"]["some"], values["cpu"]["psi"]["full"]
    assert some == {"avg10": 1.5, "avg60": 0.25, "total": "1234"} and full == {"total": "7"}
    memory = values["memory"]
    assert (memory["usage"], memory["usage_limit"]) == ("12345", "67108864")
    assert (memory["swap_usage"], memory["swap_limit"]) == ("1", NO_LIMIT)
    assert memory["max_usage"] == "23456" and memory["anon_thp"] == "2097152"
    assert (memory["anon"], memory["slab"], memory["pgfault"]) == ("4096", "17", "100")
    assert memory["thp_collapse_alloc"] == "9" and memory["workingset_nodereclaim"] == "4"
    assert values["memory_events"] == {"high": "1", "max": "2", "oom": "3", "oom_kill": "4"}
    one, other = values["io"]["usage"]
    assert one == {"major": "8", "rbytes": "4096", "wbytes": "8192", "rios": "1", "wios": "2"}
    assert other == {"major": "254", "minor": "1"}
    assert values["io"]["psi"]["full"] == {"avg300": 12.0, "total": "99"}
    assert values["hugetlb"] == [{"current": "2097152", "max": NO_LIMIT, "pagesize": "2MB"}]
    assert values["rdma"] == {
        "current": [{"device": "mlx4_0", "hca_handles": 2, "hca_objects": 2000}],
        "limit": [
            {"device": "mlx4_0", "hca_handles": 4294967295, "hca_objects": 3000},
            {"device": "ocrdma1", "hca_handles": 3, "hca_objects": 4294967295},
        ],
    }


def test_version_2_with_few_controllers(tmp_path: Path) -> None:
    values = shown(of_v2(files(tmp_path / "c", {"cgroup.procs": ""})), cgroups_v2_pb2.Metrics())
    assert "rdma" not in values and "hugetlb" not in values and "psi" not in values["memory"]


def test_version_1(tmp_path: Path) -> None:
    values = shown(of_v1(directories(tmp_path / "c")), cgroups_v1_pb2.Metrics())
    assert values["pids"] == {"current": "2", "limit": "50"}
    assert values["cpu"]["usage"] == {"total": "900", "per_cpu": ["400", "500"]}
    assert values["memory"]["pg_pg_in"] == "3" and values["memory"]["kernel_tcp"]["usage"] == "1"
    assert values["memory_oom_control"] == {"oom_kill": "6"}
    blkio = values["blkio"]
    assert [one["value"] for one in blkio["io_serviced_recursive"]] == ["3", "3"]
    assert blkio["io_merged_recursive"][0]["op"] == "Write"
    for field, value in (("io_time_recursive", "77"), ("sectors_recursive", "88")):
        assert [(one["value"], one["major"]) for one in blkio[field]] == [(value, "8")]
    assert values["hugetlb"] == [{"usage": "1", "failcnt": "2", "pagesize": "2MB"}]
    assert values["rdma"]["current"][0]["hca_objects"] == 2


@pytest.mark.parametrize("module", [metrics, processes])
def test_no_front_end_reads_cgroups_on_the_loop(
    module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many tasks are many files, and whoever asks for something else does not wait for them."""
    threads: list[int] = []

    def noted(entry: Entry, real: Callable[[Entry], Any] = module.of_task) -> Any:
        threads.append(threading.get_ident())
        return real(entry)

    monkeypatch.setattr(module, "of_task", noted)
    entry = Entry("default", "c", "a" * 16, states.RUNNING, "", "boot", 1, pid=os.getpid())
    tasks: Any = SimpleNamespace(entries=lambda *_: [entry], find=lambda *_: entry)
    none: Any = None
    service = TasksService(none, none, tasks, none, none, none)
    native = {**metrics_methods(tasks), **task_methods(tasks, none, none, none, none)}
    name, request = {
        metrics: ("metrics", tasks_pb2.MetricsRequest()),
        processes: ("pids", tasks_pb2.ListPidsRequest(container_id="c")),
    }[module]

    async def ask() -> None:
        of_native = native[f"tasks.{name}"].unary
        assert of_native is not None
        await of_native(Call("default", 0, 0), {"id": "c"})
        of_api = getattr(service, "list_pids" if name == "pids" else name)
        await of_api(cast("Any", SimpleNamespace(namespace="default")), request)

    asyncio.run(ask())
    assert len(threads) == 2 and threading.get_ident() not in threads
