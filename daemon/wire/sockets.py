"""The manager's ZeroMQ sockets: every option in one place, with its reason.

The manager binds ROUTERs of libzmq; its peers are DEALERs of their own (proto/dealer.py). See
PROTOCOL.md, "Sockets".
"""

import os
import stat
from contextlib import suppress

import zmq

from lighter.proto.codec import MAX_MESSAGE_BYTES
from lighter.proto.errors import FailedPrecondition, Unavailable
from lighter.proto.socketpath import check_socket_path

SHIM_BACKLOG = 4096  # with libzmq's 100, 1000 shims need 3 s to come back instead of 0.3 s
CLIENT_BACKLOG = 256  # who waits in it is accepted, whatever became of the path
HIDDEN = ".hidden"
CLIENT_HWM = 16
SHIM_HWM = 64


def context(io_threads: int = 1) -> "zmq.Context[zmq.Socket[bytes]]":
    """A context of this process's own. Never made before a fork: its threads stay behind."""
    return zmq.Context(io_threads=io_threads)


def bind_router(
    ctx: "zmq.Context[zmq.Socket[bytes]]",
    path: str,
    mode: int,
    gid: int,
    high_water: int,
    *,
    backlog: int = SHIM_BACKLOG,
    handover: bool = True,
) -> "zmq.Socket[bytes]":
    """Bind a ROUTER to a path socket of the given mode and group.

    With `handover` a peer that connects with another's routing id takes its place. The caller holds
    the instance's lock. A stale socket is replaced; libzmq would delete any file that stands at the
    path, so anything but a socket is refused (FailedPrecondition).
    """
    socket = ctx.socket(zmq.ROUTER)
    _common(socket, high_water)
    # Without MANDATORY a message to a peer that is gone vanishes; with it the send fails.
    socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
    # A shim that reconnects before libzmq saw the old connection end keeps its routing id.
    socket.setsockopt(zmq.ROUTER_HANDOVER, int(handover))
    socket.setsockopt(zmq.BACKLOG, backlog)
    try:
        with suppress(FileNotFoundError):  # of a manager that was killed meanwhile
            os.unlink(path + HIDDEN)
        listen(socket, path, mode, gid)
    except BaseException:
        socket.close(0)
        raise
    return socket


def listen(socket: "zmq.Socket[bytes]", path: str, mode: int, gid: int) -> None:
    """Listen at `path`; once more, if somebody deleted it: connections made before stay.

    Raises FailedPrecondition for anything but a socket at the path, Unavailable.
    """
    check_socket_path(path)
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise FailedPrecondition(f"bind {path}: something that is not a socket stands there")
        os.unlink(path)
    except FileNotFoundError:
        pass
    mask = os.umask(0o777 & ~mode)
    try:
        socket.bind(f"ipc://{path}")
    except zmq.ZMQError as err:
        raise Unavailable(f"bind {path}: {err.strerror}") from err
    finally:
        os.umask(mask)
    os.chmod(path, mode)
    if gid >= 0:
        os.chown(path, -1, gid)


def hide(path: str) -> None:
    """Nobody finds the socket that listens at `path`, until `show`; who is connected stays.

    To end the listening would end all connections: libzmq's belong to their listener.
    """
    with suppress(OSError):  # it was deleted, or it cannot be now: there is nothing better
        os.rename(path, path + HIDDEN)


def show(path: str) -> None:
    with suppress(OSError):
        os.rename(path + HIDDEN, path)


def _common(socket: "zmq.Socket[bytes]", high_water: int) -> None:
    socket.set(zmq.LINGER, 0)
    socket.set(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES + 64)
    socket.set(zmq.SNDHWM, high_water)
    socket.set(zmq.RCVHWM, high_water)
