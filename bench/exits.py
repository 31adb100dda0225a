"""What ended, and what it took: the kernel's taskstats (Documentation/accounting/taskstats.rst).

The kernel says it of each thread as it ends, exactly (schedulers' nanoseconds) and without being
asked, so nothing that is measured waits for it. Generic netlink by hand: a kernel message is a
length, a type and attributes, and nothing else of netlink is needed here.
"""

import os
import socket
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType

from measure import CommandFailed

_BUFFER_BYTES = 32 * 1024 * 1024
_SO_RCVBUFFORCE = 33  # asm-generic/socket.h
_MESSAGE = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_GENERIC = struct.Struct("=BBH")  # command, version
_ATTRIBUTE = struct.Struct("=HH")  # length, type
_GENERIC_NETLINK = 16  # NETLINK_GENERIC, linux/netlink.h
_REQUEST, _ANSWER = 1, 4  # NLM_F_REQUEST, NLM_F_ACK
_ERROR = 2  # NLMSG_ERROR
_CONTROL = 0x10  # GENL_ID_CTRL, linux/genetlink.h
_GET_FAMILY, _FAMILY_ID, _FAMILY_NAME = 3, 1, 2  # CTRL_CMD_GETFAMILY, CTRL_ATTR_...
_GET = 1  # TASKSTATS_CMD_GET, linux/taskstats.h
_PID, _REGISTER = 1, 3  # TASKSTATS_CMD_ATTR_PID, TASKSTATS_CMD_ATTR_REGISTER_CPUMASK
_STATS, _OF_THREAD = 3, 4  # TASKSTATS_TYPE_STATS, TASKSTATS_TYPE_AGGR_PID
_FIRST = 12  # tells the process, Linux 5.19
_OTHERWISE = 15  # in this version alone the fields stand elsewhere
_WAITED_AT, _CPU_AT, _NAME_AT, _PIDS_AT, _LIFE_AT, _PROCESS_AT = 24, 72, 80, 128, 144, 368
_PIDS, _LIFE = struct.Struct("=II"), struct.Struct("=QQQ")


@dataclass(frozen=True)
class Ended:
    """A thread that has ended."""

    pid: int
    process: int  # the same as `pid` for a process' first thread
    parent: int  # of its process
    name: str
    cpu_ns: int
    user_us: int  # these two in whole ticks: true of many, not of one
    system_us: int
    life_us: int
    waited_ns: int = 0  # for a processor


class Exits:
    """Every thread of this machine that ends while the context lasts."""

    def __enter__(self) -> "Exits":
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _GENERIC_NETLINK)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER_BYTES)
            self._socket.bind((0, 0))
            self._socket.settimeout(5)
            name = attribute(_FAMILY_NAME, b"TASKSTATS\0")
            found = dict(attributes(self._ask(message(_CONTROL, _GET_FAMILY, name))))
            family = int.from_bytes(found[_FAMILY_ID], sys.byteorder)
            mine = attribute(_PID, struct.pack("=I", os.getpid()))
            list(threads(self._ask(message(family, _GET, mine))))  # are they as we know them?
            mask = attribute(_REGISTER, f"0-{(os.cpu_count() or 1) - 1}\0".encode())
            self._ask(message(family, _GET, mask))
            self._socket.setblocking(False)
        except OSError as error:
            self._socket.close()
            raise CommandFailed(f"ask the kernel what processes take: {error.strerror}") from error
        except BaseException:
            self._socket.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._socket.close()

    def _ask(self, request: bytes) -> bytes:
        """The attributes of the answer, if one comes before the acknowledgement."""
        self._socket.send(request)
        answer = b""
        while True:
            data = self._socket.recv(65536)
            body = _body(data)
            if _MESSAGE.unpack_from(data)[1] == _ERROR:
                return answer
            answer = body

    def take(self) -> list[Ended]:
        """Those that came since the last call. Raises CommandFailed when some were lost."""
        ended: list[Ended] = []
        while True:
            try:
                data = self._socket.recv(65536)
            except BlockingIOError:
                return ended
            except OSError as error:  # ENOBUFS
                raise CommandFailed(f"count what ended: {error.strerror}") from error
            ended += list(threads(_body(data)))


def message(family: int, command: int, body: bytes) -> bytes:
    body = _GENERIC.pack(command, 1, 0) + body
    return _MESSAGE.pack(_MESSAGE.size + len(body), family, _REQUEST | _ANSWER, 1, 0) + body


def attribute(kind: int, value: bytes) -> bytes:
    size = _ATTRIBUTE.size + len(value)
    return _ATTRIBUTE.pack(size, kind) + value + bytes(-size % 4)


def _body(data: bytes) -> bytes:
    """The attributes of a message. Raises OSError when it is of a failure."""
    _, kind, *_ = _MESSAGE.unpack_from(data)
    if kind == _ERROR:
        (code,) = struct.unpack_from("=i", data, _MESSAGE.size)
        if code:
            raise OSError(-code, os.strerror(-code))
        return b""
    return data[_MESSAGE.size + _GENERIC.size :]


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= _ATTRIBUTE.size:
        size, kind = _ATTRIBUTE.unpack_from(data)
        yield kind & 0x3FFF, data[_ATTRIBUTE.size : size]  # less NLA_F_NESTED
        data = data[size + -size % 4 :]


def threads(data: bytes) -> Iterator[Ended]:
    """Of a message about an end; what is said of the whole process besides is left."""
    for kind, parts in attributes(data):
        if kind != _OF_THREAD:
            continue
        stats = dict(attributes(parts))[_STATS]
        version = int.from_bytes(stats[:2], sys.byteorder)
        if version < _FIRST or version == _OTHERWISE:
            raise CommandFailed(f"count what ended: this kernel's taskstats are version {version}")
        (cpu_ns,) = struct.unpack_from("=Q", stats, _CPU_AT)
        (waited_ns,) = struct.unpack_from("=Q", stats, _WAITED_AT)
        pid, parent = _PIDS.unpack_from(stats, _PIDS_AT)
        life_us, user_us, system_us = _LIFE.unpack_from(stats, _LIFE_AT)
        name = stats[_NAME_AT : _NAME_AT + 32].split(b"\0")[0].decode(errors="replace")
        (process,) = struct.unpack_from("=I", stats, _PROCESS_AT)
        times = cpu_ns, user_us, system_us, life_us, waited_ns
        yield Ended(pid, process, parent, name, *times)
