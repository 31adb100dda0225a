"""Reaching a shim: its connection, and its process, which is known by its pid and its start
together, never by the pid alone.
"""

import asyncio
import os
import signal
import subprocess
from pathlib import Path

from lighter.daemon.tasks import reach
from lighter.daemon.tasks.entry import Entry
from lighter.daemon.tasks.shims import Peer, ShimRouter
from lighter.proto import states


class Shim(Peer):
    """One that says hello with so many events behind it."""

    def __init__(self, entry: Entry, sequence: int) -> None:
        super().__init__(ShimRouter(2, lambda _peer: None, lambda *_event: True), entry.incarnation)
        self.version = 1
        self.identity = {"sequence": sequence}


def test_f08_who_asks_before_a_shim_has_come_back_waits_for_it() -> None:
    """A start that is repeated right after the next manager's own, for one."""

    async def work() -> None:
        entry = Entry("default", "c", "a" * 16, states.CREATED, "", "", 1, last_sequence=1)
        shim = Shim(entry, 1)
        asyncio.get_running_loop().call_later(0.1, setattr, entry, "peer", shim)
        assert await reach.connected(entry) is shim

    asyncio.run(work())


def test_f10_who_asks_before_a_shim_has_told_what_happened_waits_for_that() -> None:
    """It runs already, and its start is an event that the manager has not heard of yet."""

    async def work() -> None:
        entry = Entry("default", "c", "a" * 16, states.CREATED, "", "", 1, last_sequence=1)
        entry.peer = Shim(entry, 2)
        asked = asyncio.ensure_future(reach.connected(entry))
        await asyncio.sleep(0.1)
        assert not asked.done(), "it would be asked to start again"
        entry.last_sequence = 2
        assert await asked is entry.peer

    asyncio.run(work())


def test_f45_a_process_that_came_by_a_dead_shims_pid_is_no_shim() -> None:
    """Nobody who has no pidfd of it can signal it."""
    with subprocess.Popen(["sleep", "1000"]) as stranger:
        try:
            stat = Path(f"/proc/{stranger.pid}/stat").read_text().rpartition(")")[2].split()
            record = {"pid": stranger.pid, "start": int(stat[19])}
            of_a_dead_one = {**record, "start": record["start"] - 1}
            assert not reach.is_alive(of_a_dead_one)
            assert reach.find_process(of_a_dead_one) is None
            reach.kill_process(of_a_dead_one)
            found = reach.find_process(record)
            assert found is not None
            os.close(found.pidfd)
            reach.kill_process(record)
            assert stranger.wait(20) == -signal.SIGKILL
        finally:
            stranger.kill()
    assert not reach.is_alive(record)
    assert reach.find_process(record) is None


def test_f45_one_that_has_ended_and_is_not_reaped_is_not_alive() -> None:
    ended = subprocess.Popen(["true"])
    os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
    stat = Path(f"/proc/{ended.pid}/stat").read_text().rpartition(")")[2].split()
    record = {"pid": ended.pid, "start": int(stat[19])}
    assert not reach.is_alive(record)
    assert reach.find_process(record) is None
    ended.wait()
