"""The shim that is forked ahead: taken once, replaced, never in the way, gone with its spawner."""

import os
import signal
import time
from pathlib import Path

import psutil
import pytest

from tests.harness import await_that
from tests.unit.shim import runtimes
from tests.unit.shim.manager import INSTANCE, FakeManager

TITLE = f"lighter-spare --instance {INSTANCE}"


def spares(manager: FakeManager) -> list[psutil.Process]:
    return [
        child
        for child in psutil.Process(manager.spawner).children()
        if child.status() != psutil.STATUS_ZOMBIE and " ".join(child.cmdline()).strip() == TITLE
    ]


def await_spare(manager: FakeManager) -> psutil.Process:
    """The one that is there, waiting for its order."""
    await_that(lambda: len(spares(manager)) == 1, 20, "there is one spare")
    (spare,) = spares(manager)
    await_that(lambda: spare.status() == psutil.STATUS_SLEEPING, 20, "it waits")
    return spare


def test_the_spare_becomes_the_shim_and_another_is_made(
    manager: FakeManager, tmp_path: Path
) -> None:
    runtime = runtimes.fake(tmp_path / "runtime")
    seen = set()
    for name in ("a", "b"):
        spare = await_spare(manager)
        shim = manager.run(name, runtime)
        assert shim.pid == spare.pid
        assert psutil.Process(shim.pid).cmdline()[0].startswith("lighter-shim ")
        seen.add(spare.pid)
    assert len(seen) == 2
    assert await_spare(manager).pid not in seen
    assert manager.reports() == ""


@pytest.mark.parametrize("gone", [True, False], ids=["reaped", "just now"])
def test_a_spare_that_died_keeps_nobody_waiting(
    manager: FakeManager, tmp_path: Path, gone: bool
) -> None:
    spare = await_spare(manager)
    if not gone:
        os.kill(manager.spawner, signal.SIGSTOP)
    spare.kill()
    if gone:
        await_that(lambda: not psutil.pid_exists(spare.pid), 20, "it is reaped")
    else:
        await_that(lambda: spare.status() == psutil.STATUS_ZOMBIE, 20, "it is dead")
    order = manager.order("c", runtimes.fake(tmp_path / "runtime"))
    if not gone:
        # The order is read before the death is heard of.
        os.kill(manager.spawner, signal.SIGCONT)
    shim = manager.fork(order)
    assert shim.pid != spare.pid
    shim.created()
    await_spare(manager)


@pytest.mark.parametrize("how", [signal.SIGKILL, 0], ids=["killed", "closed"])
def test_a_spare_ends_with_its_spawner(manager: FakeManager, how: int) -> None:
    spare = await_spare(manager)
    if how:
        os.kill(manager.spawner, how)
    else:
        manager.leave()
    await_that(lambda: not spare.is_running(), 20, "the spare ends")


def test_many_at_once_need_no_spare(manager: FakeManager, tmp_path: Path) -> None:
    runtime = runtimes.fake(tmp_path / "runtime")
    began = time.monotonic()
    shims = [manager.fork(manager.order(f"c{n}", runtime)) for n in range(8)]
    for shim in shims:
        shim.created()
    assert len({shim.pid for shim in shims}) == 8
    assert time.monotonic() - began < 20
    assert len(spares(manager)) <= 1


def test_a_spare_gives_back_what_it_touched(manager: FakeManager) -> None:
    """What it opened to warm up is closed: three standard streams and its one socket are left."""
    spare = await_spare(manager)
    names = sorted(int(name) for name in os.listdir(f"/proc/{spare.pid}/fd"))
    assert names[:3] == [0, 1, 2]
    assert len(names) == 4, [os.readlink(f"/proc/{spare.pid}/fd/{name}") for name in names]
