"""DEALERs of libzmq, as any other program would use one to speak to the manager."""

import zmq

from lighter.daemon.wire.sockets import context
from lighter.proto.codec import MAX_MESSAGE_BYTES
from lighter.proto.socketpath import check_socket_path

__all__ = ["connect_dealer", "context"]


def connect_dealer(
    ctx: "zmq.Context[zmq.Socket[bytes]]", path: str, high_water: int, routing_id: bytes = b""
) -> "zmq.Socket[bytes]":
    """A DEALER that connects, and connects again, to the manager's path socket.

    IMMEDIATE: nothing is queued for a manager that is not there, so the next one never executes
    what was asked of the last. PROBE_ROUTER: each (re)connect shows at the manager as an empty
    message, which it answers with a welcome.
    """
    check_socket_path(path)
    socket = ctx.socket(zmq.DEALER)
    socket.set(zmq.LINGER, 0)
    socket.set(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES + 64)
    socket.set(zmq.SNDHWM, high_water)
    socket.set(zmq.RCVHWM, high_water)
    socket.set(zmq.IMMEDIATE, 1)
    socket.set(zmq.PROBE_ROUTER, 1)
    socket.set(zmq.RECONNECT_IVL, 20)
    socket.set(zmq.RECONNECT_IVL_MAX, 200)
    if routing_id:
        socket.set(zmq.ROUTING_ID, routing_id)
    socket.connect(f"ipc://{path}")
    return socket
