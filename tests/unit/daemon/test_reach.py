"""A shim's process is known by its pid and its start together, never by the pid alone."""

import os
import signal
import subprocess
from pathlib import Path

from lighter.daemon.tasks import reach


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
