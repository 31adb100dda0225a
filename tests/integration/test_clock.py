"""F57: the clock of a running manager, its spawner and its shims is set.

It is what Python asks for the time: a file tells how far that is from the host's.
"""

import hashlib
import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests import lives
from tests.harness import Lighterd, await_that
from tests.lives import ask

YEAR_S = 365 * 86400
# Loaded before anything of the manager's: see the documentation of the module site.
SET_CLOCK = """\
import os, time
def step(at={path!r}):
    with open(at) as file:
        return int(file.read())
def seconds(real=time.time):
    return real() + step()
def nanoseconds(real=time.time_ns):
    return real() + step() * 10**9
time.time, time.time_ns = seconds, nanoseconds
"""


class Clock:
    """Of one instance."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self._file = directory / "step"
        self.set(0)
        (directory / "sitecustomize.py").write_text(SET_CLOCK.format(path=str(self._file)))
        self.environ = {"PYTHONPATH": str(directory)}

    def set(self, seconds: int) -> None:
        """So far from the host's."""
        new = self._file.with_name("new")
        new.write_text(str(seconds))
        os.rename(new, self._file)


@pytest.fixture
def lighterd(make_lighterd: Callable[..., Lighterd]) -> Lighterd:
    return make_lighterd()


@pytest.fixture
def clock(lighterd: Lighterd) -> Clock:
    """Of a manager that is started with it, as are its spawner and all shims."""
    clock = Clock(lighterd.base / "clock")
    lighterd.start(**clock.environ)
    return clock


def health(lighterd: Lighterd, name: str) -> Any:
    return ask(lighterd, "containers.get", id=name)["container"]["health"] or {"log": []}


def held(lighterd: Lighterd, digest: str) -> bool:
    """Whether it is there after a collection."""
    lighterd.ctl("system", "prune", check=True)
    return digest in lighterd.ctl("content", "ls", "-q", check=True).stdout.decode().split()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("step_s", [10 * YEAR_S, -50 * YEAR_S], ids=["ahead", "back"])
def test_f57_nothing_ends_because_the_clock_is_set(
    lighterd: Lighterd, clock: Clock, step_s: int
) -> None:
    busybox = lighterd.import_busybox()
    lighterd.ctl("leases", "create", "--id", "mine", "-x", "1h", check=True)
    done = lighterd.ctl("content", "ingest", "--lease", "mine", "one", input=b"1", check=True)
    digest = "sha256:" + hashlib.sha256(b"1").hexdigest()
    assert held(lighterd, digest), done
    lives.begin(lighterd, busybox, "waited-for", "sleep", "1000")
    deaf = lives.begin(lighterd, busybox, "deaf", "sh", "-c", "trap '' TERM; sleep 1000 & wait")
    lives.await_handler(deaf, signal.SIGTERM)
    lighterd.ctl("run", "-d", "--restart", "always", busybox, "again", "sleep", "1000", check=True)
    for name, period in (("starting", "1h"), ("ill", "3s")):
        flags = ("--health-cmd", "false", "--health-interval", "200ms", "--health-retries", "1")
        start = ("--health-start-period", period, "--health-start-interval", "200ms")
        lighterd.ctl("run", "-d", *flags, *start, busybox, name, "sleep", "1000", check=True)
    with lighterd.client() as client, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(
            client.call, "tasks", "wait", timeout_s=120, id="waited-for", exec_id=""
        )
        clock.set(step_s)

        def was_asked_since() -> bool:
            starts = [probe["started_at"] / 1e9 for probe in health(lighterd, "starting")["log"]]
            return len(starts) > 2 and abs(starts[-3] - time.time() - step_s) < YEAR_S

        await_that(was_asked_since, 60, "three probes were by the new clock")
        assert health(lighterd, "starting")["status"] == "starting", "its hour is not over"
        await_that(lambda: health(lighterd, "ill")["status"] == "unhealthy", 60, "its 3 s are over")
        assert held(lighterd, digest), "the lease has most of an hour"
        assert lighterd.ctl("exec", "waited-for", "true").returncode == 0
        pid = lives.task(lighterd, "again")["pid"]
        os.kill(pid, signal.SIGKILL)
        await_that(
            lambda: lives.task(lighterd, "again").get("pid") not in (None, 0, pid),
            60,
            "it is started again after its pause",
        )
        began = time.monotonic()
        lighterd.ctl("stop", "-t", "1", "deaf", check=True)
        assert time.monotonic() - began >= 1
        assert lives.task(lighterd, "deaf")["exit_status"] == 137
        assert not waiting.done()
        lighterd.ctl("kill", "waited-for", check=True)
        assert waiting.result(60)["exit_status"] == 137
    clock.set(0)
    assert held(lighterd, digest), "nor when the clock is right again"
    lighterd.ctl("rm", "-f", "waited-for", "deaf", "again", "starting", "ill", check=True)
    assert not (wrong := lives.check_history(lives.history(lighterd))), wrong
