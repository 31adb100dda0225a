"""The manager's side of the spawner, with a program in its place that does nothing."""

import asyncio
import os
import signal
from pathlib import Path

import pytest

from lighter.daemon import spawn
from lighter.daemon.placement import Placement
from lighter.daemon.spawn import Inherited, Spawner
from lighter.proto.paths import State

PROGRAM = ["/bin/sh", "-c", "exec sleep 1000"]


class Nowhere(Placement):
    """Leaves spawners where they are born."""

    def started(self, pid: int, launcher: list[str]) -> None:
        pass


def test_a_start_tells_the_kind_of_its_spawner_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes a look at each file that a spawner loads, while clients wait."""
    kinds: list[object] = []

    def kind_of(made_from: object) -> str:
        kinds.append(made_from)
        return "0" * 64

    monkeypatch.setattr(spawn, "kind_of", kind_of)

    async def work() -> None:
        inherited = Inherited.of_this_process()
        state = State(str(tmp_path))
        spawner = Spawner("7e577e57", state, inherited, (), PROGRAM, Nowhere("", 1, False))
        spawner.start()
        assert len(kinds) == 1
        os.kill(spawner.pid, signal.SIGKILL)
        await spawner.close()

    asyncio.run(work())
