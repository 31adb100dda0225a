"""The bytes of a file or pipe that is open, in pieces and off the loop."""

import asyncio
import os
import stat
from collections.abc import AsyncGenerator

from lighter.daemon.errors import from_os
from lighter.daemon.whole import whole

_CHUNK_BYTES = 1 << 20


async def chunks(fd: int, what: str) -> AsyncGenerator[bytes, None]:
    """All bytes of a file from its start, or of a non-blocking pipe, which may be idle for long."""
    is_pipe = stat.S_ISFIFO(os.fstat(fd).st_mode)
    while True:
        try:
            if is_pipe:
                data = os.read(fd, _CHUNK_BYTES)
            else:
                data = await whole(asyncio.to_thread(os.read, fd, _CHUNK_BYTES))
        except BlockingIOError:
            await _readable(fd)
            continue
        except OSError as err:
            raise from_os(f"read {what}", err) from err
        if not data:
            return
        yield data


async def _readable(fd: int) -> None:
    """Return when a pipe has bytes, or no writer any more."""
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(fd, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(fd)
