"""The installed service on cgroup v2 with systemd 252, as on a host of CentOS Stream 9.

The tests share one machine and go on from what the ones before have left; each uses containers of
its own. The last one reboots it; a start that nothing has prepared: test_power.py.
"""

import json
from collections.abc import Callable, Iterator

import pytest

from lighter.proto.version import VERSION
from tests.harness import await_that
from tests.images import REFERENCE
from tests.packaging.rpms import NEXT
from tests.vm.installed import INSTALL_S, Installed
from tests.vm.machine import Machine
from tests.vm.payload import MOUNT, NEWER_RPMS, PYTHON, RPMS

CONTROLLERS = {"cpuset", "cpu", "io", "memory", "pids"}
CRUN = ("--runtime", "/usr/bin/crun")
PROFILE = "profile no-share flags=(attach_disconnected) { file, deny /share/** w, }"
STREAM = "/var/lib/stream"
METRICS = '\n[metrics]\naddress = "127.0.0.1:1338"\n'
COLLECTOR, COLLECTED = "/var/lib/collector", "/var/lib/collected"
COLLECT = f"#!/bin/sh\ncat >/dev/null\necho $1 >>{COLLECTED}\n"
READ_METRICS = """
import urllib.request
print(urllib.request.urlopen("http://127.0.0.1:1338/v1/metrics", timeout=60).read().decode())
"""


@pytest.fixture(scope="module")
def host(machine: Machine) -> Iterator[Installed]:
    """After its kills, upgrade and reboot nothing of a container is left."""
    host = Installed(machine).await_start().import_image()
    yield host
    host.clear()


def test_the_machine_is_what_these_tests_are_about(host: Installed, machine: Machine) -> None:
    mounted = machine.run("grep cgroup /proc/mounts").text.splitlines()
    assert [line.split()[1:3] for line in mounted] == [["/sys/fs/cgroup", "cgroup2"]]
    available = machine.read("/sys/fs/cgroup/cgroup.controllers").split()
    assert set(available) >= CONTROLLERS
    assert machine.run("systemctl --version").text.startswith("systemd 252 ")
    assert "[always]" in machine.read("/sys/kernel/mm/transparent_hugepage/enabled")


def test_the_manager_is_alone_in_its_unit(host: Installed, machine: Machine) -> None:
    pid = host.run("alone")
    manager = host.main_pid()
    unit = host.cgroup_of(manager)
    assert unit == "/sys/fs/cgroup/system.slice/lighterd.service"
    # What it runs for a moment, as iptables, may be there too.
    alone = f'test "$(cat {unit}/cgroup.procs)" = {manager}'
    machine.await_that(alone, 60, "the manager is alone in its cgroup")
    assert_no_sub_cgroup(machine, unit)
    shims = host.cgroup_of(host.shim_of("alone"))
    assert shims.startswith("/sys/fs/cgroup/lighter.slice/lighter-shims-")
    assert shims.endswith(".scope")
    container = host.cgroup_of(pid)
    assert container.startswith("/sys/fs/cgroup/lighter/")
    assert container.endswith("/default/alone")
    assert set(machine.read(f"{container}/cgroup.controllers").split()) >= CONTROLLERS


def assert_no_sub_cgroup(machine: Machine, unit: str) -> None:
    """One with processes or controllers would make the next start fail with 219/CGROUP."""
    assert not machine.run(["find", unit, "-mindepth", "1", "-type", "d"]).text


def test_run_exec_and_logs(host: Installed, machine: Machine) -> None:
    done = host.ctl("run", "--rm", REFERENCE, "once", "sh", "-c", "echo out; exit 7", check=False)
    assert (done.code, done.stdout) == (7, b"out\n"), done.stderr
    host.run("web", "sh", "-c", "echo up; trap exit TERM; sleep 1000 & wait")
    done = host.ctl("tasks", "exec", "--exec-id", "x", "web", "sh", "-c", "exit 3", check=False)
    assert done.code == 3, done.stderr
    machine.await_that("ctl logs web | grep -qx up", 60, "it has said it")
    assert host.ctl("logs", "web").stdout == b"up\n"


def test_pause_freezes_and_a_kill_ends_what_is_frozen(host: Installed, machine: Machine) -> None:
    pid = host.run("frozen")
    events = f"{host.cgroup_of(pid)}/cgroup.events"
    host.ctl("pause", "frozen")
    assert "frozen 1" in machine.read(events)
    host.ctl("resume", "frozen")
    assert "frozen 0" in machine.read(events)
    host.ctl("pause", "frozen")
    host.ctl("kill", "frozen")
    assert host.await_status("frozen", "stopped")["exit_status"] == 137


def test_a_life_under_crun(host: Installed, machine: Machine) -> None:
    """CentOS Stream 10 has no other runtime. The manager is killed meanwhile, and adopts."""
    once = ("run", "--rm", *CRUN, REFERENCE, "crun-once", "sh", "-c", "echo out; exit 7")
    done = host.ctl(*once, check=False)
    assert (done.code, done.stdout) == (7, b"out\n"), done.stderr
    cgroup = host.cgroup_of(pid := host.run("crun", flags=CRUN))
    assert cgroup.endswith("/default/crun")
    before = host.main_pid()
    machine.run(["kill", "-9", str(before)])
    host.await_manager(but=before)
    host.await_status("crun", "running")
    assert host.task("crun")["pid"] == pid
    done = host.ctl("tasks", "exec", "--exec-id", "x", "crun", "sh", "-c", "exit 3", check=False)
    assert done.code == 3, done.stderr
    host.ctl("pause", "crun")
    assert "frozen 1" in machine.read(f"{cgroup}/cgroup.events")
    host.ctl("resume", "crun")
    assert "frozen 0" in machine.read(f"{cgroup}/cgroup.events")
    machine.write(f"{cgroup}/memory.max", str(16 << 20))
    done = host.ctl("exec", "crun", "tail", "/dev/zero", check=False)
    assert done.code == 137, done.stderr
    assert host.has_told("/tasks/oom", "crun")
    host.ctl("pause", "crun")
    host.ctl("kill", "crun")
    assert host.await_status("crun", "stopped")["exit_status"] == 137
    host.ctl("rm", "crun")
    machine.await_that(f"test ! -e {cgroup}", 60)


def test_out_of_memory(host: Installed, machine: Machine) -> None:
    pid = host.run("greedy", "sh", "-c", "until [ -e /go ]; do sleep 0.2; done; tail /dev/zero")
    machine.write(f"{host.cgroup_of(pid)}/memory.max", str(16 << 20))
    host.ctl("exec", "greedy", "touch", "/go")
    assert host.await_status("greedy", "stopped")["exit_status"] == 137
    assert host.has_told("/tasks/oom", "greedy")
    inspected = host.ctl("inspect", "greedy").text
    assert '"oom"' in inspected


def test_a_profile_of_apparmor_holds(host: Installed, machine: Machine) -> None:
    """This kernel has it; the tests elsewhere see that it is refused where there is none."""
    assert machine.read("/sys/module/apparmor/parameters/enabled").strip() == "Y"
    machine.write("/root/no-share", PROFILE)
    refused = host.ctl("run", "--apparmor-profile", "no-share", REFERENCE, "early", check=False)
    assert refused.code and b"it is not loaded" in refused.stderr
    machine.run("apparmor_parser --replace /root/no-share")
    write = ("sh", "-c", "mkdir -p /share /free && echo 1 >/free/a && echo 2 >/share/a")
    for flags, code in ((("--apparmor-profile", "no-share"), 1), ((), 0)):
        done = host.ctl("run", "--rm", *flags, REFERENCE, "confined", *write, check=False)
        assert done.code == code, done.stderr
        assert (b"Permission denied" in done.stderr) == bool(code), done.stderr
    confined = ("run", "--rm", "--security-opt", "apparmor=no-share", REFERENCE, "confined")
    current = host.ctl(*confined, "cat", "/proc/self/attr/current").text
    assert current == "no-share (enforce)"


@pytest.fixture(scope="module")
def stream(host: Installed, machine: Machine) -> str:
    """A connection to a published port of a container in a network, from its first user on."""
    served = ("nc", "-ll", "-p", "7", "-e", "cat")
    host.ctl("network", "create", "default")
    host.run("served", *served, flags=("-p", "7077:7"))
    machine.begin([PYTHON, f"{MOUNT}/tests/vm/stream.py", STREAM, "127.0.0.1:7077"], timeout_s=1800)
    machine.await_that(f"test -e {STREAM}/begun -o -e {STREAM}/report", 120, "the stream flows")
    return STREAM


def test_a_killed_manager_is_started_again_beside_its_containers(
    host: Installed, machine: Machine, stream: str
) -> None:
    pid = host.run("stays")
    before = host.main_pid()  # itself the successor of one that was killed
    machine.run(["kill", "-9", str(before)])
    host.await_manager(but=before)
    assert host.await_status("stays", "running")["pid"] == pid
    assert "219" not in host.show("lighterd.service", "ExecMainStatus")
    assert "status=219" not in host.unit_log()
    assert_no_sub_cgroup(machine, host.cgroup_of(host.main_pid()))
    done = host.ctl("tasks", "exec", "--exec-id", "x", "stays", "sh", "-c", "exit 4", check=False)
    assert done.code == 4, done.stderr


def test_a_restart_by_systemctl(host: Installed, machine: Machine, stream: str) -> None:
    pid = host.run("restarted")
    config = "/etc/lighter/config.toml"
    machine.write(config, machine.read(config) + METRICS)
    machine.run("systemctl restart lighterd")
    host.await_status("restarted", "running")
    assert host.task("restarted")["pid"] == pid


def test_limits_are_set_shown_and_stay_when_systemd_looks_at_all_units_again(
    host: Installed, machine: Machine
) -> None:
    """systemd takes controllers from cgroups when none of its units needs them; ours are beside."""
    flags = ("-m", "64m", "--pids-limit", "50", "--cpus", "0.5", "--cpuset-cpus", "0")
    cgroup = host.cgroup_of(host.run("limited", flags=flags))
    limits = {
        "memory.max": str(64 << 20),
        "pids.max": "50",
        "cpu.max": "50000 100000",
        "cpuset.cpus": "0",
    }
    stats = ("stats", "--no-stream", "--format", "{{.MemUsage}} {{.PIDs}}", "limited")
    # A shell, and soon what it waits for.
    await_that(lambda: host.ctl(*stats).text.endswith("64.0 MiB 2"), 60, "both are counted")
    assert "pids.current" in host.ctl("tasks", "metrics", "limited").text
    machine.run("systemctl daemon-reload")
    # A unit with limits of its own comes and goes.
    machine.run("systemd-run --wait -q -p CPUQuota=50% -p MemoryMax=50M -p AllowedCPUs=0 true")
    machine.run("systemctl daemon-reexec")
    machine.run("systemctl daemon-reload")
    for name, value in limits.items():
        assert machine.read(f"{cgroup}/{name}").strip() == value, name
    host.ctl("exec", "limited", "true")
    host.ctl("update", "--memory", "96m", "--pids-limit", "60", "limited")
    assert machine.read(f"{cgroup}/memory.max").strip() == str(96 << 20)
    assert machine.read(f"{cgroup}/pids.max").strip() == "60"


def test_the_page_for_prometheus_has_the_names_of_cgroup_v2(
    host: Installed, machine: Machine
) -> None:
    host.run("measured", flags=("-m", "64m", "--pids-limit", "50"))
    of = '{container_id="measured",namespace="default"} '

    def shown_now() -> dict[str, str]:
        page = machine.run(["python3", "-c", READ_METRICS]).text
        return dict(line.split(of) for line in page.splitlines() if of in line)

    # A shell, and soon what it waits for.
    await_that(lambda: shown_now().get("container_pids_current") == "2", 60, "both run")
    shown = shown_now()
    assert shown["container_memory_usage_limit_bytes"] == str(64 << 20)
    assert (shown["container_pids_limit"], shown["container_pids_current"]) == ("50", "2")
    assert int(shown["container_cpu_usage_usec_microseconds"]) > 0
    assert int(shown["container_memory_usage_bytes"]) > 0
    assert shown["container_memory_oom_total"] == "0"
    assert {
        *("container_cpu_user_usec_microseconds", "container_cpu_nr_throttled_total"),
        *("container_memory_anon_bytes", "container_memory_file_bytes"),
        *("container_memory_pgmajfault_bytes", "container_memory_swap_usage_bytes"),
    } <= shown.keys()
    assert not any("pgpgin" in name or "failcnt" in name for name in shown), "those are version 1's"
    host.ctl("rm", "-f", "measured")


def test_no_program_that_collects_cores_gets_one_of_the_manager(
    host: Installed, machine: Machine
) -> None:
    """SEC-31: passwords would stand in it, and no limit keeps one from a pipe (core(5))."""
    pattern = "/proc/sys/kernel/core_pattern"
    before = machine.read(pattern)
    machine.write(COLLECTOR, COLLECT, 0o755)
    try:
        machine.run(f"cat >{pattern}", stdin=f"|{COLLECTOR} %P".encode())
        manager = host.main_pid()
        machine.run(["kill", "-ABRT", str(manager)])
        host.await_manager(but=manager)
        dying = machine.run("ulimit -c 0; sh -c 'echo $$; kill -ABRT $$'", check=False).text.split()
        machine.await_that(f"grep -qx {dying[0]} {COLLECTED}", 60, "others' are collected")
    finally:
        machine.run(f"cat >{pattern}", stdin=before.encode())
    assert machine.read(COLLECTED).split() == dying[:1]
    assert host.task("alone")["status"] == "running"


def test_a_lost_shim_costs_its_container_alone(host: Installed, machine: Machine) -> None:
    pid = host.run("lost")
    cgroup = host.cgroup_of(pid)
    machine.run(["kill", "-9", str(host.shim_of("lost"))])
    machine.await_that(f"test ! -e {cgroup}", 60, "its cgroup is gone, and all that was in it")
    task = host.await_status("lost", "stopped")
    assert task["exit_status"] == 137
    assert '"lost-shim"' in host.ctl("inspect", "lost").text
    assert host.task("alone")["status"] == "running"


def test_an_upgrade_and_the_way_back_beside_running_containers(
    host: Installed, machine: Machine, stream: str
) -> None:
    """On cgroup v2, with one container; tests/systemd has traffic and 200 of them."""
    pid = host.run("carried")
    shim = host.shim_of("carried")
    for folder, how, version in (
        (NEWER_RPMS, "-U", NEXT),
        (RPMS, "-U --oldpackage", VERSION),
    ):
        before = host.main_pid()
        machine.run(f"rpm {how} --nodeps {folder}/*.rpm", timeout_s=INSTALL_S)
        host.await_manager(but=before)
        told = json.loads(host.ctl("--format", "json", "version").stdout)
        assert told["server"]["version"] == version
        host.await_status("carried", "running")
        assert host.task("carried")["pid"] == pid
        assert host.shim_of("carried") == shim
        done = host.ctl(
            *("tasks", "exec", "--exec-id", f"at-{version}", "carried", "sh", "-c", "exit 6"),
            check=False,
        )
        assert done.code == 6, done.stderr
    # The shim of the first version ends its container under the manager that came back.
    host.ctl("pause", "carried")
    host.ctl("kill", "carried")
    assert host.await_status("carried", "stopped")["exit_status"] == 137


def test_a_published_connection_has_lasted_and_its_network_is_undone(
    host: Installed,
    machine: Machine,
    stream: str,
    record_property: Callable[[str, object], None],
) -> None:
    """Through a killed manager, a restart, an upgrade and the way back."""
    machine.run(f"touch {stream}/stop")
    machine.await_that(f"test -e {stream}/report", 180, "the stream has ended")
    report = json.loads(machine.read(f"{stream}/report"))
    record_property("stream over kill, restart, upgrade, rollback", json.dumps(report))
    assert report["problem"] == "", report
    assert report["lines"] > 10, report
    rules = machine.run("iptables-save").text
    assert "7077" in rules
    host.ctl("rm", "-f", "served")
    assert "7077" not in machine.run("iptables-save").text
    assert not machine.run("find /run/lighter/netns -mindepth 1").text


def test_a_reboot_stops_containers_and_they_start_again(host: Installed, machine: Machine) -> None:
    """An orderly one: they are asked to end first."""
    host.run("rebooted")
    host.run("seven", "sh", "-c", "exit 7")
    host.await_status("seven", "stopped")
    host.run("always", flags=("--restart", "always"))
    host.run("manual", flags=("--restart", "unless-stopped"))
    host.ctl("stop", "manual")
    machine.reboot()
    host.await_manager()
    host.await_status("always", "running")
    host.ctl("rm", "-f", "always")
    tasks = host.tasks()
    assert (tasks["rebooted"]["status"], tasks["rebooted"]["exit_status"]) == ("stopped", 3)
    assert (tasks["seven"]["status"], tasks["seven"]["exit_status"]) == ("stopped", 7)
    assert {task["status"] for task in tasks.values()} == {"stopped"}
    assert not machine.run("pgrep -f ^lighter-shim", check=False).text
    host.ctl("tasks", "delete", "rebooted")
    host.ctl("tasks", "start", "-d", "rebooted")
    assert host.task("rebooted")["status"] == "running"
    assert machine.run("systemctl --failed --no-legend").text == ""
