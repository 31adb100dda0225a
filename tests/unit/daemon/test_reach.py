"""Reaching a shim: its connection, and its process, which is known by its pid and its start
together, never by the pid alone.
"""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

from lighter.daemon.tasks import reach
from lighter.daemon.tasks.entry import Entry
from lighter.daemon.tasks.shims import Peer, ShimRouter
from lighter.proto import shim_api, states
from lighter.proto.errors import ResourceExhausted


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


def test_what_cannot_be_recorded_keeps_nobody_from_ending_a_process() -> None:
    """F49: a full disk refuses the event again and again."""

    async def work() -> None:
        entry = Entry("default", "c", "a" * 16, states.RUNNING, "", "", 1, last_sequence=1)
        shim = Shim(entry, 2)
        entry.peer = shim
        asked = asyncio.ensure_future(reach.connected(entry, to_end=True))
        await asyncio.sleep(0.1)
        assert not asked.done(), "it has yet to tell"
        shim.refusal = ResourceExhausted("the disk is full")
        assert await asked is shim
        waits = asyncio.ensure_future(reach.connected(entry))
        await asyncio.sleep(0.1)
        assert not waits.done()
        waits.cancel()

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


_HEARS = """
import signal

signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGURG, signal.SIGWINCH})
print("ready", flush=True)
for _ in range(2):
    print(signal.sigwait({signal.SIGURG, signal.SIGWINCH}).name, flush=True)
"""


def test_a_shim_is_called_only_while_it_has_not_connected() -> None:
    entry = Entry("default", "c", "0" * 16, "running", "", "", 0)
    reach.call_shim(entry)  # no process is known
    with subprocess.Popen([sys.executable, "-c", _HEARS], stdout=subprocess.PIPE) as shim:
        assert shim.stdout is not None
        entry.pidfd = os.pidfd_open(shim.pid)
        try:
            assert shim.stdout.readline() == b"ready\n"
            reach.call_shim(entry)
            assert shim.stdout.readline() == b"SIGURG\n"
            entry.peer = SimpleNamespace()  # type: ignore[assignment]
            reach.call_shim(entry)
            os.kill(shim.pid, signal.SIGWINCH)
            assert shim.stdout.readline() == b"SIGWINCH\n"
            shim.wait(20)
            entry.peer = None
            reach.call_shim(entry)  # it has ended
        finally:
            shim.kill()
            os.close(entry.pidfd)


def test_who_does_not_know_the_call_is_not_disturbed_by_it() -> None:
    """As shims of versions before."""
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as shim:
        assert shim.stdin is not None and shim.stdout is not None
        os.kill(shim.pid, shim_api.LISTENING)
        shim.stdin.write(b"alive\n")
        shim.stdin.close()
        assert shim.stdout.read() == b"alive\n"
    assert shim.returncode == 0
