"""`ctl doctor` and `ctl system support`, with a manager and without one, on a sound and on a
broken host.
"""

import io
import json
import os
import socket
import subprocess
import tarfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from lighter.ctl import redact
from tests import cgroups
from tests.harness import BIN, Lighterd, await_that
from tests.images import REFERENCE
from tests.processes import with_title

pytestmark = pytest.mark.shared_lighterd

SECRET = "hunter2-of-the-container"
PASSWORD = "hunter2-of-the-registry"
SOON = ("--connect-timeout", "200ms")  # where there is no manager to wait for


def findings(done: "subprocess.CompletedProcess[bytes]") -> dict[str, list[dict[str, Any]]]:
    """By check."""
    found: dict[str, list[dict[str, Any]]] = {}
    for one in json.loads(done.stdout):
        found.setdefault(one["check"], []).append(one)
    return found


def problems(done: "subprocess.CompletedProcess[bytes]") -> list[str]:
    everything = [one for each in findings(done).values() for one in each]
    return [f"{one['check']}: {one['found']}" for one in everything if one["status"] == "problem"]


def test_a_sound_host_with_a_running_container_has_no_problem(manager: Lighterd) -> None:
    """One that has ended and is not removed is no leftover either."""
    manager.ctl("run", "-d", REFERENCE, "c", "sleep", "100", check=True)
    manager.ctl("run", "-d", REFERENCE, "ended", "true", check=True)
    title = f"lighter-shim --instance {manager.instance} "
    await_that(lambda: len(with_title(title)) == 1, 20, "the shim of the other has gone")
    done = manager.ctl("--format", "json", "doctor")
    assert (problems(done), done.returncode) == ([], 0), done.stderr
    found = findings(done)
    assert found["manager"][0]["found"] == "it serves"
    assert found["leftovers"][0]["found"] == "none beside 2 tasks and 1 shims"
    assert any("runc version" in one["found"] for one in found["runtime"])
    shown = manager.ctl("doctor", "--all").stdout.decode()
    assert "checks are well" in shown and "leftovers" in shown


def test_without_a_manager_lighterd_is_asked(manager: Lighterd) -> None:
    manager.ctl("run", "-d", REFERENCE, "c", "sleep", "100", check=True)
    manager.kill9()
    command = f"{manager.bin}/lighterd --root {manager.root} --state {manager.state}"
    done = manager.ctl(*SOON, "--format", "json", "doctor", "--lighterd", command)
    assert done.returncode == 1, done.stderr
    found = findings(done)
    assert next(one["check"] for each in found.values() for one in each) == "manager"
    assert "no manager answers" in found["manager"][0]["found"]
    # The container that does not notice is found as what it is.
    assert found["leftovers"][0]["found"] == "none beside 1 tasks and 1 shims"
    assert problems(done) == [f"manager: {found['manager'][0]['found']}"]
    nobody = manager.ctl(*SOON, "doctor", "--lighterd", "/nonexistent/lighterd")
    assert nobody.returncode == 1
    assert b"run /nonexistent/lighterd doctor: " in nobody.stderr
    manager.start()


def test_what_is_broken_is_found(manager: Lighterd) -> None:
    """Each by the line that a person would look for."""
    (manager.state / "tasks/default/ghost").mkdir(parents=True)
    top = cgroups.MOUNT / ("" if cgroups.IS_V2 else "pids")
    cgroup = top / "lighter" / manager.instance / "default" / "lost"
    cgroup.mkdir(parents=True)
    os.chmod(manager.root, 0o777)
    try:
        done = manager.ctl("--format", "json", "doctor")
    finally:
        os.chmod(manager.root, 0o700)
        cgroup.rmdir()
        (manager.state / "tasks/default/ghost").rmdir()
    found = findings(done)
    assert done.returncode == 1
    assert problems(done) == [f"root: {manager.root}: owner 0, mode 0777"]
    left = {one["found"] for one in found["leftovers"]}
    assert left == {
        "1 records whose shim is gone: default/ghost",
        f"1 cgroups without a task: {cgroup}",
    }


def test_an_instance_that_cannot_start_is_told_why(tmp_path: Path) -> None:
    """What `lighterd doctor` finds when a configuration and a disk went bad."""
    root, state, hosts, conf = (tmp_path / name for name in ("r", "s", "hosts", "cni"))
    for folder in (root, state, hosts / "reg.example", conf):
        folder.mkdir(parents=True, mode=0o700)
    (root / "lighter.db").write_bytes(b"no database " * 1000)
    (state / "lighter.sock").write_text("no socket")
    (hosts / "reg.example/hosts.toml").write_text("server = [")
    (conf / "10-bad.conflist").write_text("{")
    config = tmp_path / "config.toml"
    config.write_text(
        f'version = 3\nroot = "{root}"\nstate = "{state}"\n'
        '[plugins."io.lighter.v1"]\nselinux = true\n'
        f'[plugins."io.lighter.v1".runtimes.runc]\npath = "{tmp_path}/nothing"\n'
        f'[plugins."io.lighter.v1".network]\nconf_dir = "{conf}"\n'
        f'[plugins."io.lighter.v1".registry]\nconfig_path = "{hosts}"\n'
    )
    with closing(socket.socket(socket.AF_UNIX)) as other:
        other.bind(str(state / "containerd.sock"))
        os.chmod(state / "containerd.sock", 0o666)
        argv = [str(BIN / "lighterd"), "--config", str(config), "doctor", "--format", "json"]
        done = subprocess.run(argv, capture_output=True, timeout=60, check=False)
    assert done.returncode == 1, done.stderr
    told = problems(done)
    for part in (
        f"runtime: find runtime {tmp_path}/nothing",
        "10-bad.conflist",
        f"database: {root}/lighter.db: file is not a database",
        f"socket: {state}/lighter.sock is no socket",
        f"socket: {state}/containerd.sock: mode 0666",
        f"registry: read {hosts}/reg.example/hosts.toml",
    ):
        assert any(part in line for line in told), (part, told)
    assert len(told) == 6, told
    # Labels that nobody asks for by name are left out, and hold nothing up.
    assert [one["status"] for one in findings(done)["security modules"]] == ["warning"]


def test_a_host_without_iptables_is_told_which_networks_need_it(tmp_path: Path) -> None:
    path, conf, config = tmp_path / "bin", tmp_path / "cni", tmp_path / "config.toml"
    path.mkdir()
    conf.mkdir()
    (path / "nft").symlink_to("/bin/true")  # which their plugins do not run
    plugins: dict[str, list[dict[str, Any]]] = {
        "ports": [{"type": "ptp"}, {"type": "portmap"}],
        "rules": [{"type": "ptp"}, {"type": "firewall"}],
        "masked": [{"type": "ptp", "ipMasq": True}],
        "plain": [{"type": "ptp", "ipMasq": False}],
        "other": [{"type": "ptp"}, {"type": "portmap", "backend": "nftables"}],
    }
    for name, chain in plugins.items():
        document = {"cniVersion": "1.0.0", "name": name, "plugins": chain}
        (conf / f"{name}.conflist").write_text(json.dumps(document))
    config.write_text(
        f'version = 3\nroot = "{tmp_path}/r"\nstate = "{tmp_path}/s"\n'
        f'[plugins."io.lighter.v1".network]\nconf_dir = "{conf}"\n'
    )
    argv = [str(BIN / "lighterd"), "--config", str(config), "doctor", "--format", "json"]
    env = {**os.environ, "PATH": str(path)}
    done = subprocess.run(argv, capture_output=True, timeout=60, check=False, env=env)
    (warned,) = [one for one in findings(done)["network"] if one["status"] == "warning"]
    assert warned["found"] == "iptables is not in PATH: plugins of masked, ports, rules run it"


def test_a_network_of_an_earlier_release_is_told_to_be_open(tmp_path: Path) -> None:
    conf, config = tmp_path / "cni", tmp_path / "config.toml"
    conf.mkdir()
    words: dict[str, dict[str, str]] = {
        "lighter-old": {},
        "lighter-new": {"ingressPolicy": "same-bridge"},
        "lighter-asked": {"ingressPolicy": "open"},
        "theirs": {},
    }
    for name, word in words.items():
        plugins = [{"type": "bridge", "bridge": name}, {"type": "firewall", **word}]
        document = {"cniVersion": "1.0.0", "name": name, "plugins": plugins}
        (conf / f"{name}.conflist").write_text(json.dumps(document))
    config.write_text(
        f'version = 3\nroot = "{tmp_path}/r"\nstate = "{tmp_path}/s"\n'
        f'[plugins."io.lighter.v1".network]\nconf_dir = "{conf}"\n'
    )
    argv = [str(BIN / "lighterd"), "--config", str(config), "doctor", "--format", "json"]
    done = subprocess.run(argv, capture_output=True, timeout=60, check=False)
    (warned,) = [one for one in findings(done)["network"] if one["status"] == "warning"]
    assert warned["found"].startswith("lighter-old: other networks reach it")


def test_a_bundle_shows_what_is_here_and_no_secret(
    make_lighterd: Callable[..., Lighterd], tmp_path: Path
) -> None:
    manager = make_lighterd(
        config="version = 3\n"
        '[plugins."io.lighter.v1".registry.configs."reg.example".auth]\n'
        f'username = "u"\npassword = "{PASSWORD}"\n'
        f'[plugins."io.lighter.v1".registry.headers]\nX-Token = ["{PASSWORD}"]\n'
    ).start()
    manager.import_busybox()
    flags = (
        "-e",
        f"PASSWORD={SECRET}",
        "--label",
        f"token={SECRET}",
        "--annotation",
        f"a={SECRET}",
    )
    script = f"echo {SECRET}; sleep 100"
    manager.ctl("run", "-d", *flags, REFERENCE, "c", "sh", "-c", script, check=True)
    path = tmp_path / "bundle.tar.gz"
    made = manager.ctl("--debug", "system", "support", "-o", str(path), check=True)
    assert made.stdout.decode().strip() == str(path)
    assert path.stat().st_mode & 0o777 == 0o600
    parts = unpacked(path.read_bytes())
    for name, data in parts.items():
        for secret in (SECRET, PASSWORD):
            assert secret.encode() not in data, name
    objects = json.loads(parts["objects.json"])
    (container,) = objects["default"]["containers"]
    assert container["id"] == "c"
    assert "PASSWORD=(hidden)" in container["spec"]["process"]["env"]
    assert container["spec"]["process"]["args"] == ["sh", "(hidden): 2 more"]
    assert objects["default"]["tasks"][0]["status"] == "running"
    assert '"reg.example"' in parts["config.toml"].decode()
    assert "/tasks/start" in parts["events.jsonl"].decode()
    assert json.loads(parts["doctor.json"])[0]["check"] == "manager"
    assert b"PRETTY_NAME" in parts["host/etc.os-release"]
    again = manager.ctl("system", "support", "-o", str(path))
    assert again.returncode == 1 and b"it exists already" in again.stderr
    assert unpacked(path.read_bytes()).keys() == parts.keys()


def test_a_bundle_goes_into_no_containers_root(manager: Lighterd) -> None:
    """Where a link leads to the host's files and a FIFO has no writer."""
    share = manager.base / "share"
    share.mkdir()
    (share / "secret").write_text(SECRET)
    script = (
        f"ln -s {share}/secret /shim.log; mkdir /a /b; ln -s /nowhere /a/shim.log;"
        " mkfifo /b/shim.log; echo ready; sleep 1000"
    )
    manager.ctl("run", "-d", REFERENCE, "c", "sh", "-c", script, check=True)
    await_that(lambda: b"ready" in manager.ctl("logs", "c").stdout, 20, "it is hostile")
    task = manager.state / "tasks/default/c"
    assert (task / "rootfs/shim.log").is_symlink(), "the root is where it was looked through"
    (task / "shim.log").write_text("a shim's own words")
    other = manager.state / "tasks/default/other"
    other.mkdir()
    (other / "shim.log").symlink_to(share / "secret")
    third = manager.state / "tasks/default/third"
    third.mkdir()
    os.mkfifo(third / "shim.log")
    try:
        made = manager.ctl(
            "--address", f"unix://{manager.state}/lighter.sock", "system", "support", "-o", "-",
            check=True,
        )  # fmt: skip
    finally:
        for folder in (other, third):
            (folder / "shim.log").unlink()
            folder.rmdir()
    parts = unpacked(made.stdout)
    told = parts["shims.log"].decode()
    assert f"--- {task}\na shim's own words" in told
    assert f"--- {other}\n(not read: " in told
    assert f"--- {third}\n(not read: it is no regular file)" in told
    assert "rootfs" not in told
    assert not [name for name, data in parts.items() if SECRET.encode() in data]


def test_what_a_mount_is_told_is_hidden() -> None:
    mount = {
        "destination": "/share",
        "type": "cifs",
        "source": "//host/share",
        "options": ["ro", "username=me", f"password={SECRET}", "size=64k"],
    }
    (shown,) = redact.spec(json.dumps({"mounts": [mount]}))["mounts"]
    assert shown["options"] == ["ro", "username=(hidden)", "password=(hidden)", "size=64k"]
    assert shown["source"] == mount["source"]


def test_a_bundle_can_be_had_without_a_manager(manager: Lighterd) -> None:
    manager.kill9()
    command = f"{manager.bin}/lighterd --root {manager.root} --state {manager.state}"
    made = manager.ctl(*SOON, "system", "support", "-o", "-", "--lighterd", command, timeout=120)
    assert made.returncode == 0, made.stderr
    parts = unpacked(made.stdout)
    assert json.loads(parts["doctor.json"])[0]["status"] == "problem"
    missing = parts["missing.txt"].decode()
    assert "manager: connect " in missing
    assert "objects.json" not in parts
    manager.start()


def unpacked(data: bytes) -> dict[str, bytes]:
    """By the name inside the bundle's one directory."""
    with tarfile.open(fileobj=io.BytesIO(data)) as bundle:
        members = [member for member in bundle if member.isfile()]
        assert len({member.name.split("/")[0] for member in members}) == 1
        return {
            member.name.partition("/")[2]: bundle.extractfile(member).read()  # type: ignore[union-attr]
            for member in members
        }
