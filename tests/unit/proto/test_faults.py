"""Fault points: what a plan makes a process do at a point, and only there."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lighter.proto.errors import Internal
from lighter.proto.faults import Faults


def test_without_a_plan_nothing_happens() -> None:
    faults = Faults({})
    faults.hit("create.row-committed")
    assert faults.passes == {}


def test_an_error_comes_at_its_pass_and_no_other() -> None:
    faults = Faults({"FAULT": "a:error:2"})
    faults.hit("a")
    with pytest.raises(Internal, match="pass fault point a"):
        faults.hit("a")
    faults.hit("a")


def test_zero_means_every_pass() -> None:
    faults = Faults({"FAULT": "a:error:0"})
    for _ in range(3):
        with pytest.raises(Internal):
            faults.hit("a")


def test_points_are_planned_apart() -> None:
    faults = Faults({"FAULT": "a:error,b:error:2"})
    faults.hit("b")
    faults.hit("c")
    with pytest.raises(Internal):
        faults.hit("a")
    with pytest.raises(Internal):
        faults.hit("b")


def test_the_trace_names_every_pass(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    faults = Faults({"FAULT_TRACE": str(trace)})
    for point in ("a", "b", "a"):
        faults.hit(point)
    assert trace.read_text().splitlines() == [f"{os.getpid()} {point}" for point in ("a", "b", "a")]


def test_a_plan_with_an_unknown_action_ends_the_start() -> None:
    with pytest.raises(SystemExit, match="unknown action 'explode' at point 'a'"):
        Faults({"FAULT": "a:explode"})


def run_into(action: str) -> subprocess.Popen[bytes]:
    code = "from lighter.proto import faults; faults.hit('a'); print('passed', flush=True)"
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "FAULT": f"a:{action}"},
        stdout=subprocess.PIPE,
    )


def test_abort_ends_the_process_as_kill_9_does() -> None:
    process = run_into("abort")
    out, _ = process.communicate(timeout=30)
    assert (process.returncode, out) == (-signal.SIGKILL, b"")


def test_stop_waits_until_it_is_continued() -> None:
    process = run_into("stop")
    _, status = os.waitpid(process.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    process.send_signal(signal.SIGCONT)
    out, _ = process.communicate(timeout=30)
    assert (process.returncode, out) == (0, b"passed\n")
