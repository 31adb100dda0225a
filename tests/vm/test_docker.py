"""Docker by its own unit and the drop-in of docs/docker.md, on cgroup v2 with systemd.

The tests share one machine and go on from what the ones before have left. What Docker can do:
tests/docker, where there are more releases of it, but neither this systemd nor these cgroups.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.images import REFERENCE
from tests.vm.installed import Installed
from tests.vm.machine import Done, Machine
from tests.vm.payload import DOCKER

PAGE = Path(__file__).resolve().parents[2] / "docs" / "docker.md"
UNITS = "/etc/systemd/system"
IMAGE = REFERENCE.removeprefix("docker.io/library/")
WEB = ("sh", "-c", "echo up; trap 'exit 7' TERM; sleep 1000 & wait")
COUNTS = ("sh", "-c", "i=0; while :; do i=$((i+1)); echo $i; sleep 0.1; done")
DOCKER_S = 240.0


@pytest.fixture(scope="module")
def host(machine: Machine) -> Iterator[Installed]:
    yield Installed(machine).await_start().import_image()


class Docker:
    """`docker` in the machine."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def __call__(self, *args: str, check: bool = True) -> Done:
        return self._machine.run(["docker", *args], check=check, timeout_s=DOCKER_S)

    def inspect(self, template: str, name: str) -> str:
        return self("inspect", "-f", template, name).text


@pytest.fixture(scope="module")
def docker(host: Installed, machine: Machine) -> Docker:
    """As the page says: the unit of Docker's package, the drop-in, live-restore."""
    machine.run(f"ln -s {DOCKER}/usr/bin/* /usr/bin/; ln -s {DOCKER}/usr/sbin/* /usr/sbin/")
    for unit in ("docker.service", "docker.socket"):
        machine.run(f"cp {DOCKER}/usr/lib/systemd/system/{unit} {UNITS}/")
    machine.run("groupadd -f -r docker")
    drop_in = of_the_page(r"```ini\n(\[Unit\].*?)```")
    machine.write(f"{UNITS}/docker.service.d/lighter.conf", drop_in)
    settings = json.loads(of_the_page(r"```json\n(.*?)```"))
    machine.write("/etc/docker/daemon.json", json.dumps({**settings, "experimental": True}))
    machine.run("systemctl mask containerd; systemctl daemon-reload")
    machine.run("systemctl start docker", timeout_s=DOCKER_S)
    docker = Docker(machine)
    assert docker("info", "--format", "{{.LiveRestoreEnabled}}").text == "true"
    host.ctl("images", "export", "/root/image.tar", REFERENCE)
    docker("load", "-qi", "/root/image.tar")
    return docker


def of_the_page(pattern: str) -> str:
    found = re.search(pattern, PAGE.read_text(), re.DOTALL)
    assert found, f"{PAGE.name} has no {pattern}"
    return found[1]


def test_a_container_of_dockers_is_a_task_on_cgroup_v2(
    host: Installed, machine: Machine, docker: Docker
) -> None:
    assert docker("info", "--format", "{{.CgroupVersion}}").text == "2"
    done = docker("run", "--rm", IMAGE, "sh", "-c", "echo out; exit 7", check=False)
    assert (done.code, done.stdout) == (7, b"out\n"), done.stderr
    docker("run", "-d", "--name", "web", "-m", "64m", "--pids-limit", "50", IMAGE, *WEB)
    pid = int(docker.inspect("{{.State.Pid}}", "web"))
    cgroup = host.cgroup_of(pid)
    assert machine.read(f"{cgroup}/memory.max").strip() == str(64 << 20)
    assert machine.read(f"{cgroup}/pids.max").strip() == "50"
    tasks = json.loads(host.ctl("-n", "moby", "--format", "json", "tasks", "ls").stdout)
    assert {task["pid"] for task in tasks} == {pid}
    assert docker("exec", "web", "echo", "inside").text == "inside"
    shown = docker("stats", "--no-stream", "--format", "{{.MemUsage}} {{.PIDs}}", "web").text
    assert shown.endswith("/ 64MiB 2"), shown
    done = docker("run", "--name", "greedy", "-m", "16m", IMAGE, "tail", "/dev/zero", check=False)
    assert done.code == 137, done.stderr
    assert docker.inspect("{{.State.OOMKilled}}", "greedy") == "true"
    docker("rm", "greedy")


def test_an_oom_kill_is_known_when_systemd_was_faster_than_the_shim(
    host: Installed, machine: Machine, docker: Docker
) -> None:
    """It removes the scope's cgroup, and the kernel's counter with it, once nobody lives there."""
    greedy = ("sh", "-c", "trap 'exec tail /dev/zero' HUP; sleep 1000 & wait")
    docker("run", "-d", "--name", "greedy", "-m", "16m", IMAGE, *greedy)
    pid = int(docker.inspect("{{.State.Pid}}", "greedy"))
    cgroup = host.cgroup_of(pid)
    machine.await_that(f"test $(wc -l <{cgroup}/cgroup.procs) = 2", DOCKER_S, "it has its trap")
    shim = host.shim_of(docker.inspect("{{.Id}}", "greedy"))
    machine.run(["kill", "-STOP", str(shim)])
    machine.run(["kill", "-HUP", str(pid)])
    machine.await_that(f"test ! -e {cgroup}", DOCKER_S, "systemd has removed its cgroup")
    machine.run(["kill", "-CONT", str(shim)])
    assert docker("wait", "greedy").text == "137"
    assert docker.inspect("{{.State.OOMKilled}}", "greedy") == "true"
    docker("rm", "greedy")


def test_a_container_goes_on_from_a_checkpoint(
    host: Installed, machine: Machine, docker: Docker
) -> None:
    """Experimental in Docker: it has the manager call CRIU, and keeps what that has written."""
    plain = ("--network", "none", "--security-opt", "seccomp=unconfined")
    docker("run", "-d", "--name", "counts", *plain, IMAGE, *COUNTS)

    def await_more(than: int) -> list[int]:
        counted = f'test "$(docker logs counts | tail -n 1)" -gt {than}'
        machine.await_that(counted, DOCKER_S, f"it counts beyond {than}")
        return [int(word) for word in docker("logs", "counts").text.split()]

    await_more(3)
    docker("checkpoint", "create", "--leave-running", "counts", "first")
    await_more(await_more(0)[-1])
    docker("checkpoint", "create", "counts", "last")
    machine.await_that(
        "docker inspect -f '{{.State.Status}}' counts | grep -q exited", DOCKER_S, "it has ended"
    )
    stopped_at = int(docker("logs", "--tail", "1", "counts").text)
    assert docker("checkpoint", "ls", "counts").text.split()[2:] == ["first", "last"]
    docker("start", "--checkpoint", "last", "counts")
    found = await_more(stopped_at)
    assert found == list(range(1, len(found) + 1)), "it has not begun anew"
    docker("rm", "-f", "counts")
    machine.await_that(
        'test -z "$(ctl -n moby content ls -q)"', DOCKER_S, "its content is collected"
    )


def test_it_does_not_notice_that_the_manager_or_docker_is_restarted(
    host: Installed, machine: Machine, docker: Docker
) -> None:
    pid = docker.inspect("{{.State.Pid}}", "web")
    before = host.main_pid()
    machine.run(["kill", "-9", str(before)])
    host.await_manager(but=before)
    machine.await_that("docker exec web true", DOCKER_S, "docker reaches its container again")
    machine.run("systemctl restart docker", timeout_s=DOCKER_S)
    machine.run("systemctl restart lighterd", timeout_s=DOCKER_S)
    machine.await_that("docker exec web true", DOCKER_S, "docker reaches its container again")
    state = "{{.State.Status}} {{.State.Pid}} {{.RestartCount}}"
    assert docker.inspect(state, "web") == f"running {pid} 0"
    assert docker("logs", "web").text == "up"
    docker("pause", "web")
    docker("unpause", "web")
    docker("update", "-m", "96m", "--memory-swap", "96m", "web")
    assert machine.read(f"{host.cgroup_of(int(pid))}/memory.max").strip() == str(96 << 20)
    docker("stop", "web")
    assert docker.inspect("{{.State.ExitCode}}", "web") == "7"


def test_a_reboot_leaves_what_is_to_be_restarted(
    host: Installed, machine: Machine, docker: Docker
) -> None:
    docker("run", "-d", "--name", "always", "--restart", "always", IMAGE, *WEB)
    machine.run("systemctl enable docker")
    machine.reboot()
    host.await_manager()
    running = "docker inspect -f '{{.State.Status}}' always | grep -q running"
    machine.await_that(running, DOCKER_S, "docker has started it again")
    assert docker.inspect("{{.State.Status}} {{.State.ExitCode}}", "web") == "exited 7"
    docker("rm", "-f", "always", "web")
    assert not host.ctl("-n", "moby", "containers", "ls", "-q").text
    assert not machine.run("pgrep -f ^lighter-shim", check=False).text
