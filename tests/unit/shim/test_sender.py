"""Lines of a log as datagrams: what journald reads, and what becomes of those that nobody takes."""

import socket
import struct
from pathlib import Path

import pytest

from lighter.daemon.tasks.logsending import order_of, read_sending
from lighter.daemon.types import Container
from lighter.proto.daemon_api import STDERR, STDOUT
from lighter.proto.errors import FailedPrecondition, InvalidArgument
from lighter.shim.logfile import LogFile
from lighter.shim.loop import Loop
from lighter.shim.sender import MAX_LINE, SentLog

CONTAINER = Container(
    namespace="prod", id="a-container-of-21-byt", image="docker.io/library/busybox:latest",
    runtime="runc", snapshotter="", snapshot_key="", spec=b"", labels={}, options={},
    created_at=0, updated_at=0,
)  # fmt: skip


def parsed(datagram: bytes) -> dict[str, bytes]:
    """The fields of a datagram, as systemd's own description has them."""
    fields = {}
    while datagram:
        head, _, rest = datagram.partition(b"\n")
        name, sign, value = head.partition(b"=")
        if sign:
            datagram = rest
        else:
            (size,) = struct.unpack("<Q", rest[:8])
            value, datagram = rest[8 : 8 + size], rest[9 + size :]
        fields[name.decode()] = value
    return fields


@pytest.fixture
def journal(tmp_path: Path) -> socket.socket:
    receiver = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    receiver.bind(str(tmp_path / "journal"))
    return receiver


@pytest.fixture
def log(loop: Loop, journal: socket.socket, tmp_path: Path) -> SentLog:
    sending = read_sending("journald", {"tag": "{{.Name}}!"}, journal=str(tmp_path / "journal"))
    order = {**order_of(CONTAINER, sending), "target": str(tmp_path / "journal")}
    (tmp_path / "log").mkdir()
    return SentLog(LogFile(str(tmp_path / "log"), 0, 0), order, loop)


def test_journald_gets_dockers_fields(log: SentLog, journal: socket.socket) -> None:
    log.append(STDOUT, b"a=b\r\nhal")
    log.append(STDERR, b"bad\n\n")
    log.append(STDOUT, memoryview(b"f\nrest"))
    log.close()
    got = [parsed(journal.recv(65536)) for _ in range(4)]
    assert [(one["MESSAGE"], one["PRIORITY"]) for one in got] == [
        (b"a=b", b"6"),
        (b"bad", b"3"),
        (b"half", b"6"),
        (b"rest", b"6"),
    ]
    assert {key: got[0][key] for key in got[0] if key not in ("MESSAGE", "PRIORITY")} == {
        "CONTAINER_ID": b"a-container-",
        "CONTAINER_ID_FULL": b"a-container-of-21-byt",
        "CONTAINER_NAME": b"a-container-of-21-byt",
        "CONTAINER_NAMESPACE": b"prod",
        "CONTAINER_TAG": b"a-container-of-21-byt!",
        "SYSLOG_IDENTIFIER": b"a-container-of-21-byt!",
        "IMAGE_NAME": b"docker.io/library/busybox:latest",
    }


def test_a_long_line_goes_in_parts(log: SentLog, journal: socket.socket) -> None:
    log.append(STDOUT, b"x" * (MAX_LINE + 5))
    log.append(STDOUT, b"y\n")
    first, second = (parsed(journal.recv(65536)) for _ in range(2))
    assert first["MESSAGE"] == b"x" * MAX_LINE
    assert first["CONTAINER_PARTIAL_MESSAGE"] == b"true"
    assert second["MESSAGE"] == b"xxxxxy" and "CONTAINER_PARTIAL_MESSAGE" not in second


def test_a_receiver_that_is_slow_loses_lines_and_that_is_told(
    log: SentLog, journal: socket.socket, tmp_path: Path
) -> None:
    for _ in range(2000):  # more than a socket's queue holds: it would block here if it could
        log.append(STDOUT, b"line\n")
    taken = 0
    while True:
        try:
            journal.recv(65536)
        except BlockingIOError:
            break
        taken += 1
    assert 0 < taken < 2000
    log.append(STDOUT, b"last\n")
    assert parsed(journal.recv(65536))["MESSAGE"] == b"last"
    log.close()
    (file,) = (tmp_path / "log").iterdir()
    said = b"%d lines were not taken by journald" % (2000 - taken)
    data = file.read_bytes()
    assert data.count(b"line\n") == 2000 and said in data


def test_what_cannot_be_had_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match="this host has none"):
        read_sending("journald", {}, journal=str(tmp_path / "none"))
    for given in (
        {"tag": "{{.Nope}}"},
        {"tag": "a b"},
        {"facility": "x"},
        {"facility": "9" * 5000},
        {"format": "gelf"},
    ):
        with pytest.raises(InvalidArgument):
            read_sending("syslog", given)
    assert order_of(CONTAINER, read_sending("syslog", {}))["target"] == "/dev/log"
