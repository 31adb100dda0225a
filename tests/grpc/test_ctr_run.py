"""Debian's ctr on both daemons: what it prints, how it ends, and what the runtime is given.

The course that users come from, its chapters 4, 6, 8 and 9, command by command.
"""

import contextlib
import json
import os
import pty
import re
import select
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.containerd import Containerd
from tests.grpc.conftest import run_ctr
from tests.grpc.pair import OURS, PEER, Pair, heard
from tests.harness import Lighterd, await_that
from tests.images import REFERENCE
from tests.lives import await_handler


def test_a_container_from_create_to_delete(pair: Pair) -> None:
    """Chapter 4."""
    pair("containers", "create", REFERENCE, "c1", "sleep", "1000")
    assert "c1 docker.io/library/busybox:test io.containerd.runc.v2" in pair("c", "ls").out
    assert pair("tasks", "ls").out == "TASK PID STATUS"
    pair("tasks", "start", "-d", "--fifo-dir", str(pair.fifos), "c1")
    assert "c1 N RUNNING" in pair("tasks", "ls").out
    assert pair("tasks", "ps", "c1").out == "PID INFO\nN -"
    for side in (PEER, OURS):
        hello = ("tasks", "exec", "--exec-id", "1", "c1", "echo", "hello")
        assert heard(lambda side=side, words=hello: pair.run(side, *words).out) == "hello"
    assert pair("tasks", "exec", "--exec-id", "1", "c1", "sh", "-c", "exit 3").code == 3
    pair("tasks", "exec", "-d", "--exec-id", "2", "c1", "sleep", "500")
    assert "ExecID:2" in pair("tasks", "ps", "c1").out
    pair("tasks", "pause", "c1")
    assert "c1 N PAUSED" in pair("tasks", "ls").out
    pair("tasks", "kill", "-s", "TERM", "c1")  # waits, and is none that init heeds
    assert "c1 N PAUSED" in pair("tasks", "ls").out
    pair("tasks", "resume", "c1")
    assert "c1 N RUNNING" in pair("tasks", "ls").out
    assert pair("tasks", "rm", "c1").code == 1
    assert pair("containers", "rm", "c1").code == 1
    pair("tasks", "kill", "-s", "KILL", "c1")
    pair.await_status("c1", "STOPPED")
    assert "exit code 137" in pair("tasks", "delete", "c1").err
    assert pair("tasks", "ls").out == "TASK PID STATUS"
    pair("containers", "delete", "c1")
    assert pair("containers", "ls", "-q").out == ""


def test_what_does_not_fit_is_refused_in_the_same_words(pair: Pair) -> None:
    pair.run_detached("d1", "sleep", "1000")
    pair("c", "create", REFERENCE, "idle")
    for words in (
        ("run", "-d", REFERENCE, "d1", "sleep", "1"),
        ("c", "create", REFERENCE, "d1"),
        ("c", "create", REFERENCE, "bad/id"),
        ("c", "create", "nosuch", "x"),
        ("t", "start", "-d", "d1"),
        ("t", "resume", "d1"),
        ("t", "kill", "idle"),
        ("t", "pause", "idle"),
        ("t", "kill", "--exec-id", "none", "d1"),
        ("t", "rm", "--exec-id", "none", "d1"),
        *(("t", verb, "nosuch") for verb in ("kill", "rm", "start", "ps", "metrics", "attach")),
        *(("t", verb, "nosuch") for verb in ("pause", "resume")),
        ("t", "exec", "--exec-id", "e", "nosuch", "true"),
        ("t", "exec", "--exec-id", "e", "d1", "nosuch"),
        *(("c", verb, "nosuch") for verb in ("rm", "info")),
    ):
        assert pair(*words).code == 1, words
    pair.drop_snapshot("bad/id")
    pair("t", "pause", "d1")
    assert pair("t", "pause", "d1").code == 1
    assert pair("t", "exec", "--exec-id", "e", "d1", "true").code == 1
    pair("t", "resume", "d1")
    pair("t", "kill", "-s", "9", "d1")
    pair.await_status("d1", "STOPPED")
    for verb in ("kill", "pause", "resume"):
        assert pair("t", verb, "d1").code == 1, verb
    assert pair("t", "exec", "--exec-id", "e", "d1", "true").code == 1
    assert pair("t", "start", "-d", "d1").code == 1
    assert pair("t", "ps", "d1").out == "PID INFO"


def test_a_signal_of_ctrs_own_choice_and_flags_that_come_late(pair: Pair) -> None:
    """Without -s it is SIGTERM; flags may follow the id."""
    trap = 'trap "exit 9" TERM; echo; while :; do sleep 0.1; done'
    pair.run_detached("k", "sh", "-c", trap)
    for side in (PEER, OURS):
        listed = subprocess.run(pair.argv(side, "t", "ls"), capture_output=True, check=True)
        await_handler(int(listed.stdout.split()[4]), signal.SIGTERM)
    pair("t", "kill", "k")
    pair.await_status("k", "STOPPED")
    assert "exit code 9" in pair("t", "rm", "k").err
    pair("c", "create", REFERENCE, "late", "--label", "a=b")
    theirs, ours = (_info(pair, side, "late") for side in (PEER, OURS))
    assert ours == theirs
    assert ours["Labels"]["a"] == "b"


def test_an_attached_run(pair: Pair) -> None:
    def run(*words: str, data: bytes | None = None) -> Any:
        return pair("run", "--rm", *words, data=data)

    assert run(REFERENCE, "r", "echo", "hi").out == "hi"
    assert run(REFERENCE, "r", "sh", "-c", "echo e >&2; exit 7").err == "e"
    assert run(REFERENCE, "r", "sh", "-c", "exit 7").code == 7
    assert run(REFERENCE, "r", "sh", "-c", "kill -9 $$").code == 0  # init is not killed so
    assert "executable file not found" in run(REFERENCE, "r", "nosuch").err
    assert run(REFERENCE, "r", "head", "-n1", data=b"one\ntwo\n").out == "one"
    assert run("--null-io", REFERENCE, "r", "echo", "hi").out == ""
    assert run("--fifo-dir", str(pair.fifos), REFERENCE, "r", "echo", "f").out == "f"
    assert list(pair.fifos.iterdir()) == []
    for runtime in (
        "io.containerd.runc.v1",
        "io.containerd.runtime.v1.linux",
        "/usr/bin/containerd-shim-runc-v2",
    ):
        assert run("--runtime", runtime, REFERENCE, "r", "echo", "r").out == "r"
    for runtime in ("io.containerd.nosuch.v9", "nosuch"):
        assert "resolve runtime path" in run("--runtime", runtime, REFERENCE, "r", "true").err
    assert run("--runc-binary", "runc", REFERENCE, "r", "echo", "b").out == "b"
    assert run("--no-pivot", REFERENCE, "r", "echo", "n").out == "n"
    assert run("--cgroup", "/pairours/mine", REFERENCE, "r", "cat", "/proc/self/cgroup").code == 0
    oom = "a=x; while :; do a=$a$a; done"
    assert run("--memory-limit", "8388608", REFERENCE, "r", "sh", "-c", oom).code == 137
    assert pair("containers", "ls", "-q").out == ""


def test_output_to_a_file(pair: Pair, tmp_path: Path) -> None:
    written = {}
    for side in (PEER, OURS):
        log = tmp_path / "new" / side
        words = ("sh", "-c", "echo out; echo err >&2")
        pair.run(side, "run", "--rm", "--log-uri", f"file://{log}", REFERENCE, "r", *words)
        written[side] = sorted(log.read_text().splitlines())
    assert written[OURS] == ["err", "out"]
    # Theirs may lose what was written last: its shim does not wait for the file.
    assert set(written[PEER]) <= set(written[OURS])


def test_the_runtimes_own_root(pair: Pair, tmp_path: Path) -> None:
    """--runc-root: the container's state is found there, by the clean-up too."""
    root = tmp_path / "runc"
    flags = ("--fifo-dir", str(pair.fifos), "--runc-root", str(root))
    pair.ours("run", "-d", *flags, REFERENCE, "r", "sleep", "1000")
    assert (root / OURS / "r" / "state.json").exists()
    says = ("tasks", "exec", "--exec-id", "e", "r", "echo", "x")
    assert heard(lambda: pair.ours(*says).out) == "x"
    pair.ours("tasks", "rm", "-f", "r")
    assert not (root / OURS / "r").exists()


def _info(pair: Pair, side: str, container: str) -> dict[str, Any]:
    done = subprocess.run(
        pair.argv(side, "containers", "info", container), capture_output=True, check=True
    )
    info: dict[str, Any] = json.loads(done.stdout.decode().replace(side, "NAMESPACE"))
    for varying in ("CreatedAt", "UpdatedAt"):
        assert info.pop(varying).endswith("Z")
    return info


def _config(path: Path, side: str) -> Any:
    return json.loads((path / "config.json").read_text().replace(side, "NAMESPACE"))


FLAGS = {
    "limits": ("--cpus", "0.5", "--cpu-shares", "512", "--memory-limit", "67108864"),
    "quota": ("--cpu-quota", "50000", "--cpu-period", "100000"),
    "process": (
        *("--cwd", "/tmp", "--env", "A=b", "--env-file", "{dir}/env", "--allow-new-privs"),
        *("--cap-add", "CAP_NET_ADMIN", "--cap-drop", "CAP_MKNOD"),
        *("--label", "x=y", "--annotation", "q=w"),
    ),
    "file system": (
        *("--mount", "type=bind,src={dir},dst=/hostdir,options=rbind:ro", "--read-only"),
        *("--rootfs-propagation", "private", "--device", "/dev/zero"),
    ),
    "host": ("--net-host",),
    "privileged": ("--privileged",),
    "seccomp": ("--seccomp",),
    "seccomp profile": ("--seccomp", "--seccomp-profile", "{dir}/seccomp.json"),
    "cgroup": ("--cgroup", "/NAMESPACE/place"),
    "runtime": ("--runtime", "io.containerd.runc.v1", "--no-pivot", "--platform", "linux/amd64"),
    "runc": ("--runc-binary", "/usr/sbin/runc", "--runc-root", "{dir}/runc"),
    "namespaces": ("--with-ns", "uts:/proc/self/ns/uts", "--null-io"),
    "snapshotter": ("--snapshotter", "native", "--snapshotter-label", "a=b"),
    "log": ("--log-uri", "file://{dir}/log"),
}
# Flags of all of them, whose effect is looked at here.
ALWAYS = {"--detach", "--fifo-dir", "--pid-file"}
NOT_COMPARED = {
    "--apparmor-default-profile": "a host without AppArmor takes none",
    "--apparmor-profile": "the same; test_a_run_that_cannot_be",
    "--cni": "the peer has no network plugins; ours is tests/integration/test_network's",
    "--config": "the spec is the client's: test_a_root_of_the_clients_own",
    "--gidmap": "ids are mapped in test_ctl_flags",
    "--gpus": "there are none; test_a_run_that_cannot_be",
    "--rdt-class": "the hardware is not there",
    "--remap-labels": "ids are mapped in test_ctl_flags",
    "--rm": "goes with an attached run: test_an_attached_run",
    "--rootfs": "the root is the client's: test_a_root_of_the_clients_own",
    "--runc-systemd-cgroup": "wants systemd; test_a_run_that_cannot_be",
    "--runtime-config-path": "is for other runtimes than runc",
    "--tty": "wants a terminal: test_a_terminal",
    "--uidmap": "ids are mapped in test_ctl_flags",
}


def test_each_flag_of_ctr_run_is_compared_or_has_a_reason() -> None:
    shown = subprocess.run(["ctr", "run", "--help"], capture_output=True, check=True).stdout
    flags = set(re.findall(r"^ +(--[a-z-]+)", shown.decode(), re.MULTILINE)) - {"--help"}
    compared = {word for words in FLAGS.values() for word in words if word.startswith("--")}
    assert flags == compared | ALWAYS | NOT_COMPARED.keys()
    assert not compared & NOT_COMPARED.keys()


@pytest.mark.parametrize("name", FLAGS)
def test_the_runtime_is_given_what_the_client_wrote(pair: Pair, tmp_path: Path, name: str) -> None:
    """For the flags of `ctr run`: the same record, and the same config.json, in both bundles."""
    (tmp_path / "env").write_text("C=d\nE=f\n")
    (tmp_path / "seccomp.json").write_text(
        '{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["chroot"],'
        ' "action": "SCMP_ACT_ERRNO"}]}'
    )
    seen = []
    for side in (PEER, OURS):
        flags = [
            flag.replace("NAMESPACE", side).replace("{dir}", str(tmp_path)) for flag in FLAGS[name]
        ]
        fifos = ("--fifo-dir", str(pair.fifos), "--pid-file", str(tmp_path / "pid"))
        said = pair.run(side, "run", "-d", *fifos, *flags, REFERENCE, "f", "sleep", "1000")
        assert said.code == 0, said.err
        os.kill(int((tmp_path / "pid").read_text()), 0)
        seen.append((_info(pair, side, "f"), _config(pair.bundles("f")[side], side)))
        assert seen[-1][1] == seen[-1][0]["Spec"]
    assert seen[1] == seen[0]


@pytest.mark.parametrize(
    "flags",
    [
        ("--gpus", "0"),
        ("--config", "/nosuch"),
        ("--rootfs", "/nosuch"),
        ("--detach",),
        ("--with-ns", "net:/nosuch"),
        ("--mount", "type=bind,src=/nosuch,dst=/x,options=rbind"),
        ("--runc-systemd-cgroup",),
        ("--apparmor-profile", "nosuch"),
    ],
    ids=" ".join,
)
def test_a_run_that_cannot_be(pair: Pair, flags: tuple[str, ...]) -> None:
    assert pair("run", "--rm", *flags, REFERENCE, "r", "true").code == 1
    pair.drop_snapshot("r")
    assert pair("containers", "ls", "-q").out == ""


def test_a_root_of_the_clients_own(pair: Pair, tmp_path: Path) -> None:
    """--rootfs: a directory, no snapshot; --config: a spec as a file."""
    root = tmp_path / "root"
    root.mkdir()
    pair.ours("images", "mount", REFERENCE, str(root))
    spec = json.loads(subprocess.run(["ctr", "oci", "spec"], capture_output=True).stdout)
    spec["process"]["args"] = ["/bin/echo", "from a file"]
    spec["root"]["path"] = str(root)
    config = tmp_path / "spec.json"
    config.write_text(json.dumps(spec))
    try:
        said = pair("run", "--rm", "--rootfs", str(root), "r", "/bin/ls", "/bin/sh")
        assert said.out == "/bin/sh"
        assert pair("run", "--rm", "--config", str(config), "r").out == "from a file"
    finally:
        pair.ours("images", "unmount", "--rm", str(root))


def test_shared_files_and_namespaces(pair: Pair, tmp_path: Path) -> None:
    """Chapters 8 and 9: a directory of the host's, and another container's processes."""
    mount = f"type=bind,src={tmp_path},dst=/hostdir,options=rbind:rw"
    for side in (PEER, OURS):
        pair.run(side, "c", "create", "--mount", mount, REFERENCE, "b", "sleep", "1000")
    pair("t", "start", "-d", "--fifo-dir", str(pair.fifos), "b")
    pair("t", "exec", "--exec-id", "w", "b", "sh", "-c", "echo hello world > /hostdir/file")
    assert (tmp_path / "file").read_text() == "hello world\n"
    for side in (PEER, OURS):
        listed = subprocess.run(pair.argv(side, "t", "ls"), capture_output=True, check=True)
        pid = listed.stdout.split()[4].decode()
        words = ("run", "--rm", "--with-ns", f"pid:/proc/{pid}/ns/pid", REFERENCE, "s", "ps")
        said = pair.run(side, *words)
        assert "sleep N" in said.out, said
        # The same by the longer way.
        with_ns = ("--with-ns", f"pid:/proc/{pid}/ns/pid")
        pair.run(side, "c", "create", *with_ns, REFERENCE, "long", "sleep", "999")
        pair.run(side, "t", "start", "-d", "--fifo-dir", str(pair.fifos), "long")
        ps = ("t", "exec", "--exec-id", "e", "long", "ps")
        seen = heard(lambda side=side, words=ps: pair.run(side, *words).out)
        assert "sleep N" in seen and "sleep 999" in seen, seen


def test_a_terminal(pair: Pair) -> None:
    """-t: ctr's own terminal at both, typed into, of 80 columns, and its exit code."""
    for side in (PEER, OURS):
        argv = pair.argv(side, "run", "--rm", "-t", REFERENCE, "t", "sh")
        # ctr passes the size on after the shell has prompted.
        sized = b"until stty size | grep -q 80; do sleep 0.1; done; "
        code, shown = _typed(argv, b"tty; " + sized + b"stty size; exit 5\n", 80)
        assert code == 5, shown
        assert b"/dev/pts/0" in shown and b"24 80" in shown, shown
    pair.run_detached("d", "sleep", "1000")
    for side in (PEER, OURS):
        argv = pair.argv(side, "tasks", "exec", "-t", "--exec-id", "e", "d", "sh")
        code, shown = _typed(argv, b"tty; exit 6\n", 80)
        assert code == 6 and b"/dev/pts/0" in shown, shown


def _typed(argv: list[str], text: bytes, columns: int) -> tuple[int, bytes]:
    """(exit code, all that was shown) of a program on a terminal, typed to once it prompts."""
    import fcntl
    import struct
    import termios

    pid, master = pty.fork()
    if pid == 0:
        os.execvp(argv[0], argv)
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    shown = b""
    typed = False
    end = time.monotonic() + 60
    with contextlib.suppress(OSError):  # EIO: nobody has it open any more
        while select.select([master], [], [], max(0, end - time.monotonic()))[0]:
            chunk = os.read(master, 4096)
            if not chunk:
                break
            shown += chunk
            if not typed and b"# " in shown:
                typed = True
                os.write(master, text)
    _, status = os.waitpid(pid, 0)
    os.close(master)
    return os.waitstatus_to_exitcode(status), shown


def test_metrics(pair: Pair) -> None:
    pair.run_detached("m", "sleep", "1000")
    for side in (PEER, OURS):  # until the runtime's own threads have become the program
        await_that(lambda side=side: _metrics(pair, side)["pids"] == {"current": 1}, 30, "it runs")
    theirs, ours = (_metrics(pair, side) for side in (PEER, OURS))
    # protojson leaves out what is 0.
    assert set(ours) == set(theirs)
    # What the page cache holds may be nothing, by what else the host does; and of its own pages a
    # process has hardly any, and the kernel counts them late.
    cached = ("anon", "cache", "file", "dirty", "writeback", "maj_fault")
    assert all(name.endswith(cached) for name in set(ours["memory"]) ^ set(theirs["memory"]))
    assert ours["pids"] == theirs["pids"] == {"current": 1}
    limit = ours["memory"]["usage"]["limit"]
    assert limit == theirs["memory"]["usage"]["limit"]
    shown = pair.ours("tasks", "metrics", "m").out
    assert "pids.current 1" in shown and "memory.usage_in_bytes" in shown


def _metrics(pair: Pair, side: str) -> Any:
    argv = pair.argv(side, "tasks", "metrics", "--format", "json", "m")
    return json.loads(subprocess.run(argv, capture_output=True, check=True).stdout)


def test_labels_and_filters(pair: Pair) -> None:
    pair("c", "create", "--label", "tier=web", REFERENCE, "a")
    pair("c", "create", "--label", "tier=db", REFERENCE, "b")
    assert set(pair.ours("c", "label", "a", "x=y").out.split(",")) >= {"tier=web", "x=y"}
    pair.run(PEER, "c", "label", "a", "x=y")
    for filter_, found in (
        ("labels.tier==web", "a"),
        ("labels.x", "a"),
        ("labels.tier!=web", "b"),
        ("id~=^[ab]$", "a\nb"),
        ("runtime.name==io.containerd.runc.v2,id==b", "b"),
        ("image==nosuch", ""),
    ):
        assert pair("c", "ls", "-q", filter_).out == found, filter_
    assert pair("c", "ls", "-q", "labels.tier==web", "id==b").out == "a\nb"
    for side in (PEER, OURS):
        assert pair.run(side, "c", "ls", "bad filter").code == 1
    pair.run(PEER, "c", "label", "a", "x=")
    pair.ours("c", "label", "a", "x=")
    assert pair("c", "ls", "-q", "labels.x").out == ""


def test_namespaces_are_apart(pair: Pair) -> None:
    """Chapter 6: what is in one is not seen from another."""
    pair.run_detached("d", "sleep", "1000")
    address = pair.lighterd.grpc_address
    for words, code in ((("c", "ls", "-q"), 0), (("t", "ls", "-q"), 0), (("t", "kill", "d"), 1)):
        elsewhere = run_ctr(address, "-n", "elsewhere", *words)
        assert (elsewhere.returncode, elsewhere.stdout) == (code, b""), elsewhere
    assert b'container "d" in namespace "elsewhere": not found' in elsewhere.stderr
    assert "d N RUNNING" in pair("t", "ls").out


def test_containers_outlive_the_manager(
    containerd: Containerd, lighterd: Lighterd, tmp_path: Path
) -> None:
    """kill -9 of lighterd under containers that ctr has started: they go on, exits exact."""
    pair = Pair(containerd, lighterd, tmp_path / "fifos")
    with contextlib.closing(pair):
        _outlive(pair, lighterd)


def _outlive(pair: Pair, lighterd: Lighterd) -> None:
    fifos = ("--fifo-dir", str(pair.fifos))
    pair.ours("run", "-d", *fifos, REFERENCE, "on", "sleep", "1000")
    pair.ours("run", "-d", *fifos, REFERENCE, "over", "sh", "-c", "read x; exit 42")
    waiting = subprocess.Popen(
        pair.argv(OURS, "tasks", "attach", "over"),
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    lighterd.kill9()
    (fifo,) = pair.fifos.rglob("over-stdin")
    with open(fifo, "wb") as stdin:
        stdin.write(b"go\n")
    waiting.kill()
    waiting.wait()
    lighterd.start()
    await_that(lambda: "over N STOPPED" in pair.run(OURS, "t", "ls").out, 30, "the exit is known")
    assert "on N RUNNING" in pair.ours("t", "ls").out
    says = ("t", "exec", "--exec-id", "e", "on", "echo", "alive")
    assert heard(lambda: pair.ours(*says).out) == "alive"
    assert "exit code 42" in pair.ours("t", "rm", "over").err


def test_attach_again(pair: Pair, tmp_path: Path) -> None:
    """`ctr run -d`, then `ctr tasks attach`: what was written meanwhile, then what comes."""
    fifos = ("--fifo-dir", str(pair.fifos))
    script = "read x; echo before $x; touch /shared/said; read x; echo after $x; exit 9"
    mount = f"type=bind,src={tmp_path},dst=/shared,options=rbind:rw"
    pair.ours("run", "-d", *fifos, "--mount", mount, REFERENCE, "a", "sh", "-c", script)
    (fifo,) = pair.fifos.rglob("a-stdin")
    fifo.write_bytes(b"nobody\n")
    await_that((tmp_path / "said").exists, 30, "it was written while nobody read")
    attached = subprocess.Popen(
        pair.argv(OURS, "tasks", "attach", "a"), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert attached.stdin is not None and attached.stdout is not None
    assert attached.stdout.readline() == b"before nobody\n"
    attached.stdin.write(b"word\n")
    attached.stdin.flush()
    assert attached.stdout.read() == b"after word\n"
    assert attached.wait(30) == 9
