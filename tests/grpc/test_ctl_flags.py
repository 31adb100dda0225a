"""`ctl run` here and Debian's ctr on its containerd: the same flag gives the same config.json.

What differs on purpose stands in docs/flags.md; `expected` does the same to what ctr made, so that
a difference which is not written down fails.
"""

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lighter.proto.paths import cgroup_path
from tests.grpc.pair import OURS, PEER, Pair
from tests.harness import await_that
from tests.images import REFERENCE

COMMAND = ("sleep", "1000")
PROFILE = (
    '{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["chroot"],'
    ' "action": "SCMP_ACT_ERRNO"}]}'
)
FLAGS = {
    "none": (),
    "cpus": ("--cpus", "0.5", "--cpu-shares", "512"),
    "quota": ("--cpu-quota", "50000", "--cpu-period", "100000"),
    "memory": ("--memory-limit", "67108864"),
    "process": ("--cwd", "/tmp", "--env", "A=b", "--env-file", "{dir}/env", "--allow-new-privs"),
    "capabilities": ("--cap-add", "CAP_NET_ADMIN", "--cap-drop", "CAP_MKNOD"),
    "annotations": ("--label", "x=y", "--annotation", "q=w", "--annotation", "r="),
    "mounts": (
        *("--mount", "type=bind,src={dir},dst=/hostdir,options=rbind:ro"),
        *("--mount", "type=tmpfs,src=tmpfs,dst=/t,options=size=1m:mode=700"),
    ),
    "root": ("--read-only", "--rootfs-propagation", "private"),
    "devices": ("--device", "/dev/zero", "--device", "{dir}/dev"),
    "host network": ("--net-host",),
    "privileged": ("--privileged",),
    "seccomp profile": ("--seccomp", "--seccomp-profile", "{dir}/seccomp.json"),
    "namespaces": ("--with-ns", "network:/proc/{pid}/ns/net"),
    "more namespaces": (
        *("--with-ns", "ipc:/proc/{pid}/ns/ipc", "--with-ns", "uts:/proc/{pid}/ns/uts"),
        *("--with-ns", "cgroup:/proc/{pid}/ns/cgroup"),
    ),
    "cgroup": ("--cgroup", "/NAMESPACE/place"),
    "runtime": ("--runtime", "io.containerd.runc.v2", "--no-pivot", "--platform", "linux/amd64"),
    "runc": ("--runc-binary", "runc", "--runc-root", "{dir}/NAMESPACE"),
    "mapped ids": ("--uidmap", "0:100000:65536", "--gidmap", "0:200000:65536"),
    "null": ("--null-io", "--snapshotter-label", "a=b"),
}


_NOT_IN_IT = "is no part of the specification"
NOT_COMPARED = {
    "--apparmor-default-profile": "a host without AppArmor takes none; tests/vm has one",
    "--apparmor-profile": "the same",
    "--cni": "the peer has no network plugins; ours is tests/integration/test_network's",
    "--config": "test_a_whole_specification",
    "--detach": "stands in every comparison",
    "--fifo-dir": "stands in every comparison of ctr's",
    "--gpus": "ctr runs a program for it, we a device file's edits: docs/flags.md",
    "--log-uri": _NOT_IN_IT,
    "--pid-file": _NOT_IN_IT,
    "--rdt-class": "the hardware is not there",
    "--remap-labels": "test_ctr_maps_ids_through_our_api",
    "--rm": _NOT_IN_IT,
    "--rootfs": "test_a_root_of_the_callers",
    "--runc-systemd-cgroup": "wants systemd",
    "--runtime-config-path": "ctr's has no effect: docs/flags.md",
    "--snapshotter": _NOT_IN_IT,
    "--tty": "wants a terminal of both",
}


def expected(theirs: dict[str, Any], ours: dict[str, Any], instance: str, name: str) -> None:
    """Put into what ctr made the differences that are on purpose, after a look at each."""
    process, linux = theirs["process"], theirs["linux"]
    assert (theirs.pop("ociVersion"), ours.pop("ociVersion")) == ("1.0.2-dev", "1.0.2")
    process["oomScoreAdj"] = 0
    if name == "annotations":
        assert theirs["annotations"].pop("x") == "y"
    if name != "cgroup":
        assert linux["cgroupsPath"] == f"/{PEER}/f"
        linux["cgroupsPath"] = cgroup_path(instance, OURS, "f")
    if linux["resources"].get("cpu", {}).get("shares") == 1024:
        del linux["resources"]["cpu"]["shares"]
        if not linux["resources"]["cpu"]:
            del linux["resources"]["cpu"]
    if name != "privileged":
        assert set(linux["maskedPaths"]) < set(ours["linux"]["maskedPaths"])
        linux["maskedPaths"] = ours["linux"]["maskedPaths"]
        if name != "seccomp profile":
            assert "seccomp" not in linux
            linux["seccomp"] = ours["linux"]["seccomp"]


def configs(pair: Pair) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the runtime was given of container f by theirs and by ours."""
    bundles = pair.bundles("f")
    theirs, ours = (
        json.loads((bundles[side] / "config.json").read_text()) for side in (PEER, OURS)
    )
    return theirs, ours


@pytest.fixture(scope="module")
def apart() -> Iterator[subprocess.Popen[bytes]]:
    """A process in namespaces of its own."""
    own = os.readlink("/proc/self/ns/net")
    kinds = ("--net", "--ipc", "--uts", "--cgroup")
    with subprocess.Popen(["unshare", *kinds, "sleep", "1000"]) as process:
        link = f"/proc/{process.pid}/ns/net"
        await_that(lambda: os.readlink(link) != own, 30, "it has left the host's network")
        yield process
        process.kill()


def test_each_flag_of_ctr_run_is_compared_or_has_a_reason() -> None:
    shown = subprocess.run(["ctr", "run", "--help"], capture_output=True, check=True).stdout
    flags = set(re.findall(r"^ +(--[a-z-]+)", shown.decode(), re.MULTILINE)) - {"--help"}
    compared = {word for words in FLAGS.values() for word in words if word.startswith("--")}
    assert flags == compared | NOT_COMPARED.keys()
    assert not compared & NOT_COMPARED.keys()


@pytest.mark.parametrize("name", FLAGS)
def test_ctl_and_ctr_give_the_runtime_the_same(
    pair: Pair, tmp_path: Path, apart: subprocess.Popen[bytes], name: str
) -> None:
    (tmp_path / "env").write_text("C=d\nE=f\n")
    (tmp_path / "seccomp.json").write_text(PROFILE)
    (tmp_path / "dev").mkdir()
    os.mknod(tmp_path / "dev/full", 0o20666, os.makedev(1, 7))
    for directory in (pair.lighterd.base, pair.peer.base, pair.peer.base / "s"):
        os.chmod(directory, 0o711)  # mapped ids pass through

    def flags(side: str) -> list[str]:
        return [
            flag.replace("NAMESPACE", side)
            .replace("{dir}", str(tmp_path))
            .replace("{pid}", str(apart.pid))
            for flag in FLAGS[name]
        ]

    fifos = () if "--null-io" in FLAGS[name] else ("--fifo-dir", str(pair.fifos))
    words = ("run", "-d", *fifos, *flags(PEER), REFERENCE, "f", *COMMAND)
    said = pair.run(PEER, *words)
    assert said.code == 0, said.err
    done = pair.lighterd.ctl("-n", OURS, "run", "-d", *flags(OURS), REFERENCE, "f", *COMMAND)
    assert done.returncode == 0, done.stderr
    theirs, ours = configs(pair)
    expected(theirs, ours, pair.lighterd.instance, name)
    assert ours == json.loads(json.dumps(theirs).replace(PEER, OURS))


@pytest.fixture
def root(pair: Pair, tmp_path: Path) -> Path:
    """A directory with what the image has."""
    (directory := tmp_path / "root").mkdir()
    ours = ("-n", OURS)
    pair.lighterd.ctl(*ours, "create", "--name", "exported", REFERENCE, "true", check=True)
    archive = pair.lighterd.ctl(*ours, "export", "exported", check=True).stdout
    pair.lighterd.ctl(*ours, "rm", "exported", check=True)
    subprocess.run(["tar", "-x", "-C", str(directory)], input=archive, check=True)
    return directory


def test_a_root_of_the_callers(pair: Pair, root: Path) -> None:
    words = ("run", "-d", "--rootfs", str(root), "f", "/bin/sleep", "1000")
    fifos = ("--fifo-dir", str(pair.fifos))
    said = pair.run(PEER, *words[:2], *fifos, *words[2:])
    assert said.code == 0, said.err
    done = pair.lighterd.ctl("-n", OURS, *words)
    assert done.returncode == 0, done.stderr
    theirs, ours = configs(pair)
    assert ours["root"] == theirs["root"] == {"path": str(root)}
    expected(theirs, ours, pair.lighterd.instance, "")
    assert [word.partition("=")[0] for word in ours["process"].pop("env")] == ["PATH"]
    assert ours["process"]["user"].pop("additionalGids") == [0]
    assert ours == json.loads(json.dumps(theirs).replace(PEER, OURS))


def test_a_whole_specification(pair: Pair, root: Path, tmp_path: Path) -> None:
    spec = json.loads(pair.peer.ctr("oci", "spec"))
    spec["root"]["path"] = str(root)
    spec["process"].update(args=list(COMMAND), env=["PATH=/bin"])
    for side in (PEER, OURS):
        spec["linux"]["cgroupsPath"] = f"/{side}/whole"
        (tmp_path / side).write_text(json.dumps(spec))
    fifos = ("--fifo-dir", str(pair.fifos))
    said = pair.run(PEER, "run", "-d", *fifos, "--config", str(tmp_path / PEER), "f")
    assert said.code == 0, said.err
    done = pair.lighterd.ctl("-n", OURS, "run", "-d", "--config", str(tmp_path / OURS), "f")
    assert done.returncode == 0, done.stderr
    theirs, ours = configs(pair)
    assert ours == spec
    assert ours == json.loads(json.dumps(theirs).replace(PEER, OURS))


def test_the_default_specification(pair: Pair) -> None:
    """`oci spec`: what a container starts from when nothing is asked."""
    theirs = json.loads(pair.peer.ctr("oci", "spec"))
    ours = json.loads(pair.lighterd.ctl("oci", "spec", check=True).stdout)
    assert (theirs.pop("ociVersion"), ours.pop("ociVersion")) == ("1.0.2-dev", "1.0.2")
    assert ours["process"].pop("oomScoreAdj") == 0
    assert ours["linux"].pop("seccomp")["defaultAction"] == "SCMP_ACT_ERRNO"
    assert set(theirs["linux"].pop("maskedPaths")) < set(ours["linux"].pop("maskedPaths"))
    assert ours == theirs


@pytest.mark.parametrize("remap", [(), ("--remap-labels",)], ids=["copied", "by labels"])
def test_ctr_maps_ids_through_our_api(pair: Pair, tmp_path: Path, remap: tuple[str, ...]) -> None:
    """--uidmap and --gidmap of ctr itself: it gives the files away; ours opens the way to them."""
    for directory in (pair.lighterd.base, pair.peer.base, pair.peer.base / "s"):
        os.chmod(directory, 0o711)
    seen = []
    maps = ("--uidmap", "0:100000:65536", "--gidmap", "0:200000:65536")
    for side in (PEER, OURS):
        fifos = ("--fifo-dir", str(pair.fifos), "--pid-file", str(tmp_path / "pid"))
        said = pair.run(side, "run", "-d", *fifos, *maps, *remap, REFERENCE, "f", *COMMAND)
        if said.code:
            seen.append((said.code, said.err))
            pair.drop_snapshot("f")
            continue
        pid = int((tmp_path / "pid").read_text())
        owner = os.stat(f"/proc/{pid}")
        config = (pair.bundles("f")[side] / "config.json").read_text().replace(side, "NAMESPACE")
        seen.append((json.loads(config), owner.st_uid, owner.st_gid))
        root = os.stat(f"/proc/{pid}/root/bin")
        seen[-1] += (root.st_uid, root.st_gid)
    assert seen[1] == seen[0]
    if not remap:
        assert seen[1][1:] == (100000, 200000, 100000, 200000)
