"""The bytes that a caller has open, a file or a pipe, in pieces and off the loop."""

import asyncio
import os
import stat
from collections.abc import AsyncGenerator

from lighter.daemon.content.failures import from_os
from lighter.daemon.content.whole import whole
from lighter.proto.errors import InvalidArgument

_CHUNK_BYTES = 1 << 20


def open_source(verb: str, path: str, pid: int) -> int:
    """A descriptor of our own of what process `pid` names as `/proc/<pid>/fd/<n>`, not blocking.

    Raises InvalidArgument for another path, and for what is neither a file nor a pipe.
    """
    if not path.startswith(f"/proc/{pid}/fd/") or "/.." in path:
        raise InvalidArgument(f"{verb} {path}: it is no descriptor of process {pid}")
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK)
    except OSError as err:
        raise InvalidArgument(f"{verb} {path}: {err.strerror}") from err
    mode = os.fstat(fd).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISFIFO(mode):
        os.close(fd)
        raise InvalidArgument(f"{verb} {path}: it is neither a file nor a pipe")
    return fd


async def chunks(fd: int, what: str) -> AsyncGenerator[bytes, None]:
    """All bytes of a descriptor of `open_source`, from its start; a pipe may be idle for long."""
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
