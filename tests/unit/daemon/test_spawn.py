"""The manager's side of the spawner, with a program in its place that does nothing."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from lighter.daemon.spawning import spawner as module
from lighter.daemon.spawning.placement import Placement
from lighter.daemon.spawning.spawner import Inherited, Spawner
from lighter.proto.errors import Unavailable
from lighter.proto.paths import State

PROGRAM = ["/bin/sh", "-c", "exec sleep 1000"]

# Says that it has loaded. The first one `ends` or `hangs` then; others say no to whatever is asked.
LOADING = """
import os, socket, sys, time
import msgpack
ours = socket.socket(fileno=3)
ours.send(msgpack.packb({"ident": 0}))
try:
    os.mkdir(sys.argv[1])
except FileExistsError:
    while packet := ours.recv(1 << 16):
        ours.send(msgpack.packb({"ident": msgpack.unpackb(packet)["ident"], "error": "not today"}))
else:
    if sys.argv[2] == "hangs":
        time.sleep(1000)
"""


class Nowhere(Placement):
    """Leaves spawners where they are born."""

    def started(self, pid: int, launcher: list[str]) -> None:
        pass


class InScope(Nowhere):
    """As if systemd had made a scope for each."""

    def launcher(self) -> list[str]:
        return [] if self._refused else ["/usr/bin/env"]


def spawner_of(tmp_path: Path, first: str, placement: Placement) -> Spawner:
    program = [sys.executable, "-I", "-c", LOADING, str(tmp_path / "first"), first]
    inherited = Inherited.of_this_process()
    return Spawner("7e577e57", State(str(tmp_path)), inherited, (), program, placement)


def test_a_start_tells_the_kind_of_its_spawner_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes a look at each file that a spawner loads, while clients wait."""
    kinds: list[object] = []

    def kind_of(made_from: object) -> str:
        kinds.append(made_from)
        return "0" * 64

    monkeypatch.setattr(module, "kind_of", kind_of)

    async def work() -> None:
        inherited = Inherited.of_this_process()
        state = State(str(tmp_path))
        spawner = Spawner("7e577e57", state, inherited, (), PROGRAM, Nowhere("", 1, False))
        spawner.start()
        assert len(kinds) == 1
        os.kill(spawner.pid, signal.SIGKILL)
        await spawner.close()

    asyncio.run(work())


def test_who_waits_for_a_spawner_that_dies_as_it_has_loaded_gets_the_next(
    tmp_path: Path,
) -> None:
    async def work() -> None:
        spawner = spawner_of(tmp_path, "ends", Nowhere("", 1, False))
        spawner.start()
        try:
            asked = asyncio.create_task(spawner.fork_worker(0, "look"))
            await asyncio.sleep(0)
            # The loop stands, so that it hears of both at once.
            os.waitid(os.P_PID, spawner.pid, os.WEXITED | os.WNOWAIT)  # noqa: ASYNC222
            with pytest.raises(Unavailable, match="fork process: not today"):
                await asked
        finally:
            await spawner.close()

    asyncio.run(asyncio.wait_for(work(), 60))


def test_f62_a_spawner_that_hangs_later_is_no_scope_that_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else its successor's shims were in none."""

    async def work() -> None:
        placement = InScope("", 1, True)
        spawner = spawner_of(tmp_path, "hangs", placement)
        spawner.start()
        try:
            with monkeypatch.context() as patch:
                patch.setattr(module, "REPLY_S", 0.1)
                with pytest.raises(Unavailable, match="did not answer"):
                    await spawner.fork_worker(0, "look")
            with pytest.raises(Unavailable, match="fork process: not today"):
                await spawner.fork_worker(0, "look")
            assert spawner._in_scope
        finally:
            await spawner.close()

    asyncio.run(asyncio.wait_for(work(), 60))
