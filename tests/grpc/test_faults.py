"""A manager that dies, fails or loses a shim at a step of what containerd's API is asked: the same
is asked again until it works, and then nothing is missing and nothing is left.

The points are those of tests/integration/test_kill9, but for what only `ctl`'s front end passes.
"""

import os
import re
import signal
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests import lives
from tests.grpc.client import code
from tests.grpc.conftest import run_ctr
from tests.grpc.lives import ApiLife
from tests.grpc.workshop import Workshop
from tests.harness import Lighterd, await_that
from tests.images import REFERENCE
from tests.integration import test_kill9 as kill9
from tests.integration.test_kill9 import (
    MANAGER,
    MAY_FAIL,
    PHASES,
    SHIM,
    SHIM_ASKED,
    sweep,
)

pytestmark = pytest.mark.timeout(600)  # sweeps

# Snapshot and record are the client's own business here.
NOT_HERE = {"containers.snapshot-made", "containers.row-committed"}
# Passed by what shims tell and by sweeps of files, whoever has asked: killed there in test_kill9.
BEHIND = {
    *("event.create", "event.start", "event.exec-started", "event.exit", "event.closed"),
    *("snapshot.directory-made", "snapshot.removed", "delete.bundle-gone"),
}
KILLED = {
    phase: [point for point in points if point not in NOT_HERE | BEHIND]
    for phase, points in PHASES.items()
}
HERE = [point for point in MANAGER if point not in NOT_HERE]
FAILING = ["create.bundle-made", "start.asked", "exec.asked", "delete.closed", *SHIM_ASKED]
SHIM_KILLED = ["shim.claimed", "shim.exec-asked", "shim.init-exited", "shim.runc-deleted"]


def test_the_points_of_a_life_are_the_same(lighterd: Lighterd, busybox: str) -> None:
    trace = lighterd.base / "trace"
    lighterd.restart(FAULT_TRACE=str(trace))
    ApiLife(lighterd, busybox, "").run()
    lives.leftovers(lighterd)
    passed = {line.split()[1] for line in trace.read_text().splitlines()}
    assert passed - kill9.ELSEWHERE == {*MANAGER, *SHIM, *kill9.SPAWNER} - NOT_HERE


@pytest.mark.parametrize("phase", KILLED)
def test_f01_f22_the_manager_is_killed(make_lighterd: Callable[..., Lighterd], phase: str) -> None:
    sweep(make_lighterd(), KILLED[phase], "abort", ApiLife)


def test_a_call_that_fails_can_be_repeated(make_lighterd: Callable[..., Lighterd]) -> None:
    sweep(make_lighterd(), FAILING, "error", ApiLife)


@pytest.mark.soak
@pytest.mark.parametrize("action", ["abort", "stop", "error"])
def test_a_manager_with_a_fault_at_any_point(
    make_lighterd: Callable[..., Lighterd], action: str
) -> None:
    sweep(make_lighterd(), [p for p in HERE if action != "error" or p in MAY_FAIL], action, ApiLife)


@pytest.mark.soak
@pytest.mark.parametrize("action", ["abort", "stop", "error"])
def test_a_shim_with_a_fault_at_any_point(
    make_lighterd: Callable[..., Lighterd], action: str
) -> None:
    nameless = {"shim.claim-written"} if action == "stop" else set()
    points = MAY_FAIL if action == "error" else SHIM
    sweep(make_lighterd(), [p for p in points if p in SHIM and p not in nameless], action, ApiLife)


def test_f42_the_shim_is_killed(make_lighterd: Callable[..., Lighterd]) -> None:
    sweep(make_lighterd(), SHIM_KILLED, "abort", ApiLife)


def test_f43_the_shim_is_stopped(make_lighterd: Callable[..., Lighterd]) -> None:
    sweep(make_lighterd(), ["shim.start-asked", "shim.kill-asked"], "stop", ApiLife)


@pytest.mark.parametrize("then", ["Start", "DeleteProcess"])
def test_f75_what_a_dead_manager_has_started_is_heard_of_before_it_is_asked_again(
    make_lighterd: Callable[..., Lighterd], tmp_path: Path, then: str
) -> None:
    """Its shim has taken the order and comes back late: the program runs once."""
    lighterd = make_lighterd().start()
    lighterd.import_busybox()
    lighterd.restart(FAULT="shim.runc-execed:stop")
    with Workshop(lighterd, tmp_path / "fifos") as workshop:
        workshop.create("c", "sleep", "1000")
        workshop.tasks("Start", container_id="c")
        which = {"container_id": "c", "exec_id": "e"}
        workshop.exec("c", "e", "sh", "-c", "echo run >>/ran")
        (shim,) = lighterd.shims()
        with ThreadPoolExecutor(2) as pool:
            first = pool.submit(workshop.tasks, "Start", **which)
            await_that(lambda: lives.process_state(shim) == "T", 30, "the shim has stopped")
            lighterd.kill9()
            assert isinstance(first.exception(60), grpc.RpcError)
            lighterd.start()
            again = pool.submit(workshop.tasks, then, **which)
            with pytest.raises(TimeoutError):
                again.result(1)
            os.kill(shim, signal.SIGCONT)
            error = again.exception(60)
            while isinstance(error, grpc.RpcError) and code(error) == "UNAVAILABLE":
                # On a busy machine the shim comes later than a call waits for it.
                error = pool.submit(workshop.tasks, then, **which).exception(60)
        if then == "Start" or error is not None:
            assert isinstance(error, grpc.RpcError), error
            assert re.match(r"cannot (start|delete) a (running|stopped) process", error.details())
            assert workshop.tasks("Wait", **which).exit_status == 0
        workshop.ctl("cp", "c:/ran", str(tmp_path / "ran"))
        assert (tmp_path / "ran").read_text() == "run\n"


def _ctr(lighterd: Lighterd, *words: str) -> "subprocess.CompletedProcess[bytes]":
    return run_ctr(lighterd.grpc_address, *words)


def test_a_run_of_ctr_that_a_manager_dies_over(make_lighterd: Callable[..., Lighterd]) -> None:
    lighterd = make_lighterd().start()
    lighterd.import_busybox()
    run = ("run", "--rm", REFERENCE, "f", "sh", "-c", "exit 5")
    lighterd.restart(FAULT="start.asked:abort")
    asked = subprocess.Popen(
        ["ctr", "--address", lighterd.grpc_address, *run],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert lighterd.process is not None
        lighterd.process.wait(60)
    finally:
        # It may wait for what it was promised; what it left is looked at without it.
        asked.kill()
        asked.wait()
    lighterd.start()

    def removed() -> bool:
        """What a client does that finds its container again."""
        _ctr(lighterd, "tasks", "rm", "-f", "f")
        _ctr(lighterd, "containers", "rm", "f")
        _ctr(lighterd, "snapshots", "rm", "f")
        return not _listed(lighterd)

    await_that(removed, 30, "ctr can remove what is left")
    again = _ctr(lighterd, *run)
    assert again.returncode == 5, again


def _listed(lighterd: Lighterd) -> Any:
    return [
        _ctr(lighterd, *words).stdout.split()
        for words in (("c", "ls", "-q"), ("t", "ls", "-q"))
        if _ctr(lighterd, *words).stdout
    ]
