"""A DEALER over a path socket: one peer, never blocking, no thread of its own.

Both who have a loop (the shim) and who have none (`ctl`) drive it: they wait for `fileno`, read,
and connect again when it is lost. Unlike a libzmq socket it tells that the peer is gone, and queues
nothing: what the kernel did not take whole is finished before the next message is accepted, and is
forgotten with the connection. So the next manager never executes what was asked of the last.
"""

from __future__ import annotations

from lighter.proto import zmtp
from lighter.proto.socketpath import check_socket_path

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator
else:
    import _socket as socket  # without enums and selectors, which take 7 ms to load

RECONNECT_S = 0.02
RECONNECT_MAX_S = 0.2


class Dealer:
    """Connects to `path` as `routing_id`; `read_bytes` is the most that one read takes."""

    __slots__ = ("_decoder", "_path", "_read_bytes", "_routing_id", "_socket", "_unsent", "lost")

    def __init__(self, path: str, routing_id: bytes, read_bytes: int) -> None:
        """Raises InvalidArgument for a path that no socket can have."""
        self._path = check_socket_path(path)
        self._routing_id = routing_id
        self._read_bytes = read_bytes
        self._socket: socket.socket | None = None
        self._decoder = zmtp.Decoder()
        self._unsent: bytes | memoryview = b""
        self.lost = False  # the peer has ended the connection, which is to be closed

    def connect(self) -> bool:
        """Try to connect, and say the opening. False: nobody listens, or no socket is to be had."""
        self.close()
        flags = socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        try:
            link = socket.socket(socket.AF_UNIX, flags)
        except OSError:
            return False
        try:
            # A path socket connects at once or not at all: EAGAIN is a full backlog (unix(7)).
            link.connect(self._path)
            self._unsent = zmtp.opening(self._routing_id)
            self._socket = link
        except OSError:
            link.close()
            return False
        self._decoder = zmtp.Decoder()
        self.flush()
        return True

    def close(self) -> None:
        """End the connection, and forget what was not sent. Nothing when there is none."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        self._unsent = b""
        self.lost = False

    @property
    def connected(self) -> bool:
        """Whether there is a connection that was not seen to end."""
        return self._socket is not None and not self.lost

    def fileno(self) -> int:
        """Readable when `receive` has something to do; -1 without a connection."""
        return -1 if self._socket is None else self._socket.fileno()

    @property
    def unsent(self) -> bool:
        """Whether a part of a message is pending: wait for writable, then `flush`."""
        return bool(self._unsent)

    def send(self, frames: list[bytes]) -> bool:
        """Send one message. False, and nothing is sent, while an earlier one is pending."""
        if not self.connected or not self.flush():
            return False
        self._unsent = zmtp.encode(frames)
        self.flush()
        return True

    def flush(self) -> bool:
        """Send what is unsent. True when nothing is pending."""
        if self._unsent and self._socket is not None:
            try:
                sent = self._socket.send(self._unsent, socket.MSG_NOSIGNAL)
            except BlockingIOError:
                return False
            except OSError:
                # The peer is gone. What it said before can still be read: `receive` sees the end.
                return False
            self._unsent = memoryview(self._unsent)[sent:]
        return not self._unsent

    def receive(self) -> Iterator[list[bytes]]:
        """Messages that came, until there are no more; `lost` tells of the connection's end."""
        while self._socket is not None and not self.lost:
            try:
                data = self._socket.recv(self._read_bytes)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            try:
                if not data:
                    raise zmtp.Violation("the peer has closed")
                messages = self._decoder.feed(data)
            except zmtp.Violation:
                self.lost = True
                return
            if self._decoder.replies and self.flush():
                self._unsent, self._decoder.replies = self._decoder.replies, b""
                self.flush()
            yield from messages
            if len(data) < self._read_bytes:
                return

    @property
    def peer_closed(self) -> bool:
        """Whether the kernel knows already that nobody is at the other end."""
        if self._socket is None:
            return True
        try:
            return not self._socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True
