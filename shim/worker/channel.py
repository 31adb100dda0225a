"""The worker's end of its control socket: one packet (SOCK_SEQPACKET) is one msgpack map.

manager → worker   {"job": name, …} with up to 8 descriptors (SCM_RIGHTS)
worker → manager   {"progress": {…}}                  any number, at most about ten a second
                   {"ok": {…}} | {"error": [code, message]}      exactly one, the last
"""

import select
import socket
import time
from typing import Any

import msgpack

from lighter.proto.errors import DeadlineExceeded, InvalidArgument, LighterError

MAX_PACKET = 128 * 1024
MAX_FDS = 8
MAX_MESSAGE = 4096
PROGRESS_INTERVAL_S = 0.1


class PeerGone(Exception):
    """The manager closed its end: nobody wants the answer, the worker ends."""


class Channel:
    """Receives one job, sends its progress and its one answer."""

    __slots__ = ("_due", "_socket")

    def __init__(self, control: socket.socket) -> None:
        self._socket = control
        self._due = 0.0

    def fileno(self) -> int:
        return self._socket.fileno()

    def receive(self) -> tuple[dict[str, Any], list[int]]:
        """The job and its descriptors, which the caller owns. Raises PeerGone, InvalidArgument."""
        packet, fds, flags, _ = socket.recv_fds(self._socket, MAX_PACKET, MAX_FDS)
        if not packet:
            raise PeerGone
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise InvalidArgument("receive job: the packet is too large")
        try:
            job = msgpack.unpackb(packet, max_ext_len=0)
        except Exception as err:
            # msgpack raises its own, ValueError or UnicodeDecodeError, by the kind of damage.
            raise InvalidArgument(f"receive job: {err}") from err
        if not isinstance(job, dict):
            raise InvalidArgument("receive job: the packet is not a map")
        return job, fds

    def tick(self, **progress: int) -> None:
        """Report progress if some time has passed since the last report. Raises PeerGone.

        A report that does not fit the socket's buffer is dropped: a slow manager delays nobody.
        """
        now = time.monotonic()
        if now < self._due:
            return
        self._due = now + PROGRESS_INTERVAL_S
        try:
            self._socket.send(msgpack.packb({"progress": progress}), socket.MSG_DONTWAIT)
        except BlockingIOError:
            pass
        except OSError as err:
            raise PeerGone from err

    def answer(self, result: dict[str, Any]) -> None:
        """Send the last packet. Raises PeerGone; InvalidArgument when it does not fit."""
        packet = msgpack.packb({"ok": result})
        if len(packet) > MAX_PACKET:
            raise InvalidArgument(
                f"answer job: {len(packet)} bytes, a packet has at most {MAX_PACKET}"
            )
        self._send(packet)

    def fail(self, error: LighterError) -> None:
        """Send the last packet of a job that failed. Raises PeerGone."""
        self._send(msgpack.packb({"error": [error.code, error.message[:MAX_MESSAGE]]}))

    def wait_readable(self, fd: int, patience_s: float | None = None) -> None:
        """Wait until `fd` has data or ended. Raises PeerGone when the manager is gone,
        DeadlineExceeded after `patience_s`."""
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        poll.register(self._socket.fileno(), select.POLLRDHUP)
        seen = poll.poll(None if patience_s is None else patience_s * 1000)
        if not seen:
            raise DeadlineExceeded(f"read input: nothing came for {patience_s:g} s")
        for ready, _ in seen:
            if ready != fd:
                raise PeerGone

    def _send(self, packet: bytes) -> None:
        try:
            self._socket.send(packet)
        except OSError as err:
            raise PeerGone from err
