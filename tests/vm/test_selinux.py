"""Labels on a kernel with SELinux, which enforces where it says so: who has which, and what they
keep containers from. The policy is Debian's with container-selinux' types (selinux.py).

The tests share one machine; each uses containers of its own.
"""

import shutil
from collections.abc import Iterator

import pytest

from tests.images import REFERENCE
from tests.vm.disks import Disks
from tests.vm.installed import Installed
from tests.vm.machine import Machine, switched_on
from tests.vm.selinux import make_disk

PROCESS = "system_u:system_r:container_t"
FILE = "system_u:object_r:container_file_t"
CRUN = ("--runtime", "/usr/bin/crun")


@pytest.fixture(scope="module")
def machine(disks: Disks, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    work = tmp_path_factory.mktemp("selinux")
    disk = make_disk(disks.installed, work)
    with switched_on(disk, disks.payload) as machine:
        yield machine
    shutil.rmtree(work)


@pytest.fixture(scope="module")
def host(machine: Machine) -> Iterator[Installed]:
    host = Installed(machine).await_start().import_image()
    yield host
    host.clear()


@pytest.fixture
def enforcing(machine: Machine) -> Iterator[None]:
    machine.run("setenforce 1")
    yield
    machine.run("setenforce 0")


def label_of(machine: Machine, pid: int) -> str:
    return machine.read(f"/proc/{pid}/attr/current").strip("\0\n ")


def level_of(machine: Machine, pid: int) -> str:
    """Its own, of container_t."""
    label = label_of(machine, pid)
    assert label.startswith(f"{PROCESS}:s0:c"), label
    return label.removeprefix(f"{PROCESS}:")


def inside(host: Installed, name: str, script: str) -> str:
    return host.ctl("exec", name, "sh", "-c", script).text


def labels_on_host(machine: Machine, *paths: str) -> list[str]:
    """Of the files themselves, links are not followed."""
    script = "import os, sys; [print(os.getxattr(p, 'security.selinux', follow_symlinks=False)"
    script += ".decode().strip(chr(0))) for p in sys.argv[1:]]"
    return machine.run(["python3", "-c", script, *paths]).text.splitlines()


def test_the_manager_is_what_its_package_makes_of_it(host: Installed, machine: Machine) -> None:
    """The file contexts of lighter-selinux, loaded by its own scriptlet."""
    assert machine.run("getenforce").text == "Permissive"
    manager = label_of(machine, host.main_pid())
    assert manager == "system_u:system_r:container_runtime_t:s0"
    paths = ("/usr/bin/lighterd", "/etc/lighter/config.toml", "/var/lib/lighter")
    assert [label.split(":")[2] for label in labels_on_host(machine, *paths)] == [
        *("container_runtime_exec_t", "container_config_t", "container_var_lib_t")
    ]
    host.run("shim-of")
    assert label_of(machine, host.shim_of("shim-of")) == manager
    host.ctl("rm", "-f", "shim-of")


@pytest.mark.parametrize("runtime", [(), CRUN], ids=["runc", "crun"])
def test_process_and_mounts_have_a_level_of_their_own(
    host: Installed, machine: Machine, runtime: tuple[str, ...]
) -> None:
    first, second = (host.run(name, flags=runtime) for name in ("one", "two"))
    level = level_of(machine, first)
    assert level != level_of(machine, second)
    root = f"/proc/{first}/root"
    for path in ("/.", "/bin/busybox", "/dev/shm", "/dev", "/run"):
        assert labels_on_host(machine, f"{root}{path}") == [f"{FILE}:{level}"], path
    # An exec is labelled as its container is.
    assert inside(host, "one", "cat /proc/self/attr/current").strip("\0") == f"{PROCESS}:{level}"
    inside(host, "one", "echo x >/root/new")
    assert labels_on_host(machine, f"{root}/root/new") == [f"{FILE}:{level}"]
    host.ctl("rm", "-f", "one", "two")


def test_what_is_asked_for_instead(host: Installed, machine: Machine) -> None:
    manager = label_of(machine, host.main_pid())
    for flags, expected in (
        (("--security-opt", "label=disable"), manager),
        (("--privileged",), manager),
        (("--security-opt", "label=type:spc_t", "--security-opt", "label=level:s0:c5,c6"), ""),
    ):
        pid = host.run("other", flags=flags)
        assert label_of(machine, pid) == (expected or "system_u:system_r:spc_t:s0:c5,c6")
        if not expected:
            assert labels_on_host(machine, f"/proc/{pid}/root/.") == [f"{FILE}:s0:c5,c6"]
        host.ctl("rm", "-f", "other")


def test_the_files_of_its_network_are_readable_and_those_of_all(
    host: Installed, machine: Machine, enforcing: None
) -> None:
    """Who shares a network has the same files, under another level."""
    host.ctl("network", "create", "labelled")
    pid = host.run("net", flags=("--network", "labelled"))
    host.run("beside", flags=("--network", "container:net"))
    for name in ("/etc/hosts", "/etc/resolv.conf", "/etc/hostname"):
        assert labels_on_host(machine, f"/proc/{pid}/root{name}") == [f"{FILE}:s0"], name
    for name in ("net", "beside"):
        assert "localhost" in inside(host, name, "cat /etc/hosts")
    host.ctl("rm", "-f", "beside", "net")
    host.ctl("network", "rm", "labelled")


def test_what_is_bound_is_relabelled_as_it_is_asked_for(
    host: Installed, machine: Machine, enforcing: None
) -> None:
    """z: for all containers; Z: for one alone, from which the kernel keeps others."""
    machine.run(
        "mkdir -p /data/own/deep /data/all /data/none; cd /data; ln -s /etc/hostname own/link; "
        "for d in own/deep all none; do echo secret >$d/file; done; "
        "setfattr -n security.selinux -v system_u:object_r:etc_t:s0 /etc/hostname 2>/dev/null; "
        "chcon -R -t etc_t /data"
    )
    before = labels_on_host(machine, "/etc/hostname", "/data/none/file")
    volumes = ("-v", "/data/all:/all:z", "-v", "/data/none:/none", "-v", "named:/named")
    pid = host.run("owner", flags=(*volumes, "-v", "/data/own:/own:Z"))
    host.run("stranger", flags=(*volumes, "-v", "/data/own:/own"))
    level = level_of(machine, pid)
    own = ("/data/own", "/data/own/deep/file", "/data/own/link")
    assert labels_on_host(machine, *own) == [f"{FILE}:{level}"] * 3
    assert labels_on_host(machine, "/data/all/file") == [f"{FILE}:s0"]
    assert labels_on_host(machine, "/etc/hostname", "/data/none/file") == before
    assert inside(host, "owner", "cat /own/deep/file /all/file; echo x >/named/file") == (
        "secret\nsecret"
    )
    assert inside(host, "stranger", "cat /all/file /named/file") == "secret\nx"
    for name, path in (("stranger", "/own/deep/file"), ("stranger", "/own"), ("owner", "/none")):
        told = host.ctl("exec", name, "ls", "-l", path, check=False)
        assert told.code != 0, (name, path)
        assert b"Permission denied" in told.stderr
    # What comes later has it at the next start.
    machine.run("echo later >/data/own/later; chcon -t etc_t /data/own/later")
    host.ctl("stop", "-t", "0", "owner")
    host.ctl("start", "owner")
    host.await_status("owner", "running")
    assert inside(host, "owner", "cat /own/later") == "later"
    host.ctl("rm", "-f", "owner", "stranger")
    host.ctl("volume", "rm", "named")


def test_directories_of_the_system_keep_their_labels(host: Installed, machine: Machine) -> None:
    machine.run("mkdir -p /data/root; ln -sfn /etc /data/to-etc; mount --bind / /data/root")
    places = ("/", "/etc", "/usr", "/home", "/root", "/var", "/dev", "/proc", "/sys/fs")
    try:
        for place in (*places, "/var/lib/lighter", "/data/to-etc", "/data/root"):
            flags = ("--name", "refused", "-v", f"{place}:/d:z")
            told = host.ctl("create", *flags, REFERENCE, "true", check=False)
            assert told.code != 0 and b"relabel" in told.stderr, (place, told.stderr)
    finally:
        machine.run("umount /data/root")
    assert not host.ctl("containers", "ls", "-q").text
    (etc,) = labels_on_host(machine, "/etc")
    assert etc == "system_u:object_r:etc_t:s0"


def test_labels_outlive_the_manager(host: Installed, machine: Machine) -> None:
    pid = host.run("kept", flags=("-v", "/data/kept:/kept:Z"))
    level = level_of(machine, pid)
    before = host.main_pid()
    machine.run(["kill", "-9", str(before)])
    host.await_manager(but=before)
    host.await_status("kept", "running")
    assert label_of(machine, pid) == f"{PROCESS}:{level}"
    assert inside(host, "kept", "cat /proc/self/attr/current").strip("\0") == f"{PROCESS}:{level}"
    # The new manager knows whose level that is, and puts it on again.
    assert level_of(machine, host.run("next")) != level
    host.ctl("restart", "-t", "0", "kept")
    again = int(host.await_status("kept", "running")["pid"])
    assert level_of(machine, again) == level
    assert labels_on_host(machine, "/data/kept") == [f"{FILE}:{level}"]
    host.ctl("rm", "-f", "kept", "next")
