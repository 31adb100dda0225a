"""Restart policies, restarts by hand, and that no death of the manager loses or doubles one.

A container writes a line to a file of the host at each start: what is counted is what ran, not what
the manager says.
"""

import contextlib
import os
import shutil
import signal
import sqlite3
import subprocess
import time
from typing import Any

import pytest

from lighter.proto import errors
from tests import census, lives
from tests.harness import Lighterd, await_that, kill_by_pidfd
from tests.lives import ask

RUNS_S = 30.0
# What a manager passes on its way from an end to the next start.
POINTS = [
    *("event.exit-committed", "event.closed", "restart.owed", "restart.task-deleted"),
    *("create.row-committed", "create.bundle-made", "create.shim-forked", "create.done"),
    *("restart.task-created", "start.asked", "event.start", "restart.settled", "start.done"),
    "restart.task-started",
]


class Container:
    """One container that leaves a line in a file of the host at each start."""

    def __init__(
        self, lighterd: Lighterd, name: str, script: str, policy: str = "", **options: Any
    ) -> None:
        self.lighterd, self.name = lighterd, name
        self.dir = lighterd.base / "share" / name
        self.dir.mkdir(parents=True)
        mount = {
            "type": "bind",
            "source": str(self.dir),
            "destination": "/out",
            "options": ["rbind"],
        }
        ask(
            lighterd,
            "containers.create",
            id=name,
            image="docker.io/library/busybox:test",
            args=["sh", "-c", f"echo run >> /out/runs; {script}"],
            mounts=[mount],
            restart=policy,
            **options,
        )

    def start(self) -> int:
        pid: int = ask(self.lighterd, "containers.start", id=self.name)["pid"]
        return pid

    @property
    def runs(self) -> int:
        path = self.dir / "runs"
        return len(path.read_text().splitlines()) if path.exists() else 0

    @property
    def task(self) -> dict[str, Any]:
        return lives.task(self.lighterd, self.name)

    @property
    def restart(self) -> dict[str, Any]:
        found = ask(self.lighterd, "containers.get", id=self.name)
        restart: dict[str, Any] = found["container"]["restart"]
        return restart

    def await_runs(self, count: int) -> None:
        await_that(lambda: self.runs >= count, RUNS_S, f"{self.name} has run {count} times")

    def await_rest(self) -> dict[str, Any]:
        """Until it has ended and is not to be started again."""

        def rests() -> bool:
            # Between two looks it may be started, which leaves nothing owed either.
            before, due_at, after = self.task, self.restart["due_at"], self.task
            same = (before["pid"], before["exited_at"]) == (after["pid"], after["exited_at"])
            return same and after["status"] == "stopped" and due_at is None

        await_that(rests, RUNS_S, f"{self.name} has come to rest")
        return self.task

    def await_running(self) -> None:
        await_that(lambda: self.task["status"] == "running", RUNS_S, f"{self.name} runs")


def test_on_failure_counts_its_tries(manager: Lighterd) -> None:
    failing = Container(manager, "failing", "exit 3", "on-failure:2")
    failing.start()
    ended = failing.await_rest()
    assert (failing.runs, ended["exit_status"], ended["restarts"]) == (3, 3, 2)
    good = Container(manager, "good", "exit 0", "on-failure:2")
    good.start()
    assert (good.await_rest()["exit_status"], good.runs) == (0, 1)
    assert not (bad := lives.check_history(lives.history(manager))), bad
    told = [e["event"] for e in events(manager, "/containers/restart")]
    assert [(e["id"], e["count"], e["delay_ms"]) for e in told] == [
        ("failing", 1, 100),
        ("failing", 2, 200),
    ]


def test_the_pause_doubles(manager: Lighterd) -> None:
    failing = Container(manager, "failing", "exit 1", "always")
    failing.start()
    failing.await_runs(5)
    told = [e["event"]["delay_ms"] for e in events(manager, "/containers/restart")]
    assert told[:4] == [100, 200, 400, 800]
    starts = [e["timestamp"] for e in events(manager, "/tasks/start")]
    ends = [e["timestamp"] for e in events(manager, "/tasks/exit")]
    pauses = [(start - end) / 1e6 for start, end in zip(starts[1:], ends, strict=False)]
    assert all(pause >= due for pause, due in zip(pauses, told, strict=False)), (pauses, told)
    # While it waits it is listed as what it is, and a stop ends it without a task.
    await_that(lambda: failing.task["restart_at"], RUNS_S, "it waits")
    await_that(lambda: b"Restarting (1)" in manager.ctl("ps").stdout, RUNS_S, "ps tells of it")
    ask(manager, "tasks.stop", id="failing")
    runs = failing.runs
    assert failing.restart["due_at"] is None
    assert failing.restart["stopped"]
    time.sleep(2)  # the pause that it was in is over by now
    assert failing.runs == runs


def test_a_stop_by_hand_stays(manager: Lighterd) -> None:
    for policy in ("always", "unless-stopped", "on-failure"):
        kept = Container(manager, policy, "trap 'exit 5' TERM USR1; sleep 1000 & wait", policy)
        kept.start()
        kept.await_runs(1)
    ask(manager, "tasks.stop", id="always")
    ask(manager, "tasks.kill", id="unless-stopped", exec_id="", signal=9, all=False)
    ask(manager, "tasks.stop", id="on-failure")
    for policy in ("always", "unless-stopped", "on-failure"):
        lives.await_task(manager, policy, "stopped")
    manager.kill9()
    manager.start()
    # Docker's difference: only `always` is started with the manager.
    lives.await_task(manager, "always", "running")
    for policy in ("unless-stopped", "on-failure"):
        assert lives.task(manager, policy)["status"] == "stopped"
    # A signal that is no stop does not stop it for good.
    lives.await_handler(lives.task(manager, "always")["pid"], signal.SIGUSR1)
    ask(manager, "tasks.kill", id="always", exec_id="", signal=signal.SIGUSR1, all=False)
    await_that(
        lambda: lives.task(manager, "always")["restarts"] == 1, RUNS_S, "it is started again"
    )


def test_what_runs_is_not_touched_by_a_manager_that_starts(manager: Lighterd) -> None:
    kept = Container(manager, "kept", "sleep 1000", "always")
    pid = kept.start()
    kept.await_runs(1)
    manager.kill9()
    manager.start()
    assert kept.task["pid"] == pid
    # One that ended while no manager was there is.
    manager.kill9()
    os.kill(pid, signal.SIGKILL)
    await_that(lambda: lives.process_state(pid) in ("", "Z"), 10, "it has ended")
    manager.start()
    # Listed as running it is at once, as the manager before knew it.
    await_that(lambda: (kept.runs, kept.task["restarts"]) == (2, 1), RUNS_S, "it is started again")
    kept.await_running()


def test_after_a_reboot_each_policy_does_what_it_says(manager: Lighterd) -> None:
    """As after a real one: no process, mount, cgroup, state; rows tell of another boot."""
    kept = {
        name: Container(manager, name, "sleep 1000", policy)
        for name, policy in (
            ("no", ""),
            ("always", "always"),
            ("stopped", "unless-stopped"),
            ("unless", "unless-stopped"),
            ("failing", "on-failure:3"),
        )
    }
    for container in kept.values():
        container.start()
        container.await_runs(1)
    ask(manager, "tasks.kill", id="stopped", exec_id="", signal=9, all=False)
    kept["stopped"].await_rest()
    pids = [container.task["pid"] for container in kept.values()]
    shims = manager.shims()
    manager.stop()
    for pid in (*shims, *pids):
        kill_by_pidfd(pid)
    for mount in reversed(list(census.marked_mounts(manager.owners_of_this()))):
        subprocess.run(["umount", mount], check=True)
    for path in sorted(census.marked_cgroups(manager.owners_of_this()), key=len, reverse=True):
        await_that(lambda path=path: removed(path), RUNS_S, f"{path} is empty")
    shutil.rmtree(manager.state)
    with contextlib.closing(sqlite3.connect(manager.root / "lighter.db")) as database, database:
        database.execute("UPDATE tasks SET boot_id = 'another'")
    manager.start()
    for name in ("always", "unless", "failing"):
        kept[name].await_runs(2)
        kept[name].await_running()
        assert kept[name].task["restarts"] == 1
    for name in ("no", "stopped"):
        assert (kept[name].task["status"], kept[name].runs) == ("stopped", 1)
    assert kept["no"].task["cause"] == "reboot"


def test_a_lost_shim_is_an_end_too(manager: Lighterd) -> None:
    kept = Container(manager, "kept", "sleep 1000", "unless-stopped")
    kept.start()
    kept.await_runs(1)
    (shim,) = manager.shims()
    os.kill(shim, signal.SIGKILL)
    kept.await_runs(2)
    assert kept.task["restarts"] == 1


def test_the_log_goes_on(manager: Lighterd) -> None:
    counted = Container(manager, "counted", "echo line; exit 1", "on-failure:2")
    counted.start()
    followed = subprocess.run(
        manager.ctl_argv("logs", "-f", "counted"), capture_output=True, timeout=60
    )
    assert followed.stdout == b"line\n" * 3, "following goes on over restarts, and ends with them"
    assert counted.await_rest()["restarts"] == 2


def test_a_start_that_fails_has_its_pauses_and_its_limit(manager: Lighterd) -> None:
    gone = Container(manager, "gone", "exit 1", "on-failure:3")
    gone.start()
    (gone.dir / "runs").unlink(missing_ok=True)
    gone.dir.rename(gone.dir.with_name("elsewhere"))
    await_that(
        lambda: (gone.restart["count"], gone.restart["due_at"]) == (3, None),
        RUNS_S,
        "it is given up",
    )
    assert "/share/gone" in gone.restart["error"] or "no such file" in gone.restart["error"].lower()


def test_rm_and_a_policy_exclude_each_other(manager: Lighterd) -> None:
    with pytest.raises(errors.InvalidArgument, match="--rm"):
        Container(manager, "both", "true", "always", auto_remove=True)


def test_a_restart_by_hand(manager: Lighterd) -> None:
    plain = Container(manager, "plain", "sleep 1000")
    with pytest.raises(errors.NotFound, match="no such task"):
        ask(manager, "tasks.stop", id="plain")
    manager.ctl("restart", "plain", check=True)
    plain.await_runs(1)
    before = plain.task["pid"]
    assert manager.ctl("restart", "-t", "0", "plain", check=True).stdout == b"plain\n"
    plain.await_runs(2)
    assert plain.task["pid"] != before
    assert plain.start() == plain.task["pid"], "who runs is left as it is, without an error"
    manager.ctl("stop", "-t", "0", "plain", check=True)
    assert manager.ctl("start", "plain", check=True).stdout == b"plain\n"
    plain.await_runs(3)


def test_removed_while_it_waits(manager: Lighterd) -> None:
    failing = Container(manager, "failing", "exit 1", "always")
    failing.start()
    failing.await_runs(3)
    await_that(
        lambda: b"it is being started again" in manager.ctl("rm", "failing").stderr,
        RUNS_S,
        "a removal is refused while it waits",
    )
    manager.ctl("rm", "-f", "failing", check=True)
    runs = failing.runs
    time.sleep(1)
    assert failing.runs == runs


def test_f46_a_removal_by_force_waits_for_no_restart_that_waits_for_the_end(
    manager: Lighterd,
) -> None:
    deaf = Container(manager, "deaf", "trap '' TERM; sleep 1000 & wait", stop_timeout_s=-1)
    lives.await_handler(deaf.start(), signal.SIGTERM)
    pid = deaf.task["pid"]
    with subprocess.Popen(manager.ctl_argv("restart", "deaf")) as restart:
        try:
            await_that(lambda: deaf.restart["due_at"], RUNS_S, "the restart is noted")
            manager.ctl("rm", "-f", "deaf", check=True, timeout=RUNS_S)
            restart.wait(RUNS_S)
        finally:
            restart.kill()
    assert lives.process_state(pid) in ("", "Z")
    assert deaf.runs == 1
    assert not defined(manager)


def defined(lighterd: Lighterd) -> list[str]:
    return [one["id"] for one in ask(lighterd, "containers.list")["containers"]]


# From the end of what removes itself to that of its record, and what fails there once.
ITS_END = ["event.closed", "delete.bundle-gone", "delete.row-gone", "containers.row-gone"]


def test_f21_what_removes_itself_goes_whenever_the_manager_dies(manager: Lighterd) -> None:
    """One that was started again by hand has not ended for good."""
    again = Container(manager, "again", "sleep 1000", auto_remove=True, stop_timeout_s=0)
    again.start()
    again.await_runs(1)
    ask(manager, "containers.restart", id="again")
    again.await_runs(2)
    for point in ITS_END:
        manager.stop()
        manager.start(FAULT=f"{point}:abort")
        with contextlib.suppress(lives.NoAnswer):
            Container(manager, point, "exit 3", auto_remove=True).start()
        assert manager.process is not None
        manager.process.wait(RUNS_S)
        manager.start()
        await_that(lambda: defined(manager) == ["again"], RUNS_S, f"{point}: it goes")
    assert (again.task["status"], again.runs) == ("running", 2)


def test_f49_what_removes_itself_is_removed_though_it_failed_at_first(manager: Lighterd) -> None:
    manager.restart(FAULT="delete.bundle-gone:error:1,delete.row-gone:error:1")
    Container(manager, "once", "exit 3", auto_remove=True).start()
    await_that(lambda: not ask(manager, "containers.list")["containers"], RUNS_S, "it is removed")
    manager.restart()


def test_stopping_everything_restarts_nothing_until_a_manager_starts(manager: Lighterd) -> None:
    kept = Container(manager, "kept", "sleep 1000", "unless-stopped")
    kept.start()
    waiting = Container(manager, "waiting", "exit 1", "always")
    waiting.start()
    waiting.await_runs(2)
    manager.ctl("system", "stop-containers", "--timeout", "1", check=True)
    runs = kept.runs, waiting.runs
    time.sleep(1.5)
    assert (kept.runs, waiting.runs) == runs
    manager.restart()
    kept.await_running()
    waiting.await_runs(runs[1] + 1)


def test_no_death_of_the_manager_loses_or_doubles_a_restart(manager: Lighterd) -> None:
    """A manager dies at each point, one after the other, with all that failed before under way."""
    failing = [Container(manager, f"at-{n}", "exit 1", "on-failure:2") for n in range(len(POINTS))]
    manager.stop()
    for container, point in zip(failing, POINTS, strict=True):
        # It may come to the point before it is ready, over those that are owed a start.
        with contextlib.suppress(AssertionError, lives.NoAnswer):
            manager.start(FAULT=f"{point}:abort")
            container.start()
        assert manager.process is not None
        try:
            manager.process.wait(RUNS_S)
        except subprocess.TimeoutExpired:
            pytest.fail(f"{point} was not passed")
    manager.start()
    for container in failing:
        if container.runs == 0 and container.restart["due_at"] is None:
            container.start()  # the manager was dead before it had heard of it
        container.await_rest()
    counts = {c.name: (c.runs, c.restart["count"]) for c in failing}
    assert set(counts.values()) == {(3, 2)}, counts
    assert not (bad := lives.check_history(lives.history(manager))), bad


def test_a_restart_by_hand_is_finished_by_the_next_manager(manager: Lighterd) -> None:
    plain = [
        Container(manager, f"at-{number}", "trap 'exit 0' TERM; sleep 1000 & wait")
        for number in range(len(BY_HAND))
    ]
    for container in plain:
        container.start()
        container.await_runs(1)
    for container, point in zip(plain, BY_HAND, strict=True):
        manager.stop()
        manager.start(FAULT=f"{point}:abort")
        with pytest.raises(lives.NoAnswer):
            ask(manager, "containers.restart", id=container.name)
        assert manager.process is not None
        manager.process.wait()
        manager.start()
        container.await_runs(2)
        container.await_running()
    assert [container.runs for container in plain] == [2] * len(BY_HAND)


def test_an_attempt_that_fails_inside_the_manager_is_made_again(manager: Lighterd) -> None:
    """It counts as one; what is owed does not get lost over it."""
    failing = Container(manager, "failing", "exit 1", "on-failure:3")
    manager.restart(FAULT="restart.task-deleted:error:2,start.asked:error:2")
    failing.start()
    assert failing.await_rest()["restarts"] == 3
    assert failing.runs == 2


# Before these comes what cannot be undone, and the points that the next test has.
@pytest.mark.parametrize("part", [POINTS[5:10], POINTS[10:]], ids="-".join)
def test_an_error_anywhere_on_the_way_is_followed_by_another_attempt(
    manager: Lighterd, part: list[str]
) -> None:
    """All in one manager; most are passed by the first start too, which somebody asks for."""
    manager.restart(FAULT=",".join(f"{point}:error:2" for point in part))
    kept = Container(
        manager, "kept", "test $(wc -l </out/runs) -gt 2 || exit 1; exec sleep 1000", "always"
    )
    try:
        kept.start()
        kept.await_runs(3)
        kept.await_running()
        alive = frozenset({"kept"})
        assert not (bad := lives.check_history(lives.history(manager), alive)), bad
    finally:
        manager.restart()


BY_HAND = ["restart.asked", "event.exit", "restart.task-created"]
FIRST = {"event.exit-committed", "event.closed", "restart.owed"}


def removed(cgroup: str) -> bool:
    """Whether it is gone; a process that is being taken apart keeps it for a moment."""
    try:
        os.rmdir(cgroup)
    except OSError:
        return not os.path.exists(cgroup)
    return True


def events(lighterd: Lighterd, topic: str) -> list[dict[str, Any]]:
    with lighterd.client("") as client:
        stream = client.stream("events", "subscribe", since=lighterd.first_event, follow=False)
        return [item for item in stream if item["topic"] == topic]
