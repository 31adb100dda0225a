"""`ctl create start wait update rename`: docker's verbs on containers that are there."""

import json
import os
import pty
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from lighter.proto import errors
from tests import images, lives
from tests.harness import Lighterd, await_that
from tests.lives import NoAnswer, ask, begin, define

IMAGE = images.REFERENCE


def limit_of(lighterd: Lighterd, pid: int, controller: str, v1: str, v2: str) -> str:
    """What the kernel says of a limit of the process's cgroup."""
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            return Path(f"/sys/fs/cgroup/{controller}{path}/{v1}").read_text().strip()
    return Path(f"/sys/fs/cgroup{path}/{v2}").read_text().strip()


def test_limits_change_at_once_and_stay(manager: Lighterd) -> None:
    pid = begin(manager, IMAGE, "web", "sleep", "1000")
    flags = ("--pids-limit", "77", "-m", "64m", "--cpus", "0.5", "--cpu-shares", "512")
    assert manager.ctl("update", *flags, "web", check=True).stdout == b"web\n"

    def limits(pid: int) -> list[str]:
        return [
            limit_of(manager, pid, "pids", "pids.max", "pids.max"),
            limit_of(manager, pid, "memory", "memory.limit_in_bytes", "memory.max"),
            limit_of(manager, pid, "cpu", "cpu.cfs_quota_us", "cpu.max").split()[0],
        ]

    assert limits(pid) == ["77", str(64 << 20), "50000"]
    manager.ctl("restart", "-t", "0", "web", check=True)
    pid = lives.task(manager, "web")["pid"]
    assert limits(pid) == ["77", str(64 << 20), "50000"], "the next task has them too"
    refused = manager.ctl("update", "--cpuset-cpus", "4000", "web")
    assert refused.returncode == 1
    assert b"processor 4000: this host has" in refused.stderr
    assert manager.ctl("update", "web").returncode == 2
    refused = manager.ctl("update", "--pids-limit", "5", "--restart", "odd", "web")
    assert b"choose restart policy 'odd'" in refused.stderr
    assert limits(pid)[0] == "77", "all or nothing of what can be seen before"


def test_a_limit_is_taken_away_and_what_changes_nothing_is_refused(manager: Lighterd) -> None:
    pid = begin(manager, IMAGE, "web", "sleep", "1000", limits={"cpus": 0.5, "memory": 64 << 20})

    def quota() -> str:
        return limit_of(manager, pid, "cpu", "cpu.cfs_quota_us", "cpu.max").split()[0]

    assert quota() == "50000"
    manager.ctl("update", "--cpu-quota", "-1", "web", check=True)
    assert quota() in ("-1", "max")
    manager.ctl("update", "--memory-swap", "96m", "web", check=True)
    resources = json.loads(manager.ctl("inspect", "web", check=True).stdout)["spec"]["linux"][
        "resources"
    ]
    assert resources["memory"] == {"limit": 64 << 20, "swap": 96 << 20}
    swap = limit_of(manager, pid, "memory", "memory.memsw.limit_in_bytes", "memory.swap.max")
    assert int(swap) in (96 << 20, 32 << 20)
    for flags in (("--cpus", "0"), ("-m", "0"), ("--pids-limit", "0")):
        refused = manager.ctl("update", *flags, "web")
        assert refused.returncode == 2 and b"changes nothing" in refused.stderr, flags
    with pytest.raises(errors.InvalidArgument, match="nothing of it would change"):
        ask(manager, "containers.update", id="web", limits={"memory": 0}, restart="")
    for flags in (("--memory-swap", "32m"), ("-m", "128m"), ("--memory-reservation", "80m")):
        refused = manager.ctl("update", *flags, "web")
        assert refused.returncode == 1 and b"the memory limit" in refused.stderr, flags


def test_a_limit_that_there_is_not_can_be_taken_away(manager: Lighterd) -> None:
    begin(manager, IMAGE, "web", "sleep", "1000")
    manager.ctl("update", "--memory-swap", "-1", "web", check=True)
    inspected = json.loads(manager.ctl("inspect", "web", check=True).stdout)
    assert "memory" not in inspected["spec"]["linux"].get("resources", {})


def test_a_policy_that_is_changed_counts_from_then_on(manager: Lighterd) -> None:
    begin(manager, IMAGE, "web", "sleep", "1000")
    manager.ctl("update", "--restart", "always", "web", check=True)
    os.kill(lives.task(manager, "web")["pid"], signal.SIGKILL)
    await_that(lambda: lives.task(manager, "web")["restarts"] == 1, 30, "it is started again")
    lives.await_task(manager, "web", "running")
    manager.ctl("update", "--restart", "no", "web", check=True)
    os.kill(lives.task(manager, "web")["pid"], signal.SIGKILL)
    lives.await_task(manager, "web", "stopped")
    define(manager, IMAGE, "gone", "true", auto_remove=True)
    refused = manager.ctl("update", "--restart", "always", "gone")
    assert b"--rm" in refused.stderr


def test_a_rename_takes_all_with_it(manager: Lighterd) -> None:
    begin(manager, IMAGE, "old", "sh", "-c", "echo hello; echo mine > /file; sleep 1000")
    await_that(lambda: manager.ctl("logs", "old").stdout == b"hello\n", 20, "it has written")
    refused = manager.ctl("rename", "old", "new")
    assert refused.returncode == 1
    assert b"it is running, and its cgroup" in refused.stderr
    manager.ctl("stop", "-t", "0", "old", check=True)
    define(manager, IMAGE, "taken", "true")
    assert b"taken exists already" in manager.ctl("rename", "old", "taken").stderr
    manager.ctl("rename", "old", "new", check=True)
    inspected = json.loads(manager.ctl("inspect", "new", check=True).stdout)
    assert inspected["restart"]["stopped"], "what is known of it goes with it"
    names = set(manager.ctl("ls", "-q", check=True).stdout.decode().split())
    assert names == {"new", "taken"}
    assert manager.ctl("logs", "new", check=True).stdout == b"hello\n"
    manager.ctl("start", "new", check=True)
    assert manager.ctl("exec", "new", "cat", "/file", check=True).stdout == b"mine\n"
    cgroup = Path(f"/proc/{lives.task(manager, 'new')['pid']}/cgroup").read_text()
    assert f"/lighter/{manager.instance}/default/new\n" in cgroup
    # The old name is free, and what has it now is another container.
    assert begin(manager, IMAGE, "old", "true")
    assert manager.ctl("logs", "old", check=True).stdout == b""
    define(manager, IMAGE, "joined", "true", namespaces={"pid": "container:taken"})
    refused = manager.ctl("rename", "taken", "other")
    assert b"joined shares its namespaces" in refused.stderr


def test_a_killed_change_of_limits_can_be_repeated(manager: Lighterd) -> None:
    pid = begin(manager, IMAGE, "web", "sleep", "1000")
    before = limit_of(manager, pid, "pids", "pids.max", "pids.max")
    manager.restart(FAULT="update.applied:abort")
    update = ("update", "--pids-limit", "77", "web")
    assert manager.ctl(*update).returncode != 0
    assert manager.process is not None
    manager.process.wait(30)
    manager.start()
    # It runs with what the runtime was told; what nobody acknowledged is not for its next task.
    assert limit_of(manager, pid, "pids", "pids.max", "pids.max") in (before, "77")
    manager.ctl(*update, check=True)
    manager.ctl("restart", "-t", "0", "web", check=True)
    pid = lives.task(manager, "web")["pid"]
    assert limit_of(manager, pid, "pids", "pids.max", "pids.max") == "77"


def test_a_rename_is_done_or_not_whenever_the_manager_dies(manager: Lighterd) -> None:
    for number, point in enumerate(("rename.committed", "rename.log-moved")):
        old, new = f"old{number}", f"new{number}"
        begin(manager, IMAGE, old, "echo", "hello")
        ask(manager, "tasks.wait", id=old, exec_id="")
        manager.restart(FAULT=f"{point}:abort")
        with pytest.raises(NoAnswer):
            ask(manager, "containers.rename", id=old, name=new)
        assert manager.process is not None
        manager.process.wait(30)
        manager.start()
        assert manager.ctl("logs", new, check=True).stdout == b"hello\n"
        assert manager.ctl("inspect", old).returncode == 1


def test_create_start_wait(manager: Lighterd) -> None:
    created = manager.ctl("create", "--name", "box", IMAGE, "sh", "-c", "exit 7", check=True)
    assert created.stdout == b"box\n"
    made_up = manager.ctl("create", IMAGE, "sh", "-c", "exit 8", check=True).stdout.decode().strip()
    waiting = manager.ctl("wait", "box")
    assert waiting.returncode == 1
    assert b"no such task" in waiting.stderr
    started = manager.ctl("start", "box", made_up[:6], check=True)
    assert started.stdout.decode() == f"box\n{made_up}\n"
    assert manager.ctl("wait", "box", made_up[:6], check=True).stdout == b"7\n8\n"
    as_json = json.loads(manager.ctl("wait", "--format", "json", "box", check=True).stdout)
    assert [(end["id"], end["exit_status"]) for end in as_json] == [("box", 7)]
    many = [f"c{number}" for number in range(40)]
    for name in many:
        define(manager, IMAGE, name, "true")
    begin(manager, IMAGE, "late", "sh", "-c", "sleep 1; exit 3")
    done = manager.ctl("wait", "late", *["box"] * 40, check=True, timeout=60)
    assert done.stdout == b"3\n" + b"7\n" * 40


def test_no_verb_takes_the_beginning_of_a_name(manager: Lighterd) -> None:
    """Who ends `db` when it has gone must not end `db-prod`."""
    begin(manager, IMAGE, "db-prod", "sleep", "1000")
    pid = ask(manager, "tasks.get", id="db-prod")["task"]["pid"]
    for words in (
        *(("rm", "-f"), ("stop", "-t", "0"), ("kill",), ("pause",), ("restart", "-t", "0")),
        *(("update", "-m", "64m"), ("start",), ("wait",), ("exec",), ("rename",), ("inspect",)),
    ):
        more = {"exec": ["true"], "rename": ["other"]}.get(words[0], [])
        done = manager.ctl(*words, "db", *more)
        assert done.returncode in (1, 125) and done.stdout == b"", (words, done)
    task = ask(manager, "tasks.get", id="db-prod")["task"]
    assert (task["status"], task["pid"]) == ("running", pid)


@pytest.mark.parametrize("how", ["created", "renamed"])
def test_wait_knows_nothing_of_who_had_the_name_before(manager: Lighterd, how: str) -> None:
    if how == "renamed":
        define(manager, IMAGE, "other", "true")
    manager.ctl("run", "--name", "box", IMAGE, "sh", "-c", "exit 7")
    manager.ctl("rm", "box", check=True)
    assert manager.ctl("wait", "box", check=True).stdout == b"7\n"
    if how == "renamed":
        manager.ctl("rename", "other", "box", check=True)
    else:
        define(manager, IMAGE, "box", "true")
    waiting = manager.ctl("wait", "box")
    assert (waiting.returncode, waiting.stdout) == (1, b"")
    assert b"no such task" in waiting.stderr
    manager.ctl("start", "box", check=True)
    assert manager.ctl("wait", "box", check=True).stdout == b"0\n"


def test_start_attached(manager: Lighterd) -> None:
    manager.ctl("create", "-i", "--name", "box", IMAGE, "sh", "-c", "cat; exit 5", check=True)
    for _ in range(2):  # the second time an ended task makes way
        done = manager.ctl("start", "-a", "-i", "box", input=b"typed\n")
        assert (done.returncode, done.stdout) == (5, b"typed\n")
    assert manager.ctl("start", "-a", "box", "box").returncode == 2
    begin(manager, IMAGE, "up", "sleep", "1000")
    refused = manager.ctl("start", "-a", "up")
    assert b"start container up: it is running" in refused.stderr


def test_start_attached_on_a_terminal(manager: Lighterd) -> None:
    manager.ctl("create", "-it", "--name", "box", IMAGE, "sh", check=True)
    master, slave = pty.openpty()
    attached = subprocess.Popen(
        manager.ctl_argv("start", "-ai", "box"), stdin=slave, stdout=slave, stderr=slave
    )
    os.close(slave)
    seen = b""

    def read_until(text: bytes) -> None:
        nonlocal seen
        while text not in seen:
            seen += os.read(master, 4096)

    try:
        read_until(b"# ")
        os.write(master, b"stty -a; exit 9\n")
        assert attached.wait(30) == 9
    finally:
        attached.kill()
        os.close(master)


def test_f46_who_is_deaf_is_ended_all_the_same(manager: Lighterd) -> None:
    """By a removal at once, by a stop of all at the end of the time that others do not need."""
    deaf, heeds = "trap '' TERM; sleep 1000 & wait", "trap 'exit 9' TERM; sleep 1000 & wait"
    for name, script in (("removed", deaf), ("deaf", deaf), ("heeds", heeds)):
        pid = begin(manager, IMAGE, name, "sh", "-c", script)
        lives.await_handler(pid, signal.SIGTERM)
        if name == "removed":
            assert b"it is running" in manager.ctl("rm", name).stderr
            manager.ctl("rm", "-f", name, check=True)
            assert lives.process_state(pid) in ("", "Z")
            told = lives.history(manager)
            assert [e["event"]["exit_status"] for e in told if e["topic"] == "/tasks/exit"] == [137]
    began = time.monotonic()
    done = manager.ctl("system", "stop-containers", "--timeout", "2s", check=True)
    assert time.monotonic() - began >= 2
    assert sorted(done.stdout.decode().splitlines()) == [
        "stopped default/deaf (exit status 137)",
        "stopped default/heeds (exit status 9)",
    ]


def test_f46_a_manager_elsewhere_is_found_by_its_configuration(
    manager: Lighterd, tmp_path: Path
) -> None:
    """What the units and a removal call names no socket: `state` of the file does."""
    pid = begin(manager, IMAGE, "web", "sh", "-c", "trap 'exit 9' TERM; sleep 1000 & wait")
    lives.await_handler(pid, signal.SIGTERM)
    file = tmp_path / "config.toml"
    file.write_text(f'version = 3\nroot = "{manager.root}"\nstate = "{manager.state}"\n')
    command = f"{manager.bin}/lighterd --config {file}"
    environ = {name: value for name, value in os.environ.items() if name != "LIGHTER_ADDRESS"}

    def system(*words: str) -> "subprocess.CompletedProcess[bytes]":
        argv = [f"{manager.bin}/ctl", "system", *words, "--manager", command]
        return subprocess.run(argv, env=environ, capture_output=True, timeout=60)

    reloaded = system("reload")
    assert reloaded.returncode == 0, reloaded.stderr.decode()
    stopped = system("stop-containers", "--timeout", "20s")
    assert stopped.stdout == b"stopped default/web (exit status 9)\n", stopped.stderr.decode()
    assert b"running" not in stopped.stderr  # of a second manager


def test_stop_timeouts(manager: Lighterd) -> None:
    stubborn: dict[str, Any] = {"args": ["sh", "-c", "trap '' TERM; while :; do sleep 1; done"]}
    ask(manager, "containers.create", id="web", image=IMAGE, stop_timeout_s=1, **stubborn)
    ask(manager, "containers.start", id="web")
    assert ask(manager, "tasks.stop", id="web")["exit_status"] == 137
    pid = begin(manager, IMAGE, "other", "sh", "-c", "trap 'exit 4' INT; sleep 1000 & wait")
    lives.await_handler(pid, signal.SIGINT)
    manager.ctl("stop", "-s", "INT", "-t", "30", "other", check=True)
    assert lives.task(manager, "other")["exit_status"] == 4
    refused = manager.ctl("create", "--stop-timeout", "-2", IMAGE, "true")
    assert b"choose stop timeout -2" in refused.stderr
