"""The one writer of a named ingest: bytes to its file and into its hash, then content."""

import asyncio
import errno
import hashlib
import os
from collections.abc import Mapping
from types import TracebackType
from typing import Protocol

from lighter.daemon.content.digest import Digest
from lighter.daemon.content.store import ContentStore
from lighter.daemon.errors import from_os
from lighter.daemon.whole import whole
from lighter.proto.errors import AlreadyExists, DataLoss, FailedPrecondition, InvalidArgument
from lighter.proto.faults import hit

_READ_BYTES = 1 << 20
_NOT_READ = "its bytes could not all be read again"
_STEP_BYTES = 32 << 20  # hashed at a time: so long does a cancelled caller wait at most


class Owner(Protocol):
    """What a writer needs of lighter.daemon.content.ingests.Ingests."""

    content: ContentStore

    def closed(self, writer: "Writer") -> None:
        """Called when it writes no more; the next writer may come."""

    async def drop(self, writer: "Writer") -> None:
        """Remove what is left of an ingest that has become content."""


class Writer:
    """The one writer of an ingest, to be closed. `offset`: how many bytes have been written.

    `fd` reads too, while the file grows. One call at a time. After an error that leaves open what
    the file holds, and after a commit, it takes nothing more: FailedPrecondition.
    """

    def __init__(self, owner: Owner, namespace: str, ref: str, directory: str) -> None:
        self.namespace = namespace
        self.ref = ref
        self.path = directory + "/data"
        self.offset = 0
        self.fd = -1
        self._owner = owner
        self._directory = directory
        self._hash = hashlib.sha256()
        self._shut = ""  # why nothing more is taken

    async def begin(self) -> None:
        """Open the file and hash what is there."""
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            self.fd = os.open(self.path, flags, 0o600)
            await self._rehash(os.fstat(self.fd).st_size)
        except OSError as err:
            raise from_os(f"open ingest {self.ref}", err) from err

    async def write(self, data: bytes) -> None:
        """Append. Raises ResourceExhausted for a full disk, which then has all its bytes back: a
        manager that cannot write its database can remove nothing either.
        """
        self._check_open("write")
        try:
            await whole(asyncio.to_thread(self._append, data))
        except OSError as err:
            if err.errno in (errno.ENOSPC, errno.EDQUOT):
                self._shut = "the disk was full, and what had arrived is gone"
                await whole(asyncio.to_thread(os.ftruncate, self.fd, 0))
            err.filename = self.path
            raise from_os(f"write ingest {self.ref}", err) from err
        hit("ingest.written")

    def _check_open(self, verb: str) -> None:
        if self._shut:
            raise FailedPrecondition(f"{verb} ingest {self.ref}: {self._shut}")

    def _append(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            written = os.pwrite(self.fd, view, self.offset)
            self._hash.update(view[:written])
            self.offset += written
            view = view[written:]

    async def truncate(self, size_bytes: int) -> None:
        """Forget all bytes from `size_bytes` on. Raises InvalidArgument for more than there are."""
        if not 0 <= size_bytes <= self.offset:
            raise InvalidArgument(
                f"truncate ingest {self.ref}: it has {self.offset} bytes, not {size_bytes}"
            )
        self._check_open("truncate")
        try:
            self._shut = _NOT_READ
            await whole(asyncio.to_thread(os.ftruncate, self.fd, size_bytes))
            await self._rehash(size_bytes)
        except OSError as err:
            raise from_os(f"truncate ingest {self.ref}", err) from err

    async def _rehash(self, size_bytes: int) -> None:
        # Cut short, the hash is not the file's: nothing may be committed by it.
        self._shut = _NOT_READ
        self._hash, self.offset = hashlib.sha256(), 0
        while self.offset < size_bytes:
            step_bytes = min(_STEP_BYTES, size_bytes - self.offset)
            read = await whole(
                asyncio.to_thread(_hash_into, self._hash, self.fd, self.offset, step_bytes)
            )
            if not read:
                break
            self.offset += read
        self._shut = ""

    @property
    def digest(self) -> str:
        """The digest of what has been written."""
        return "sha256:" + self._hash.hexdigest()

    async def commit(
        self, size_bytes: int, digest: str, labels: Mapping[str, str] | None = None
    ) -> str:
        """Make content of it, and return its digest; 0 and "" expect nothing.

        Raises AlreadyExists when the namespace has it, FailedPrecondition for another size (or
        for nothing at all: to know a digest is no way to its bytes), DataLoss for another digest;
        the ingest stays after the latter two.
        """
        self._check_open("commit")
        found = self.digest
        if size_bytes and size_bytes != self.offset:
            raise FailedPrecondition(
                f"commit ingest {self.ref}: it has {self.offset} bytes, {size_bytes} are expected"
            )
        if digest and Digest.parse(digest) != found:
            if not self.offset:
                raise FailedPrecondition(
                    f"commit ingest {self.ref}: nothing was written, {digest} is expected"
                )
            raise DataLoss(
                f"commit ingest {self.ref}: its {self.offset} bytes have the digest {found}, "
                f"{digest} is expected"
            )
        return await whole(self._commit(found, labels or {}))

    async def _commit(self, digest: str, labels: Mapping[str, str]) -> str:
        content = self._owner.content
        if content.has(self.namespace, digest):
            self._shut = "it has been dropped for content that exists"
            await self._owner.drop(self)
            raise AlreadyExists(f"commit ingest {self.ref}: content {digest} exists")
        try:
            await asyncio.to_thread(os.fsync, self.fd)
        except OSError as err:
            # The kernel tells once and then holds the lost pages for clean (fsync(2), EIO): what
            # is read from here on proves nothing about the disk, so no later commit may have it.
            self._shut = "its bytes could not be written to disk"
            await self._owner.drop(self)
            raise from_os(f"commit ingest {self.ref}", err) from err
        hit("ingest.synced")
        # From its rename on the file is content, whatever becomes of the record.
        self._shut = "its commit was begun, and broke off"
        try:
            await content.adopt(self.namespace, self.path, digest, self.offset, labels)
        except InvalidArgument:  # for its labels, before anything was done
            self._shut = ""
            raise
        self._shut = "it has been committed"
        hit("ingest.adopted")
        await self._owner.drop(self)
        return digest

    async def close(self) -> None:
        """Let go. What was written and not committed waits for the next writer."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        self._owner.closed(self)

    async def __aenter__(self) -> "Writer":
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()


def _hash_into(found: "hashlib._Hash", fd: int, offset: int, size_bytes: int) -> int:
    """Take so many bytes of the file, or what there is of them, into a hash; how many."""
    done = 0
    while done < size_bytes:
        part = os.pread(fd, min(_READ_BYTES, size_bytes - done), offset + done)
        if not part:
            break
        found.update(part)
        done += len(part)
    return done
