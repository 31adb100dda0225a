"""Archives on a stream: messages of bytes, as many as the reading side has made room for.

    sender   ──Data──►  reader         an archive goes in pieces
             ◄─WindowUpdate─           and as much of it as was asked for

The images' side is a pipe, read or written by a worker or a thread.
"""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from lighter.daemon.grpc import anys
from lighter.daemon.grpc.pb import transfer_types_pb2 as pb
from lighter.daemon.grpc.streams import Stream
from lighter.proto.errors import InvalidArgument

PIECE = 32 << 10  # as containerd cuts an archive
WINDOW = 1 << 20  # what is asked for at a time
MAX_WINDOW = 1 << 30


@asynccontextmanager
async def source(stream: Stream) -> AsyncIterator[tuple[int, "asyncio.Future[None]"]]:
    """(a pipe from which the client's archive comes, the work that brings it).

    The work raises Unavailable when the client goes, InvalidArgument for what is no archive; the
    pipe then ends early.
    """
    read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
    try:
        os.set_blocking(write_fd, False)
        feeding = asyncio.ensure_future(_feed(stream, write_fd))
        try:
            yield read_fd, feeding
        finally:
            await _stopped(feeding)
    finally:
        os.close(read_fd)


async def _feed(stream: Stream, write_fd: int) -> None:
    try:
        room = 0
        while True:
            if room <= WINDOW // 2:
                await stream.send(anys.pack(pb.WindowUpdate(update=WINDOW)))
                room += WINDOW
            message = await stream.receive()
            if message is None:
                return
            piece = pb.Data()
            anys.unpack(message, piece)
            room -= len(piece.data)
            if room < 0:
                raise InvalidArgument(
                    f"read stream {stream.name}: more was sent than was asked for"
                )
            await _write(write_fd, piece.data)
    except BrokenPipeError:
        pass  # the archive's reader has what it wants, or has failed and says why
    finally:
        os.close(write_fd)


@asynccontextmanager
async def target(stream: Stream) -> AsyncIterator[tuple[int, "asyncio.Future[None]"]]:
    """(a pipe to which an archive for the client is written, the work that takes it there).

    Whoever has written all closes the pipe and waits for the work. It raises Unavailable when the
    client goes; the pipe then breaks.
    """
    read_fd, write_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    drawing = asyncio.ensure_future(_draw(stream, read_fd))
    # Not in the work itself, which never begins when it is cancelled before its first step.
    drawing.add_done_callback(lambda _done: os.close(read_fd))
    try:
        yield write_fd, drawing
    finally:
        await _stopped(drawing)


async def _draw(stream: Stream, read_fd: int) -> None:
    room = 0
    while True:
        while room <= 0:
            message = await stream.receive()
            if message is None:
                raise InvalidArgument(
                    f"write to stream {stream.name}: the client stopped asking for more"
                )
            wanted = pb.WindowUpdate()
            anys.unpack(message, wanted)
            room = min(room + max(0, wanted.update), MAX_WINDOW)
        data = await _read(read_fd, min(PIECE, room))
        if not data:
            return
        room -= len(data)
        await stream.send(anys.pack(pb.Data(data=data)))


async def _read(fd: int, size_bytes: int) -> bytes:
    while True:
        try:
            return os.read(fd, size_bytes)
        except BlockingIOError:
            await _until(fd, writable=False)


async def _write(fd: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        try:
            left = left[os.write(fd, left) :]
        except BlockingIOError:
            await _until(fd, writable=True)


async def _until(fd: int, *, writable: bool) -> None:
    loop = asyncio.get_running_loop()
    ready = loop.create_future()
    watch, unwatch = (
        (loop.add_writer, loop.remove_writer) if writable else (loop.add_reader, loop.remove_reader)
    )
    watch(fd, _settle, ready)
    try:
        await ready
    finally:
        unwatch(fd)


def _settle(ready: "asyncio.Future[None]") -> None:
    if not ready.done():
        ready.set_result(None)


async def _stopped(work: "asyncio.Future[None]") -> None:
    work.cancel()
    await asyncio.wait((work,))
    if not work.cancelled():
        work.exception()  # looked at: whoever waited for it has it
