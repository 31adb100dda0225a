"""ZMTP 3.1, a DEALER's half of it, as bytes in and messages out (rfc.zeromq.org/spec/37).

libzmq serves the manager's many peers. A shim or `ctl` has one peer, and libzmq would cost it two
threads, their stacks and a context: more memory than all the rest of a shim's conversation. What a
DEALER with the NULL mechanism says fits on this page. No socket is seen here.

    greeting   ff 00…00 7f | 3 1 | "NULL" | not a server | filler        64 bytes, both ways
    READY      command with the properties Socket-Type and Identity      both ways
    messages   frames: flags, size in 1 or 8 bytes, body; flag MORE on all but the last
"""

from _struct import Struct

from lighter.proto.codec import MAX_MESSAGE_BYTES

MORE = 1
LONG = 2
COMMAND = 4

GREETING_BYTES = 64
GREETING = (
    b"\xff\0\0\0\0\0\0\0\x01\x7f"  # signature; the 1 is what libzmq sends for older peers
    + bytes((3, 1))
    + b"NULL".ljust(20, b"\0")
    + bytes(32)
)
PROBE = b"\0\0"  # an empty message: what ZMQ_PROBE_ROUTER sends after each connect

# What one message may take with all its frames; a handshake's commands are far smaller.
MAX_BYTES = MAX_MESSAGE_BYTES + 64
MAX_FRAMES = 8
MAX_COMMAND_BYTES = 1024
MAX_REPLY_BYTES = 64 << 10  # kept for a peer that asks, and takes no answers

_LONG_HEAD = Struct(">BQ")


class Violation(Exception):
    """The peer does not speak ZMTP, or not as agreed: the connection is of no more use."""


def opening(routing_id: bytes) -> bytes:
    """All that a DEALER says before it has heard anything: greeting and READY, in one write.

    A message must wait for the peer's READY: libzmq, which may not have sent its own yet, takes
    whatever comes before for a broken handshake and closes the connection.
    """
    ready = b"\x05READY" + _property(b"Socket-Type", b"DEALER") + _property(b"Identity", routing_id)
    return GREETING + command(ready)


def command(body: bytes) -> bytes:
    """One command, as it goes over the connection."""
    return _frame(COMMAND, body)


def encode(frames: list[bytes]) -> bytes:
    """One message, as it goes over the connection."""
    return b"".join([*(_frame(MORE, body) for body in frames[:-1]), _frame(0, frames[-1])])


def _frame(flags: int, body: bytes) -> bytes:
    size = len(body)
    if size < 256:
        return bytes((flags, size)) + body
    return _LONG_HEAD.pack(flags | LONG, size) + body


def _property(name: bytes, value: bytes) -> bytes:
    return bytes((len(name),)) + name + len(value).to_bytes(4) + value


class Decoder:
    """Takes what a peer sends on one connection. `replies` collects what it is to get for it."""

    __slots__ = ("_buffer", "_frames", "_greeted", "_size", "ready", "replies")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._frames: list[bytes] = []
        self._size = 0  # of the frames
        self._greeted = False
        self.ready = False
        self.replies = b""

    def feed(self, data: bytes) -> list[list[bytes]]:
        """The messages that are whole now. Raises Violation."""
        buffer = self._buffer
        buffer += data
        if not self._greeted:
            if len(buffer) < GREETING_BYTES:
                _check_greeting(buffer)
                return []
            _check_greeting(buffer)
            self._greeted = True
            del buffer[:GREETING_BYTES]
        messages: list[list[bytes]] = []
        at = 0
        while (frame := self._next(at)) is not None:
            flags, start, at = frame
            body = bytes(memoryview(buffer)[start:at])
            if flags & COMMAND:
                self._command(body)
                continue
            if not self.ready:
                raise Violation("a message came before READY")
            self._frames.append(body)
            if not flags & MORE:
                messages.append(self._frames)
                self._frames, self._size = [], 0
        if at:
            del buffer[:at]
        return messages

    def _next(self, at: int) -> tuple[int, int, int] | None:
        """(flags, start, end) of the frame at `at`, None while it is not whole."""
        buffer = self._buffer
        left = len(buffer) - at
        if left < 2:
            return None
        flags = buffer[at]
        if flags & ~(MORE | LONG | COMMAND) or (flags & COMMAND and flags & MORE):
            raise Violation(f"a frame has flags {flags:#x}")
        if not flags & LONG:
            size, start = buffer[at + 1], at + 2
        elif left < _LONG_HEAD.size:
            return None
        else:
            _flags, size = _LONG_HEAD.unpack_from(buffer, at)
            start = at + _LONG_HEAD.size
        # Before the body is waited for: a claim alone must not make the buffer grow.
        self._check_size(flags, size)
        if len(buffer) < start + size:
            return None
        if not flags & COMMAND:
            self._size += size
        return flags, start, start + size

    def _check_size(self, flags: int, size: int) -> None:
        if flags & COMMAND:
            if size > MAX_COMMAND_BYTES:
                raise Violation(f"a command of {size} bytes")
        elif self._size + size > MAX_BYTES or len(self._frames) >= MAX_FRAMES:
            raise Violation(f"a message of {self._size + size} bytes and more")

    def _command(self, body: bytes) -> None:
        if body.startswith(b"\x05READY"):
            self.ready = True
            self.replies += PROBE
        elif body.startswith(b"\x05ERROR"):
            raise Violation(f"the peer refuses: {body[7:].decode(errors='replace')}")
        elif body.startswith(b"\x04PING"):
            # Time to live (2 bytes), then a context that goes back.
            self.replies += command(b"\x04PONG" + body[7:])
            if len(self.replies) > MAX_REPLY_BYTES:
                raise Violation(f"the peer takes no answers: {len(self.replies)} bytes are due")


def _check_greeting(buffer: bytearray) -> None:
    """As much of it as has come. Raises Violation."""
    if (buffer and buffer[0] != 0xFF) or (len(buffer) > 9 and buffer[9] != 0x7F):
        raise Violation("the peer does not speak ZMTP")
    if len(buffer) > 10 and buffer[10] < 3:
        raise Violation(f"the peer speaks ZMTP {buffer[10]}")
    if len(buffer) >= 32 and bytes(buffer[12:32]).rstrip(b"\0") != b"NULL":
        raise Violation("the peer asks for another mechanism than NULL")
