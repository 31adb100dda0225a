"""A manager that dies at a step of what ctr asks: the next one can be asked the same again."""

import subprocess
from collections.abc import Callable
from typing import Any

import pytest

from tests.grpc.conftest import run_ctr
from tests.harness import Lighterd, await_that
from tests.images import REFERENCE

POINTS = (
    *("create.row-committed", "create.bundle-made", "create.shim-forked", "create.done"),
    *("start.asked", "event.exit-committed", "delete.closed", "delete.row-gone"),
)


def _ctr(lighterd: Lighterd, *words: str) -> "subprocess.CompletedProcess[bytes]":
    return run_ctr(lighterd.grpc_address, *words)


def _dies_at(lighterd: Lighterd, point: str, *words: str) -> None:
    """ctr is asked while the manager is to die there, and another manager is started."""
    lighterd.restart(FAULT=f"{point}:abort")
    asked = subprocess.Popen(
        ["ctr", "--address", lighterd.grpc_address, *words],
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


@pytest.mark.parametrize("point", POINTS)
def test_a_run_that_a_manager_dies_over(make_lighterd: Callable[..., Lighterd], point: str) -> None:
    lighterd = make_lighterd().start()
    lighterd.import_busybox()
    run = ("run", "--rm", REFERENCE, "f", "sh", "-c", "exit 5")
    _dies_at(lighterd, point, *run)

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


@pytest.mark.parametrize("point", ["exec.row-committed", "exec.asked", "exec.done"])
def test_an_exec_that_a_manager_dies_over(
    make_lighterd: Callable[..., Lighterd], point: str
) -> None:
    lighterd = make_lighterd().start()
    lighterd.import_busybox()
    started = _ctr(lighterd, "run", "-d", "--null-io", REFERENCE, "f", "sleep", "1000")
    assert started.returncode == 0, started
    _dies_at(lighterd, point, "tasks", "exec", "--exec-id", "e", "f", "sleep", "1000")
    _ctr(lighterd, "tasks", "kill", "--exec-id", "e", "-s", "9", "f")

    def removed() -> bool:
        _ctr(lighterd, "tasks", "rm", "--exec-id", "e", "f")
        return (
            b"no running process found"
            in _ctr(lighterd, "tasks", "rm", "--exec-id", "e", "f").stderr
        )

    await_that(removed, 30, "the process is forgotten")
    again = _ctr(lighterd, "tasks", "exec", "--exec-id", "e", "f", "sh", "-c", "exit 6")
    assert again.returncode == 6, again
    assert _ctr(lighterd, "tasks", "rm", "-f", "f").returncode == 0
