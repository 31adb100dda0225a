"""The log of a container that goes to the host's as well, line by line: journald's, or syslog.

    journald   its native protocol: one datagram of fields, those with a newline by length
    rfc5424    <PRI>1 TIME HOST TAG - - - LINE         a datagram each (RFC 5424, 5426)
    rfc3164    <PRI>TIME TAG: LINE                     what glibc's syslog(3) writes to /dev/log

Over TCP the same texts go in frames (sendstream.py).

A receiver never makes the container wait: what it does not take at once, or over TCP soon, is
dropped and counted, and the file, which is always kept, says how many lines that were. A line that
is longer than MAX_LINE goes in parts, as docker sends it.
"""

import os
import socket
import struct
import time

from lighter.proto.daemon_api import NOTICE, STDERR
from lighter.shim.logfile import LogFile
from lighter.shim.loop import Loop
from lighter.shim.sendstream import StreamSender

DRAIN_S = 2.0  # for what a receiver has not taken when the container has ended
MAX_LINE = 16 * 1024
_ERR, _INFO = 3, 6  # severities, syslog(3)


class SentLog:
    """As LogFile, whose place it takes; `send` is what the order says (proto/shim_api)."""

    __slots__ = ("_file", "_lost", "_name", "_rest", "_sender", "_text")

    def __init__(self, file: LogFile, send: "dict[str, object]", loop: Loop) -> None:
        self._file = file
        self._name = str(send["name"]).encode()
        self._text = _Text(send)
        self._sender = _sender(send, loop)
        self._rest: dict[int, bytes] = {}
        self._lost = 0

    @property
    def lost_bytes(self) -> int:
        return self._file.lost_bytes

    def append(self, stream: int, data: "memoryview | bytes") -> None:
        """Never raises, never waits."""
        self._file.append(stream, data)
        *lines, rest = (self._rest.get(stream, b"") + bytes(data)).split(b"\n")
        for line in lines:
            self._line(stream, line.removesuffix(b"\r"))
        while len(rest) > MAX_LINE:
            self._send(stream, rest[:MAX_LINE], True)
            rest = rest[MAX_LINE:]
        self._rest[stream] = rest

    def lose(self, size_bytes: int) -> None:
        self._file.lose(size_bytes)

    async def drain(self) -> None:
        """Nothing more will be appended: give the receiver DRAIN_S for what it has not taken."""
        self._end_lines()
        if isinstance(self._sender, StreamSender):
            await self._sender.drain(DRAIN_S)

    def close(self) -> None:
        self._end_lines()
        self._lost += self._sender.close()
        self._tell_lost()
        self._file.close()

    def _end_lines(self) -> None:
        for stream, rest in self._rest.items():
            if rest:
                self._line(stream, rest)
        self._rest.clear()

    def _line(self, stream: int, line: bytes) -> None:
        while len(line) > MAX_LINE:
            self._send(stream, line[:MAX_LINE], True)
            line = line[MAX_LINE:]
        self._send(stream, line, False)

    def _send(self, stream: int, line: bytes, is_part: bool) -> None:
        if not line:
            return  # docker sends no empty ones either
        try:
            self._sender.send(self._text.of(_ERR if stream == STDERR else _INFO, line, is_part))
        except (OSError, ValueError):  # ValueError: a path with a zero byte
            self._lost += 1
        else:
            self._tell_lost()

    def _tell_lost(self) -> None:
        if self._lost:
            said = b"%d lines were not taken by %s\n" % (self._lost, self._name)
            self._file.append(NOTICE, said)
            self._lost = 0


def _sender(send: "dict[str, object]", loop: Loop) -> "_DatagramSender | StreamSender":
    target = send["target"]
    if isinstance(target, str):
        return _DatagramSender(target)
    assert isinstance(target, list)
    address = (str(target[0]), int(target[1]))
    return StreamSender(loop, address) if send.get("stream") else _DatagramSender(address)


class _DatagramSender:
    """One datagram for each line. The socket is made for the first; no receiver is waited for."""

    __slots__ = ("_socket", "_target")

    def __init__(self, target: "str | tuple[str, int]") -> None:
        self._target = target
        self._socket: socket.socket | None = None

    def send(self, message: bytes) -> None:
        """Raises OSError when it is not taken at once."""
        if self._socket is None:
            family = socket.AF_UNIX
            if not isinstance(self._target, str):
                family = socket.AF_INET6 if ":" in self._target[0] else socket.AF_INET
            kind = socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
            self._socket = socket.socket(family, kind)
        self._socket.sendto(message, self._target)

    def close(self) -> int:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        return 0


class _Text:
    """A line as its receiver reads it."""

    __slots__ = ("_facility", "_fields", "_format", "_tag")

    def __init__(self, send: "dict[str, object]") -> None:
        self._format = str(send["format"])
        self._tag = str(send["tag"]).encode()
        self._facility = int(str(send["facility"]))
        fields = send["fields"]
        assert isinstance(fields, dict)
        self._fields = b"".join(_field(key.encode(), fields[key].encode()) for key in fields)

    def of(self, severity: int, line: bytes, is_part: bool) -> bytes:
        if self._format == "journald":
            part = b"CONTAINER_PARTIAL_MESSAGE=true\n" if is_part else b""
            said = b"PRIORITY=%d\n" % severity + _field(b"MESSAGE", line)
            return self._fields + part + said
        priority = self._facility << 3 | severity
        now = time.time()
        if self._format == "rfc5424":
            stamp = (
                time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1e6):06}Z"
            )
            host = os.fsencode(os.uname().nodename) or b"-"
            return b"<%d>1 %s %s %s - - - %s" % (priority, stamp.encode(), host, self._tag, line)
        stamp = time.strftime("%b %e %H:%M:%S", time.localtime(now))
        return b"<%d>%s %s: %s" % (priority, stamp.encode(), self._tag, line)


def _field(name: bytes, value: bytes) -> bytes:
    """As the native protocol has it (systemd, "Native Journal Protocol")."""
    if b"\n" in value:
        return name + b"\n" + struct.pack("<Q", len(value)) + value + b"\n"
    return name + b"=" + value + b"\n"
