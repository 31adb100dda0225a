"""Terminals that a runtime makes and sends: when it fails after that, when it takes its time."""

import os
import resource
import socket
import sys
from pathlib import Path

import pytest

from lighter.proto import errors
from lighter.shim.loop import Loop
from lighter.shim.stdio import ConsoleSocket
from tests.unit.shim import runtimes
from tests.unit.shim.manager import FakeManager, make_fifo
from tests.unit.shim.test_shim import DESCRIPTORS, settled

# What runc does with --console-socket; with a directory, it is told there when to send.
SENDER = """
import os, socket, sys, time
path, wait = sys.argv[1:]
master, slave = os.openpty()
with socket.socket(socket.AF_UNIX) as connection:
    connection.connect(path)
    if wait:
        open(wait + "/connected", "w").close()
        while not os.path.exists(wait + "/go"):
            time.sleep(0.01)
    socket.send_fds(connection, [b"/dev/ptmx"], [master])
"""


@pytest.fixture
def sends(tmp_path: Path) -> str:
    """The shell command that makes a terminal and sends it."""
    script = tmp_path / "sender.py"
    script.write_text(SENDER)
    return f'{sys.executable} -I -S {script} "$console"'


def test_sec_79_execs_on_a_terminal_that_fail_leave_no_descriptor(
    manager: FakeManager, tmp_path: Path, sends: str
) -> None:
    """The terminal is there, then the runtime fails: nobody takes it."""
    shim = manager.run("c", runtimes.fake(tmp_path / "runtime", exec=f"{sends} ''; exit 1"))
    shim.call("start")
    assert settled(shim.pid, DESCRIPTORS) == DESCRIPTORS
    for number in range(50):
        with pytest.raises(errors.FailedPrecondition, match="it ended with exit status 1"):
            shim.exec(f"x{number}", terminal=True, console=str(manager.base / "console"))
    assert settled(shim.pid, DESCRIPTORS) == DESCRIPTORS
    assert not (manager.base / "console").exists()


def test_sec_79_a_runtime_that_sends_its_terminal_late_holds_nobody_up(
    manager: FakeManager, tmp_path: Path, sends: str
) -> None:
    late = f"{sends} {tmp_path}"
    runtime = runtimes.fake(
        tmp_path / "runtime", exec=f'[ -z "$console" ] && echo hi || {late}; {runtimes.LIVES}'
    )
    shim = manager.run("c", runtime)
    shim.call("start")
    slow = {"stdin": "", "stdout": "", "stderr": "", "rows": 24, "cols": 80, "terminal": True}
    console = str(manager.base / "console")
    waiting = shim.ask("exec", exec_id="slow", process="", console=console, **slow)
    manager.until((tmp_path / "connected").exists, "the runtime has connected")
    fifo = make_fifo(tmp_path / "out")
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    shim.exec("other", stdout=fifo)
    os.set_blocking(reader, True)
    assert os.read(reader, 16) == b"hi\n"
    os.close(reader)
    assert waiting not in manager.answers
    (tmp_path / "go").touch()
    assert manager.answer(waiting)["pid"] > 0
    shim.call("resize", exec_id="slow", rows=1, cols=1)
    assert manager.reports() == ""


def test_a_terminal_that_finds_no_free_descriptor_is_taken_later(tmp_path: Path) -> None:
    errors_: list[BaseException] = []
    loop = Loop(errors_.append)
    console = ConsoleSocket(loop, str(tmp_path / "console"))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    pair = os.pipe()
    with socket.socket(socket.AF_UNIX) as runtime:
        runtime.connect(console.path)
        socket.send_fds(runtime, [b"/dev/ptmx"], [pair[0]])
        lowest = os.dup(0)
        os.close(lowest)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, limits[1]))
        try:
            loop.call_later(0.05, loop.stop)
            loop.run()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        master = loop.spawn(console.master(20))
        master.when_done(loop.stop)
        loop.run()
    os.write(pair[1], b"x")
    fd = master._value
    assert os.read(fd, 1) == b"x"
    for one in (fd, *pair):
        os.close(one)
    console.close()
    loop.close()
    assert errors_ == []
