"""A program of the client's that takes a container's output: containerd's `binary://` logging.

It gets stdout as descriptor 3, stderr as 4, and the write end of a pipe as 5, which it closes, or
writes to, once it is ready; CONTAINER_ID and CONTAINER_NAMESPACE are in its environment. It ends
by itself when both outputs have ended.
"""

import errno
import fcntl
import os
import signal

from lighter.proto.errors import DeadlineExceeded, FailedPrecondition, NotFound
from lighter.shim.loop import READ, Future, Loop
from lighter.shim.reaper import Reaper
from lighter.shim.runc import ENVIRONMENT
from lighter.shim.spawn import spawn

READY_S = 10.0  # containerd's own limit
_ABOVE = 10  # the descriptors that a child gets are below: one must not be overwritten by another


async def start_logger(
    loop: Loop, reaper: Reaper, argv: list[str], namespace: str, container_id: str
) -> tuple[int, int]:
    """Run it and wait until it is ready; returns the write ends for stdout and stderr.

    Raises NotFound, FailedPrecondition when it cannot be started, DeadlineExceeded.
    """
    ends: list[int] = []
    try:
        for _ in range(3):
            ends += [_moved(fd) for fd in os.pipe2(os.O_CLOEXEC)]
        out_read, out_write, err_read, err_write, ready_read, ready_write = ends
        null = _moved(os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC))
        ends.append(null)
        environ = {
            **ENVIRONMENT,
            "CONTAINER_ID": container_id,
            "CONTAINER_NAMESPACE": namespace,
        }
        childs = (null, null, null, out_read, err_read, ready_write)
        try:
            pid = spawn(argv, environ, childs)
        except OSError as err:
            kind = NotFound if err.errno == errno.ENOENT else FailedPrecondition
            raise kind(f"start logging program {argv[0]}: {err.strerror}") from err
        reaper.expect(pid, lambda _status, _at: None)
        for fd in (out_read, err_read, ready_write, null):
            os.close(fd)
            ends.remove(fd)
        try:
            await _ready(loop, ready_read, argv[0])
        except BaseException:
            if reaper.has(pid):  # one that went to the background is reaped, its pid another's
                os.killpg(pid, signal.SIGKILL)
            raise
        ends.remove(out_write)
        ends.remove(err_write)
        return out_write, err_write
    finally:
        for fd in ends:
            os.close(fd)


async def _ready(loop: Loop, fd: int, program: str) -> None:
    ready = Future()
    loop.watch(fd, READ, lambda _events: ready.set())
    try:
        await loop.within(ready, READY_S, f"wait for logging program {program}")
    except DeadlineExceeded as err:
        raise DeadlineExceeded(
            f"start logging program {program}: it is not ready after {READY_S:g} s"
        ) from err
    finally:
        loop.unwatch(fd)


def _moved(fd: int) -> int:
    moved = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _ABOVE)
    os.close(fd)
    return moved
