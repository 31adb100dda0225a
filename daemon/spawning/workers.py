"""Runs jobs in worker processes, each forked by the spawner for one job (lighter.shim.worker)."""

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import msgpack

from lighter.daemon.spawning.spawner import Child, Spawner
from lighter.proto.errors import Unavailable, from_wire
from lighter.proto.shim_api import MAX_PACKET

log = logging.getLogger("lighter.workers")

ANSWERED_S = 5.0  # a worker that has answered has nothing left to do
KILLED_S = 10.0  # but the kernel may hold it up, in a file system that does not answer


class Workers:
    """The `Worker` of lighter.daemon.images.worker that a manager has."""

    def __init__(self, spawner: Spawner) -> None:
        self._spawner = spawner

    async def run(
        self,
        job: dict[str, Any],
        fds: Sequence[int],
        progress: Callable[[dict[str, Any]], None] | None = None,
    ) -> dict[str, Any]:
        """Run one job in a worker process. Raises the worker's error, or Unavailable if it died.

        However this ends, the worker has ended before, and with it the mounts that it had.
        """
        what = f"run worker job {job['job']}"
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours:
            ours.setblocking(False)
            with theirs:
                child = await self._spawner.fork_worker(theirs.fileno(), what)
            answered = False
            try:
                # Not before it is known: of who gives up until here, the worker gets no job.
                socket.send_fds(ours, [msgpack.packb(job)], list(fds))
                answer = await _answer(ours, what, progress)
                answered = True
            except OSError as err:
                raise Unavailable(f"{what}: {err.strerror}") from err
            finally:
                try:
                    await _ended(child, what, ANSWERED_S if answered else 0.0)
                finally:
                    os.close(child.pidfd)
        if "error" in answer:
            raise from_wire(*answer["error"])
        result: dict[str, Any] = answer["ok"]
        return result


async def _answer(
    ours: socket.socket, what: str, progress: Callable[[dict[str, Any]], None] | None
) -> dict[str, Any]:
    """A worker's last packet; the others go to `progress`. Raises Unavailable, OSError."""
    loop = asyncio.get_running_loop()
    while packet := await loop.sock_recv(ours, MAX_PACKET):
        answer: dict[str, Any] = msgpack.unpackb(packet)
        if "ok" in answer or "error" in answer:
            return answer
        if progress is not None and "progress" in answer:
            progress(answer["progress"])
    raise Unavailable(f"{what}: the worker ended without an answer")


async def _ended(child: Child, what: str, patience_s: float) -> None:
    """Wait for the end of a worker, which is killed when it does not end by itself in time."""
    if patience_s and await _ends_in(child, patience_s):
        return
    with suppress(ProcessLookupError):
        signal.pidfd_send_signal(child.pidfd, signal.SIGKILL)
    if not await _ends_in(child, KILLED_S):
        log.error("%s: worker %d does not end, though it was killed", what, child.pid)


async def _ends_in(child: Child, seconds: float) -> bool:
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(child.pidfd, ended.set)
    try:
        async with asyncio.timeout(seconds):
            await ended.wait()
    except TimeoutError:
        return False
    finally:
        loop.remove_reader(child.pidfd)
    return True
