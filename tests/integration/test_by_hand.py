"""What is done by hand goes before any policy, whatever happens meanwhile: dead managers, starts
that are under way, other ways to end a container, a full disk.
"""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import census, lives
from tests.harness import Lighterd, await_that
from tests.integration.test_restarts import RUNS_S, Container, events
from tests.lives import ask

SLEEPS = "trap 'exit 0' TERM; sleep 1000 & wait"


@pytest.fixture(scope="module")
def shared() -> Iterator[Lighterd]:
    """One instance for this module, with the test image."""
    lighterd = Lighterd(census.Owners()).start()
    try:
        lighterd.import_busybox()
        yield lighterd
    finally:
        lighterd.close()


@pytest.fixture
def manager(shared: Lighterd) -> Iterator[Lighterd]:
    yield shared
    shared.clear()


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


def slow_to_start(program: Path) -> Path:
    """A runtime that says that init was started two seconds after that."""
    runc = shutil.which("runc")
    assert runc, "runc is missing"
    program.write_text(
        f'#!/bin/sh\n{runc} "$@"; code=$?\ncase " $* " in *" start "*) sleep 2;; esac\nexit $code\n'
    )
    program.chmod(0o755)
    return program
