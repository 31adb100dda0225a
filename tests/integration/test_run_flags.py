"""Flags of `ctl run`, each by what it does inside a real container."""

import os
import resource
from collections.abc import Iterator
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from tests import cgroups
from tests.harness import Lighterd, await_that
from tests.images import REFERENCE


@pytest.fixture(scope="module")
def manager() -> Iterator[Lighterd]:
    """One manager for all tests here; each removes its containers."""
    from tests import census

    lighterd = Lighterd(census.Owners()).start()
    lighterd.import_busybox()
    try:
        yield lighterd
    finally:
        lighterd.close()


@pytest.fixture(autouse=True)
def owners() -> None:
    """No census for each test: the manager's end takes one of all."""


class Ctl:
    def __init__(self, lighterd: Lighterd) -> None:
        self.lighterd = lighterd

    def run(self, *words: str, **options: Any) -> CompletedProcess[bytes]:
        """`ctl run --rm [flags] IMAGE x COMMAND`: words up to "--" are flags."""
        at = words.index("--")
        return self.lighterd.ctl(
            "run", "--rm", *words[:at], REFERENCE, "x", *words[at + 1 :], **options
        )

    def says(self, *words: str) -> str:
        """What a command in the container prints; it must succeed."""
        done = self.run(*words)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode().strip()

    def refuses(self, *words: str) -> str:
        """The one line with which the flags are refused."""
        done = self.run(*words, "--", "true")
        assert done.returncode in (1, 2, 125), done
        last = done.stderr.decode().strip().splitlines()[-1]
        with self.lighterd.client() as client:
            assert client.call("containers", "list")["containers"] == []
        return last

    def detached(self, name: str, *flags: str) -> int:
        """The pid of a container that waits."""
        self.lighterd.ctl("run", "-d", *flags, REFERENCE, name, "sleep", "1000", check=True)
        with self.lighterd.client() as client:
            return int(client.call("tasks", "get", id=name)["task"]["pid"])


@pytest.fixture
def ctl(manager: Lighterd) -> Iterator[Ctl]:
    yield Ctl(manager)
    manager.clear()


def control(pid: int, controller: str, v1: str, v2: str) -> str:
    path = cgroups.of_process(pid, controller) / (v2 if cgroups.IS_V2 else v1)
    return path.read_text().strip()


@pytest.fixture
def entry(ctl: Ctl) -> Iterator[str]:
    """An image with an entrypoint and a command."""
    ctl.lighterd.ctl("create", "--name", "base", REFERENCE, "true", check=True)
    changes = ("-c", 'ENTRYPOINT ["echo", "entry"]', "-c", 'CMD ["cmd"]')
    ctl.lighterd.ctl("commit", *changes, "base", "entry:1", check=True)
    yield "entry:1"
    ctl.lighterd.ctl("rmi", "-f", "entry:1", check=True)


def test_an_images_entrypoint_runs_the_words_of_dockers_form(ctl: Ctl, entry: str) -> None:
    for words, said in (
        (("--name", "x", entry), b"entry cmd\n"),
        (("--name", "x", entry, "-c", "max=200"), b"entry -c max=200\n"),
        (("-i", entry, "made-up"), b"entry made-up\n"),
        (("--name", "x", "--entrypoint", "echo", entry, "mine"), b"mine\n"),
        (("--name", "x", "--entrypoint", "id", entry), None),
        (("--name", "x", "--entrypoint", "", entry, "echo", "bare"), b"bare\n"),
        ((entry, "x"), b"entry cmd\n"),
        ((entry, "x", "echo", "ctr's form"), b"ctr's form\n"),
        (("--entrypoint", "echo", entry, "x", "mine"), b"mine\n"),
    ):
        done = ctl.lighterd.ctl("run", "--rm", *words, check=True)
        assert done.stdout == said if said else done.stdout.startswith(b"uid=0"), words


def test_an_images_entrypoint_stays_over_restarts(ctl: Ctl, entry: str) -> None:
    lighterd = ctl.lighterd
    lighterd.ctl("create", "--name", "x", entry, "again", check=True)
    for _ in range(2):
        assert lighterd.ctl("start", "-a", "x", check=True).stdout == b"entry again\n"
    lighterd.ctl("containers", "create", entry, "y", "echo", "ctr's form", check=True)
    assert lighterd.ctl("start", "-a", "y", check=True).stdout == b"ctr's form\n"


def test_limits_are_in_the_kernel(ctl: Ctl) -> None:
    pid = ctl.detached(
        "x",
        *("-m", "64m", "--memory-swap", "96m", "--pids-limit", "17", "--cpus", "0.5"),
        *("--cpu-shares", "512", "--cpuset-cpus", "0", "--cpuset-mems", "0"),
    )
    assert control(pid, "memory", "memory.limit_in_bytes", "memory.max") == str(64 << 20)
    swap = str(32 << 20) if cgroups.IS_V2 else str(96 << 20)
    assert control(pid, "memory", "memory.memsw.limit_in_bytes", "memory.swap.max") == swap
    assert control(pid, "pids", "pids.max", "pids.max") == "17"
    quota = control(pid, "cpu", "cpu.cfs_quota_us", "cpu.max").split()
    assert quota[0] == "50000"
    if not cgroups.IS_V2:
        assert control(pid, "cpu", "cpu.shares", "") == "512"
    assert control(pid, "cpuset", "cpuset.cpus", "cpuset.cpus") == "0"


def test_a_quota_and_a_goal(ctl: Ctl) -> None:
    flags = ("--cpu-quota", "20000", "--cpu-period", "50000", "--memory-reservation", "16m")
    pid = ctl.detached("x", *flags)
    if not cgroups.IS_V2:
        assert control(pid, "cpu", "cpu.cfs_quota_us", "") == "20000"
        assert control(pid, "cpu", "cpu.cfs_period_us", "") == "50000"
    assert control(pid, "memory", "memory.soft_limit_in_bytes", "memory.low") == str(16 << 20)


def test_a_limit_holds(ctl: Ctl) -> None:
    """Memory ends a program that takes more, pids keep it from a further process."""
    oom = "a=x; while :; do a=$a$a; done"
    assert ctl.run("--memory-limit", "8m", "--", "sh", "-c", oom).returncode == 137
    script = "for i in 1 2 3 4 5 6 7 8 9; do sleep 5 & done; echo end"
    done = ctl.run("--pids-limit", "4", "--", "sh", "-c", script)
    assert b"fork" in done.stderr and b"end" not in done.stdout, done


def test_f46_a_fork_bomb_stays_in_its_container(ctl: Ctl) -> None:
    quiet = ctl.detached("quiet")
    limit = 50
    # Only an interactive shell goes on when it cannot fork.
    bomb = "yes 'bomb() { bomb | bomb & }; bomb' | sh -i >/dev/null 2>&1"
    flags = ("--pids-limit", str(limit), "--cpus", "0.5")
    ctl.lighterd.ctl("run", "-d", *flags, REFERENCE, "bomb", "sh", "-c", bomb, check=True)
    with ctl.lighterd.client() as client:
        pid = int(client.call("tasks", "get", id="bomb")["task"]["pid"])
    group = cgroups.of_process(pid, "pids")
    most = 0

    def refused() -> bool:
        nonlocal most
        most = max(most, int((group / "pids.current").read_text()))
        events = int((group / "pids.events").read_text().split()[1])
        return events > 100 and most > limit // 2

    await_that(refused, 60, "it is kept from further processes")
    assert most <= limit
    # Nobody else is held up.
    assert ctl.says("--", "echo", "new") == "new"
    assert ctl.lighterd.ctl("exec", "quiet", "echo", "old", check=True).stdout == b"old\n"
    assert int((group / "pids.current").read_text()) <= limit
    ctl.lighterd.ctl("rm", "-f", "bomb", check=True)
    assert not group.exists()
    assert os.path.exists(f"/proc/{quiet}")


def test_block_throttles(ctl: Ctl) -> None:
    device = next(
        f"/dev/{name}" for name in sorted(os.listdir("/sys/block")) if not name.startswith("loop")
    )
    number = os.stat(device).st_rdev
    pid = ctl.detached(
        *("x", "--device-read-bps", f"{device}:1m", "--device-write-iops", f"{device}:100")
    )
    v1, v2 = "blkio.throttle.read_bps_device", "io.max"
    assert f"{os.major(number)}:{os.minor(number)}" in control(pid, "blkio", v1, v2)
    assert "1048576" in control(pid, "blkio", v1, v2)
    assert "100" in control(pid, "blkio", "blkio.throttle.write_iops_device", v2)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--cpuset-cpus", "99"), "processor 99: this host has 0"),
        (("--cpuset-cpus", "a-b"), "'a-b': expected 0-2,5"),
        (("--cpuset-mems", "9"), "memory node 9"),
        (("--cpus", "0.001"), "the least"),
        (("--cpus", "1", "--cpu-quota", "5000"), "choose one of them"),
        (("--memory-swap", "1g"), "a memory limit must be set too"),
        (("-m", "1g", "--memory-swap", "512m"), "below the memory limit"),
        (("-m", "1x"), "is no size"),
        (("--pids-limit", "-7"), "-1 for no limit"),
        (("--blkio-weight", "5"), "10 to 1000"),
        (("--device-read-bps", "/dev/null:1m"), "no block device"),
        (("--device-read-bps", "/nosuch:1m"), "No such file"),
        (("--ulimit", "nofile"), "expected NAME=SOFT"),
        (("--ulimit", "sausages=1"), "there are as, core"),
        (("--ulimit", "core=5:4"), "above the hard one"),
        (("--oom-score-adj", "1001"), "-1000<=x<=1000"),
        (("--sysctl", "kernel.core_pattern=x"), "belongs to the whole host"),
        (("--sysctl", "net.ipv4.ip_forward=1", "--net-host"), "the network is the host's"),
        (("--group-add", "nosuch"), "no such group"),
        (("--device", "/dev/nosuch"), "No such file"),
        (("--device", "/etc/hosts"), "it is no device"),
        (("--device", "/dev/null:/dev/x:z"), "not of r, w and m"),
        (("--pid", "sausage"), "private, host or container:ID"),
        (("--pid", "container:nosuch"), "container nosuch: there is none"),
        (("--tmpfs", "x"), "absolute path"),
        (("--mount", "type=tmpfs,dst=/t,bind-propagation=shared"), "cannot be this"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_what_cannot_be_is_refused_in_one_line(
    ctl: Ctl, flags: tuple[str, ...], words: str
) -> None:
    assert words in ctl.refuses(*flags)


def test_what_only_a_stronger_host_can_do(ctl: Ctl) -> None:
    """Without CAP_SYS_RESOURCE limits are only lowered, and oom scores only raised."""
    status = Path("/proc/self/status").read_text().split("CapEff:")[1].split()[0]
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    own = int(Path("/proc/self/oom_score_adj").read_text())
    if int(status, 16) >> 24 & 1:
        assert ctl.says("--oom-score-adj", "-5", "--", "cat", "/proc/self/oom_score_adj") == "-5"
        return
    assert "no CAP_SYS_RESOURCE" in ctl.refuses("--ulimit", f"nofile={hard + 1}")
    assert "only with CAP_SYS_RESOURCE" in ctl.refuses("--oom-score-adj", str(own - 1))


def test_resource_limits_and_oom_score(ctl: Ctl) -> None:
    flags = ("--ulimit", "nofile=100:200", "--ulimit", "core=0", "--oom-score-adj", "321")
    script = "ulimit -Sn; ulimit -Hn; ulimit -c; cat /proc/self/oom_score_adj"
    assert ctl.says(*flags, "--", "sh", "-c", script).split() == ["100", "200", "0", "321"]


def test_devices(ctl: Ctl, tmp_path: Path) -> None:
    tree = tmp_path / "dev"
    (tree / "sub").mkdir(parents=True)
    os.mknod(tree / "sub/full", 0o20666, os.makedev(1, 7))
    os.mknod(tree / "zero", 0o20666, os.makedev(1, 5))
    script = "ls -l /dev/kmsg /in/zero /in/sub/full | awk '{print $1, $5, $6, $NF}'"
    flags = ("--device", "/dev/kmsg:r", "--device", f"{tree}:/in")
    seen = ctl.says(*flags, "--", "sh", "-c", script).splitlines()
    assert [line.split()[1:] for line in seen] == [
        ["1,", "11", "/dev/kmsg"],
        ["1,", "7", "/in/sub/full"],
        ["1,", "5", "/in/zero"],
    ]
    script = "(: </dev/fuse) && echo read; (: >/dev/fuse) || echo closed"
    assert ctl.says("--device", "/dev/fuse:r", "--", "sh", "-c", script).split() == [
        "read",
        "closed",
    ]
    made = ctl.run("--", "sh", "-c", "mknod /f c 10 229; (: </f)")
    assert b"not permitted" in made.stderr, made


def test_file_systems_in_memory(ctl: Ctl) -> None:
    flags = (
        *("--tmpfs", "/t:size=1m,mode=700,exec", "--shm-size", "8m"),
        *("--mount", "type=tmpfs,dst=/m,tmpfs-size=2m,tmpfs-mode=711"),
    )
    seen = ctl.says(*flags, "--", "grep", "tmpfs", "/proc/mounts")
    rows = {row.split()[1]: row.split()[3].split(",") for row in seen.splitlines()}
    assert {"nosuid", "nodev", "size=1024k", "mode=700"} <= set(rows["/t"])
    assert "noexec" not in rows["/t"]
    assert {"size=2048k", "mode=711"} <= set(rows["/m"])
    assert "size=8192k" in rows["/dev/shm"]


def test_bind_mounts(ctl: Ctl, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("host\n")
    for form in (
        f"type=bind,src={tmp_path},dst=/d,options=rbind:ro",
        f"type=bind,source={tmp_path},target=/d,readonly,bind-propagation=rprivate",
        f"src={tmp_path},destination=/d,ro=true,bind-nonrecursive",
    ):
        done = ctl.run("--mount", form, "--", "sh", "-c", "cat /d/file; echo x > /d/file")
        assert done.stdout == b"host\n" and b"Read-only" in done.stderr, done
    ctl.says("--mount", f"src={tmp_path},dst=/d", "--", "sh", "-c", "echo in > /d/file")
    assert (tmp_path / "file").read_text() == "in\n"


def test_sysctls_groups_and_annotations(ctl: Ctl) -> None:
    script = "cat /proc/sys/net/ipv4/ip_unprivileged_port_start; id -G"
    flags = (
        *("--sysctl", "net.ipv4.ip_unprivileged_port_start=77", "--annotation", "who=me"),
        *("--group-add", "4321", "--group-add", "extra", "-u", "1000:1000"),
    )
    # The image's /etc/group: "extra" is 2000, and has user 1000.
    assert ctl.says(*flags, "--", "sh", "-c", script).split() == ["77", "1000", "2000", "4321"]
    ctl.detached("x", "--annotation", "who=me")
    with ctl.lighterd.client() as client:
        spec = client.call("containers", "get", id="x")["container"]["spec"]
    assert '"annotations":{"who":"me"}' in spec


def test_the_hosts_namespaces(ctl: Ctl) -> None:
    kinds = ("pid", "ipc", "uts", "cgroup")
    flags = ("--pid", "host", "--ipc", "host", "--uts", "host")
    links = "; ".join(f"readlink /proc/self/ns/{kind}" for kind in kinds)
    hosts = [os.readlink(f"/proc/self/ns/{kind}") for kind in kinds]
    assert ctl.says(*flags, "--", "sh", "-c", links).split() == hosts
    own = ctl.says("--cgroupns", "private", "--", "sh", "-c", links).split()
    assert not set(own) & set(hosts)


def test_what_an_image_has_in_run_is_seen_in_dockers_form(ctl: Ctl) -> None:
    run = ctl.lighterd.ctl
    make = "mkdir /run/mysqld && chown 27:27 /run/mysqld"
    run("run", "--name", "base", REFERENCE, "sh", "-c", make, check=True)
    run("commit", "base", "with-run:1", check=True)
    try:
        for flags in ((), ("--read-only",)):
            look = ("stat", "-c", "%u:%g", "/run/mysqld")
            done = run("run", "--rm", "--name", "x", *flags, "with-run:1", *look)
            assert done.stdout == b"27:27\n", done
    finally:
        run("rmi", "-f", "with-run:1", check=True)


def test_another_containers_namespaces(ctl: Ctl) -> None:
    """By name: also after the other one has been started anew."""
    pid = ctl.detached("other")
    script = "readlink /proc/self/ns/pid; readlink /proc/self/ns/ipc; ps"
    ctl.lighterd.ctl(
        *("containers", "create", "--pid", "container:other", "--ipc", "container:other"),
        *(REFERENCE, "x", "sh", "-c", script),
        check=True,
    )
    for _ in range(2):
        done = ctl.lighterd.ctl("tasks", "start", "x", check=True)
        joined = [os.readlink(f"/proc/{pid}/ns/{kind}") for kind in ("pid", "ipc")]
        lines = done.stdout.decode().split("\n")
        assert lines[:2] == joined, done
        assert any("sleep 1000" in line for line in lines)
        ctl.lighterd.ctl("tasks", "delete", "x")
        ctl.lighterd.ctl("tasks", "delete", "-f", "other")
        done = ctl.lighterd.ctl("tasks", "start", "x")
        assert done.returncode and b"other" in done.stderr, done
        ctl.lighterd.ctl("tasks", "start", "-d", "other", check=True)
        with ctl.lighterd.client() as client:
            pid = int(client.call("tasks", "get", id="other")["task"]["pid"])


def test_a_process_that_has_the_number_of_the_joined_one_is_not_joined(ctl: Ctl) -> None:
    """As if that had ended between its being looked up and the runtime's opening of its path."""
    ctl.detached("other")
    program = ctl.lighterd.base / "later"
    program.write_text(
        '#!/bin/sh\ncase " $* " in *" create "*)\n'
        'for word; do [ "$last" = --bundle ] && bundle=$word; last=$word; done\n'
        f"sed -i 's#/proc/[0-9]*/ns/ipc#/proc/{os.getpid()}/ns/ipc#' $bundle/config.json;;\n"
        'esac\nexec runc "$@"\n'
    )
    program.chmod(0o755)
    joins = ("--ipc", "container:other")
    refused = ctl.run("--runtime", str(program), *joins, "--", "true")
    assert refused.returncode == 125, refused
    assert b"join ipc namespace of container other: it ended meanwhile" in refused.stderr
    with ctl.lighterd.client() as client:
        listed = [row["id"] for row in client.call("containers", "list")["containers"]]
    assert listed == ["other"]
    assert ctl.says(*joins, "--", "echo", "joined") == "joined"


@pytest.fixture
def cdi_file() -> Iterator[Path]:
    """A place in /etc/cdi of the test's own."""
    directory = Path("/etc/cdi")
    had = directory.exists()
    directory.mkdir(exist_ok=True)
    path = directory / f"lighter-test-{os.getpid()}.yaml"
    yield path
    path.unlink(missing_ok=True)
    if not had:
        directory.rmdir()


def test_devices_of_vendors(ctl: Ctl, cdi_file: Path, tmp_path: Path) -> None:
    """A file of the Container Device Interface: nodes, variables, mounts, and a hook that runs."""
    (tmp_path / "driver").write_text("of the vendor\n")
    called = tmp_path / "called"
    cdi_file.write_text(
        f"""\
cdiVersion: "0.5.0"
kind: lighter.example/gpu
containerEdits:
  env: [OF_ALL=1]
devices:
- name: zero
  containerEdits:
    deviceNodes:
    - path: /dev/vendor0
      hostPath: /dev/fuse
    env:
    - OF_ONE=2
    mounts:
    - hostPath: {tmp_path}/driver
      containerPath: /usr/driver
      options: [ro, nosuid, nodev, bind]
    hooks:
    - hookName: createRuntime
      path: /bin/touch
      args: [touch, {called}]
"""
    )
    cdi_file.chmod(0o644)
    script = "env | grep OF_ | sort; cat /usr/driver; (: </dev/vendor0) && echo opened"
    seen = ctl.says("--device", "lighter.example/gpu=zero", "--", "sh", "-c", script)
    assert seen.splitlines() == ["OF_ALL=1", "OF_ONE=2", "of the vendor", "opened"]
    assert called.exists()
    if not any(path != cdi_file for path in cdi_file.parent.iterdir()):
        assert ctl.says("--gpus", "zero", "--", "sh", "-c", script) == seen
    assert "lighter.example/gpu=zero" in ctl.refuses("--device", "lighter.example/gpu=one")
    cdi_file.chmod(0o666)
    assert "others than root" in ctl.refuses("--device", "lighter.example/gpu=zero")


def test_gpus_without_a_file(ctl: Ctl) -> None:
    if not any(Path(directory).exists() for directory in ("/etc/cdi", "/var/run/cdi")):
        assert "nvidia-ctk cdi generate" in ctl.refuses("--gpus", "all")
    assert "no file in /etc/cdi" in ctl.refuses("--device", "vendor.example/net=a")


def test_an_init_reaps_and_passes_signals_on(ctl: Ctl) -> None:
    dead = "grep -l '^State:.Z' /proc/[0-9]*/status | wc -l"
    # A process that has ended has its directory until it is reaped.
    orphan = "(sleep 0.1 & echo $! >/pid); orphan=/proc/$(cat /pid)"
    reaped = "i=0; while [ -e $orphan ] && [ $((i+=1)) -lt 200 ]; do sleep 0.1; done"
    script = f"{orphan}; {reaped}; cat /proc/1/comm; {dead}; exit 5"
    done = ctl.run("--init", "--", "sh", "-c", script)
    assert done.returncode == 5, done
    name, zombies = done.stdout.decode().split()
    assert name == "init" and zombies == "0"
    traps = "trap 'exit 9' TERM; echo up; sleep 1000 & wait"
    ctl.lighterd.ctl("run", "-d", "--init", REFERENCE, "x", "sh", "-c", traps, check=True)
    await_that(lambda: ctl.lighterd.ctl("logs", "x").stdout == b"up\n", 20, "it has its trap")
    ctl.lighterd.ctl("stop", "--timeout", "20s", "x", check=True)
    assert b"Exited (9)" in ctl.lighterd.ctl("ps", "-a").stdout


def test_what_this_host_cannot_confine(ctl: Ctl) -> None:
    if not Path("/sys/module/apparmor").exists():
        assert "this kernel has no AppArmor" in ctl.refuses("--apparmor-profile", "p")
        assert "no AppArmor" in ctl.refuses("--security-opt", "apparmor=p")
    if not Path("/sys/fs/resctrl/schemata").exists():
        assert "this host has no resctrl" in ctl.refuses("--rdt-class", "gold")
    assert "has no SELinux" in ctl.refuses("--security-opt", "label=type:x_t")
    assert "is not known here" in ctl.refuses("--security-opt", "sausages")


def test_security_options(ctl: Ctl, tmp_path: Path) -> None:
    status = ("grep", "-E", "^(Seccomp|NoNewPrivs):", "/proc/self/status")
    flags = ("--security-opt", "seccomp=unconfined", "--security-opt", "no-new-privileges=false")
    assert ctl.says(*flags, "--", *status).split() == ["NoNewPrivs:", "0", "Seccomp:", "0"]
    flags = ("--security-opt", "no-new-privileges", "--security-opt", "label=disable")
    assert ctl.says(*flags, "--", *status).split() == ["NoNewPrivs:", "1", "Seccomp:", "2"]
    open_it = ("sh", "-c", "(: >>/proc/sys/kernel/hostname) && echo opened; true")
    assert ctl.says("--security-opt", "systempaths=unconfined", "--", *open_it) == "opened"
    assert ctl.says("--", *open_it) == ""
    profile = tmp_path / "profile.json"
    profile.write_text(
        '{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir", "mkdirat"],'
        ' "action": "SCMP_ACT_ERRNO"}]}'
    )
    done = ctl.run("--security-opt", f"seccomp={profile}", "--", "mkdir", "/x")
    assert b"not permitted" in done.stderr, done


def test_classes_of_disk_use(ctl: Ctl, tmp_path: Path) -> None:
    config = tmp_path / "blockio.yaml"
    config.write_text(
        "Classes:\n  slow:\n  - Devices: [/dev/vd?, /dev/sd?]\n    ThrottleReadBps: 5M\n"
    )
    flags = ("--blockio-config-file", str(config), "--blockio-class")
    if list(Path("/dev").glob("[vs]d?")):
        pid = ctl.detached("x", *flags, "slow")
        v1, v2 = "blkio.throttle.read_bps_device", "io.max"
        assert "5000000" in control(pid, "blkio", v1, v2)
        ctl.lighterd.ctl("rm", "-f", "x", check=True)
    assert "there are slow" in ctl.refuses(*flags, "fast")
