"""What is done by hand goes before any policy, whatever happens meanwhile: dead managers, starts
that are under way, other ways to end a container, a full disk.
"""

import contextlib
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lighter.proto import errors
from tests import images, lives
from tests.harness import Lighterd, await_that
from tests.integration.test_restarts import RUNS_S, Container, events
from tests.lives import ask
from tests.nemesis import fill

SLEEPS = "trap 'exit 0' TERM; sleep 1000 & wait"


def names(manager: Lighterd) -> list[str]:
    listed = ask(manager, "containers.list", cursor="", limit=10)["containers"]
    return [found["id"] for found in listed]


@pytest.mark.parametrize("point", ["restart.removal-noted", "delete.closed", "delete.row-gone"])
def test_a_removal_is_finished_by_the_next_manager(manager: Lighterd, point: str) -> None:
    kept = Container(manager, "kept", SLEEPS, "always")
    kept.start()
    kept.await_runs(1)
    manager.restart(FAULT=f"{point}:abort")
    with pytest.raises(lives.NoAnswer):
        ask(manager, "containers.delete", id="kept", force=True)
    assert manager.process is not None
    manager.process.wait()
    manager.start()
    await_that(lambda: names(manager) == [], RUNS_S, "it is removed")
    assert kept.runs == 1
    assert events(manager, "/containers/restart") == [], "nobody was to start it again"


TRAPS = "trap 'exit 3' TERM; echo ready; while :; do sleep 0.1; done"


@pytest.mark.parametrize(
    "words", [("stop",), ("kill", "-s", "TERM"), ("restart",)], ids=lambda words: words[0]
)
def test_a_paused_one_gets_its_stop_signal_and_goes_on(
    manager: Lighterd, words: tuple[str, ...]
) -> None:
    lives.begin(manager, images.REFERENCE, "c", "sh", "-c", TRAPS, stop_timeout_s=-1)
    await_that(lambda: manager.ctl("logs", "c").stdout == b"ready\n", 20, "it has its trap")
    manager.ctl("pause", "c", check=True)
    manager.ctl("kill", "-s", "USR1", "c", check=True)
    assert lives.task(manager, "c")["status"] == "paused", "that is not its stop signal"
    manager.ctl(*words, "c", check=True)
    with manager.client() as client:
        await_that(
            lambda: (
                [
                    event["event"]["exit_status"]
                    for event in manager.events()
                    if event["topic"] == "/tasks/exit"
                ]
                == [3]
            ),
            20,
            "it has ended by itself",
        )
        if words == ("restart",):
            assert client.call("tasks", "get", id="c")["task"]["status"] == "running"


# Ends when it is told to, a while after its signal.
LINGERS = """
trap 'echo asked; until [ -e /tmp/go ]; do sleep 0.1; done; exit 3' TERM
echo ready; while :; do sleep 0.1; done
"""


def test_a_pause_does_not_keep_one_from_its_end_that_is_being_stopped(manager: Lighterd) -> None:
    """It would be frozen for the whole time that the stop gives it: here, for ever."""
    begin_lingering(manager)
    with stopping(manager) as stop:
        refused = manager.ctl("pause", "c")
        assert b"pause task c: it is being stopped" in refused.stderr
        manager.ctl("exec", "c", "touch", "/tmp/go", check=True)
        assert stop.wait(RUNS_S) == 0
    assert lives.task(manager, "c")["exit_status"] == 3


@pytest.mark.parametrize("client", ["waits", "goes away"])
def test_a_stop_that_comes_during_a_pause_is_heard(
    manager: Lighterd, tmp_path: Path, client: str
) -> None:
    begun, go, slow = tmp_path / "begun", tmp_path / "go", tmp_path / "slow-runc"
    slow.write_text(
        f"""#!/bin/sh
case " $* " in *" pause "*) touch {begun}; until [ -e {go} ]; do sleep 0.1; done;; esac
exec {shutil.which("runc")} "$@"
"""
    )
    slow.chmod(0o755)
    begin_lingering(manager, runtime=str(slow))
    with subprocess.Popen(manager.ctl_argv("pause", "c"), stderr=subprocess.PIPE) as pause:
        try:
            await_that(begun.exists, RUNS_S, "the runtime is at the pause")
            if client == "goes away":
                pause.send_signal(signal.SIGINT)
                pause.wait(RUNS_S)
            with stopping(manager) as stop:
                go.touch()
                if client == "waits":
                    assert b"it is being stopped" in pause.communicate(timeout=RUNS_S)[1]
                await_that(lambda: events(manager, "/tasks/resumed"), RUNS_S, "it goes on")
                manager.ctl("exec", "c", "touch", "/tmp/go", check=True)
                assert stop.wait(RUNS_S) == 0
        finally:
            go.touch()
    assert lives.task(manager, "c")["exit_status"] == 3


@contextlib.contextmanager
def stopping(manager: Lighterd) -> Iterator[subprocess.Popen[bytes]]:
    """A stop that waits for ever, and has sent its signal. However the block ends, so does it."""
    with subprocess.Popen(manager.ctl_argv("stop", "-t", "-1", "c")) as stop:
        try:
            await_log(manager, b"ready\nasked\n")
            yield stop
        finally:
            manager.ctl("kill", "-s", "KILL", "c")


def begin_lingering(manager: Lighterd, **options: str) -> None:
    words = ("sh", "-c", LINGERS)
    lives.begin(manager, images.REFERENCE, "c", *words, stop_timeout_s=-1, **options)
    await_log(manager, b"ready\n")


def await_log(manager: Lighterd, said: bytes) -> None:
    await_that(lambda: manager.ctl("logs", "c").stdout == said, RUNS_S, f"it has said {said!r}")


def test_a_stop_stays_that_comes_while_the_first_start_is_under_way(manager: Lighterd) -> None:
    slow = slow_to_start(manager.base / "slow-runc")
    kept = Container(manager, "kept", SLEEPS, "always", runtime=str(slow))
    with subprocess.Popen(manager.ctl_argv("tasks", "start", "-d", "kept")) as starting:
        kept.await_runs(1)
        ask(manager, "tasks.stop", id="kept")
        starting.wait(RUNS_S)
    lives.await_task(manager, "kept", "stopped")
    assert kept.restart["stopped"]
    assert kept.restart["due_at"] is None
    # A start by hand afterwards is one.
    manager.ctl("tasks", "delete", "kept", check=True)
    manager.ctl("tasks", "start", "-d", "kept", check=True)
    assert not kept.restart["stopped"]


@pytest.mark.parametrize("verb", [("tasks", "start", "-d"), ("start",), ("start", "-a")])
def test_what_removes_itself_goes_with_a_start_that_fails(
    manager: Lighterd, verb: tuple[str, ...]
) -> None:
    """As docker's does, whether the runtime was asked or not, and before who asked hears of it."""
    lives.define(manager, images.REFERENCE, "mistyped", "/no/such/program", auto_remove=True)
    lives.define(manager, images.REFERENCE, "stays", "/no/such/program")
    gone = manager.base / "gone"
    gone.mkdir()
    mount = {"type": "bind", "source": str(gone), "destination": "/x", "options": ["rbind"]}
    lives.define(manager, images.REFERENCE, "nowhere", "true", auto_remove=True, mounts=[mount])
    gone.rmdir()
    for name in ("mistyped", "stays", "nowhere"):
        assert manager.ctl(*verb, name).returncode, name
        assert (name in names(manager)) == (name == "stays"), name
    assert "remove container" not in manager.log.read_text()


def test_what_removes_itself_is_restarted_and_then_removed(manager: Lighterd) -> None:
    passing = Container(manager, "passing", SLEEPS, auto_remove=True)
    passing.start()
    passing.await_runs(1)
    ask(manager, "containers.restart", id="passing")
    passing.await_runs(2)
    manager.restart(FAULT="restart.asked:abort")
    with pytest.raises(lives.NoAnswer):
        ask(manager, "containers.restart", id="passing")
    assert manager.process is not None
    manager.process.wait()
    manager.start()
    passing.await_runs(3)
    passing.await_running()
    passing.dir.rename(passing.dir.with_name("elsewhere"))
    with pytest.raises(errors.LighterError, match="passing"):
        ask(manager, "containers.restart", id="passing")
    await_that(lambda: names(manager) == [], RUNS_S, "it is removed, as it is not started again")


@pytest.mark.parametrize("way", ["ctl tasks delete --force", "ctr tasks kill"])
def test_an_end_by_another_way_stays(manager: Lighterd, way: str) -> None:
    kept = Container(manager, "kept", SLEEPS, "always")
    kept.start()
    kept.await_runs(1)
    if way.startswith("ctl"):
        manager.ctl("tasks", "delete", "--force", "kept", check=True)
    else:
        ctr = ("ctr", "--address", manager.grpc_address, "--namespace", "default")
        subprocess.run([*ctr, "tasks", "kill", "--signal", "SIGKILL", "kept"], check=True)
        lives.await_task(manager, "kept", "stopped")
    assert kept.restart["stopped"]
    assert kept.restart["due_at"] is None
    assert events(manager, "/containers/restart") == []


def test_a_restart_waits_for_files_that_are_copied(manager: Lighterd) -> None:
    failing = Container(manager, "failing", "exit 1", "on-failure:7")
    failing.start()
    await_that(lambda: failing.restart["count"] == 6, RUNS_S, "it has a pause of seconds")
    due_at = failing.restart["due_at"]
    ended = failing.task["pid"]
    with subprocess.Popen(
        manager.ctl_argv("cp", "-", "failing:/tmp"), stdin=subprocess.PIPE
    ) as copying:
        assert copying.stdin is not None
        await_that(lambda: time.time_ns() > due_at + 1_000_000_000, RUNS_S, "it is due")
        assert (failing.restart["count"], failing.restart["error"]) == (6, "")
        assert (failing.task["pid"], failing.runs) == (ended, 6)
        copying.stdin.write(bytes(10240))  # an archive of nothing
        copying.stdin.close()
        copying.wait(RUNS_S)
    failing.await_runs(7)


def test_a_policy_that_comes_after_the_end_is_one_for_the_next_manager(manager: Lighterd) -> None:
    ended = Container(manager, "ended", "exit 0")
    manager.ctl("tasks", "start", "-d", "ended", check=True)
    ended.await_rest()
    never = Container(manager, "never", "exit 0")
    for name in ("ended", "never"):
        manager.ctl("update", "--restart", "always", name, check=True)
    manager.restart()
    ended.await_runs(2)
    assert never.runs == 0, "what was never started is not"


def test_what_nobody_expects_loses_no_restart(manager: Lighterd) -> None:
    failing = Container(manager, "failing", "exit 1", "on-failure:3")
    # In the first attempt, and again when that is written down as failed.
    manager.restart(FAULT="restart.task-deleted:bug:2,restart.owed:bug:2")
    failing.start()
    assert failing.await_rest()["restarts"] == 3
    assert failing.runs == 3
    assert "asked to be wrong" in manager.log.read_text()


def test_a_full_disk_keeps_nobody_from_ending_a_container(
    make_lighterd: Callable[..., Lighterd],
) -> None:
    small = make_lighterd()
    small.root.mkdir()
    tmpfs = ("mount", "-t", "tmpfs", "-o", "size=64m,mode=700", "lighter-test")
    subprocess.run([*tmpfs, str(small.root)], check=True)
    try:
        small.start().import_busybox()
        kept = Container(small, "kept", "sleep 1000", "unless-stopped")
        pid = kept.start()
        kept.await_runs(1)
        filler = small.root / "filler"
        fill(filler)
        with pytest.raises(errors.ResourceExhausted):
            while True:  # until what is held in reserve is used up too
                manager_writes(small)
                fill(filler)
        ask(small, "tasks.kill", id="kept", exec_id="", signal=9, all=False)
        await_that(lambda: lives.process_state(pid) in ("", "Z"), RUNS_S, "it has ended")
        small.kill9()  # before there is space: the note of it is on another disk
        filler.unlink()
        small.start()
        lives.await_task(small, "kept", "stopped")
        assert (kept.restart["stopped"], kept.restart["due_at"]) == (True, None)
        notes = small.state / "restarts.json"
        await_that(lambda: not notes.exists(), RUNS_S, "it is written once there is space")
        small.kill9()
        small.start()
        assert kept.restart["stopped"]
        assert kept.runs == 1
        fill(filler)
        assert small.stop() == 0, "a full disk keeps no manager from ending as it should"
        assert "Traceback" not in small.log.read_text()
    finally:
        small.stop()
        subprocess.run(["umount", str(small.root)], check=True)


def manager_writes(manager: Lighterd) -> None:
    labels = {"at": str(time.monotonic())}
    ask(manager, "containers.label", id="kept", labels=labels)


def slow_to_start(program: Path) -> Path:
    """A runtime that says that init was started two seconds after that."""
    runc = shutil.which("runc")
    assert runc, "runc is missing"
    program.write_text(
        f'#!/bin/sh\n{runc} "$@"; code=$?\ncase " $* " in *" start "*) sleep 2;; esac\nexit $code\n'
    )
    program.chmod(0o755)
    return program
