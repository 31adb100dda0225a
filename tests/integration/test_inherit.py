"""What a container inherits is what a plain `runc run` gives it, however lighterd was started.

A probe inside prints all that is inherited; the same config.json is run by runc itself, started
from a clean process, and both must print the same.
"""

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import images, lives
from tests.harness import Lighterd, await_that
from tests.integration.test_adoption import shim_of

pytestmark = pytest.mark.shared_lighterd

PROBE = """
ulimit -a; ulimit -H -a
umask
env | sort
grep -E '^(Sig|Shd|NoNewPrivs|Cap|Seccomp:|Cpus_allowed_list)' /proc/self/status | grep -v SigQ
cat /proc/self/oom_score_adj
readlink /proc/self/cwd
for fd in /proc/self/fd/*; do if [ -e $fd ]; then basename $fd; fi; done
"""


def default_signals() -> None:
    """As a service manager starts a program; a shell's background job has some ignored."""
    for signum in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(signum, signal.SIG_DFL)


def run_plain(config: Path, tmp_path: Path) -> list[str]:
    """The probe's output under runc alone, with the same spec in a cgroup of its own."""
    spec = json.loads(config.read_text())
    spec["linux"]["cgroupsPath"] += "-plain"
    spec["root"]["path"] = str(tmp_path / "rootfs")
    bundle = tmp_path / "bundle"
    bundle.mkdir(parents=True)
    (bundle / "config.json").write_text(json.dumps(spec))
    try:
        done = subprocess.run(
            ["runc", "--root", str(tmp_path / "runc"), "run", f"plain-{os.getpid()}"],
            cwd=bundle,
            preexec_fn=default_signals,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=60,
            text=True,
            check=True,
        )
    finally:
        subprocess.run(["umount", str(tmp_path / "rootfs")], capture_output=True)
    return [without_libc_signals(line) for line in done.stdout.splitlines()]


def without_libc_signals(line: str) -> str:
    """A SigIgn line with 32 and 33 taken out: glibc's posix_spawn, which make uses, ignores them
    in every program it starts, and no libc lets a program name them.
    """
    name, _, mask = line.partition(":\t")
    if name != "SigIgn":
        return line
    return f"{name}:\t{int(mask, 16) & ~(0b11 << 31):016x}"


def compare(lighterd: Lighterd, tmp_path: Path) -> None:
    """Run the probe in a container of `lighterd` and with runc alone; the outputs are equal."""
    image = lighterd.import_busybox()
    lighterd.ctl("containers", "create", image, "probe", "sh", "-c", PROBE, check=True)
    with lighterd.client() as client:
        client.call("tasks", "create", id="probe", stdin="", stdout="", stderr="", rows=0, cols=0)
        bundle = lighterd.state / "tasks" / "default" / "probe"
        config = tmp_path / "config.json"
        shutil.copy(bundle / "config.json", config)
        rootfs = tmp_path / "rootfs"
        shutil.copytree(bundle / "rootfs", rootfs, symlinks=True)
        client.call("tasks", "start", id="probe")
        client.call("tasks", "wait", id="probe", exec_id="")
    inside = lighterd.ctl("logs", "probe", check=True).stdout.decode().splitlines()
    assert len(inside) > 30
    assert inside == run_plain(config, tmp_path)


def test_a_container_inherits_what_runc_alone_gives(lighterd: Lighterd, tmp_path: Path) -> None:
    compare(lighterd, tmp_path)


# ulimit's letter: soft and hard, in its own units. The spec sets the number of descriptors.
ODD_LIMITS = {"c": (0, 2048), "s": (4096, 16384)}


def test_odd_limits_umask_and_ignored_signals_of_the_manager(
    make_lighterd: Callable[..., Lighterd],
) -> None:
    """Limits reach the container as they would from runc, which sets the umask itself; signals
    that lighterd was told to ignore reach nobody.
    """
    lighterd = make_lighterd()
    limits = "; ".join(
        f"ulimit -S{letter} {soft}; ulimit -H{letter} {hard}"
        for letter, (soft, hard) in ODD_LIMITS.items()
    )
    prefix = f"trap '' HUP QUIT USR1; umask 077; {limits}; exec \"$@\""
    lighterd._argv = ["sh", "-c", prefix, "sh", *lighterd._argv]
    lighterd.start()
    image = lighterd.import_busybox()
    probe = "; ".join(f"ulimit -S{letter}; ulimit -H{letter}" for letter in ODD_LIMITS)
    # `true` comes last because ash executes its last command with SIGQUIT ignored.
    probe += "; umask; grep SigIgn /proc/self/status; true"
    done = lighterd.ctl("run", "--rm", image, "probe", "sh", "-c", probe, check=True)
    *values, umask, ignored = done.stdout.decode().splitlines()
    assert values == [str(value) for pair in ODD_LIMITS.values() for value in pair]
    assert umask == "0022"
    assert ignored.split()[1] == "0" * 16
    # What the runtime inherits, it inherits from the shim.
    lighterd.ctl("run", "-d", image, "c", "sleep", "1000", check=True)
    status = Path(f"/proc/{shim_of(lighterd, 'c')}/status").read_text()
    assert "Umask:\t0077" in status


def test_notify_socket_and_other_variables_stay_with_the_manager(
    lighterd: Lighterd, busybox: str
) -> None:
    """The fixture starts lighterd with NOTIFY_SOCKET: `runc start` would wait for a READY."""
    lighterd.ctl("run", "-d", busybox, "c", "sleep", "1000", check=True)
    pid = init_pid(lighterd, "c")
    shim = lighterd.shims()[0]
    for process in (pid, shim):
        names = {
            entry.partition(b"=")[0]
            for entry in Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
        }
        assert b"NOTIFY_SOCKET" not in names
        assert b"VIRTUAL_ENV" not in names


def init_pid(lighterd: Lighterd, name: str) -> int:
    with lighterd.client() as client:
        return int(client.call("tasks", "get", id=name)["task"]["pid"])


def test_a_daemonised_manager_changes_nothing(
    make_lighterd: Callable[..., Lighterd], tmp_path: Path
) -> None:
    """python-daemon sets umask and core limit for itself; containers must not see that."""
    lighterd = make_lighterd()
    argv = [*lighterd._argv, "--daemon"]
    subprocess.run(argv, check=True, timeout=30, stdin=subprocess.DEVNULL, cwd="/")
    pid_file = lighterd.state / "lighterd.pid"
    await_that(lambda: pid_file.exists() and pid_file.read_text().strip(), 20, "it is started")
    pid = int(pid_file.read_text())
    pidfd = os.pidfd_open(pid)
    try:
        await_that(lambda: lighterd.ctl("version").returncode == 0, 20, "it answers")
        compare(lighterd, tmp_path)
        with lighterd.client() as client:
            client.call("containers", "delete", id="probe", force=True)
    finally:
        signal.pidfd_send_signal(pidfd, signal.SIGTERM)
        await_that(lambda: lives.process_state(pid) in ("", "Z"), 20, "it stops")
        os.close(pidfd)


def test_sec_58_no_descriptor_leads_out_of_a_container(lighterd: Lighterd, busybox: str) -> None:
    """With many descriptors open in the manager and streams in the shim."""
    script = "ls -l /proc/self/fd /proc/1/fd"
    for number in range(5):
        lighterd.ctl("run", "-d", busybox, f"other{number}", "sleep", "1000", check=True)
    lighterd.ctl("run", "-d", busybox, "c", "sleep", "1000", check=True)
    listings = [
        lighterd.ctl("tasks", "exec", "--exec-id", "x", "c", "sh", "-c", script).stdout.decode(),
        lighterd.ctl("run", "--rm", busybox, "d", "sh", "-c", script).stdout.decode(),
    ]
    for listing in listings:
        targets = [line.split(" -> ")[1] for line in listing.splitlines() if " -> " in line]
        assert targets
        for target in targets:
            assert target.startswith(("pipe:", "/dev/null", "/proc/")), target
    with lighterd.client() as client:
        pid = client.call("tasks", "get", id="c")["task"]["pid"]
    assert len(os.listdir(f"/proc/{pid}/fd")) == 3


@pytest.mark.parametrize("length", [1, 76])
def test_ps_shows_whose_shim_it_is(lighterd: Lighterd, busybox: str, length: int) -> None:
    name, namespace = "c" * length, "n" * length
    with lighterd.client(namespace) as client:
        client.call("namespaces", "create", name=namespace, labels={})
    lighterd.ctl("-n", namespace, "version", check=True)
    lighterd_image(lighterd, namespace)
    lighterd.ctl("-n", namespace, "run", "-d", busybox, name, "sleep", "1000", check=True)
    raw = Path(f"/proc/{lighterd.shims()[0]}/cmdline").read_bytes()
    title = raw.replace(b"\0", b" ").decode().strip()
    assert title == (
        f"lighter-shim --instance {lighterd.instance} --namespace {namespace} --id {name}"
    )


def lighterd_image(lighterd: Lighterd, namespace: str) -> None:
    """Images belong to a namespace: import the test image there as well."""
    lighterd.ctl("-n", namespace, "images", "import", str(images.busybox_archive()), check=True)


def test_sec_76_the_shim_is_not_in_the_containers_cgroup(lighterd: Lighterd, busybox: str) -> None:
    lighterd.ctl("run", "-d", busybox, "c", "sleep", "1000", check=True)
    mark = f"/lighter/{lighterd.instance}/default/c"
    assert mark in Path(f"/proc/{init_pid(lighterd, 'c')}/cgroup").read_text()
    assert mark not in Path(f"/proc/{lighterd.shims()[0]}/cgroup").read_text()
