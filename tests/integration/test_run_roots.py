"""Roots, specs, mapped ids, cgroups and runtimes of `ctl run`, in real containers."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from lighter.proto.paths import cgroup_path
from tests import cgroups
from tests.harness import Lighterd, await_that
from tests.images import REFERENCE
from tests.integration.test_run_flags import Ctl, ctl, manager, owners

__all__ = ["ctl", "manager", "owners"]

MAPS = ("--uidmap", "0:100000:65536", "--gidmap", "0:200000:65536")


def spec_of(lighterd: Lighterd, name: str) -> Any:
    with lighterd.client() as client:
        return json.loads(client.call("containers", "get", id=name)["container"]["spec"])


def test_each_kind_of_namespace_is_joined_by_its_path(ctl: Ctl) -> None:
    pid = ctl.detached("other")
    kinds = {"mount": "mnt", "user": "user", "ipc": "ipc", "cgroup": "cgroup", "pid": "pid"}
    joined = [f"{kind}:/proc/{pid}/ns/{name}" for kind, name in kinds.items()]
    flags = [word for one in joined for word in ("--with-ns", one)]
    ctl.lighterd.ctl("containers", "create", *flags, REFERENCE, "x", "true", check=True)
    found = {
        one["type"]: one.get("path") for one in spec_of(ctl.lighterd, "x")["linux"]["namespaces"]
    }
    assert {f"{kind}:{found[kind]}" for kind in kinds} == set(joined)
    assert set(found) - set(kinds) == {"network", "uts"}


def test_a_directory_as_root(ctl: Ctl, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    ctl.lighterd.ctl("images", "mount", "--rw", REFERENCE, str(root), check=True)
    try:
        words = ("run", "--rm", "--rootfs", "--rootfs-propagation", "private")
        done = ctl.lighterd.ctl(*words, str(root), "x", "sh", "-c", "echo in > /made; id -G")
        assert done.stdout == b"0\n", done
        assert (root / "made").read_text() == "in\n"
        done = ctl.lighterd.ctl(*words, "-u", "nosuch", str(root), "x", "true")
        assert done.returncode == 125 and b"no such user" in done.stderr
        ctl.lighterd.ctl("run", "-d", "--rootfs", str(root), "x", "/bin/sleep", "1000", check=True)
        done = ctl.lighterd.ctl("exec", "-u", "user", "x", "id", "-u")
        assert done.stdout == b"1000\n", done
        assert spec_of(ctl.lighterd, "x")["root"]["path"] == str(root)
        ctl.lighterd.ctl("rm", "-f", "x", check=True)
        assert (root / "made").exists()
    finally:
        ctl.lighterd.ctl("images", "unmount", "--rm", str(root), check=True)


def test_a_whole_specification(ctl: Ctl, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    ctl.lighterd.ctl("images", "mount", REFERENCE, str(root), check=True)
    try:
        ctl.detached("model")
        spec = spec_of(ctl.lighterd, "model")
        ctl.lighterd.ctl("rm", "-f", "model", check=True)
        spec["root"] = {"path": str(root), "readonly": True}
        spec["process"]["args"] = ["sh", "-c", "echo from a file; exit 3"]
        spec["linux"]["cgroupsPath"] = ""
        file = tmp_path / "spec.json"
        file.write_text(json.dumps(spec))
        done = ctl.lighterd.ctl("run", "--rm", "--config", str(file), "x")
        assert (done.returncode, done.stdout) == (3, b"from a file\n"), done
        done = ctl.lighterd.ctl("run", "-c", str(file), "-m", "1g", "x")
        assert done.returncode == 2 and b"--memory" in done.stderr, done
        ctl.lighterd.ctl("containers", "create", "-c", str(file), "x", check=True)
        done = ctl.lighterd.ctl("tasks", "start", "x")
        assert (done.returncode, done.stdout) == (3, b"from a file\n"), done
        for key, value, words in (
            ("root", {"path": "rootfs"}, b"root.path is not absolute"),
            ("process", {}, b"process.args"),
            ("linux", None, b"linux is missing"),
            ("mounts", [{"destination": "/proc", "type": "tmpfs"}], b"only proc may be there"),
        ):
            file.write_text(json.dumps({**spec, key: value}))
            done = ctl.lighterd.ctl("run", "-c", str(file), "y")
            assert done.returncode == 125 and words in done.stderr, done
        file.write_text("{")
        assert b"not JSON" in ctl.lighterd.ctl("run", "-c", str(file), "y").stderr
    finally:
        ctl.lighterd.ctl("images", "unmount", "--rm", str(root), check=True)


def test_cgroups_of_the_callers(ctl: Ctl) -> None:
    instance = ctl.lighterd.instance
    parent = f"/lighter/{instance}-parent"
    pid = ctl.detached("x", "--cgroup-parent", parent)
    assert str(cgroups.of_process(pid, "memory")).endswith(f"{parent}/x")
    ctl.lighterd.ctl("rm", "-f", "x", check=True)
    pid = ctl.detached("x", "--cgroup", f"{parent}/mine")
    assert str(cgroups.of_process(pid, "pids")).endswith(f"{parent}/mine")
    ctl.lighterd.ctl("rm", "-f", "x", check=True)
    pid = ctl.detached("x", "--cgroup", "")
    own = cgroup_path(instance, "default", "x")
    assert str(cgroups.of_process(pid, "pids")).endswith(own)
    ctl.lighterd.ctl("rm", "-f", "x", check=True)
    assert "both" in ctl.refuses("--cgroup", "/a", "--cgroup-parent", "/b")
    assert "absolute path" in ctl.refuses("--cgroup-parent", "x.slice")
    if not os.path.isdir("/run/systemd/system"):
        flags = ("--runc-systemd-cgroup", "--cgroup", "a.slice:b:c")
        assert "systemd does not run" in ctl.refuses(*flags)
    for hierarchy in ("", *os.listdir("/sys/fs/cgroup")):
        with_parent = f"/sys/fs/cgroup/{hierarchy}{parent}"
        if os.path.isdir(with_parent):
            os.rmdir(with_parent)


def test_the_runtimes_options(ctl: Ctl, tmp_path: Path) -> None:
    state = tmp_path / "runc"
    binary = shutil.which("runc")
    ctl.detached("x", "--runc-root", str(state), "--runc-binary", str(binary))
    assert (state / "default" / "x" / "state.json").exists()
    assert ctl.lighterd.ctl("exec", "x", "echo", "hi").stdout == b"hi\n"
    ctl.lighterd.ctl("rm", "-f", "x", check=True)
    assert not (state / "default" / "x").exists()
    config = tmp_path / "options.toml"
    config.write_text(f'Root = "{state}"\nNoPivotRoot = true\n')
    ctl.detached("x", "--runtime-config-path", str(config), "--runtime", str(binary))
    assert (state / "default" / "x" / "state.json").exists()
    with ctl.lighterd.client() as client:
        options = client.call("containers", "get", id="x")["container"]["options"]
    assert options["runc"] == {"root": str(state), "no_pivot_root": True}
    ctl.lighterd.ctl("rm", "-f", "x", check=True)
    config.write_text("Sausages = 1\n")
    assert "Sausages" in ctl.refuses("--runtime-config-path", str(config))
    assert "no such program" in ctl.refuses("--runc-binary", "/nosuch")
    assert "no such program" in ctl.refuses("--runtime", "/nosuch")
    assert "absolute path" in ctl.refuses("--runtime", "sausage")


def test_snapshots_and_platforms(ctl: Ctl) -> None:
    ctl.detached("x", "--snapshotter-label", "who=me", "--platform", "linux/amd64")
    with ctl.lighterd.client() as client:
        snapshot = client.call("snapshots", "get", snapshotter="", key="x")["snapshot"]
    assert snapshot["labels"]["who"] == "me"
    ctl.lighterd.ctl("rm", "-f", "x", check=True)
    assert "linux/s390x" in ctl.refuses("--pull", "never", "--platform", "linux/s390x")


def test_mapped_ids(ctl: Ctl) -> None:
    """Root inside is somebody else outside, and the files of the image are root's inside."""
    os.chmod(ctl.lighterd.base, 0o700)
    assert f"cannot pass {ctl.lighterd.base} (chmod o+x)" in ctl.refuses(*MAPS)
    os.chmod(ctl.lighterd.base, 0o711)
    script = "id -u; cat /proc/self/uid_map; ls -ln / | awk 'NR>1 {print $3, $4}' | sort -u"
    seen = ctl.says(*MAPS, "--", "sh", "-c", script).splitlines()
    assert seen[0] == "0" and seen[1].split() == ["0", "100000", "65536"]
    owners = set(seen[2:]) - {"65534 65534"}  # /proc and /sys are the host's
    assert owners == {"0 0"}, seen
    pid = ctl.detached("x", *MAPS, "--tmpfs", "/t")
    linux = spec_of(ctl.lighterd, "x")["linux"]
    assert linux["gidMappings"] == [{"containerID": 0, "hostID": 200000, "size": 65536}]
    assert os.stat(f"/proc/{pid}").st_uid == 100000
    assert os.stat(f"/proc/{pid}").st_gid == 200000
    done = ctl.lighterd.ctl("exec", "x", "sh", "-c", "echo made > /made; cat /made; id -g")
    assert done.stdout == b"made\n0\n", done
    made = os.stat(f"/proc/{pid}/root/made")
    assert (made.st_uid, made.st_gid) == (100000, 200000)
    done = ctl.lighterd.ctl("exec", "-u", "user", "x", "sh", "-c", "id -u; echo x >/made")
    assert done.stdout == b"1000\n" and b"denied" in done.stderr, done
    ctl.lighterd.ctl("rm", "-f", "x", check=True)
    # A container without mapped ids has the image's files as ever.
    assert ctl.says("--", "stat", "-c", "%u", "/bin/sh") == "0"


def test_mapped_ids_with_a_terminal_another_snapshotter_and_a_manager_that_dies(ctl: Ctl) -> None:
    os.chmod(ctl.lighterd.base, 0o711)
    done = ctl.run(*MAPS, "--snapshotter", "native", "-t", "--", "sh", "-c", "tty; id -u")
    assert done.stdout.split() == [b"/dev/pts/0", b"0"], done
    pid = ctl.detached("x", *MAPS, "--net-host")
    ctl.lighterd.kill9()
    ctl.lighterd.start()
    assert os.stat(f"/proc/{pid}").st_uid == 100000
    done = ctl.lighterd.ctl("exec", "-t", "x", "sh", "-c", "tty; id -u; ls /sys | head -1")
    assert done.stdout.split() == [b"/dev/pts/0", b"0", b"block"], done
    ctl.lighterd.ctl("stop", "--timeout", "1s", "x", check=True)
    ctl.lighterd.ctl("tasks", "delete", "x")
    ctl.lighterd.ctl("tasks", "start", "-d", "x", check=True)
    assert ctl.lighterd.ctl("exec", "x", "id", "-u").stdout == b"0\n"


def test_a_manager_killed_while_it_gives_files_away_leaves_nothing(ctl: Ctl) -> None:
    """The next one removes the half-made snapshot, and makes it anew when it is asked for."""
    os.chmod(ctl.lighterd.base, 0o711)
    lighterd = ctl.lighterd
    lighterd.restart(FAULT="containers.remapped:abort")
    maps = ("--uidmap", "0:500000:65536", "--gidmap", "0:500000:65536")
    assert ctl.run("--pull", "never", *maps, "--", "true").returncode
    assert lighterd.process is not None
    lighterd.process.wait(60)
    lighterd.start()

    def keys() -> list[str]:
        with lighterd.client() as client:
            rows = client.call("snapshots", "list", snapshotter="")["snapshots"]
        return [row["key"] for row in rows if row["key"].startswith("extract-")]

    await_that(lambda: not keys(), 30, "the half-made snapshot is removed")
    assert ctl.says(*maps, "--", "id", "-u") == "0"


def test_mapped_ids_are_made_once_and_go_with_their_containers(ctl: Ctl) -> None:
    os.chmod(ctl.lighterd.base, 0o711)

    def mapped() -> list[str]:
        with ctl.lighterd.client() as client:
            rows = client.call("snapshots", "list", snapshotter="")["snapshots"]
        return [row["key"] for row in rows if "-ids-" in row["key"]]

    def snapshot_of(name: str) -> Any:
        with ctl.lighterd.client() as client:
            return client.call("snapshots", "get", snapshotter="", key=name)["snapshot"]

    ctl.detached("x", *MAPS, "--remap-labels")
    ctl.detached("y", *MAPS)
    snapshot = snapshot_of("x")
    assert snapshot["parent"] == snapshot_of("y")["parent"]
    # What the containers of other ids had is collected, sooner or later.
    await_that(lambda: mapped() == [snapshot["parent"]], 30, "their parent is the only one")
    assert snapshot["labels"]["containerd.io/snapshot/uidmapping"] == "0:100000:65536"
    assert snapshot["labels"]["containerd.io/snapshot/gidmapping"] == "0:200000:65536"
    for name in ("x", "y"):
        ctl.lighterd.ctl("rm", "-f", name, check=True)
    await_that(lambda: not mapped(), 30, "it goes with its containers")
    for words in (
        ("--uidmap", "0:1:1"),
        ("--uidmap", "0:1", "--gidmap", "0:1:1"),
        ("--uidmap", "1:1:1", "--gidmap", "0:1:1"),
        ("--uidmap", "0:4294967295:9", "--gidmap", "0:1:1"),
        ("--uidmap", "0:1:10", "--uidmap", "5:100:10", "--gidmap", "0:1:1"),
        ("--uidmap", "0:100000:1", "--gidmap", "0:100000:1"),  # files of other owners
        ("--userns", "sausage"),
    ):
        assert "map" in ctl.refuses(*words), words
