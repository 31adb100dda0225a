"""A container's cgroup: frozen, counted, ended with all below it, and gone in the end.

tests/vm runs these on cgroup v2, where the kernel's files and rules are others.
"""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests import cgroups, lives
from tests.harness import Lighterd, await_that
from tests.integration.test_adoption import shim_of
from tests.lives import NO_STDIO, ask

pytestmark = pytest.mark.shared_lighterd

# `delete` returns long after it has removed the cgroup.
SLOW_TO_DELETE = """\
#!/bin/sh
case " $* " in
*" delete "*) runc "$@"; code=$?; sleep 3; exit $code;;
esac
exec runc "$@"
"""


def below(cgroup: Path, pid: int) -> Path:
    """Move a process into a new cgroup inside the container's, as a container's own manager may."""
    inner = cgroup / "inner" / "most"
    inner.mkdir(parents=True)
    (inner / "cgroup.procs").write_text(str(pid))
    return inner


def exec_sleep(lighterd: Lighterd, container: str, exec_id: str) -> int:
    which = {"id": container, "exec_id": exec_id}
    pid: int = ask(lighterd, "tasks.exec", args=["sleep", "1000"], **which, **NO_STDIO)["pid"]
    return pid


def test_a_paused_task_is_frozen_until_it_is_resumed(lighterd: Lighterd, busybox: str) -> None:
    pid = lives.begin(lighterd, busybox, "c", "sh", "-c", "while :; do :; done")
    assert not cgroups.is_frozen(pid)
    ask(lighterd, "tasks.pause", id="c")
    assert cgroups.is_frozen(pid)
    before = used_ticks(pid)
    time.sleep(0.5)  # what would be used meanwhile, were it not frozen
    assert used_ticks(pid) == before
    ask(lighterd, "tasks.resume", id="c")
    assert not cgroups.is_frozen(pid)
    await_that(lambda: used_ticks(pid) > before, 20, "it goes on")


def test_a_paused_task_ends_with_its_shim(lighterd: Lighterd, busybox: str) -> None:
    pid = lives.begin(lighterd, busybox, "c", "sleep", "1000")
    ask(lighterd, "tasks.pause", id="c")
    os.kill(shim_of(lighterd, "c"), signal.SIGKILL)
    ended = ask(lighterd, "tasks.wait", id="c", exec_id="")
    assert (ended["exit_status"], ended["cause"]) == (137, "lost-shim")
    assert lives.process_state(pid) in ("", "Z")


def test_an_exec_out_of_memory_is_told_and_its_container_goes_on(
    lighterd: Lighterd, busybox: str
) -> None:
    pid = lives.begin(lighterd, busybox, "c", "sh", "-c", "trap 'exit 5' TERM; sleep 1000 & wait")
    lives.await_handler(pid, signal.SIGTERM)
    cgroups.limit_memory(pid, 24 << 20)
    which = {"id": "c", "exec_id": "x"}
    ask(lighterd, "tasks.exec", args=["tail", "/dev/zero"], **which, **NO_STDIO)
    assert ask(lighterd, "tasks.wait", **which)["exit_status"] == 137

    def is_told() -> bool:
        return any(event["topic"] == "/tasks/oom" for event in lives.history(lighterd))

    await_that(is_told, 20, "the OOM kill is an event")
    ask(lighterd, "tasks.kill", id="c", exec_id="", signal=signal.SIGTERM, all=False)
    ended = ask(lighterd, "tasks.wait", id="c", exec_id="")
    # Init was not the one: its own code and no cause.
    assert (ended["exit_status"], ended["cause"]) == (5, "")


@pytest.mark.parametrize("whom", ["init", "all", "one not started"])
def test_f46_a_kill_that_was_asked_for_is_no_oom_kill(
    lighterd: Lighterd, busybox: str, whom: str
) -> None:
    """Whatever of the container has run out of memory before."""
    lives.define(lighterd, busybox, "c", "sleep", "1000")
    pid = ask(lighterd, "tasks.create", id="c", **NO_STDIO)["pid"]
    group = cgroups.of_process(pid, "memory")
    cgroups.limit_memory(pid, 24 << 20)
    # Whatever else is as large: runc's init is, in so little.
    first = "echo 1000 >/proc/$$/oom_score_adj"
    greedy = f"{first} && echo $$ >{group}/cgroup.procs && exec tail /dev/zero"
    assert subprocess.run(["sh", "-c", greedy]).returncode == -signal.SIGKILL
    assert cgroups.oom_kills(group) >= 1
    if whom == "one not started":
        ended = ask(lighterd, "tasks.delete", id="c", exec_id="", force=False)
    else:
        ask(lighterd, "tasks.start", id="c")
        kill = {"id": "c", "exec_id": "", "signal": signal.SIGKILL}
        ask(lighterd, "tasks.kill", all=whom == "all", **kill)
        ended = ask(lighterd, "tasks.wait", id="c", exec_id="")
    assert (ended["exit_status"], ended["cause"]) == (137, "")


@pytest.mark.parametrize("by", ["kernel", "host", "kernel to another"])
def test_f46_an_oom_kill_is_known_though_the_cgroup_has_gone(
    lighterd: Lighterd, busybox: str, by: str
) -> None:
    """systemd removes that of an ended scope, at times before its shim has looked into it."""
    if by == "kernel to another":
        greedy = "trap 'tail /dev/zero; exit 7' HUP; sleep 1000 & wait"
    else:
        greedy = "trap 'exec tail /dev/zero' HUP; sleep 1000 & wait"
    name = by.replace(" ", "-")  # each its own: the log is asked for a cgroup's name
    pid = lives.begin(lighterd, busybox, name, "sh", "-c", greedy)
    group = cgroups.of_process(pid, "memory")
    await_that(lambda: len(cgroups.members(group)) == 2, 20, "it has set its trap")
    cgroups.limit_memory(pid, 24 << 20)
    shim = shim_of(lighterd, name)
    lives.hold_still(shim)
    try:
        os.kill(pid, signal.SIGKILL if by == "host" else signal.SIGHUP)
        await_that(lambda: not cgroups.members(group), 20, "nobody is left")
        group.rmdir()
    finally:
        os.kill(shim, signal.SIGCONT)
    ended = ask(lighterd, "tasks.wait", id=name, exec_id="")
    seen = {"kernel": (137, "oom"), "host": (137, ""), "kernel to another": (7, "")}
    assert (ended["exit_status"], ended["cause"]) == seen[by]
    topics = [event["topic"] for event in lives.history(lighterd)]
    assert topics.count("/tasks/oom") == (by != "host")
    if by != "host":
        assert topics.index("/tasks/oom") < topics.index("/tasks/exit")


def test_what_is_deeper_in_the_cgroup_ends_with_init(lighterd: Lighterd, busybox: str) -> None:
    pid = lives.begin(lighterd, busybox, "c", "sleep", "1000")
    cgroup = cgroups.of_process(pid, "memory")
    deep = exec_sleep(lighterd, "c", "x")
    below(cgroup, deep)
    assert {pid, deep} <= cgroups.members(cgroup)
    pids = [int(row["pid"]) for row in ask(lighterd, "tasks.pids", id="c")["processes"]]
    assert pid in pids
    ask(lighterd, "tasks.kill", id="c", exec_id="", signal=signal.SIGKILL, all=False)
    assert ask(lighterd, "tasks.wait", id="c", exec_id="")["exit_status"] == 137
    ask(lighterd, "tasks.delete", id="c", exec_id="", force=False)
    assert lives.process_state(deep) in ("", "Z")
    assert not cgroup.exists()


def test_what_is_deeper_in_the_cgroup_ends_with_a_lost_shim(
    lighterd: Lighterd, busybox: str
) -> None:
    pid = lives.begin(lighterd, busybox, "c", "sleep", "1000")
    cgroup = cgroups.of_process(pid, "memory")
    deep = exec_sleep(lighterd, "c", "x")
    below(cgroup, deep)
    os.kill(shim_of(lighterd, "c"), signal.SIGKILL)
    ended = ask(lighterd, "tasks.wait", id="c", exec_id="")
    assert (ended["exit_status"], ended["cause"]) == (137, "lost-shim")
    ask(lighterd, "tasks.delete", id="c", exec_id="", force=False)
    assert lives.process_state(deep) in ("", "Z")
    assert not cgroup.exists()


def test_a_shim_is_idle_while_its_runtime_deletes(lighterd: Lighterd, busybox: str) -> None:
    """A removed cgroup's memory.events fires for ever (v2); nobody may listen to it then."""
    program = lighterd.base / "slow-to-delete"
    program.write_text(SLOW_TO_DELETE)
    program.chmod(0o755)
    pid = lives.begin(lighterd, busybox, "c", "sleep", "1000", runtime=str(program))
    lives.leave_delete_to_runtime(lighterd, "c")
    cgroup = cgroups.of_process(pid, "memory")
    shim = shim_of(lighterd, "c")
    ask(lighterd, "tasks.kill", id="c", exec_id="", signal=signal.SIGKILL, all=False)
    await_that(lambda: not cgroup.exists(), 20, "the runtime has removed the cgroup")
    before = used_ticks(shim)
    time.sleep(1.5)
    assert used_ticks(shim) - before < os.sysconf("SC_CLK_TCK") // 4
    assert lives.await_task(lighterd, "c", "stopped")["exit_status"] == 137


def used_ticks(pid: int) -> int:
    """Processor time of a process, in clock ticks (proc_pid_stat(5))."""
    fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    return int(fields[11]) + int(fields[12])


NOTES_VERBS = """#!/bin/sh
for word; do case $word in create|start|exec|delete) echo $word >>{verbs}; break;; esac; done
exec runc "$@"
"""


@pytest.mark.parametrize("deeper", [False, True], ids=["plain", "deeper"])
def test_the_runtime_is_run_for_a_delete_only_where_it_is_needed(
    lighterd: Lighterd, busybox: str, deeper: bool
) -> None:
    verbs = lighterd.base / "verbs"
    program = lighterd.base / "notes-verbs"
    verbs.unlink(missing_ok=True)  # of the other case, where one manager serves all tests
    program.write_text(NOTES_VERBS.format(verbs=verbs))
    program.chmod(0o755)
    pid = lives.begin(lighterd, busybox, "c", "sleep", "1000", runtime=str(program))
    cgroup = cgroups.of_process(pid, "memory")
    if deeper:
        (cgroup / "deeper").mkdir()
    ask(lighterd, "tasks.kill", id="c", exec_id="", signal=signal.SIGKILL, all=False)
    ask(lighterd, "tasks.wait", id="c", exec_id="")
    ask(lighterd, "tasks.delete", id="c", exec_id="", force=False)
    assert verbs.read_text().split() == ["create", "start"] + ["delete"] * deeper
    assert not cgroup.exists()
    assert not list((lighterd.state / "runc" / "default").iterdir())
    ask(lighterd, "containers.delete", id="c", force=False)


MAPS = ("--uidmap", "0:100000:65536", "--gidmap", "0:200000:65536")


@pytest.mark.parametrize(
    "flags",
    [(), MAPS, (*MAPS, "--net-host"), ("--cgroupns", "private"), ("--cgroupns", "host")],
    ids=["plain", "mapped", "mapped on the host's network", "private", "host"],
)
def test_a_container_of_dockers_form_sees_its_own_limits(
    lighterd: Lighterd, busybox: str, flags: tuple[str, ...]
) -> None:
    os.chmod(lighterd.base, 0o711)  # mapped ids pass through
    words = ("--rm", "--name", "c", "-m", "64m", *flags, busybox)
    done = lighterd.ctl("run", *words, "sh", "-c", cgroups.SHOWN_LIMIT)
    assert done.stdout.decode().split() == [str(64 << 20)], done


def test_a_privileged_container_of_dockers_form_may_make_cgroups_in_its_own(
    lighterd: Lighterd, busybox: str
) -> None:
    words = ("--rm", "--privileged", "--name", "c", "-m", "64m", busybox)
    done = lighterd.ctl("run", *words, "sh", "-c", cgroups.SHOWN_LIMIT)
    assert done.stdout.decode().split() == [str(64 << 20), "changed"], done
