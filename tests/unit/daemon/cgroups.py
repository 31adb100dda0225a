"""Files of cgroups, as a kernel shows them, in directories of the test's own."""

from collections.abc import Mapping
from pathlib import Path

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


V1 = {
    "pids": {"pids.current": "2\n", "pids.max": "50\n"},
    "cpu": {"cpu.stat": "nr_periods 5\nnr_throttled 1\n"},
    "cpuacct": {"cpuacct.usage": "900\n", "cpuacct.usage_percpu": "400 500 \n"},
    "memory": {
        "memory.stat": "cache 1\nrss 2\npgpgin 3\ntotal_pgmajfault 4\nhierarchical_memsw_limit 5\n",
        "memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 6\n",
        "memory.usage_in_bytes": "4096\n",
        "memory.kmem.tcp.usage_in_bytes": "1\n",
    },
    "blkio": {
        "blkio.io_serviced_recursive": "8:0 Read 3\n8:0 Total 3\nTotal 3\n",
        "blkio.io_merged_recursive": "8:0 Write 4\nTotal 4\n",
        "blkio.time_recursive": "8:0 77\n",
        "blkio.sectors_recursive": "8:0 88\n",
    },
    "hugetlb": {"hugetlb.2MB.usage_in_bytes": "1\n", "hugetlb.2MB.failcnt": "2\n"},
    "rdma": {"rdma.current": "mlx5_0 hca_handle=1 hca_object=2\n"},
}


def files(where: Path, texts: Mapping[str, str]) -> str:
    where.mkdir()
    for name, text in texts.items():
        (where / name).write_text(text)
    return str(where)


def directories(where: Path) -> dict[str, str]:
    """V1's, one for each controller."""
    where.mkdir()
    return {name: files(where / name, texts) for name, texts in V1.items()}
