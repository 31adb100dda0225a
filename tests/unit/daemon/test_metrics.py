"""The numbers of cgroups as containerd's messages, from files as a kernel shows them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from google.protobuf.json_format import MessageToDict, ParseDict

from lighter.daemon.grpc.pb import cgroups_v1_pb2, cgroups_v2_pb2
from lighter.daemon.tasks.metrics import of_v1, of_v2

NO_LIMIT = str((1 << 64) - 1)

V2 = {
    "pids.current": "3\n",
    "pids.max": "max\n",
    "cpu.stat": "usage_usec 700\nuser_usec 500\nsystem_usec 200\ncore_sched.force_idle_usec 0\n"
    "nr_periods 9\nnr_throttled 2\nthrottled_usec 40\nnr_bursts 0\nburst_usec 0\n",
    "cpu.pressure": "some avg10=1.50 avg60=0.25 avg300=0.00 total=1234\n"
    "full avg10=0.00 avg60=0.00 avg300=0.00 total=7\n",
    "memory.stat": "anon 4096\nfile 8192\nkernel 100\nkernel_stack 16384\npagetables 1\n"
    "sec_pagetables 0\npercpu 0\nsock 0\nvmalloc 0\nshmem 0\nzswap 0\nfile_mapped 20\n"
    "file_dirty 1\nfile_writeback 2\nanon_thp 2097152\ninactive_anon 3\nactive_anon 4\n"
    "inactive_file 5\nactive_file 6\nunevictable 7\nslab_reclaimable 8\nslab_unreclaimable 9\n"
    "slab 17\nworkingset_refault_anon 1\nworkingset_nodereclaim 4\npgscan 5\npgsteal 6\n"
    "pgfault 100\npgmajfault 2\npgrefill 3\npgactivate 4\npgdeactivate 5\npglazyfree 6\n"
    "pglazyfreed 7\nthp_fault_alloc 8\nthp_collapse_alloc 9\n",
    "memory.current": "12345\n",
    "memory.max": "67108864\n",
    "memory.peak": "23456\n",
    "memory.swap.current": "1\n",
    "memory.swap.max": "max\n",
    "memory.events": "low 0\nhigh 1\nmax 2\noom 3\noom_kill 4\noom_group_kill 0\n",
    "memory.pressure": "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\n",
    "io.stat": "8:0 rbytes=4096 wbytes=8192 rios=1 wios=2 dbytes=0 dios=0\n254:1 \n",
    "io.pressure": "full avg10=0.00 avg60=0.00 avg300=12.00 total=99\n",
    "hugetlb.2MB.current": "2097152\n",
    "hugetlb.2MB.max": "max\n",
    "hugetlb.2MB.events": "max 0\n",
    "hugetlb.2MB.rsvd.current": "0\n",
    "rdma.current": "mlx4_0 hca_handle=2 hca_object=2000\n",
    "rdma.max": "mlx4_0 hca_handle=max hca_object=3000\nocrdma1 hca_handle=3 hca_object=max\n",
}


def files(where: Path, texts: Mapping[str, str]) -> str:
    where.mkdir()
    for name, text in texts.items():
        (where / name).write_text(text)
    return str(where)


def shown(values: Mapping[str, Any], message: Any) -> Any:
    """The message's fields as they arrive. A name that it does not have raises."""
    ParseDict(dict(values), message)
    arrived = type(message).FromString(message.SerializeToString())
    return MessageToDict(arrived, preserving_proto_field_name=True)


def test_version_2(tmp_path: Path) -> None:
    values = shown(of_v2(files(tmp_path / "c", V2)), cgroups_v2_pb2.Metrics())
    assert values["pids"] == {"current": "3"}  # no limit is 0, which proto3 leaves out
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
    at = {
        "pids": files(tmp_path / "pids", {"pids.current": "2\n", "pids.max": "50\n"}),
        "cpu": files(tmp_path / "cpu", {"cpu.stat": "nr_periods 5\nnr_throttled 1\n"}),
        "cpuacct": files(
            tmp_path / "cpuacct",
            {"cpuacct.usage": "900\n", "cpuacct.usage_percpu": "400 500 \n"},
        ),
        "memory": files(
            tmp_path / "memory",
            {
                "memory.stat": "cache 1\nrss 2\npgpgin 3\ntotal_pgmajfault 4\n"
                "hierarchical_memsw_limit 5\n",
                "memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 6\n",
                "memory.usage_in_bytes": "4096\n",
                "memory.kmem.tcp.usage_in_bytes": "1\n",
            },
        ),
        "blkio": files(
            tmp_path / "blkio",
            {
                "blkio.io_serviced_recursive": "8:0 Read 3\n8:0 Total 3\nTotal 3\n",
                "blkio.io_merged_recursive": "8:0 Write 4\nTotal 4\n",
                "blkio.time_recursive": "8:0 77\n",
                "blkio.sectors_recursive": "8:0 88\n",
            },
        ),
        "hugetlb": files(
            tmp_path / "hugetlb",
            {"hugetlb.2MB.usage_in_bytes": "1\n", "hugetlb.2MB.failcnt": "2\n"},
        ),
        "rdma": files(tmp_path / "rdma", {"rdma.current": "mlx5_0 hca_handle=1 hca_object=2\n"}),
    }
    values = shown(of_v1(at), cgroups_v1_pb2.Metrics())
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
