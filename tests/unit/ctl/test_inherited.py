"""What ctl inherits from who starts it: a standard input that nobody can read, signals that are
ignored, standard descriptors that are closed.
"""

import os
import signal
import socket
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

from tests.fakes.manager import FakeManager
from tests.unit.ctl.conftest import CTL, PATIENCE_S, Start
from tests.unit.ctl.test_attached import ENDED, Container, container

__all__ = ["container"]


def write_only() -> int:
    """As nohup(1) leaves a terminal's reader."""
    return os.open("/dev/null", os.O_WRONLY)


def unconnected() -> int:
    """Every read of it fails; of a connection that was reset the first alone, which is a splice."""
    return socket.socket().detach()


@pytest.mark.parametrize("opened", [write_only, unconnected])
def test_a_standard_input_that_cannot_be_read_has_ended(
    manager: FakeManager, container: Container, start: Start, opened: Callable[[], int]
) -> None:
    fd = opened()
    try:
        ctl = start("run", "--rm", "busybox", "c1", "cat", stdin=fd)
    finally:
        os.close(fd)
    wait = container.started()
    assert container.process.read() == b""
    manager.asked("tasks.close_stdin")
    wait.reply(ENDED)
    container.process.end()
    assert ctl.wait(PATIENCE_S) == 5


def ignoring(number: int, *words: str) -> list[str]:
    return ["/bin/sh", "-c", f'trap "" {number}; exec "$@"', "sh", *words]


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT])
def test_a_signal_that_is_ignored_stays_so(
    manager: FakeManager,
    container: Container,
    environment: dict[str, str],
    number: signal.Signals,
) -> None:
    """By nohup(1), or by a shell that has ctl in the background."""
    argv = ignoring(number, str(CTL), "run", "--rm", "busybox", "c1", "cat")
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(argv, env=environment, **pipes) as ctl:
        try:
            wait = container.started()
            ctl.send_signal(number)
            assert ctl.stdin
            ctl.stdin.write(b"typed")
            ctl.stdin.flush()
            assert container.process.read() == b"typed"  # of two signals at once the last is first
            ctl.send_signal(signal.SIGUSR1)
            assert manager.asked("tasks.kill").body["signal"] == signal.SIGUSR1
            wait.reply(ENDED)
            container.process.end()
            assert ctl.wait(PATIENCE_S) == 5
        finally:
            ctl.kill()


@pytest.mark.parametrize(
    ("words", "closed"),
    [("logs web", "2>&-"), ("logs web", ">&-"), ("logs web", "<&- >&- 2>&-"), ("ps -q", ">&-")],
)
def test_what_a_closed_descriptor_would_get_goes_nowhere(
    manager: FakeManager, environment: dict[str, str], words: str, closed: str
) -> None:
    items = [{"timestamp": 1, "stream": stream, "data": b"line\n"} for stream in (1, 2, 1)]
    manager.on("logs.read", items)
    manager.on("containers.list", {"containers": []})
    manager.on("tasks.list", {"tasks": []})
    done = subprocess.run(
        ["/bin/sh", "-c", f"{CTL} {words} {closed}"],
        env=environment,
        capture_output=True,
        timeout=PATIENCE_S,
    )
    assert (done.returncode, done.stderr.replace(b"line\n", b"")) == (0, b"")
    assert done.stdout == (b"line\n" * 2 if closed == "2>&-" else b"")
