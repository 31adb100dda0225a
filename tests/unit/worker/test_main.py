"""A worker's life: one job, one answer, and the ways it ends early."""

import os
import select
import signal
import socket
import time
from pathlib import Path

import msgpack
import pytest

from lighter.proto.errors import InvalidArgument
from lighter.shim.worker import inflate
from lighter.shim.worker.main import serve
from tests.security.images import FILE, archive, entry
from tests.unit.worker.harness import Worker, memfd

pytestmark = pytest.mark.root


def test_an_unknown_job_is_refused() -> None:
    with Worker() as worker:
        worker.send({"job": "dance"})
        with pytest.raises(InvalidArgument, match="dance"):
            worker.result()
        assert worker.ended(20)


@pytest.mark.parametrize("packet", [b"\xc1", b"\x01", b"\x80", b"\xdf\xff\xff\xff\xff"])
def test_a_packet_that_is_no_job_is_refused(packet: bytes) -> None:
    with Worker() as worker:
        worker.socket.send(packet)
        with pytest.raises(InvalidArgument):
            worker.result()


def test_it_ends_when_nobody_sends_a_job() -> None:
    with Worker() as worker:
        worker.socket.shutdown(socket.SHUT_RDWR)
        assert worker.ended(20)


def test_it_ends_when_the_manager_goes_while_it_waits_for_input(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    with Worker() as worker:
        worker.send({"job": "apply", "target": str(tmp_path), "whiteouts": "overlay"}, [reader])
        os.close(reader)
        os.write(writer, archive(entry("first", FILE, b"x"))[:1024])
        while not (tmp_path / "first").exists():
            assert not worker.ended(0.01)
        worker.socket.close()
        assert worker.ended(20)
    os.close(writer)


def test_progress_is_reported(tmp_path: Path) -> None:
    fd = memfd(archive(*(entry(str(number), FILE, bytes(600)) for number in range(5000))))
    with Worker() as worker:
        started = time.monotonic()
        worker.send({"job": "apply", "target": str(tmp_path), "whiteouts": "overlay"}, [fd])
        result = worker.result()
        spent = time.monotonic() - started
    os.close(fd)
    assert result["entries"] == 5000
    assert 1 <= len(worker.progress) <= spent / 0.1 + 2
    entries = [report["entries"] for report in worker.progress]
    assert entries == sorted(entries)


def test_it_dies_with_its_parent() -> None:
    """The grandchild serves; its parent is killed; the grandchild's pidfd becomes readable."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    reader, writer = os.pipe()
    spawner = os.fork()
    if spawner == 0:
        parent = os.getpid()
        worker = os.fork()
        if worker == 0:
            serve(theirs, parent)
            os._exit(0)
        os.write(writer, msgpack.packb(worker))
        signal.pause()
    os.close(writer)
    pidfd = os.pidfd_open(msgpack.unpackb(os.read(reader, 64)))
    os.close(reader)
    os.kill(spawner, signal.SIGKILL)
    os.waitpid(spawner, 0)
    assert select.select([pidfd], [], [], 10)[0]
    os.close(pidfd)
    ours.close()
    theirs.close()


def test_an_orphan_serves_nobody() -> None:
    """`parent_pid` differs from the parent: it died between the fork and prctl(2)."""
    with Worker() as worker:
        pass
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.send(msgpack.packb({"job": "dance"}))
    pid = os.fork()
    if pid == 0:
        serve(theirs, worker.pid)
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    theirs.close()
    with pytest.raises(ConnectionResetError):  # unix(7): closed with the job unread
        ours.recv(4096)
    ours.close()


def test_memory_stays_flat_for_a_large_layer(tmp_path: Path) -> None:
    peaks = []
    for size in (1 << 20, 256 << 20):
        fd = memfd(archive(entry("x", FILE, bytes(size))))
        with Worker() as worker:
            worker.send({"job": "apply", "target": str(tmp_path), "whiteouts": "overlay"}, [fd])
            worker.result()
        os.close(fd)
        peaks.append(worker.max_rss_bytes)
    assert peaks[1] - peaks[0] < 2 * inflate.QUEUE_CHUNKS * inflate.CHUNK
