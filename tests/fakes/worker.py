"""The real worker without the spawner: each job in a process forked from the test."""

import asyncio
import os
import socket
from collections.abc import Callable, Sequence
from typing import Any

import msgpack

from lighter.proto.errors import Internal, LighterError, from_wire
from lighter.shim.worker.channel import MAX_PACKET
from lighter.shim.worker.main import serve


class ForkWorker:
    """Implements daemon.images.worker.Worker. `jobs` lists the jobs that were run.

    `before` is called with each job before it is run; what it raises is the job's failure.
    """

    def __init__(self) -> None:
        self.jobs: list[dict[str, Any]] = []
        self.before: Callable[[dict[str, Any]], None] = lambda job: None

    async def run(
        self,
        job: dict[str, Any],
        fds: Sequence[int] = (),
        progress: Callable[[dict[str, Any]], None] | None = None,
    ) -> dict[str, Any]:
        self.jobs.append(job)
        self.before(job)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            try:
                ours.close()
                serve(theirs, parent)
            finally:
                os._exit(0)
        theirs.close()
        ours.setblocking(False)
        loop = asyncio.get_running_loop()
        try:
            socket.send_fds(ours, [msgpack.packb(job)], list(fds))
            while packet := await loop.sock_recv(ours, MAX_PACKET):
                message = msgpack.unpackb(packet)
                if "ok" in message:
                    result: dict[str, Any] = message["ok"]
                    return result
                if "error" in message:
                    raise from_wire(*message["error"])
                if progress is not None:
                    progress(message["progress"])
            raise Internal(f"run job {job['job']}: the worker ended without an answer")
        finally:
            ours.close()  # a cancelled job ends here: its worker sees the end and gives up
            await asyncio.shield(asyncio.to_thread(os.waitpid, pid, 0))

    async def remove_tree(self, path: str) -> None:
        """A TreeRemover."""
        result = await self.run({"job": "remove", "dir": path})
        if result["left_count"]:
            raise LighterError(f"remove {path}: {result['left']}")
