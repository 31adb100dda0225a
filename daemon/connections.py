"""The connections behind a ROUTER: whose they are, and an end to those that never say hello.

libzmq keeps every connection that is made, and aborts the process when there is no descriptor left
for one more. So a connection has HELLO_S to say hello, and only so many may be silent at a time: of
more, the oldest goes. libzmq's monitor tells of each one it accepts.
"""

import asyncio
import contextlib
import itertools
import logging
import os
import socket as sockets
import struct
from collections.abc import Iterator

import zmq

log = logging.getLogger("lighter.connections")

HELLO_S = 10.0

# A descriptor's number is used again, and so is an inode; both together are not.
Connection = tuple[int, int]

_CREDENTIALS = struct.Struct("iII")
_PEERGROUPS = 59  # SO_PEERGROUPS, which Python has no name for (asm-generic/socket.h)
_GROUPS_BYTES = 1024  # 256 groups, the most that Python's getsockopt takes
_EVENT = struct.Struct("=hi")  # zmq_socket_monitor(3): the event, and here a descriptor
_numbers = itertools.count()


class Strangers:
    """Watches the connections of one ROUTER, which is bound to the path socket `path`."""

    def __init__(
        self,
        ctx: "zmq.Context[zmq.Socket[bytes]]",
        router: "zmq.Socket[bytes]",
        path: str,
        most: int,
        hello_s: float,
    ) -> None:
        self.cut_off = 0
        self._router = router
        self._path = path
        self._most = most
        self._hello_s = hello_s
        # By descriptor, since the kernel has one connection behind each: (inode, end of patience).
        self._silent: dict[int, tuple[int, asyncio.TimerHandle]] = {}
        self._greeted: dict[int, int] = {}
        place = f"inproc://strangers-{next(_numbers)}"
        router.monitor(place, zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED)
        self._monitor = ctx.socket(zmq.PAIR)
        # With a limit, libzmq's own thread would wait for a loop that is held up.
        self._monitor.set(zmq.RCVHWM, 0)
        self._monitor.set(zmq.LINGER, 0)
        self._monitor.connect(place)
        loop = asyncio.get_running_loop()
        loop.add_reader(int(self._monitor.getsockopt(zmq.FD)), self._pump)
        loop.call_soon(self._pump)

    @property
    def silent_count(self) -> int:
        return len(self._silent)

    def greeted(self, connection: Connection) -> None:
        """It has said hello, and may stay."""
        fd, inode = connection
        self._forget(fd)
        self._greeted[fd] = inode

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(int(self._monitor.getsockopt(zmq.FD)))
        self._router.disable_monitor()
        self._monitor.close(0)
        for fd in list(self._silent):
            self._forget(fd)

    def _pump(self) -> None:
        while not self._monitor.closed:
            try:
                head, _address = self._monitor.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                return
            event, fd = _EVENT.unpack(head)
            if event == zmq.EVENT_ACCEPTED:
                self._accepted(fd)
            elif self._greeted.get(fd) != _connection(fd)[1]:
                self._greeted.pop(fd, None)
                self._forget(fd)

    def _accepted(self, fd: int) -> None:
        inode = _connection(fd)[1]
        if not inode or self._greeted.get(fd) == inode:
            return  # it is gone, or its hello was read before this
        self._forget(fd)
        while len(self._silent) >= self._most:
            self._cut_off(next(iter(self._silent)), "too many have said no hello")
        patience = asyncio.get_running_loop().call_later(
            self._hello_s, self._cut_off, fd, f"it said no hello in {self._hello_s:g} s"
        )
        self._silent[fd] = inode, patience

    def _forget(self, fd: int) -> None:
        _inode, patience = self._silent.pop(fd, (0, None))
        if patience is not None:
            patience.cancel()

    def _cut_off(self, fd: int, why: str) -> None:
        inode, _patience = self._silent[fd]
        self._forget(fd)
        self.end((fd, inode), why)

    def end(self, connection: Connection, why: str) -> None:
        """End it as its peer would: the descriptor is libzmq's, which sees the end and closes it.

        It may have been closed and its number given to something else of this process since.
        """
        fd, _inode = connection
        if not is_open(connection):
            return
        with contextlib.suppress(OSError), _borrowed(fd) as ours:
            if ours.getsockname() == self._path:
                self.cut_off += 1
                log.warning("cut off a connection to %s: %s", self._path, why)
                ours.shutdown(sockets.SHUT_RDWR)


@contextlib.contextmanager
def _borrowed(fd: int) -> Iterator[sockets.socket]:
    connection = sockets.socket(fileno=fd)
    try:
        yield connection
    finally:
        connection.detach()


def _connection(fd: int) -> Connection:
    try:
        return fd, os.fstat(fd).st_ino
    except OSError:
        return fd, 0


def connection_of(frame: "zmq.Frame") -> Connection:
    """The connection that a frame came by; (-1, 0) when it is gone."""
    try:
        return _connection(int(frame.get(zmq.SRCFD)))
    except zmq.ZMQError:
        return -1, 0


def is_open(connection: Connection) -> bool:
    """Whether libzmq still has this connection: a ROUTER never says that a peer has closed it."""
    fd, inode = connection
    return inode != 0 and _connection(fd)[1] == inode


def peer_credentials(frame: "zmq.Frame") -> tuple[int, int, int]:
    """(pid, uid, gid) of a frame's sender (SO_PEERCRED, unix(7)); (0, -1, -1) when it is gone."""
    try:
        with _borrowed(int(frame.get(zmq.SRCFD))) as connection:
            raw = connection.getsockopt(sockets.SOL_SOCKET, sockets.SO_PEERCRED, _CREDENTIALS.size)
    except (OSError, zmq.ZMQError):
        return 0, -1, -1
    pid, uid, gid = _CREDENTIALS.unpack(raw)
    return pid, uid, gid


def peer_groups(frame: "zmq.Frame") -> frozenset[int]:
    """The supplementary groups that a frame's sender had when it connected (SO_PEERGROUPS).

    Empty for a sender that is gone, or has more of them than can be read.
    """
    try:
        with _borrowed(int(frame.get(zmq.SRCFD))) as connection:
            raw = connection.getsockopt(sockets.SOL_SOCKET, _PEERGROUPS, _GROUPS_BYTES)
    except (OSError, zmq.ZMQError):
        return frozenset()
    return frozenset(struct.unpack(f"{len(raw) // 4}I", raw))
