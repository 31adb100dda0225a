"""daemon/notify: the datagrams of sd_notify, and the word for the shell that ran --daemon."""

import asyncio
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lighter.daemon.notify import Notifier, fork_and_wait


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.settimeout(30)
        yield sock


def test_the_service_manager_is_told(receiver: socket.socket) -> None:
    notifier = Notifier(receiver.getsockname())
    notifier.ready()
    assert receiver.recv(256).split(b"\n") == [b"READY=1", b"MAINPID=%d" % os.getpid()]
    notifier.stopping()
    assert receiver.recv(256) == b"STOPPING=1"


def test_an_abstract_address_is_understood() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind("")  # autobind: an abstract name
        sock.settimeout(30)
        Notifier("@" + sock.getsockname()[1:].decode()).send("X=1")
        assert sock.recv(16) == b"X=1"


def test_nobody_who_listens_is_no_error(tmp_path: Path) -> None:
    Notifier(None).ready()
    Notifier(str(tmp_path / "missing")).ready()


def test_the_address_is_taken_out_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/x")
    Notifier.from_environment()
    assert "NOTIFY_SOCKET" not in os.environ


def told(act: str) -> tuple[int, bytes]:
    """What the waiting parent of `fork_and_wait` prints and exits with, after `act`."""
    error_read, error_write = os.pipe()
    parent = os.fork()
    if parent == 0:
        os.dup2(error_write, 2)
        notifier = Notifier(None, fork_and_wait())
        if act == "ready":
            notifier.ready()
            notifier.failed("too late")  # the shell has gone on
        elif act == "failed":
            notifier.failed("bind x: cause")
        os._exit(0)
    os.close(error_write)
    _pid, status = os.waitpid(parent, 0)
    with os.fdopen(error_read, "rb") as pipe:
        return os.waitstatus_to_exitcode(status), pipe.read()


def test_the_shell_returns_when_the_manager_is_ready() -> None:
    assert told("ready") == (0, b"")


def test_the_shell_is_told_why_it_is_not() -> None:
    assert told("failed") == (1, b"lighterd: bind x: cause\n")


def test_the_shell_is_told_when_it_ended_without_a_word() -> None:
    code, text = told("die")
    assert code == 1 and b"before it was ready" in text


def test_a_shell_that_is_gone_is_no_error() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    Notifier(None, write_end).ready()
    with pytest.raises(OSError):
        os.fstat(write_end)


@pytest.mark.parametrize(
    ("usec", "pid", "watchdog_s"),
    [
        ("2000000", str(os.getpid()), 2.0),
        ("2000000", "", 2.0),
        ("2000000", "1", 0.0),  # meant for another process
        ("soon", "", 0.0),
        ("", "", 0.0),
    ],
)
def test_the_watchdog_is_taken_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, usec: str, pid: str, watchdog_s: float
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", usec)
    monkeypatch.setenv("WATCHDOG_PID", pid)
    assert Notifier.from_environment().watchdog_s == watchdog_s
    assert not {"WATCHDOG_USEC", "WATCHDOG_PID"} & os.environ.keys()


def received(receiver: socket.socket) -> list[bytes]:
    """All that has been sent so far."""
    receiver.setblocking(False)
    words = []
    try:
        while True:
            words.append(receiver.recv(256))
    except BlockingIOError:
        return words


def test_the_loop_tells_that_it_turns_and_its_status_when_it_changes(
    receiver: socket.socket,
) -> None:
    statuses = iter(["one", "one", *["two"] * 1000])

    async def main() -> list[bytes]:
        notifier = Notifier(receiver.getsockname(), watchdog_s=0.06)
        telling = asyncio.create_task(notifier.keep_telling(lambda: next(statuses)))
        words: list[bytes] = []
        async with asyncio.timeout(30):
            while len(words) < 5:
                words += received(receiver)
                await asyncio.sleep(0.01)
        telling.cancel()
        return words

    words = asyncio.run(main())
    assert words[:3] == [b"WATCHDOG=1\nSTATUS=one", b"WATCHDOG=1", b"WATCHDOG=1\nSTATUS=two"]
    assert set(words[3:]) == {b"WATCHDOG=1"}


def test_a_loop_that_hangs_does_not_tell(receiver: socket.socket) -> None:
    async def main() -> list[bytes]:
        notifier = Notifier(receiver.getsockname(), watchdog_s=0.06)
        telling = asyncio.create_task(notifier.keep_telling(lambda: ""))
        await asyncio.sleep(0)
        received(receiver)
        time.sleep(0.5)  # noqa: ASYNC251 (it is what is tested)
        words = received(receiver)
        telling.cancel()
        return words

    assert asyncio.run(main()) == []


def test_a_service_manager_that_does_not_read_holds_nothing_up(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as full:
        full.bind(str(tmp_path / "notify"))
        notifier = Notifier(str(tmp_path / "notify"))
        begun = time.monotonic()
        for _ in range(10_000):  # many more than a queue holds (net.unix.max_dgram_qlen)
            notifier.send("WATCHDOG=1", timeout_s=0)
        assert time.monotonic() - begun < 60
