"""Blobs on their way from a registry into the content store: each once, however many want it.

    registry ─chunks─► ingest file ─commit─► content
                            └─feeder─► pipe ─► the worker that applies the layer meanwhile

Who comes first downloads; who comes later waits, and goes on where the first one left off when it
fails or its caller leaves. What has arrived stays in the named ingest, so the next download of the
blob asks only for the rest. A layer is fed to its worker from the ingest file, that is from the
page cache, so that a slow worker never slows the connection.
"""

import asyncio
import fcntl
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from typing import Any, Protocol

from lighter.daemon.content.ingests import Ingests
from lighter.daemon.content.store import ContentStore
from lighter.daemon.content.writer import Writer
from lighter.daemon.images.reference import Reference
from lighter.daemon.images.unpack import LayerSource
from lighter.daemon.registry.failures import WrongBytes
from lighter.daemon.types import Descriptor
from lighter.daemon.whole import whole
from lighter.proto.errors import AlreadyExists, LighterError
from lighter.proto.faults import hit

WRITE_BYTES = 1 << 20
PIPE_BYTES = 1 << 20
# Between two words about one blob, and looks for a download that has yet to begin.
WATCH_S = 0.1
BEGIN_PAUSE_S = 0.02

OnProgress = Callable[[int], None]


class Body(Protocol):
    """Bytes of a blob on their way; see lighter.daemon.registry.blobs."""

    offset: int
    hosts: list[str]

    def __aiter__(self) -> AsyncIterator[bytes]: ...


class Repository(Protocol):
    """What a download needs of lighter.daemon.registry.client.Remote."""

    @property
    def reference(self) -> Reference: ...

    def blob(self, descriptor: Descriptor, offset: int = 0) -> AbstractAsyncContextManager[Body]:
        """The bytes of a blob from `offset` on, or from where the registry can begin."""

    def distrust(self, *hosts: str) -> bool:
        """Stop using these hosts, whose bytes together had the wrong digest. If there are several,
        keep the last in priority order. False when none is left."""


class _Arriving:
    """What is known of one blob, in one namespace, as long as somebody wants it."""

    def __init__(self) -> None:
        self.turn = asyncio.Lock()  # whose holder downloads
        self.users = 0
        self.writer: Writer | None = None
        self.have_bytes = 0
        self.resumed = False  # whether bytes were there before the body that came last
        self.moved = asyncio.Event()

    def tell(self, have_bytes: int) -> None:
        """Wake who waits for bytes."""
        self.have_bytes = have_bytes
        self.moved.set()
        self.moved = asyncio.Event()


class Downloads:
    """The downloads of one content store."""

    def __init__(self, content: ContentStore, ingests: Ingests) -> None:
        self.content = content
        self._ingests = ingests
        self._arriving: dict[tuple[str, str], _Arriving] = {}

    async def fetch(
        self,
        namespace: str,
        descriptor: Descriptor,
        remote: Repository,
        labels: Mapping[str, str],
        on_progress: OnProgress,
    ) -> bool:
        """Return when the blob is content of the namespace; False when it was before.

        `on_progress` hears how many bytes are there. Raises what the registry and the store raise,
        naming reference, digest and host; what has arrived by then stays for the next time.
        """
        if self.content.has(namespace, descriptor.digest):
            self.content.note(namespace, descriptor.digest, labels)
            return False
        key = (namespace, descriptor.digest)
        arriving = self._arriving.setdefault(key, _Arriving())
        arriving.users += 1
        watching = asyncio.ensure_future(_watch(arriving, on_progress))
        try:
            async with arriving.turn:
                if not self.content.has(namespace, descriptor.digest):
                    fetched = await self._download(namespace, descriptor, remote, labels, arriving)
                else:
                    fetched = True
                    self.content.note(namespace, descriptor.digest, labels)
            on_progress(descriptor.size)
            return fetched
        finally:
            watching.cancel()
            arriving.users -= 1
            if not arriving.users:
                del self._arriving[key]

    def source(
        self, namespace: str, descriptor: Descriptor, fetching: "asyncio.Future[Any]"
    ) -> LayerSource:
        """The blob as it arrives; `fetching` is the caller's own `fetch` of it, under way."""
        return _Source(self, namespace, descriptor, fetching)

    def arriving(self, namespace: str, digest: str) -> "_Arriving | None":
        """The blob's state while somebody wants it."""
        return self._arriving.get((namespace, digest))

    async def _download(
        self,
        namespace: str,
        descriptor: Descriptor,
        remote: Repository,
        labels: Mapping[str, str],
        arriving: _Arriving,
    ) -> bool:
        """Whether anything was asked for: another namespace may share it."""
        ref = f"blob-{descriptor.digest}"
        try:
            writer = await self._ingests.open(
                namespace, ref, total_bytes=descriptor.size, expected=descriptor.digest
            )
        except AlreadyExists:
            self.content.note(namespace, descriptor.digest, labels)
            return False
        arriving.writer = writer
        try:
            arriving.tell(writer.offset)
            while True:
                hosts: list[str] = []
                try:
                    await _receive(descriptor, remote, writer, arriving, hosts)
                    hit("pull.received")
                    await _commit(descriptor, remote, writer, labels, hosts)
                    break
                except WrongBytes:
                    # Some of the bytes may have been there before this download began.
                    resumed, arriving.resumed = arriving.resumed, False
                    await writer.truncate(0)
                    arriving.tell(0)
                    if not resumed and not (hosts and remote.distrust(*hosts)):
                        raise
            hit("pull.committed")
        except AlreadyExists:
            self.content.note(namespace, descriptor.digest, labels)
        finally:
            arriving.writer = None
            await asyncio.shield(writer.close())
            arriving.tell(arriving.have_bytes)
        return True


class _Source:
    """One caller's view of a blob that arrives."""

    def __init__(
        self,
        downloads: Downloads,
        namespace: str,
        descriptor: Descriptor,
        fetching: "asyncio.Future[Any]",
    ) -> None:
        self._downloads = downloads
        self._key = (namespace, descriptor.digest)
        self._descriptor = descriptor
        self._fetching = fetching
        self._feeding: asyncio.Task[None] | None = None  # the loop itself keeps no task alive

    def open(self) -> int:
        if self._fetching.done() and self._fetching.exception() is None:
            return self._downloads.content.open(*self._key)
        read_end, write_end = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(write_end, False)
        with suppress(OSError):  # beyond the user's share of pipe memory: it stays at 64 KiB
            fcntl.fcntl(write_end, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        self._feeding = asyncio.ensure_future(self._feed(write_end))
        return read_end

    async def whole(self) -> None:
        await asyncio.shield(self._fetching)

    async def _feed(self, write_end: int) -> None:
        """Pass on what is there until all was passed, the reader has gone, or no more will come."""
        fd, fed_bytes = -1, 0
        try:
            while fed_bytes < self._descriptor.size:
                arriving = self._downloads.arriving(*self._key)
                if fd < 0:
                    fd = self._open_file(arriving)
                have_bytes = os.fstat(fd).st_size if fd >= 0 else 0
                if have_bytes < fed_bytes:
                    return  # begun anew with other bytes: what was passed on is worth nothing
                if have_bytes > fed_bytes:
                    fed_bytes += await _pass_on(fd, write_end, fed_bytes, have_bytes - fed_bytes)
                elif self._fetching.done():
                    return
                else:
                    await _first_of(arriving.moved.wait() if arriving else None, self._fetching)
                    if self._fetching.done() and fd < 0:
                        fd = self._open_file(None)
        except (BrokenPipeError, LighterError):
            pass  # the reader, or the owner of the download, tells why
        finally:
            os.close(write_end)
            if fd >= 0:
                os.close(fd)

    def _open_file(self, arriving: "_Arriving | None") -> int:
        if arriving is not None and arriving.writer is not None:
            return os.dup(arriving.writer.fd)
        if self._downloads.content.has(*self._key):
            return self._downloads.content.open(*self._key)
        return -1


async def _pass_on(fd: int, write_end: int, offset: int, count: int) -> int:
    """Move some bytes of the file, from `offset`, into the pipe; how many. May wait for room."""
    loop = asyncio.get_running_loop()
    while True:
        try:
            return await asyncio.to_thread(
                os.splice, fd, write_end, min(count, PIPE_BYTES), offset, None, os.SPLICE_F_MOVE
            )
        except BlockingIOError:
            room = loop.create_future()
            loop.add_writer(write_end, _set, room)
            try:
                await room
            finally:
                loop.remove_writer(write_end)


def _set(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)


async def _first_of(moved: "Awaitable[object] | None", fetching: "asyncio.Future[Any]") -> None:
    """Wait until bytes have come (without `moved`: a moment) or the fetch has ended."""
    arrival = asyncio.ensure_future(moved if moved is not None else asyncio.sleep(BEGIN_PAUSE_S))
    try:
        await asyncio.wait({fetching, arrival}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        arrival.cancel()


async def _watch(arriving: _Arriving, on_progress: OnProgress) -> None:
    """Tell a caller how far the blob is, whoever downloads it."""
    while True:
        on_progress(arriving.have_bytes)
        await arriving.moved.wait()
        await asyncio.sleep(WATCH_S)


async def _receive(
    descriptor: Descriptor,
    remote: Repository,
    writer: Writer,
    arriving: _Arriving,
    hosts: list[str],
) -> None:
    """Bring the ingest to the blob's size; `hosts` gets those that bytes came from.

    A portion of WRITE_BYTES is written while the next one arrives. What has arrived is kept,
    whatever ends it.
    """
    arriving.resumed = writer.offset > 0
    if arriving.resumed and writer.offset >= descriptor.size:
        await writer.truncate(descriptor.size)
        return
    async with remote.blob(descriptor, writer.offset) as body:
        if body.offset != writer.offset:
            await writer.truncate(body.offset)
            arriving.tell(writer.offset)
        arriving.resumed = writer.offset > 0
        portion: list[bytes] = []
        size_bytes = 0
        writing: asyncio.Future[None] | None = None
        try:
            async for chunk in body:
                portion.append(chunk)
                size_bytes += len(chunk)
                if size_bytes >= WRITE_BYTES:
                    if writing is not None:
                        await writing
                    writing = asyncio.ensure_future(_write(writer, b"".join(portion), arriving))
                    portion, size_bytes = [], 0
        finally:
            hosts += body.hosts
            if writing is not None:
                await asyncio.wait([writing])
            if portion and (writing is None or writing.exception() is None):
                await whole(_write(writer, b"".join(portion), arriving))
        if writing is not None:
            writing.result()


async def _commit(
    descriptor: Descriptor,
    remote: Repository,
    writer: Writer,
    labels: Mapping[str, str],
    hosts: Sequence[str],
) -> None:
    """Raises WrongBytes, naming the hosts, when the bytes have another digest."""
    if writer.offset == descriptor.size and writer.digest != descriptor.digest:
        raise WrongBytes(
            f"download {descriptor.digest} of {remote.reference} from {' and '.join(hosts)}: "
            "what came has another digest"
        )
    await writer.commit(descriptor.size, descriptor.digest, labels)


async def _write(writer: Writer, data: bytes, arriving: _Arriving) -> None:
    await writer.write(data)
    arriving.tell(writer.offset)
