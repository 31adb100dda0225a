"""Programs of the administrator's on a layer's way to the worker: containerd's `stream_processors`.

    layer ─► program ─► pipe ─► program ─► pipe ─► worker: inflate, hash, apply

The first in the file that accepts a layer's media type gets it, and so on with what it returns,
until that is OCI's plain tar or nobody's; the worker decides about the rest. A program finds the
layer at its standard input and writes to its standard output; STREAM_PROCESSOR_MEDIATYPE says what
the layer is, descriptor 3 has what a client gave for it (a serialized Any), its environment is PATH
and what is configured. Each runs in a worker's job (lighter.shim.worker.process) that ends it with
all that it has started. A layer is applied when the worker and every program have ended well.
"""

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from lighter.daemon.extensions import StreamProcessor
from lighter.daemon.images.worker import Worker
from lighter.proto.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    ResourceExhausted,
)

PLAIN_TAR = "application/vnd.oci.image.layer.v1.tar"
MEDIA_TYPE_VARIABLE = "STREAM_PROCESSOR_MEDIATYPE"

MAX_PAYLOAD_BYTES = 16 << 20
PATIENCE_S = 120.0  # with programs that give nothing, though all of the layer is there
# One that failed has said so by then to the worker, who finds a layer cut short, and not yet to us.
SAYS_S = 1.0
ENDS_S = 10.0  # for a program whose output has ended
_QUOTED = 400

Progress = Callable[[dict[str, Any]], None]


class Processors:
    """Hands the worker's job `apply` what programs make of its layer.

    `find`: the checked absolute path of a configured one.
    """

    def __init__(
        self,
        worker: Worker,
        configured: Sequence[StreamProcessor] = (),
        find: Callable[[str], str] = os.path.abspath,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._worker = worker
        self._configured = tuple(configured)
        self._find = find
        self._patience_s = patience_s

    def chain(self, media_type: str) -> tuple[StreamProcessor, ...]:
        """Whom a layer goes through, () for nobody. Raises InvalidArgument for a circle."""
        chain: list[StreamProcessor] = []
        known = {media_type}
        while one := next((one for one in self._configured if media_type in one.accepts), None):
            chain.append(one)
            media_type = one.returns
            if media_type == PLAIN_TAR:
                break
            if media_type in known:
                ids = ", ".join(one.id for one in chain)
                raise InvalidArgument(f"process layer: {ids} lead back to {media_type}")
            known.add(media_type)
        return tuple(chain)

    async def apply(
        self,
        order: dict[str, Any],
        fds: Sequence[int],
        progress: Progress | None = None,
        payloads: Mapping[str, bytes] | None = None,
    ) -> dict[str, Any]:
        """Run the job `order`, whose first descriptor yields the layer; returns its answer.

        `payloads`: by the processor's id. Raises what the job does, FailedPrecondition for a
        program that failed, DeadlineExceeded for one that gives nothing or does not end.
        """
        chain = self.chain(order["media_type"])
        if not chain:
            return await self._worker.run(order, fds, progress)
        programs = [(one, self._find(one.path)) for one in chain]
        types = [order["media_type"], *(one.returns for one in chain)]
        with ExitStack() as held:
            running: list[asyncio.Task[None]] = []
            source = fds[0]
            try:
                for (one, program), media_type in zip(programs, types, strict=False):
                    read_end, write_end = os.pipe2(os.O_CLOEXEC)
                    # Its reader's end is kept: who wrote to it fails by himself or not at all.
                    held.callback(os.close, read_end)
                    output = _Held(write_end)
                    held.callback(output.close)
                    payload = _payload(one, (payloads or {}).get(one.id))
                    if payload is not None:
                        held.callback(os.close, payload)
                    job = _job(one, program, media_type)
                    work = self._run(one, job, source, output, payload)
                    running.append(asyncio.create_task(work))
                    source = read_end
                last = {**order, "media_type": types[-1], "patience_s": self._patience_s}
                work_on_it = self._worker.run(last, [source, *fds[1:]], progress)
                applying = asyncio.create_task(work_on_it)
                running.append(applying)  # type: ignore[arg-type]
                await _all_well(running)
                return applying.result()
            finally:
                for task in running:
                    task.cancel()
                await asyncio.gather(*running, return_exceptions=True)

    async def _run(
        self,
        one: StreamProcessor,
        job: dict[str, Any],
        source: int,
        output: "_Held",
        payload: int | None,
    ) -> None:
        fds = [source, output.fd, *([] if payload is None else [payload])]
        try:
            # Its first word says that it has the descriptors: now its end is the output's.
            done = await self._worker.run(job, fds, lambda _: output.close())
        finally:
            output.close()
        if done["code"] != 0:
            words = " ".join(str(done["words"]).split())[-_QUOTED:]
            raise FailedPrecondition(
                f"process layer: {one.id} ended with code {done['code']}: {words or 'no word'}"
            )


async def _all_well(running: Sequence["asyncio.Task[Any]"]) -> None:
    """Wait for the programs and for the worker, which is the last; raises the first failure.

    A program's that comes a moment after the worker's is told instead of that.
    """
    *programs, applying = running
    pending = set(running)
    while pending and not any(task.done() and task.exception() for task in running):
        patience_s = ENDS_S if applying.done() else None
        done, pending = await asyncio.wait(
            pending, timeout=patience_s, return_when=asyncio.FIRST_COMPLETED
        )
        if not done:
            raise DeadlineExceeded(
                f"process layer: a program does not end, {ENDS_S:g} s after its output did"
            )
    if pending and applying.done():
        waiting = [task for task in programs if not task.done()]
        if waiting:
            await asyncio.wait(waiting, timeout=SAYS_S, return_when=asyncio.FIRST_EXCEPTION)
    for task in running:
        if task.done():
            task.result()


def _job(one: StreamProcessor, program: str, media_type: str) -> dict[str, Any]:
    environ = {"PATH": os.environ.get("PATH", os.defpath)}
    for item in one.env:
        name, _, value = item.partition("=")
        environ[name] = value
    environ[MEDIA_TYPE_VARIABLE] = media_type
    return {"job": "process", "argv": [program, *one.args], "env": environ}


def _payload(one: StreamProcessor, data: bytes | None) -> int | None:
    """A descriptor to read it from; memory, since it may hold keys."""
    if data is None:
        return None
    if len(data) > MAX_PAYLOAD_BYTES:
        raise ResourceExhausted(
            f"process layer: what is given for {one.id} has {len(data)} bytes, "
            f"at most {MAX_PAYLOAD_BYTES} are taken"
        )
    fd = os.memfd_create("lighter-payload", os.MFD_CLOEXEC)
    os.pwrite(fd, data, 0)
    return fd


class _Held:
    """A descriptor that is closed once."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def close(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)
