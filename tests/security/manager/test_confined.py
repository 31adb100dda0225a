"""What containers of a whole manager are kept from: one probe looks, inside; the host compares.

SEC-48 to 53, 55 to 59, 61 to 63; the specs alone, with every runtime, are in tests/security.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from lighter.daemon.oci import paths
from lighter.proto.paths import cgroup_path
from tests import cgroups
from tests.harness import await_that
from tests.images import REFERENCE
from tests.integration.test_run_flags import Ctl, ctl, manager, owners
from tests.security.manager.test_manager import import_bytes, init_pid
from tests.variants import tar_of, variant

__all__ = ["ctl", "manager", "owners"]
pytestmark = pytest.mark.root

PROBE = Path(__file__).with_name("probe.py")
PYTHON = Path(sys.executable).resolve()
SETTING = "/proc/sys/kernel/hostname"
TREES = sorted({"/usr", "/lib", "/lib64", sys.base_prefix})


def probe(ctl: Ctl, *flags: str) -> Any:
    """What the probe says in a container with these flags."""
    binds = [f"--mount=src={tree},dst={tree},options=rbind:ro" for tree in TREES]
    lists = json.dumps([paths.MASKED, (*paths.READONLY, SETTING)])
    mounts = (*binds, f"--mount=src={PROBE},dst=/probe.py,options=rbind:ro")
    return json.loads(ctl.says(*mounts, *flags, "--", str(PYTHON), "-S", "/probe.py", lists))


class Canary:
    """A tree of the host's that no container may change."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir()
        root.chmod(0o755)
        (root / "file").write_text("canary")
        (root / "null").write_text("null")
        (root / "passwd").write_text("root::0:0::/:/bin/sh\n")
        self._before = self._state()

    def _state(self) -> dict[str, Any]:
        return {
            str(path): (*path.lstat()[:6], path.lstat().st_mtime_ns, _bytes(path))
            for path in (self.root, *sorted(self.root.rglob("*")))
        }

    def assert_untouched(self) -> None:
        assert self._state() == self._before

    def forgive_empty(self, name: str) -> None:
        """Take an empty directory of that name away. Raises OSError when anything is in it."""
        if (self.root / name).exists():
            (self.root / name).rmdir()
            changed_at_ns = self._before[str(self.root)][-2]
            os.utime(self.root, ns=(changed_at_ns, changed_at_ns))


def runc_makes_empty_directories() -> bool:
    """Before 1.1.14 it can be led to make one anywhere on the host: CVE-2024-45310."""
    said = subprocess.run(["runc", "--version"], capture_output=True, check=True).stdout.split()
    numbers = re.match(rb"(\d+)\.(\d+)\.(\d+)", said[2])
    assert numbers, said
    return tuple(map(int, numbers.groups())) < (1, 1, 14)


def _bytes(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() else b""


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Canary]:
    tmp_path.chmod(0o755)
    made = Canary(tmp_path / "canary")
    yield made
    made.assert_untouched()


def test_what_a_container_sees(ctl: Ctl) -> None:
    """SEC-41, 49, 50, 53, 58 by default; the same probe tells a privileged container apart."""
    seen = probe(ctl, "--env", "OWN=1")
    status = seen["status"]
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert int(status["CapInh"], 16) == int(status["CapAmb"], 16) == 0
    assert set(seen["descriptors"]) <= {"0", "1", "2"} | {
        fd for fd, to in seen["descriptors"].items() if to.startswith("/proc/")
    }
    assert set(seen["environment"]) <= {"PATH", "HOME", "OWN", "LC_CTYPE"}
    assert set(seen["masked"].values()) <= {"nothing", "absent"}, seen["masked"]
    assert set(seen["readonly"].values()) <= {"EROFS", "EISDIR", "EACCES", "ENOENT"}
    assert seen["readonly"][SETTING] == "EROFS"
    assert "ok" not in seen["cgroup writes"].values()
    assert seen["disk"] == "ok EPERM"  # the node can be made, and is of no use
    # Below /proc nothing but its own masks is bound.
    assert {root for root, where in seen["mounts"] if where.startswith("/proc/")} <= {
        *("/", "/null"),
        *(path.removeprefix("/proc") for path in paths.READONLY),
    }
    open_one = probe(ctl, "--privileged")
    assert open_one["status"]["Seccomp"] == "0"
    assert open_one["readonly"][SETTING] == "ok"
    assert "something" in open_one["masked"].values()


def test_sec48_a_file_of_the_callers_over_a_reserved_place_stays_as_it_is(
    ctl: Ctl, canary: Canary
) -> None:
    file = canary.root / "file"
    before = os.listxattr(file)
    for place in ("/etc/hosts", "/etc/resolv.conf", "/etc/hostname", "/dev/termination-log"):
        mount = f"src={file},dst={place},options=rbind:ro"
        assert ctl.says("--mount", mount, "--hostname", "h", "--", "cat", place) == "canary"
    assert os.listxattr(file) == before


def test_sec49_the_kernel_has_a_list_of_devices(ctl: Ctl) -> None:
    pid = ctl.detached("x")
    if cgroups.IS_V2:
        return  # a program of the kernel's, which the probe has met
    listed = (cgroups.of_process(pid, "devices") / "devices.list").read_text().splitlines()
    assert "a *:* rwm" not in listed and "c 1:3 rwm" in listed


def test_sec51_and_52_nothing_of_the_hosts_is_set(ctl: Ctl) -> None:
    for setting in (
        "kernel.shm_rmid_forced=1+kernel.core_pattern=x",
        "kernel.shm_rmid_forced=1\nkernel.core_pattern=x",
        "kernel.core_pattern=|/x",
        "vm.swappiness=1",
    ):
        ctl.refuses("--sysctl", setting)
    before = Path("/proc/sys/kernel/core_pattern").read_text()
    flags = ("--annotation", "org.systemd.property.ExecStopPost=['/bin/touch']")
    ctl.detached("x", *flags, "--sysctl", "kernel.shm_rmid_forced=1")
    config = ctl.lighterd.state / "tasks/default/x/config.json"
    assert "org.systemd" not in config.read_text()
    assert Path("/proc/sys/kernel/core_pattern").read_text() == before


def test_sec53_a_container_is_in_its_cgroup_everywhere(ctl: Ctl) -> None:
    pid = ctl.detached("x")
    own = cgroup_path(ctl.lighterd.instance, "default", "x")
    rows = [line.split(":", 2) for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines()]
    places = {names: path for _, names, path in rows if names or cgroups.IS_V2}
    assert set(places.values()) == {own}, places


def test_sec53_a_runtime_that_puts_it_elsewhere_is_not_believed(ctl: Ctl, tmp_path: Path) -> None:
    memory = cgroups.MOUNT if cgroups.IS_V2 else cgroups.MOUNT / "memory"
    runtime = tmp_path / "runc"
    runtime.write_text(
        f"""#!/bin/sh
{shutil.which("runc")} "$@" || exit
while [ $# -gt 0 ]; do
    case $1 in --pid-file) cat "$2" > {memory}/cgroup.procs;; esac
    shift
done
"""
    )
    runtime.chmod(0o755)
    assert "the runtime has put it into cgroup /" in ctl.refuses("--runtime", str(runtime))
    await_that(lambda: ctl.lighterd.shims() == [], 30, "its shim has ended")
    # Of the place that it did not take nobody knew any more.
    place = Path(f"{memory}{cgroup_path(ctl.lighterd.instance, 'default', 'x')}")
    for directory in (place, *place.parents[:2]):
        with contextlib.suppress(OSError):
            directory.rmdir()


@pytest.mark.parametrize("inside", ["", "/inside"], ids=["absolute", "of the root"])
def test_sec57_links_in_dev_lead_nowhere(ctl: Ctl, canary: Canary, inside: str) -> None:
    """An image whose /dev is a link to a directory of the host's, or holds links, not nodes."""
    link = tarfile.TarInfo("dev")
    link.type, link.linkname = tarfile.SYMTYPE, inside + str(canary.root)
    directory = tarfile.TarInfo("dev")
    directory.type, directory.mode = tarfile.DIRTYPE, 0o755
    nodes = []
    for name, target in (
        ("dev/null", "/proc/sys/kernel/core_pattern"),
        ("dev/ptmx", str(canary.root / "file")),
        ("dev/console", str(canary.root / "file")),
    ):
        node = tarfile.TarInfo(name)
        node.type, node.linkname = tarfile.SYMTYPE, target
        nodes.append(node)
    pattern = Path("/proc/sys/kernel/core_pattern").read_text()
    for layer, starts in ((tar_of(link), False), (tar_of(directory, *nodes), True)):
        image = import_bytes(ctl.lighterd, variant(layer=layer))
        script = "echo x >/dev/null; cat /proc/self/mountinfo"
        done = ctl.lighterd.ctl("run", "--rm", image, "x", "sh", "-c", script)
        assert (done.returncode == 0) is starts, done
        assert starts or b"/dev in it is no directory" in done.stderr, done
        rows = [line.split() for line in done.stdout.decode().splitlines()]
        # A mask is bound from the container's own null device, never from a file of procfs.
        bound = [(row[3], row[4]) for row in rows if row[4] in paths.MASKED]
        assert all(root in ("/null", "/") for root, _ in bound), bound
        canary.assert_untouched()
    assert Path("/proc/sys/kernel/core_pattern").read_text() == pattern


def test_sec57_no_volume_of_an_image_takes_the_place_of_masks(ctl: Ctl) -> None:
    """Nor by a link of the image; what hides no mask is there, as the links say."""
    links = []
    for name, target in (("x", "/dev"), ("y", "x/../proc"), ("s", "x/shm"), ("dev/in", "/opt")):
        link = tarfile.TarInfo(name)
        link.type, link.linkname = tarfile.SYMTYPE, target
        links.append(link)
    for place in ("/dev", "/x", "/y/acpi", "/sys/firmware", "/dev/null"):
        image = import_bytes(ctl.lighterd, variant(layer=tar_of(*links), Volumes={place: {}}))
        done = ctl.lighterd.ctl("run", "--rm", image, "x", "cat", "/proc/timer_list")
        assert done.returncode == 125 and b"no image may have one there" in done.stderr, done
        assert place.encode() in done.stderr
        assert ctl.lighterd.ctl("volume", "ls", "-q").stdout == b"", "nothing was made for it"
    taken = {"/s": {}, "/dev/in": {}, "/opt": {}, "/sys/fs/cgroup": {}}
    image = import_bytes(ctl.lighterd, variant(layer=tar_of(*links), Volumes=taken))
    script = "cut -d' ' -f2 /proc/mounts; ls -l /dev/null; wc -c </proc/timer_list"
    said = ctl.lighterd.ctl("run", "--rm", image, "x", "sh", "-c", script, check=True).stdout
    places = said.split()
    assert places.count(b"/opt") == places.count(b"/dev/shm") == 1 and b"/dev/in" not in places
    assert b"1,   3" in said and places[-1] == b"0"
    many = {f"/v{number}": {} for number in range(33)}
    done = ctl.lighterd.ctl("run", import_bytes(ctl.lighterd, variant(Volumes=many)), "x", "true")
    assert done.returncode == 125 and b"33 of its own, at most 32" in done.stderr


@pytest.mark.parametrize("name", ["proc", "sys"])
def test_sec55_no_link_stands_where_the_kernels_files_are_mounted(
    ctl: Ctl, canary: Canary, name: str
) -> None:
    link = tarfile.TarInfo(name)
    link.type, link.linkname = tarfile.SYMTYPE, str(canary.root)
    image = import_bytes(ctl.lighterd, variant(layer=tar_of(link)))
    done = ctl.lighterd.ctl("run", "--rm", image, "x", "true")
    assert done.returncode and f"/{name} in it is no directory".encode() in done.stderr, done
    root = canary.root.parent / "root"
    root.mkdir()
    (root / name).symlink_to(canary.root)
    done = ctl.lighterd.ctl("run", "--rm", "--rootfs", str(root), "x", "true")
    assert done.returncode == 125 and f"/{name} in it is a link".encode() in done.stderr, done


@pytest.mark.parametrize(
    "starts",
    [12, pytest.param(500, marks=[pytest.mark.soak, pytest.mark.timeout(0)], id="500 starts")],
)
def test_sec56_a_link_that_comes_and_goes_in_a_shared_directory(
    ctl: Ctl, canary: Canary, tmp_path: Path, starts: int
) -> None:
    """One container swaps a mount's place for a link to the host while others start."""
    shared = tmp_path / "shared"
    (shared / "place").mkdir(parents=True)
    mount = f"src={shared},dst=/s,options=rbind:rw"
    swap = (
        f"while :; do mv /s/place /s/kept; ln -s {canary.root} /s/place;"
        " rm /s/place; mv /s/kept /s/place; done"
    )
    ctl.lighterd.ctl(
        "run", "-d", "--mount", mount, REFERENCE, "swapper", "sh", "-c", swap, check=True
    )
    before = set(Path("/proc/self/mountinfo").read_text().splitlines())
    for _ in range(starts):
        await_that(lambda: (shared / "place").is_symlink(), 30, "the place is swapped")
        ctl.run("--mount", mount, "--tmpfs", "/s/place/made", "--", "touch", "/s/place/made/x")
        if runc_makes_empty_directories():
            canary.forgive_empty("made")
        canary.assert_untouched()
    ctl.lighterd.ctl("rm", "-f", "swapper", check=True)
    after = set(Path("/proc/self/mountinfo").read_text().splitlines())
    mine = [line for line in after - before if str(tmp_path) in line]
    assert mine == []


def test_sec59_the_runtime_is_not_written_to(ctl: Ctl) -> None:
    programs = [Path(str(shutil.which("runc"))).resolve(), PYTHON]
    before = [hashlib.sha256(program.read_bytes()).digest() for program in programs]
    script = "while :; do for exe in /proc/[0-9]*/exe; do (: >>$exe) 2>/dev/null; done; done"
    ctl.lighterd.ctl("run", "-d", REFERENCE, "x", "sh", "-c", script, check=True)
    for _ in range(8):
        assert ctl.lighterd.ctl("exec", "x", "echo", "in").stdout == b"in\n"
    assert [hashlib.sha256(program.read_bytes()).digest() for program in programs] == before


def test_sec61_shared_memory_has_an_end(ctl: Ctl) -> None:
    fill = "dd if=/dev/zero of=/dev/shm/x bs=64k count=64 2>&1; ls -l /dev/shm/x | awk '{print $5}'"
    seen = ctl.says("--shm-size", "1m", "--", "sh", "-c", fill).splitlines()
    assert any("No space" in line for line in seen), seen
    assert seen[-1] == str(1 << 20)


def test_sec62_what_a_container_leaves_is_removed_and_nothing_else(
    ctl: Ctl, canary: Canary, tmp_path: Path
) -> None:
    """Every directory a link to the host, and a bind mount inside: delete touches neither."""
    volume = tmp_path / "volume"
    volume.mkdir()
    (volume / "kept").write_text("kept")
    script = (
        f"for d in etc root home tmp var opt srv; do rm -rf /$d; ln -s {canary.root} /$d; done;"
        " mkdir -p /a/b; touch /ready; exec sleep 1000"
    )
    for force in (False, True):
        mount = f"src={volume},dst=/a/b/c,options=rbind:rw"
        ctl.lighterd.ctl(
            "run", "-d", "--mount", mount, REFERENCE, "x", "sh", "-c", script, check=True
        )
        await_that(
            lambda: ctl.lighterd.ctl("exec", "x", "test", "-e", "/ready").returncode == 0,
            *(20, "the links are there"),
        )
        if force:
            ctl.lighterd.kill9()
            ctl.lighterd.start()
            ctl.lighterd.ctl("rm", "-f", "x", check=True)
        else:
            ctl.lighterd.ctl("kill", "x", check=True)
            ctl.lighterd.ctl("tasks", "delete", "-f", "x", check=True)
            ctl.lighterd.ctl("tasks", "start", "-d", "x", check=True)
            ctl.lighterd.ctl("rm", "-f", "x", check=True)
        canary.assert_untouched()
        assert (volume / "kept").read_text() == "kept"


def test_sec63_nothing_of_the_image_is_run_to_look_at_it(ctl: Ctl, tmp_path: Path) -> None:
    """By what the manager, its spawner and the shim execute, which exec shows to be seen."""
    names = ("bin/ps", "usr/bin/ps", "usr/bin/nsenter", "bin/nsenter", "usr/bin/top", "bin/sh2")
    hostile = dict.fromkeys(names, b"#!/bin/busybox sh\n/bin/busybox touch /was-run\n")
    image = import_bytes(ctl.lighterd, variant(hostile))
    ctl.lighterd.ctl("run", "-d", image, "x", "sleep", "1000")
    pid = init_pid(ctl.lighterd, "x")
    executed = tmp_path / "executed"
    assert ctl.lighterd.process is not None
    manager = psutil.Process(ctl.lighterd.process.pid)
    traced = {one.pid for one in (manager, *manager.children(recursive=True))}
    traced.add(psutil.Process(pid).ppid())
    argv = ["strace", "-f", "-qq", "-o", str(executed), "-e", "trace=execve,execveat"]
    argv += [word for one in traced for word in ("-p", str(one))]
    with subprocess.Popen(argv, stderr=subprocess.DEVNULL) as tracer:
        try:
            for one in traced:
                await_that(lambda pid=one: is_traced(pid), 20, "strace is attached")
            for words in (
                *(("tasks", "ps", "x"), ("tasks", "metrics", "x"), ("top", "x")),
                *(("inspect", "x"), ("stats", "--no-stream", "x"), ("logs", "x")),
            ):
                assert ctl.lighterd.ctl(*words).returncode == 0, words
            looked_at = executed.read_text()
            ctl.lighterd.ctl("exec", "x", "true", check=True)
        finally:
            tracer.terminate()
    assert "execve" not in looked_at
    assert "execve" in executed.read_text(), "an exec is seen"
    assert not os.path.exists(f"/proc/{pid}/root/was-run")


def is_traced(pid: int) -> bool:
    return "TracerPid:\t0\n" not in Path(f"/proc/{pid}/status").read_text()
