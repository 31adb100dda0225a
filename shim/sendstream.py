"""Lines of a log over TCP, each in a frame that begins with its length (RFC 6587, 3.4.1).

The receiver is never waited for. What it does not take yet waits here, MAX_WAITING bytes of it; a
line beyond that is refused. A connection that has ended is made again for what waits, after a pause
that doubles each time; a line of which only a part was taken is sent again whole. What the kernel
has taken and the receiver has not is lost with the connection, and nobody can tell how much it was.
"""

import errno
import socket
import time
from collections import deque

from lighter.shim.loop import READ, WRITE, Future, Loop, Timer

MAX_WAITING = 256 * 1024
FIRST_PAUSE_S, MAX_PAUSE_S = 0.5, 30.0
SILENT_S = 30  # that a host may not answer, before its connection counts as ended


class StreamSender:
    """The receiver at one address. Connects when it has something to send."""

    __slots__ = (
        *("_address", "_begun", "_connection", "_emptied", "_frames", "_loop", "_not_before"),
        *("_pause_s", "_retry", "_taken", "_waiting"),
    )

    def __init__(self, loop: Loop, address: tuple[str, int]) -> None:
        self._loop = loop
        self._address = address
        self._connection: socket.socket | None = None
        self._begun = 0.0
        self._frames: deque[bytes] = deque()
        self._waiting = 0  # bytes in frames
        self._taken = 0  # bytes of the first frame
        self._pause_s = FIRST_PAUSE_S
        self._not_before = 0.0
        self._retry: Timer | None = None
        self._emptied: Future | None = None

    def send(self, message: bytes) -> None:
        """Take it, to be sent in its turn. Raises BlockingIOError when too much waits."""
        frame = b"%d %s" % (len(message), message)
        if self._waiting + len(frame) > MAX_WAITING:
            raise BlockingIOError(errno.EAGAIN, "too much waits to be sent")
        self._frames.append(frame)
        self._waiting += len(frame)
        if len(self._frames) > 1:
            return  # whoever sends the others sends it too
        if self._connection is not None:
            self._watch()
        else:
            self._connect_later()

    async def drain(self, timeout_s: float) -> None:
        """Give the receiver a while to take what waits; one that is away, a last try."""
        if self._frames and self._connection is None:
            if self._retry is not None:
                self._retry.cancel()
            self._connect()
        if self._frames and self._connection is not None:
            emptied = self._emptied = Future()
            timer = self._loop.call_later(timeout_s, emptied.set)
            await emptied
            timer.cancel()

    def close(self) -> int:
        """How many lines have not been sent."""
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        self._disconnect()
        left = len(self._frames)
        self._frames.clear()
        self._waiting = 0
        return left

    def _connect_later(self) -> None:
        if self._retry is None:
            delay_s = max(0.0, self._not_before - time.monotonic())
            self._retry = self._loop.call_later(delay_s, self._connect)

    def _connect(self) -> None:
        self._retry = None
        self._begun = time.monotonic()
        family = socket.AF_INET6 if ":" in self._address[0] else socket.AF_INET
        kind = socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        try:
            self._connection = made = socket.socket(family, kind)
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, SILENT_S * 1000)
            made.connect(self._address)
        except BlockingIOError:
            pass  # as every connection does
        except OSError:
            self._lost()
            return
        self._watch()

    def _watch(self) -> None:
        assert self._connection is not None
        events = READ | WRITE if self._frames else READ
        self._loop.watch(self._connection.fileno(), events, self._on_event)

    def _on_event(self, events: int) -> None:
        if events & ~WRITE and not self._is_there():
            self._lost()
        elif events & WRITE:
            self._pass_on()

    def _is_there(self) -> bool:
        """Whether the receiver has not closed. What it says is of no matter."""
        assert self._connection is not None
        try:
            return bool(self._connection.recv(4096))
        except BlockingIOError:
            return True
        except OSError:
            return False

    def _pass_on(self) -> None:
        assert self._connection is not None
        while self._frames:
            frame = self._frames[0]
            try:
                self._taken += self._connection.send(frame[self._taken :], socket.MSG_NOSIGNAL)
            except BlockingIOError:
                return
            except OSError:
                self._lost()
                return
            if self._taken == len(frame):
                self._frames.popleft()
                self._waiting -= len(frame)
                self._taken = 0
        self._watch()
        if self._emptied is not None:
            self._emptied.set()

    def _lost(self) -> None:
        """Try again, the later the shorter the connections are."""
        self._disconnect()
        now = time.monotonic()
        if now - self._begun > MAX_PAUSE_S:
            self._pause_s = FIRST_PAUSE_S
        self._not_before = now + self._pause_s
        self._pause_s = min(2 * self._pause_s, MAX_PAUSE_S)
        if self._emptied is not None:
            self._emptied.set()
        if self._frames:
            self._connect_later()

    def _disconnect(self) -> None:
        self._taken = 0
        if self._connection is not None:
            self._loop.unwatch(self._connection.fileno())
            self._connection.close()
            self._connection = None
