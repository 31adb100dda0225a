"""Every blob, read and hashed in threads, a few at a time."""

import asyncio
import errno
import hashlib
import itertools
import os
import stat
import threading
from collections.abc import AsyncGenerator, Iterable
from dataclasses import dataclass

from lighter.daemon.content.digest import Digest

AT_ONCE = 4
_BLOCK = 1 << 20
# Errors that tell of the file and its disk; EUCLEAN and EBADMSG are a file system's of damage.
_OF_THE_FILE = frozenset(
    (
        *(errno.ELOOP, errno.EIO, errno.EISDIR, errno.ENXIO, errno.ENOTDIR),
        *(errno.EUCLEAN, errno.EBADMSG),
    )
)

Identity = tuple[int, int, int]


@dataclass(frozen=True)
class Looked:
    """`problem` is "" for a sound one; `identity`: which file that was, None for none."""

    digest: Digest
    size_bytes: int
    problem: str
    identity: Identity | None


async def look_at(
    blobs_dir: str, recorded: Iterable[tuple[Digest, int]]
) -> AsyncGenerator[Looked, None]:
    """Compare each file with its record (digest, bytes), in the order in which that is done.

    Who stops listening waits for at most a block of each file that is being read.
    """
    stop = threading.Event()
    waiting = iter(recorded)
    running: set[asyncio.Task[Looked]] = set()
    try:
        while True:
            for digest, size_bytes in itertools.islice(waiting, AT_ONCE - len(running)):
                path = f"{blobs_dir}/{digest.hex}"
                work = asyncio.to_thread(_look, path, digest, size_bytes, stop)
                running.add(asyncio.ensure_future(work))
            if not running:
                return
            done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for one in done:
                yield one.result()
    finally:
        stop.set()
        if running:
            await asyncio.wait(running)


def identity_of(path: str) -> Identity | None:
    """A file that is put in its place is another one; one that is written to as well."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino, found.st_ctime_ns


def _look(path: str, digest: Digest, size_bytes: int, stop: threading.Event) -> Looked:
    identity = identity_of(path)
    return Looked(digest, size_bytes, _problem(path, digest, size_bytes, stop), identity)


def _problem(path: str, digest: Digest, size_bytes: int, stop: threading.Event) -> str:
    hashed = hashlib.sha256()
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(fd, "rb", buffering=0) as file:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode):
                return "it is no file"
            if found.st_size != size_bytes:
                return f"its file has {found.st_size} bytes, {size_bytes} were recorded"
            while not stop.is_set() and (block := file.read(_BLOCK)):
                hashed.update(block)
    except FileNotFoundError:
        return "its file is missing"
    except OSError as err:
        if err.errno not in _OF_THE_FILE:
            raise  # the host is short of something, which says nothing about the file
        return f"its file cannot be read: {err.strerror}"
    if stop.is_set() or hashed.hexdigest() == digest.hex:
        return ""
    return "its bytes have another digest"
