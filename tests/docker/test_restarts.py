"""The manager, dockerd, or both go and come back under running containers: none of them notices."""

import contextlib
import itertools
import os
import threading
from pathlib import Path

import pytest

from tests.docker.engine import IMAGE, Engine
from tests.harness import Lighterd, await_that

pytestmark = pytest.mark.away
ENGINE_READS = 32 << 10  # bytes, at most, that dockerd takes out of a container's pipe at once
RESTARTS = {"20.10": 20, "26.1": 6}
# Counts in lines until it is asked to end, and says how far it came.
COUNT = (
    "trap 'ended=yes' TERM; i=0; while [ -z $ended ]; "
    "do i=$((i+1)); echo $i; [ $((i % 20)) != 0 ] || usleep 10000; done; echo end $i; exit 23"
)


def _lines(engine: Engine, name: str) -> list[str]:
    return engine.says("logs", name, timeout=120).splitlines()


def _counted(engine: Engine, name: str, *, engine_went: bool = False) -> None:
    """Ask the counter to end: no line is lost or twice, and its code is exact.

    A dockerd that ended had perhaps read what it did not write any more, be it stopped in order or
    not: one gap, of at most one read. What it had not read waits for the next dockerd.
    """
    engine.calm.add(engine.says("inspect", "-f", "{{.Id}}", name))
    engine.says("stop", "-t", "30", name)
    state = engine.state(name)
    assert (state["Status"], state["ExitCode"]) == ("exited", 23)
    *lines, end = _lines(engine, name)
    numbers = [int(line) for line in lines]
    gaps = [(one, two) for one, two in itertools.pairwise([0, *numbers]) if two != one + 1]
    if engine_went and gaps:
        ((one, two),) = gaps
        assert 0 < sum(len(f"{number}\n") for number in range(one + 1, two)) <= ENGINE_READS
    else:
        assert gaps == []
    assert end == f"end {numbers[-1]}"


def _await_more(engine: Engine, name: str) -> None:
    """The counter's output reaches Docker's log now."""
    before = len(_lines(engine, name))
    await_that(lambda: len(_lines(engine, name)) > before + 100, 60, "the log grows")


def _await_call(engine: Engine, name: str) -> None:
    """dockerd's connection is there again."""
    await_that(
        lambda: engine.docker("exec", name, "true").returncode == 0, 60, "dockerd reaches it again"
    )


def _is_gone(pid: int) -> bool:
    return not os.path.exists(f"/proc/{pid}")


@pytest.mark.timeout(300)
def test_restarts_of_the_manager_lose_no_byte_and_no_code(
    engine: Engine, lighterd: Lighterd, tmp_path: Path
) -> None:
    """One container ends while each is away; for every other dockerd has no time to come back."""
    engine.run("--name", "counter", IMAGE, "sh", "-c", COUNT)
    ends = range(RESTARTS[engine.release])
    for number in ends:
        wait = f"until [ -e /go/{number} ]; do usleep 50000; done; exit {40 + number}"
        engine.run("--name", f"c{number}", "-v", f"{tmp_path}:/go", IMAGE, "sh", "-c", wait)
    pids = [int(engine.state(f"c{number}")["Pid"]) for number in ends]
    for number in ends:
        if number % 2:
            lighterd.stop()
        else:
            lighterd.kill9()
        (tmp_path / str(number)).touch()
        await_that(lambda number=number: _is_gone(pids[number]), 30, "it has ended")
        lighterd.start()
        if number % 4 > 1:
            engine.await_state(f"c{number}", 60, Status="exited")
    for number in ends:
        engine.await_state(f"c{number}", 60, Status="exited")
        assert engine.says("wait", f"c{number}") == str(40 + number)
    _await_more(engine, "counter")
    _counted(engine, "counter")


def test_a_manager_killed_among_exits_that_dockerd_is_told_of(
    engine: Engine, lighterd: Lighterd
) -> None:
    """What was told to a stream that broke is told again, until dockerd has removed the task."""
    names = [f"c{number}" for number in range(6)]
    for number, name in enumerate(names):
        engine.run("--name", name, IMAGE, "sh", "-c", f"sleep 0.{number}; exit {50 + number}")
    lighterd.kill9()
    lighterd.start()
    for number, name in enumerate(names):
        state = engine.await_state(name, 60, Status="exited")
        assert state["ExitCode"] == 50 + number


@pytest.mark.parametrize("killed", [False, True], ids=["stopped", "killed"])
def test_dockerd_comes_back_with_live_restore(engine: Engine, tmp_path: Path, killed: bool) -> None:
    engine.run("--name", "counter", IMAGE, "sh", "-c", COUNT)
    engine.run(
        "--name",
        "box",
        "-v",
        f"{tmp_path}:/go",
        IMAGE,
        "sh",
        "-c",
        "until [ -e /go/on ]; do usleep 50000; done; exit 77",
    )
    engine.run("--name", "stays", IMAGE, "sleep", "1000")
    pid = int(engine.state("box")["Pid"])
    before = engine.state("stays")["Pid"]
    if killed:
        engine.kill9()
    else:
        engine.stop()
    (tmp_path / "on").touch()
    await_that(lambda: _is_gone(pid), 30, "it has ended")
    engine.start()
    assert engine.await_state("box", Status="exited")["ExitCode"] == 77
    assert engine.state("stays")["Pid"] == before
    assert engine.says("exec", "stays", "echo", "here") == "here"
    _await_more(engine, "counter")
    if killed:  # with what it had read and not written: no manager's work
        engine.says("stop", "-t", "30", "counter")
        assert engine.state("counter")["ExitCode"] == 23
    else:
        _counted(engine, "counter", engine_went=True)


def test_both_were_away(engine: Engine, lighterd: Lighterd, tmp_path: Path) -> None:
    engine.run("--name", "counter", IMAGE, "sh", "-c", COUNT)
    engine.run(
        "--name",
        "box",
        "-v",
        f"{tmp_path}:/go",
        IMAGE,
        "sh",
        "-c",
        "until [ -e /go/on ]; do usleep 50000; done; exit 78",
    )
    pid = int(engine.state("box")["Pid"])
    engine.stop()
    lighterd.kill9()
    (tmp_path / "on").touch()
    await_that(lambda: _is_gone(pid), 30, "it has ended")
    lighterd.start()
    engine.start()
    assert engine.await_state("box", Status="exited")["ExitCode"] == 78
    _await_more(engine, "counter")
    _counted(engine, "counter", engine_went=True)


def test_an_attached_run_goes_on_over_a_restart(engine: Engine, lighterd: Lighterd) -> None:
    attached = engine.popen("run", "-i", "--name", "cat", IMAGE, "sh", "-c", "cat; exit 31")
    try:
        assert attached.stdin is not None and attached.stdout is not None
        attached.stdin.write(b"before\n")
        attached.stdin.flush()
        assert attached.stdout.readline() == b"before\n"
        engine.await_state("cat", Status="running")  # else it is the start that breaks
        lighterd.kill9()
        attached.stdin.write(b"while away\n")
        attached.stdin.flush()
        assert attached.stdout.readline() == b"while away\n"
        lighterd.start()
        _await_call(engine, "cat")  # Docker tells of the end of the input once, and not again
        out, _ = attached.communicate(b"after\n", timeout=60)
        assert (out, attached.returncode) == (b"after\n", 31)
    finally:
        attached.kill()
        attached.wait()


def test_a_restart_policy_holds_while_the_manager_comes_and_goes(
    engine: Engine, lighterd: Lighterd
) -> None:
    engine.run("--name", "box", "--restart", "always", IMAGE, "sh", "-c", "usleep 300000; exit 3")
    ended = threading.Event()

    def ask() -> None:  # a client that keeps asking meanwhile gets answers or clear errors
        while not ended.is_set():
            engine.docker("top", "box")

    asking = threading.Thread(target=ask)
    asking.start()
    with contextlib.ExitStack() as stack:
        stack.callback(asking.join)
        stack.callback(ended.set)
        for _ in range(2):
            lighterd.kill9()
            lighterd.start()

    def count() -> int:
        return int(engine.says("inspect", "-f", "{{.RestartCount}}", "box"))

    before = count()
    await_that(lambda: count() > before, 90, "it is started again")
