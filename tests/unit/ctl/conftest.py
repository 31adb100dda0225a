"""Real ctl processes against a scripted manager."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.manager import FakeManager

CTL = Path(sys.executable).parent / "ctl"
PATIENCE_S = 20.0

Ctl = Callable[..., "subprocess.CompletedProcess[bytes]"]
Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture(autouse=True)
def no_signal_is_ignored() -> Iterator[None]:
    """Whoever started the tests, by nohup(1) or in a shell's background."""
    handlers = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}
    before = {
        number: signal.signal(number, handler)
        for number, handler in {**handlers, signal.SIGQUIT: signal.SIG_DFL}.items()
        if signal.getsignal(number) == signal.SIG_IGN
    }
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def socket_path() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="lighter-", dir="/tmp") as folder:
        yield f"{folder}/lighter.sock"


@pytest.fixture
def manager(socket_path: str) -> Iterator[FakeManager]:
    with FakeManager(socket_path) as manager:
        yield manager


@pytest.fixture
def environment(socket_path: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("LIGHTER_", "CONTAINERD_"))}
    return {**kept, "LIGHTER_ADDRESS": socket_path}


@pytest.fixture
def ctl(environment: dict[str, str]) -> Ctl:
    """Run ctl to its end. `input` goes to its standard input, which is empty otherwise."""

    def run(
        *args: str,
        input: bytes | None = None,  # noqa: A002 (subprocess.run's word)
        env: dict[str, str] | None = None,
        cwd: str | None = None,
        stdin: Any = subprocess.DEVNULL,
    ) -> "subprocess.CompletedProcess[bytes]":
        return subprocess.run(
            [str(CTL), *args],
            input=input,
            stdin=stdin if input is None else None,
            capture_output=True,
            timeout=PATIENCE_S,
            env={**environment, **(env or {})},
            cwd=cwd,
        )

    return run


@pytest.fixture
def start(environment: dict[str, str]) -> Iterator[Start]:
    """Start ctl with pipes and leave it running; it is killed when the test ends first."""
    running: list[subprocess.Popen[bytes]] = []

    def launch(*args: str, **streams: int) -> "subprocess.Popen[bytes]":
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        process = subprocess.Popen([str(CTL), *args], env=environment, **{**pipes, **streams})
        running.append(process)
        return process

    yield launch
    for process in running:
        with process:  # closes its streams and waits
            if process.poll() is None:
                process.kill()
