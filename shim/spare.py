"""A shim that is forked before anybody asks for one, so that its container does not wait for that.

It has touched what a shim touches first, and waits for one order: a packet on a socket whose other
end its spawner has. The end of the spawner, or its own, shows there as well. Until then it is
nobody's shim; from then on everything is as with one that was forked for its order.
"""

import os
import socket

from lighter.proto.shim_api import MAX_PACKET


class Spare:
    """The spawner's side of it. Owns the socket and the pidfd."""

    __slots__ = ("_control", "pid", "pidfd", "start")

    def __init__(self, control: socket.socket, pid: int, start: int) -> None:
        """`pid` is a child that has not been reaped."""
        self._control = control
        self.pid = pid
        self.pidfd = os.pidfd_open(pid)
        self.start = start

    def hand_over(self, packet: bytes) -> bool:
        """Give it the spawner's request; False when it is gone, and nobody has the request."""
        try:
            self._control.send(packet, socket.MSG_NOSIGNAL)
        except OSError:
            return False
        finally:
            self._control.close()
        return True

    def close(self) -> None:
        """Give the descriptors back; one that has no order ends by that."""
        self._control.close()
        os.close(self.pidfd)


def pair() -> tuple[socket.socket, socket.socket]:
    """The spawner's end and the spare's."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * MAX_PACKET)
    ours.setblocking(False)
    return ours, theirs


def await_order(control: socket.socket) -> bytes:
    """The request; b"" when the spawner has gone without one."""
    # Asked for its length first: room for the largest packet would be memory of this shim's own.
    size = control.recv_into(bytearray(1), 0, socket.MSG_PEEK | socket.MSG_TRUNC)
    packet = control.recv(size) if size else b""
    control.close()
    return packet
