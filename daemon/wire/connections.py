"""The connections behind a ROUTER: whose they are, and an end to those that never say hello.

libzmq keeps every connection that is made, and aborts the process when there is no descriptor left
for one more. So a connection has HELLO_S to say hello, and only so many may be silent at a time: of
more, the oldest goes, of the process that has most. libzmq's monitor tells of each one it accepts.

It accepts in a thread of its own, thousands a second, and asks nobody. Where they come faster than
they say hello, the socket is found only for a moment now and then, and a few get in each time.
"""

import asyncio
import contextlib
import itertools
import logging
import os
import socket as sockets
import struct
import time
from collections.abc import Callable, Iterator

import zmq

from lighter.daemon.wire.sockets import hide, show

log = logging.getLogger("lighter.connections")

HELLO_S = 10.0
CROWD, CROWD_S = 200, 0.25  # so many too many in so long: it is a flood
FEW = 4  # too many since the last look: it is none any more
REST_S, OPEN_S = 0.02, 0.002
COMPLAIN_S = 1.0

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
        most: Callable[[], int],
        hello_s: float,
        on_end: Callable[[], None] = lambda: None,
    ) -> None:
        """`most` tells how many may be silent now. `on_end` hears that connections have ended, or
        are about to: libzmq tells it before it closes them.
        """
        self.cut_off = 0
        self._on_end = on_end
        self._router = router
        self._path = path
        self._most = most
        self._hello_s = hello_s
        self._rest: asyncio.TimerHandle | None = None
        self._crowd = 0
        self._crowd_since = self._complained_at = self._flooded_at = -1e9
        # By descriptor, since the kernel has one connection behind each: (inode, whose, end of
        # patience).
        self._silent: dict[int, tuple[int, int, asyncio.TimerHandle]] = {}
        self._of_process: dict[int, dict[int, None]] = {}  # the same, the oldest first
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
        """It has said hello, so it is not cut off as a silent one."""
        fd, inode = connection
        self._forget(fd)
        self._greeted[fd] = inode

    def silent_again(self, connection: Connection) -> None:
        """It is no client any more: from now on it counts as a new connection that has said
        nothing.
        """
        fd, inode = connection
        if self._greeted.get(fd) == inode:
            del self._greeted[fd]
            self._accepted(fd)

    @property
    def rests(self) -> bool:
        """Whether the socket cannot be found, for a moment."""
        return self._rest is not None

    def close(self) -> None:
        if self._rest is not None:
            self._rest.cancel()
            show(self._path)
        asyncio.get_running_loop().remove_reader(int(self._monitor.getsockopt(zmq.FD)))
        self._router.disable_monitor()
        self._monitor.close(0)
        for fd in list(self._silent):
            self._forget(fd)

    def _pump(self) -> None:
        ended = False
        for event, fd in self._events():
            if event == zmq.EVENT_ACCEPTED:
                self._accepted(fd)
                continue
            ended = True
            if self._greeted.get(fd) != _connection(fd)[1]:
                self._greeted.pop(fd, None)
                self._forget(fd)
        if ended:
            self._on_end()

    def _events(self) -> list[tuple[int, int]]:
        """What has come since the last look. If that alone is a flood, it is met before one of them
        is looked at, which takes ten times as long.
        """
        came: list[tuple[int, int]] = []
        room = CROWD + self._most() - len(self._silent)  # for those that it accepted
        while not self._monitor.closed:
            try:
                head, _address = self._monitor.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                break
            came.append(_EVENT.unpack(head))
            room -= came[-1][0] == zmq.EVENT_ACCEPTED
            if room < 0 and not self.rests:
                self._begin_rest()
        return came

    def _accepted(self, fd: int) -> None:
        inode = _connection(fd)[1]
        if not inode or self._greeted.get(fd) == inode:
            return  # it is gone, or its hello was read before this
        self._forget(fd)
        most = self._most()
        while len(self._silent) >= most:
            crowd = max(self._of_process.values(), key=len)
            self._cut_off(next(iter(crowd)), "too many have said no hello")
            self._count_crowd()
        patience = asyncio.get_running_loop().call_later(
            self._hello_s, self._cut_off, fd, f"it said no hello in {self._hello_s:g} s"
        )
        pid = _pid_of(fd)
        self._silent[fd] = inode, pid, patience
        self._of_process.setdefault(pid, {})[fd] = None

    def _count_crowd(self) -> None:
        now = time.monotonic()
        if not self.rests and now - self._crowd_since > CROWD_S:
            self._crowd, self._crowd_since = 0, now
        self._crowd += 1
        if self._crowd >= CROWD and not self.rests:
            self._begin_rest()

    def _begin_rest(self) -> None:
        now = time.monotonic()
        if now - self._flooded_at > COMPLAIN_S:
            log.warning("connections to %s come too fast: few at a time are let in", self._path)
        self._flooded_at = now
        hide(self._path)
        self._crowd = 0
        self._rest = asyncio.get_running_loop().call_later(REST_S, self._turn)

    def _turn(self) -> None:
        """Let in whoever connects within OPEN_S; or everybody, if few were too many since the last
        turn.
        """
        came, self._crowd = self._crowd, 0
        show(self._path)
        self._rest = None
        if came > FEW:
            # Not by the loop, which may be held up: then it would be open for as long.
            time.sleep(OPEN_S)
            hide(self._path)
            self._rest = asyncio.get_running_loop().call_later(REST_S, self._turn)

    def _forget(self, fd: int) -> None:
        if fd in self._silent:
            _inode, pid, patience = self._silent.pop(fd)
            patience.cancel()
            del self._of_process[pid][fd]
            if not self._of_process[pid]:
                del self._of_process[pid]

    def _cut_off(self, fd: int, why: str) -> None:
        inode, _pid, _patience = self._silent[fd]
        self._forget(fd)
        self.end((fd, inode), why)

    def end(self, connection: Connection, why: str = "") -> None:
        """End it as its peer would: the descriptor is libzmq's, which sees the end and closes it.
        Without a reason nobody is told.

        It may have been closed and its number given to something else of this process since.
        """
        fd, _inode = connection
        if not is_open(connection):
            return
        with contextlib.suppress(OSError), _borrowed(fd) as ours:
            if ours.getsockname() == self._path:
                ours.shutdown(sockets.SHUT_RDWR)
                if why:
                    self.cut_off += 1
                    self._complain(why)

    def _complain(self, why: str) -> None:
        """Once in a while: a flood would fill the journal, and writing to it costs time."""
        now = time.monotonic()
        if now - self._complained_at > COMPLAIN_S:
            self._complained_at = now
            log.warning("cut off a connection to %s, the %d.: %s", self._path, self.cut_off, why)


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


def _pid_of(fd: int) -> int:
    """Who has connected (SO_PEERCRED, unix(7)); 0 when it is gone."""
    try:
        with _borrowed(fd) as connection:
            raw = connection.getsockopt(sockets.SOL_SOCKET, sockets.SO_PEERCRED, _CREDENTIALS.size)
    except OSError:
        return 0
    pid: int = _CREDENTIALS.unpack(raw)[0]
    return pid


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
