"""Output and input through real pipes and FIFOs: who waits, who does not, and that no byte is lost.

Everything runs in one thread: `Pump.turn` gives the loop its rounds between the steps of a test, so
a test decides who is slow and when a reader comes or goes.
"""

import fcntl
import hashlib
import os
import random
import stat
import termios
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lighter.proto import logchunks
from lighter.proto.daemon_api import NOTICE
from lighter.proto.errors import InvalidArgument
from lighter.shim import sinks, streams
from lighter.shim.logfile import LogFile
from lighter.shim.loop import Loop
from lighter.shim.stdio import Stdio
from lighter.shim.streams import InputStream, OutputStream, SharedBuffer

PIPE_BYTES = 65536


class Pump:
    """A container's output pipe, the stream that reads it, and FIFOs for readers."""

    def __init__(self, directory: Path, policy: str = "drop", log: LogFile | None = None) -> None:
        self.directory = directory
        self.errors: list[BaseException] = []
        self.loop = Loop(self.errors.append)
        self.policy = policy
        read_end, self.writer = os.pipe()
        os.set_blocking(self.writer, False)
        self.ended = 0
        self.stream = OutputStream(self.loop, read_end, 1, log, SharedBuffer(), self._on_end)
        self.stream.begin()
        self._spools = 0

    def _on_end(self) -> None:
        self.ended += 1

    def fifo(self, name: str = "out") -> Path:
        path = self.directory / name
        os.mkfifo(path)
        return path

    def attach(self, path: Path | str) -> sinks.Sink:
        self._spools += 1
        spool = str(self.directory / f"{self._spools}.spool")
        return self.stream.add(str(path), self.policy, spool)

    def turn(self, rounds: int = 4) -> None:
        """Let the loop do what can be done now, retries included."""
        for _ in range(rounds):
            for timer in self.loop._timers:
                timer.at = 0.0
            self.loop.call_later(0, self.loop.stop)
            self.loop.run()

    def write(self, data: bytes) -> int:
        """What the container could write without waiting, in bytes; the loop runs meanwhile."""
        written = 0
        while written < len(data):
            try:
                written += os.write(self.writer, data[written : written + PIPE_BYTES])
            except BlockingIOError:
                self.turn()
                try:
                    written += os.write(self.writer, data[written : written + 4096])
                except BlockingIOError:
                    return written
        self.turn()
        return written

    def end(self) -> None:
        os.close(self.writer)
        self.writer = -1
        self.turn()

    def close(self) -> None:
        self.stream.close()
        if self.writer >= 0:
            os.close(self.writer)
        self.loop.close()
        assert not list(self.directory.glob("*.spool")), "a spool is left behind"


@pytest.fixture
def pump(tmp_path: Path, request: pytest.FixtureRequest) -> "Pump":
    pump = Pump(tmp_path, getattr(request, "param", "drop"))
    request.addfinalizer(pump.close)
    return pump


def reader_of(path: Path | str) -> int:
    return os.open(path, os.O_RDONLY | os.O_NONBLOCK)


def read_all(fd: int) -> bytes:
    """What is in the pipe now."""
    parts = []
    try:
        while part := os.read(fd, 1 << 20):
            parts.append(part)
    except BlockingIOError:
        pass
    return b"".join(parts)


def noise(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


def test_bytes_pass_and_the_end_is_passed_on(pump: Pump) -> None:
    path = pump.fifo()
    reader = reader_of(path)
    pump.attach(path)
    pump.write(b"hello")
    assert os.read(reader, 100) == b"hello"
    pump.end()
    assert os.read(reader, 100) == b""
    assert pump.ended
    assert pump.stream.flushed
    os.close(reader)


@pytest.mark.parametrize("logged", [False, True], ids=["splice", "copy"])
def test_a_slow_reader_makes_the_container_wait_and_loses_nothing(
    tmp_path: Path, logged: bool
) -> None:
    (tmp_path / "log").mkdir()
    log = LogFile(str(tmp_path / "log"), 0, 1) if logged else None
    pump = Pump(tmp_path, log=log)
    path = pump.fifo()
    reader = reader_of(path)
    pump.attach(path)
    data = noise(1_000_000)
    written = pump.write(data)
    assert 2 * PIPE_BYTES <= written <= 4 * PIPE_BYTES, "both pipes and one chunk, no more"
    assert not list(tmp_path.glob("*.spool")), "a reader that is there is waited for"
    got = b""
    while written < len(data):
        got += os.read(reader, 50_000)
        pump.turn()
        written += pump.write(data[written:])
    pump.end()
    while not pump.stream.flushed:
        got += os.read(reader, 50_000)
        pump.turn()
    got += read_all(reader)
    assert got == data
    os.close(reader)
    pump.close()
    if log is not None:
        log.close()


def test_a_blocked_stream_does_not_spin(pump: Pump) -> None:
    path = pump.fifo()
    reader = reader_of(path)
    pump.attach(path)
    pump.write(noise(1_000_000))
    assert pump.loop._wait_s() == -1
    assert pump.loop._epoll.poll(0) == []
    os.close(reader)


def test_a_callers_pipe_is_over_when_its_reader_has_gone(pump: Pump) -> None:
    reader, writer = os.pipe()
    sink = pump.attach(f"/proc/{os.getpid()}/fd/{writer}")
    os.close(writer)
    pump.write(noise(1_000_000))  # it is full, and the rest waits for it
    os.close(reader)
    pump.turn()
    assert sink.closed
    assert pump.write(noise(1_000_000)) == 1_000_000, "the container goes on"
    assert pump.errors == []


def test_without_a_reader_the_spool_takes_8_mib_and_then_drops_and_counts(pump: Pump) -> None:
    """F47: a burst that nobody reads."""
    path = pump.fifo()
    sink = pump.attach(path)
    data = noise(12 * 1024 * 1024)
    assert pump.write(data) == len(data), "policy drop: the container never waits"
    reader = reader_of(path)
    got = b""
    while not sink.idle:
        pump.turn()
        got += read_all(reader)
    got += read_all(reader)
    assert len(got) <= sinks.SPOOL_BYTES
    assert len(got) + sink.dropped_bytes == len(data)
    assert data.startswith(got)
    # From now on it keeps up again.
    pump.write(b"more")
    assert read_all(reader) == b"more"
    os.close(reader)


def test_a_spool_whose_directory_was_removed_by_hand_ends_like_any_other(pump: Pump) -> None:
    path = pump.fifo()
    sink = pump.attach(path)
    assert pump.write(b"kept") == 4
    for spool in pump.directory.glob("*.spool"):
        spool.unlink()
        spool.mkdir()  # nor is it to be removed
    sink.close()
    for spool in pump.directory.glob("*.spool"):
        spool.rmdir()
    assert sink.closed and sink.dropped_bytes == 4
    pump.errors.clear()  # that they are lost was told


def test_dropped_bytes_are_reported_when_the_sink_ends(pump: Pump) -> None:
    sink = pump.attach(pump.fifo())
    pump.write(noise(9 * 1024 * 1024))
    assert sink.dropped_bytes
    pump.stream.close()
    lost = 9 * 1024 * 1024
    assert [str(error) for error in pump.errors] == [
        f"write output {pump.directory}/out: {lost} bytes are lost"
    ]


def test_f47_what_a_logging_program_does_not_get_any_more_is_counted(pump: Pump) -> None:
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    sink = pump.attach(f"/proc/self/fd/{writer}")
    os.close(writer)
    pump.write(b"read")
    assert read_all(reader) == b"read"
    data = noise(100_000)
    assert pump.write(data) == len(data)
    os.close(reader)
    pump.turn()
    said = "write output to the logging program: "
    assert [str(error) for error in pump.errors] == [f"{said}it has ended"]
    assert sink.dropped_bytes == len(data), "what it had not read, too"
    assert pump.write(b"more") == 4, "nobody waits for it"
    pump.end()
    assert [str(error) for error in pump.errors[1:]] == [f"{said}{len(data) + 4} bytes are lost"]
    assert sink.closed and pump.ended


def test_f47_a_logging_program_is_found_dead_by_a_write(pump: Pump) -> None:
    """Before the loop has heard of it; a second reader, who is slow, keeps its bytes."""
    reader, writer = os.pipe()
    sink = pump.attach(f"/proc/self/fd/{writer}")
    os.close(writer)
    other = reader_of(path := pump.fifo())
    pump.attach(path)
    pump.turn()
    os.close(reader)
    sink.write(b"lost")
    assert (sink.dropped_bytes, sink.blocked) == (4, False)
    assert pump.write(b"more") == 4
    assert read_all(other) == b"more"
    assert sink.dropped_bytes == 8
    os.close(other)


@pytest.mark.parametrize("pump", ["block"], indirect=True)
def test_without_a_reader_policy_block_makes_the_container_wait(pump: Pump) -> None:
    """F47: only who asks for it waits."""
    path = pump.fifo()
    sink = pump.attach(path)
    data = noise(12 * 1024 * 1024)
    written = pump.write(data)
    assert sinks.SPOOL_BYTES <= written <= sinks.SPOOL_BYTES + 3 * PIPE_BYTES
    assert sink.blocked
    reader = reader_of(path)
    digest = hashlib.sha256()
    while written < len(data):
        digest.update(read_all(reader))
        pump.turn()
        written += pump.write(data[written:])
    pump.end()
    while not pump.stream.flushed:
        digest.update(read_all(reader))
        pump.turn()
    digest.update(read_all(reader))
    assert digest.digest() == hashlib.sha256(data).digest()
    assert sink.dropped_bytes == 0
    os.close(reader)


@pytest.mark.parametrize("pump", [sinks.NEVER_WAIT], indirect=True)
def test_a_slow_reader_who_must_hold_nothing_up_loses_what_the_spool_does_not_take(
    pump: Pump,
) -> None:
    reader, writer = os.pipe()
    sink = pump.attach(f"/proc/{os.getpid()}/fd/{writer}")
    os.close(writer)
    data = noise(12 * 1024 * 1024)
    assert pump.write(data) == len(data), "the container never waits"
    assert sink.dropped_bytes > 0
    os.set_blocking(reader, False)
    got = b""
    while not sink.idle:
        got += read_all(reader)
        pump.turn()
    got += read_all(reader)
    assert sinks.SPOOL_BYTES <= len(got) <= sinks.SPOOL_BYTES + 2 * PIPE_BYTES
    assert len(got) + sink.dropped_bytes == len(data) and data.startswith(got)
    pump.write(b"more")
    assert read_all(reader) == b"more"
    os.close(reader)


@pytest.mark.parametrize("pump", [sinks.NEVER_WAIT], indirect=True)
def test_the_spool_of_one_who_is_always_behind_does_not_grow(pump: Pump) -> None:
    reader, writer = os.pipe()
    sink = pump.attach(f"/proc/{os.getpid()}/fd/{writer}")
    os.close(writer)
    os.set_blocking(reader, False)
    data = noise(4 * 1024 * 1024)
    pump.write(data)
    got, sent = b"", data
    for _ in range(12):
        while len(got) < len(sent) - 3 * 1024 * 1024:
            got += read_all(reader)
            pump.turn()
        assert pump.write(data) == len(data)
        sent += data
        (spool,) = pump.directory.glob("*.spool")
        assert spool.stat().st_size <= 3 * sinks.SPOOL_BYTES
    assert sink.dropped_bytes == 0
    while not sink.idle:
        got += read_all(reader)
        pump.turn()
    assert got + read_all(reader) == sent
    os.close(reader)


@pytest.mark.parametrize("pump", ["block", sinks.NEVER_WAIT], indirect=True)
def test_the_end_waits_for_a_slow_reader_unless_he_must_hold_nothing_up(pump: Pump) -> None:
    reader, writer = os.pipe()
    sink = pump.attach(f"/proc/{os.getpid()}/fd/{writer}")
    os.close(writer)
    pump.write(noise(3 * PIPE_BYTES))
    pump.end()  # by then he has had the time to read, and has not
    assert pump.stream.flushed == sink.closed == (pump.policy == sinks.NEVER_WAIT)
    os.close(reader)
    pump.turn()


@pytest.mark.parametrize("pump", [sinks.NEVER_WAIT], indirect=True)
@pytest.mark.parametrize("last_s", [600, 0], ids=["in time", "too long"])
def test_the_end_waits_a_while_for_one_who_reads(
    pump: Pump, monkeypatch: pytest.MonkeyPatch, last_s: int
) -> None:
    monkeypatch.setattr(sinks, "LAST_S", last_s)
    monkeypatch.setattr(sinks, "STUCK_S", 600)  # `turn` lets it be over
    reader, writer = os.pipe()
    sink = pump.attach(f"/proc/{os.getpid()}/fd/{writer}")
    os.close(writer)
    os.set_blocking(reader, False)
    data = noise(1_000_000)
    assert pump.write(data) == len(data)
    os.close(pump.writer)
    pump.writer = -1
    got = b""
    while not pump.stream.flushed:
        pump.turn(1)
        got += read_all(reader)
    got += read_all(reader)
    assert len(got) + sink.dropped_bytes == len(data)
    assert (got == data) == bool(last_s)
    os.close(reader)


def test_nothing_wakes_a_sink_that_waits_with_nothing_to_give(pump: Pump) -> None:
    pump.attach(pump.fifo())
    pump.turn()
    assert pump.loop._wait_s() == -1


def test_a_reader_who_comes_back_first_gets_what_the_pipe_still_holds(pump: Pump) -> None:
    path = pump.fifo()
    first = reader_of(path)
    pump.attach(path)
    pump.write(b"in the pipe ")
    os.close(first)
    pump.turn()
    pump.write(b"in the spool ")
    second = reader_of(path)
    pump.turn()
    pump.write(b"new")
    assert read_all(second) == b"in the pipe in the spool new"
    os.close(second)


def test_new_output_does_not_overtake_the_spool(pump: Pump) -> None:
    path = pump.fifo()
    pump.attach(path)
    data = noise(200_000)
    pump.write(data)
    reader = reader_of(path)
    pump.turn(1)  # the reader is found
    os.write(pump.writer, b"new")
    got = b""
    while len(got) < len(data) + 3:
        pump.turn(1)
        got += read_all(reader)
    assert got == data + b"new"
    os.close(reader)


def test_a_new_fifo_at_the_same_path_is_found(pump: Pump) -> None:
    path = pump.fifo()
    first = reader_of(path)
    pump.attach(path)
    pump.write(b"one")
    os.close(first)
    path.unlink()
    pump.turn()
    pump.write(b"two")
    os.mkfifo(path)
    second = reader_of(path)
    pump.turn()
    assert read_all(second) == b"two"
    os.close(second)


@settings(deadline=None, max_examples=60)
@given(
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("write"), st.integers(1, 300_000)),
            st.tuples(st.just("burst"), st.integers(1, 4096)),
            st.tuples(st.sampled_from(["come", "go", "read", "turn"]), st.just(0)),
        ),
        max_size=40,
    ),
    policy=st.sampled_from(["drop", "block"]),
    logged=st.booleans(),
)
def test_readers_come_and_go_and_every_byte_arrives_once_in_order(
    tmp_path_factory: pytest.TempPathFactory,
    steps: list[tuple[str, int]],
    policy: str,
    logged: bool,
) -> None:
    directory = tmp_path_factory.mktemp("pump")
    (directory / "log").mkdir()
    log = LogFile(str(directory / "log"), 0, 1) if logged else None
    pump = Pump(directory, policy, log)
    path = pump.fifo()
    pump.attach(path)
    sent, got = bytearray(), bytearray()
    reader = -1
    for number, (step, size) in enumerate(steps):
        if step == "write":
            data = noise(size, number)
            sent += data[: pump.write(data)]
        elif step == "burst":  # without a turn of the loop
            data = noise(size, number)
            try:
                sent += data[: os.write(pump.writer, data)]
            except BlockingIOError:
                pass
        elif step == "come" and reader < 0:
            reader = reader_of(path)
        elif step == "go" and reader >= 0:
            os.close(reader)
            reader = -1
        elif step == "read" and reader >= 0:
            got += read_all(reader)
        else:
            pump.turn(1)
    if reader < 0:
        reader = reader_of(path)
    pump.end()
    while not pump.stream.flushed:
        got += read_all(reader)
        pump.turn()
    got += read_all(reader)
    os.close(reader)
    pump.close()
    if log is not None:
        log.close()
    assert hashlib.sha256(got).digest() == hashlib.sha256(sent).digest()


def test_a_release_gives_up_a_sink_that_nobody_reads(pump: Pump) -> None:
    pump.attach(pump.fifo())
    pump.write(b"unread")
    pump.end()
    assert not pump.stream.flushed
    pump.stream.release()
    assert pump.stream.flushed


def test_a_release_sees_a_reader_who_has_just_come(pump: Pump) -> None:
    """Between two looks for one: it still gets all."""
    path = pump.fifo()
    pump.attach(path)
    pump.write(b"to be read")
    pump.end()
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    pump.stream.release()
    pump.turn()
    assert pump.stream.flushed
    assert os.read(reader, 100) == b"to be read"
    assert os.read(reader, 100) == b""
    os.close(reader)


def test_a_burst_then_the_end_waits_for_its_reader(pump: Pump) -> None:
    """F47: 8 MiB, then exit, then the reader comes: nothing of it may be lost."""
    path = pump.fifo()
    pump.attach(path)
    data = noise(sinks.SPOOL_BYTES)
    assert pump.write(data) == len(data)
    pump.end()
    assert not pump.stream.flushed
    reader = reader_of(path)
    got = b""
    while not pump.stream.flushed:
        pump.turn()
        got += read_all(reader)
    assert got + read_all(reader) == data
    assert os.read(reader, 1) == b""
    os.close(reader)


def test_a_slow_attach_does_not_hold_the_log_but_the_container(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    log = LogFile(str(tmp_path / "log"), 0, 1)
    pump = Pump(tmp_path, log=log)
    slow, quick = pump.fifo("slow"), pump.fifo("quick")
    readers = reader_of(slow), reader_of(quick)
    pump.attach(slow)
    pump.attach(quick)
    written = pump.write(noise(1_000_000))
    in_source = PIPE_BYTES
    assert (tmp_path / "log" / "0000000001.log").stat().st_size >= written - in_source
    kept = [sink.dropped_bytes for sink in pump.stream.sinks]
    assert kept == [0, 0]
    pump.close()
    log.close()
    # At the end it has all, though nobody has read: only they have lost.
    assert logged(tmp_path / "log") == {1: noise(1_000_000)[:written]}
    got = [len(read_all(reader)) for reader in readers]
    assert [str(error) for error in pump.errors] == [
        f"write output {path}: {written - len_} bytes are lost"
        for path, len_ in zip((slow, quick), got, strict=True)
    ]
    for reader in readers:
        os.close(reader)


def logged(directory: Path) -> dict[int, bytes]:
    """What is in the first file of a log, by stream."""
    found: dict[int, bytes] = {}
    data = (directory / "0000000001.log").read_bytes()
    while data:
        _at, stream, size = logchunks.HEAD.unpack_from(data)
        end = logchunks.HEAD.size + size
        found[stream] = found.get(stream, b"") + data[logchunks.HEAD.size : end]
        data = data[end:]
    return found


def test_what_is_left_to_read_at_the_end_is_bounded_and_the_rest_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if whoever outlives the container went on writing at full speed."""
    monkeypatch.setattr(streams, "_LAST_BYTES", 1)
    (tmp_path / "log").mkdir()
    log = LogFile(str(tmp_path / "log"), 0, 1)
    pump = Pump(tmp_path, log=log)
    fcntl.fcntl(pump.writer, fcntl.F_SETPIPE_SZ, 4 * PIPE_BYTES)
    reader = reader_of(path := pump.fifo())
    pump.attach(path)
    written = pump.write(noise(1_000_000))
    before = len(logged(tmp_path / "log")[1])
    pump.close()
    log.close()
    left = written - before - logchunks.MAX_CHUNK
    assert left > 0
    assert logged(tmp_path / "log") == {
        1: noise(1_000_000)[: before + logchunks.MAX_CHUNK],
        NOTICE: f"{left} bytes of output could not be written here\n".encode(),
    }
    lost = written - len(read_all(reader))
    assert [str(error) for error in pump.errors] == [f"write output {path}: {lost} bytes are lost"]
    os.close(reader)


def test_attached_twice_both_get_everything(pump: Pump) -> None:
    paths = [pump.fifo("one"), pump.fifo("two")]
    readers = [reader_of(path) for path in paths]
    for path in paths:
        pump.attach(path)
    data = noise(300_000)
    written, got = 0, [b"", b""]
    while written < len(data):
        written += pump.write(data[written:])
        got = [have + read_all(reader) for have, reader in zip(got, readers, strict=True)]
    pump.end()
    while not pump.stream.flushed:
        got = [have + read_all(reader) for have, reader in zip(got, readers, strict=True)]
        pump.turn()
    got = [have + read_all(reader) for have, reader in zip(got, readers, strict=True)]
    assert got == [data, data]
    for reader in readers:
        os.close(reader)


def test_gigabytes_pass_by_splice_without_touching_the_buffer(pump: Pump) -> None:
    path = pump.fifo()
    reader = reader_of(path)
    pump.attach(path)
    chunk = bytes(PIPE_BYTES)
    moved = 0
    null = os.open("/dev/null", os.O_WRONLY)
    for _ in range(16_384):  # 1 GiB
        os.write(pump.writer, chunk)
        pump.loop.call_later(0, pump.loop.stop)
        pump.loop.run()
        moved += os.splice(reader, null, PIPE_BYTES)
    assert moved == 1 << 30
    resident = memoryview(pump.stream._buffer.view)
    assert bytes(resident[:16]) == bytes(16)
    os.close(null)
    os.close(reader)


def test_a_terminal_falls_back_to_copying(tmp_path: Path) -> None:
    pump = Pump(tmp_path)
    pump.stream.close()
    master, slave = os.openpty()
    pump.stream = OutputStream(pump.loop, master, 1, None, SharedBuffer(), pump._on_end)
    pump.stream.begin()
    path = pump.fifo()
    reader = reader_of(path)
    pump.attach(path)
    os.write(slave, b"on a terminal\n")
    got = b""
    while not got:  # the kernel passes a terminal's bytes on in a worker thread
        pump.turn()
        got = read_all(reader)
    assert got == b"on a terminal\r\n"
    os.close(slave)
    while not pump.stream.flushed:
        pump.turn()
    assert os.read(reader, 1) == b"", "the last close of a terminal is its end"
    os.close(reader)
    pump.close()


def test_a_file_grows_and_is_never_waited_for(pump: Pump) -> None:
    path = pump.directory / "file"
    path.write_bytes(b"before ")
    pump.attach(f"file://{path}")
    data = noise(500_000)
    assert pump.write(data) == len(data)
    assert path.read_bytes() == b"before " + data


@pytest.mark.root
def test_a_file_on_a_full_disk_counts_what_it_does_not_take(pump: Pump, tiny_disk: Path) -> None:
    """F47: what a full disk did not take is known."""
    sink = pump.attach(f"file://{tiny_disk}/out")
    data = noise(1_000_000)
    assert pump.write(data) == len(data)
    pump.stream.close()
    size = (tiny_disk / "out").stat().st_size
    assert 0 < size < len(data)
    assert sink.dropped_bytes == len(data) - size
    assert len(pump.errors) == 1


@pytest.mark.parametrize("kind", ["file", "directory", "link"])
def test_only_fifos_are_taken_for_fifos(pump: Pump, kind: str) -> None:
    path = pump.directory / "x"
    if kind == "file":
        path.touch()
    elif kind == "directory":
        path.mkdir()
    else:
        path.symlink_to(pump.fifo())
    with pytest.raises((InvalidArgument, OSError)):
        pump.attach(path)
    assert pump.stream.sinks == []


class Input:
    """A container that reads its standard input from a pipe."""

    def __init__(self, directory: Path) -> None:
        self.errors: list[BaseException] = []
        self.loop = Loop(self.errors.append)
        self.container, write_end = os.pipe()
        os.set_blocking(self.container, False)
        self.stream = InputStream(self.loop, write_end, False, SharedBuffer())
        self.directory = directory

    def turn(self) -> None:
        for _ in range(4):
            self.loop.call_later(0, self.loop.stop)
            self.loop.run()

    def fifo(self, name: str) -> Path:
        path = self.directory / name
        os.mkfifo(path)
        return path

    def close(self) -> None:
        self.stream.close()
        if self.container >= 0:
            os.close(self.container)
        self.loop.close()
        assert self.errors == []


@pytest.fixture
def stdin(tmp_path: Path, request: pytest.FixtureRequest) -> Input:
    stdin = Input(tmp_path)
    request.addfinalizer(stdin.close)
    return stdin


def test_stdin_stays_open_while_attaches_come_and_go(stdin: Input) -> None:
    for word in (b"one", b"two"):
        path = stdin.fifo(word.decode())
        stdin.stream.add(str(path))
        writer = os.open(path, os.O_WRONLY)
        os.write(writer, word)
        os.close(writer)
        stdin.turn()
        assert os.read(stdin.container, 100) == word
    read_end, write_end = os.pipe()
    stdin.stream.add(f"/proc/{os.getpid()}/fd/{read_end}")
    os.close(read_end)
    os.write(write_end, b"three")
    os.close(write_end)  # the end of a caller's pipe ends the caller's part alone
    stdin.turn()
    assert os.read(stdin.container, 100) == b"three"
    with pytest.raises(BlockingIOError):
        os.read(stdin.container, 1)


def test_close_stdin_comes_after_the_data(stdin: Input) -> None:
    path = stdin.fifo("in")
    stdin.stream.add(str(path))
    writer = os.open(path, os.O_WRONLY)
    data = noise(60_000)
    os.write(writer, data)
    stdin.stream.close_soon()
    stdin.turn()
    got = b""
    while part := os.read(stdin.container, 1 << 20):
        got += part
        stdin.turn()
    assert got == data
    os.close(writer)


def test_close_stdin_waits_for_a_container_that_reads_slowly(stdin: Input) -> None:
    read_end, write_end = os.pipe()
    stdin.stream.add(f"/proc/{os.getpid()}/fd/{read_end}")
    os.close(read_end)
    os.set_blocking(write_end, False)
    data = noise(1_000_000)
    sent = 0
    while True:
        try:
            sent += os.write(write_end, data[sent : sent + PIPE_BYTES])
        except BlockingIOError:
            before = sent
            stdin.turn()
            try:
                sent += os.write(write_end, data[sent : sent + 4096])
            except BlockingIOError:
                break
            assert sent > before
    assert sent < len(data)
    stdin.stream.close_soon()
    os.close(write_end)
    got = b""
    while part := os.read(stdin.container, 10_000):
        got += part
        stdin.turn()
    assert got == data[:sent]


def test_a_container_that_closed_its_stdin_ends_it(stdin: Input) -> None:
    path = stdin.fifo("in")
    stdin.stream.add(str(path))
    writer = os.open(path, os.O_WRONLY)
    os.close(stdin.container)
    stdin.container = -1
    os.write(writer, b"to nobody")
    stdin.turn()
    with pytest.raises(BrokenPipeError):
        os.write(writer, b"x")
    stdin.stream.add(str(path))  # nothing to add it to any more
    assert stat.S_ISFIFO(path.stat().st_mode)
    os.close(writer)


def test_a_terminal_gets_its_end_of_file_character(tmp_path: Path) -> None:
    errors: list[BaseException] = []
    loop = Loop(errors.append)
    master, slave = os.openpty()
    stream = InputStream(loop, master, True, SharedBuffer())
    stream.close_soon()
    assert os.read(slave, 10) == b"", "^D on an empty line is the end of file"
    stream.close()
    os.close(slave)
    loop.close()
    assert errors == []


@pytest.mark.parametrize("typed", [b"half", b"line\n", b"line\r", b"half\x04", b""])
def test_the_end_of_a_terminals_input_is_heard_behind_half_a_line(
    tmp_path: Path, typed: bytes
) -> None:
    """^D hands half a line over and ends nothing (termios(3), VEOF): another has to follow."""
    master, slave = os.openpty()
    errors: list[BaseException] = []
    loop = Loop(errors.append)
    stream = InputStream(loop, master, True, SharedBuffer())
    source = tmp_path / "in"
    os.mkfifo(source)
    stream.add(str(source))
    writer = os.open(source, os.O_WRONLY)
    os.write(writer, typed)
    os.close(writer)
    stream.close_soon()
    os.set_blocking(slave, False)
    if said := typed.rstrip(b"\x04"):
        assert os.read(slave, 100) == said.replace(b"\r", b"\n")  # ICRNL, as a shell has it
    assert os.read(slave, 100) == b""
    with pytest.raises(BlockingIOError):
        os.read(slave, 100)  # one end is enough
    stream.close()
    os.close(slave)
    loop.close()
    assert errors == []


def test_the_end_of_a_terminals_input_waits_for_room() -> None:
    """A terminal whose process does not read takes no ^D either, and gets it when it reads."""
    master, slave = os.openpty()
    modes = termios.tcgetattr(slave)
    modes[3] &= ~termios.ECHO
    termios.tcsetattr(slave, termios.TCSANOW, modes)
    errors: list[BaseException] = []
    loop = Loop(errors.append)
    stream = InputStream(loop, master, True, SharedBuffer())
    with pytest.raises(BlockingIOError):
        while True:
            os.write(master, b"\n" * 1024)
    stream.close_soon()
    os.set_blocking(slave, False)
    got: list[bytes] = []

    def read_on() -> None:
        with suppress(BlockingIOError):
            got.append(os.read(slave, 4096))
        if not got or got[-1]:
            loop.call_later(0, read_on)
        else:
            loop.stop()

    read_on()
    loop.call_later(60, loop.stop)
    loop.run()
    assert got[-1] == b"", "no end of file"
    stream.close()
    os.close(slave)
    loop.close()
    assert errors == []


def test_a_client_that_is_about_to_read_is_waited_for(tmp_path: Path) -> None:
    """Before anything is written: it gives its FIFO up when the process has ended."""
    loop = Loop(lambda error: None)
    stdio = Stdio(loop, SharedBuffer(), str(tmp_path / "spool"), "drop", None)
    stdio.open_pipes(False, True, False)
    fifo = tmp_path / "out"
    os.mkfifo(fifo)
    stdio.attach("", str(fifo), "")
    readers: list[int] = []

    def open_it() -> None:
        readers.append(os.open(fifo, os.O_RDONLY | os.O_NONBLOCK))

    over = loop.spawn(stdio.readers_come())
    loop.call_later(0.01, open_it)
    over.when_done(loop.stop)
    loop.run()

    assert readers, "it went on without its reader"
    assert stdio.look()
    stdio.close()
    os.close(readers[0])


def test_nobody_is_waited_for_without_an_end(tmp_path: Path) -> None:
    loop = Loop(lambda error: None)
    stdio = Stdio(loop, SharedBuffer(), str(tmp_path / "spool"), "drop", None)
    stdio.open_pipes(False, True, False)
    os.mkfifo(tmp_path / "out")
    stdio.attach("", str(tmp_path / "out"), "")

    over = loop.spawn(stdio.readers_come())
    over.when_done(loop.stop)
    loop.call_later(20, loop.stop)
    loop.run()

    assert over.done and not stdio.look()
    stdio.close()


@pytest.mark.parametrize("is_over", [True, False])
def test_what_a_process_has_written_is_passed_on_before_its_end_is_told(
    tmp_path: Path, is_over: bool
) -> None:
    """Unless somebody else who has its pipe writes on and on."""
    loop = Loop(lambda error: None)
    stdio = Stdio(loop, SharedBuffer(), str(tmp_path / "spool"), "drop", None)
    _, child, _ = stdio.open_pipes(False, True, False)
    fifo = tmp_path / "out"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    stdio.attach("", str(fifo), "")
    os.write(child, b"hi")
    others = os.dup(child)
    stdio.release_child_fds()

    def write_on() -> None:
        os.write(others, b"hi")
        loop.call_later(0.0, write_on)

    stdio.begin()
    over = loop.spawn(stdio.passed_on())
    over.when_done(loop.stop)
    if not is_over:
        write_on()
    loop.call_later(20, loop.stop)
    loop.run()

    assert over.done and os.read(reader, 2) == b"hi"
    stdio.close()
    os.close(reader)
    os.close(others)
