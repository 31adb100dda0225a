"""A shim that is forked before anybody asks for one, so that its container does not wait for that.

It has touched what a shim touches first, and waits for one order on a pipe whose other end its
spawner has. The end of the spawner shows there as well. Until then it is nobody's shim; from then
on everything is as with one that was forked for its order.

A pipe and plain descriptors: a socket object takes enumerations along, 0.1 MB of memory touched.
"""

import os

# An empty pipe takes it in one write; a larger order gets its own fork.
MOST_BYTES = 32 * 1024
_BLOCK = 4096


class Spare:
    """The spawner's side of it. Owns the pidfd and the pipe's end."""

    __slots__ = ("_pipe", "pid", "pidfd", "start")

    def __init__(self, pid: int, start: int, pipe: int) -> None:
        """`pid` is a child that has not been reaped."""
        self.pid = pid
        self.start = start
        self.pidfd = os.pidfd_open(pid)
        self._pipe = pipe

    def hand_over(self, order: bytes) -> bool:
        """Give it its order; False when it is gone, and nobody carries the order out.

        It is of no more use in either case.
        """
        try:
            return len(order) <= MOST_BYTES and os.write(self._pipe, order) == len(order)
        except OSError:
            return False
        finally:
            self._end_pipe()  # which says that the order is whole, or that there is none

    def close(self) -> None:
        """Without an order it ends now."""
        self._end_pipe()
        os.close(self.pidfd)

    def _end_pipe(self) -> None:
        if self._pipe >= 0:
            os.close(self._pipe)
            self._pipe = -1


def await_order(pipe: int) -> bytes:
    """All that comes until the other end is closed; b"" when there is no order."""
    order = b""
    while block := os.read(pipe, _BLOCK):
        order += block
    os.close(pipe)
    return order
