"""Lines over TCP, to real receivers: frames, those that come and go, and what is lost with whom.

Everything runs in one thread: the loop turns until what the test reads is there.
"""

import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lighter.daemon.tasks.logsending import order_of, read_sending
from lighter.proto.daemon_api import STDERR, STDOUT
from lighter.shim import sendstream
from lighter.shim.logfile import LogFile
from lighter.shim.loop import Loop
from lighter.shim.sender import SentLog
from lighter.shim.sendstream import MAX_WAITING, StreamSender
from tests.unit.shim.test_loop import run
from tests.unit.shim.test_sender import CONTAINER

LIMIT_S = 30.0


class Receiver:
    """A syslog server of one connection at a time, at an address that it keeps."""

    def __init__(self, port: int = 0) -> None:
        self._listener = socket.create_server(("127.0.0.1", port), reuse_port=False)
        self._listener.setblocking(False)
        self.address: tuple[str, int] = self._listener.getsockname()[:2]
        self.connection: socket.socket | None = None
        self.got = b""

    def read(self) -> bytes:
        """All that has come by now."""
        try:
            if self.connection is None:
                self.connection, _ = self._listener.accept()
                self.connection.setblocking(False)
            while data := self.connection.recv(65536):
                self.got += data
        except BlockingIOError:
            pass
        return self.got

    def frames(self) -> list[bytes]:
        """Those that have come whole."""
        found, rest = [], self.read()
        while rest:
            count, space, rest = rest.partition(b" ")
            assert count.isdigit() and space, rest[:40]
            if len(rest) < int(count):
                break
            found.append(rest[: int(count)])
            rest = rest[int(count) :]
        return found

    def close(self) -> None:
        if self.connection is not None:
            self.connection.close()
            self.connection = None
        self._listener.close()


@pytest.fixture
def silent() -> Iterator[tuple[str, int]]:
    """An address where nobody listens, and nobody else can."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.close()


def until(loop: Loop, condition: Callable[[], object]) -> None:
    """Turn the loop until something is so."""
    deadline = time.monotonic() + LIMIT_S
    is_so = False

    def look() -> None:
        nonlocal is_so
        is_so = bool(condition())
        if is_so or time.monotonic() > deadline:
            loop.stop()
        else:
            loop.call_later(0.005, look)

    loop.call_soon(look)
    loop.run()
    assert is_so, "it does not come about"


def at_once(loop: Loop) -> None:
    """Let pauses pass that are only waited for."""
    for timer in loop._timers:
        timer.at = 0.0


def test_each_message_is_a_frame_with_its_length(loop: Loop, receiver: Receiver) -> None:
    sender = StreamSender(loop, receiver.address)
    messages = [b"one", b"", b"with\nnewline and 7 digits", "ü".encode(), b"x" * 40_000]
    for message in messages:
        sender.send(message)
    until(loop, lambda: receiver.frames() == messages)
    sender.send(b"later")
    until(loop, lambda: receiver.frames() == [*messages, b"later"])
    assert receiver.got.startswith(b"3 one0 25 with\n")
    assert sender.close() == 0


def test_what_comes_while_the_receiver_is_away_waits_for_it(loop: Loop) -> None:
    away = Receiver()
    away.close()
    sender = StreamSender(loop, away.address)
    sender.send(b"one")
    until(loop, lambda: sender._not_before)  # refused
    sender.send(b"two")
    back = Receiver(away.address[1])

    def came() -> bool:
        at_once(loop)
        return back.frames() == [b"one", b"two"]

    until(loop, came)
    assert sender.close() == 0
    back.close()


def test_pauses_between_tries_grow_to_a_bound(loop: Loop, silent: tuple[str, int]) -> None:
    sender = StreamSender(loop, silent)
    sender.send(b"one")
    pauses: list[float] = []

    def looked() -> bool:
        if sender._pause_s not in pauses[-1:]:
            pauses.append(sender._pause_s)
        at_once(loop)
        return len(pauses) > 1 and pauses[-1] == sendstream.MAX_PAUSE_S

    until(loop, looked)
    assert pauses == sorted(pauses) and pauses[0] <= 2 * sendstream.FIRST_PAUSE_S
    assert sender.close() == 1, "what was never sent is told"


def test_a_connection_that_ends_is_made_again_with_whole_frames(loop: Loop) -> None:
    first = Receiver()
    sender = StreamSender(loop, first.address)
    sender.send(b"one")
    until(loop, lambda: first.frames() == [b"one"])
    big = b"y" * 200_000
    assert sender._connection is not None
    sender._connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    sender.send(big)  # more than is taken at once: a part of it goes with the connection
    until(loop, lambda: sender._taken)
    first.close()
    second = Receiver(first.address[1])

    def came() -> bool:
        at_once(loop)
        return second.frames() == [big]

    until(loop, came)
    sender.send(b"three")
    until(loop, lambda: second.frames() == [big, b"three"])
    assert sender.close() == 0
    second.close()


def test_an_end_that_nobody_wrote_to_is_seen(loop: Loop) -> None:
    """A receiver that was started anew gets the first line that comes after it."""
    first = Receiver()
    sender = StreamSender(loop, first.address)
    sender.send(b"one")
    until(loop, lambda: first.frames() == [b"one"])
    first.close()
    until(loop, lambda: sender._connection is None)
    assert not [timer for timer in loop._timers if timer.callback], "nothing waits: nothing is done"
    second = Receiver(first.address[1])
    sender.send(b"two")

    def came() -> bool:
        at_once(loop)
        return second.frames() == [b"two"]

    until(loop, came)
    sender.close()
    second.close()


def test_a_receiver_that_reads_nothing_holds_nobody_up(loop: Loop, receiver: Receiver) -> None:
    sender = StreamSender(loop, receiver.address)
    taken = refused = 0

    def fill() -> bool:
        nonlocal taken, refused
        try:
            for _ in range(100):
                sender.send(b"z" * 1000)
                taken += 1
        except BlockingIOError:
            refused += 1
        return refused > 200  # what the kernel takes is taken by then too

    until(loop, fill)
    assert sender._waiting <= MAX_WAITING
    begun = time.monotonic()
    run(loop, sender.drain(0.2))
    assert 0.2 <= time.monotonic() - begun < LIMIT_S
    left = sender.close()
    assert 0 < left < taken

    def came() -> bool:
        return len(receiver.frames()) == taken - left

    until(loop, came)


def sent_log(loop: Loop, address: tuple[str, int], tmp_path: Path) -> SentLog:
    given = {"address": f"tcp://{address[0]}:{address[1]}", "tag": "t"}
    (tmp_path / "log").mkdir()
    order = order_of(CONTAINER, read_sending("syslog", given))
    return SentLog(LogFile(str(tmp_path / "log"), 0, 0), order, loop)


def test_a_log_is_drained_with_its_last_line(
    loop: Loop, receiver: Receiver, tmp_path: Path
) -> None:
    """Also when the loop has not turned since the first line came."""
    log = sent_log(loop, receiver.address, tmp_path)
    log.append(STDOUT, b"one\ntwo")
    log.append(STDERR, b"three\n")
    run(loop, log.drain())
    log.close()
    until(loop, lambda: len(receiver.frames()) == 3)
    lines = [frame.decode().rpartition(" t - - - ") for frame in receiver.frames()]
    assert [(head[:5], line) for head, _, line in lines] == [
        ("<30>1", "one"),
        ("<27>1", "three"),
        ("<30>1", "two"),
    ]


def test_lines_that_nobody_takes_are_counted_in_the_log(
    loop: Loop, silent: tuple[str, int], tmp_path: Path
) -> None:
    log = sent_log(loop, silent, tmp_path)
    for _ in range(3):
        log.append(STDOUT, b"line\n")
    begun = time.monotonic()
    run(loop, log.drain())
    log.close()
    assert time.monotonic() - begun < LIMIT_S
    (file,) = (tmp_path / "log").iterdir()
    assert b"3 lines were not taken by syslog" in file.read_bytes()
