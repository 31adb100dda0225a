"""What an archive brought: checked blobs in an ingest directory, and the documents about them."""

import asyncio
import hashlib
import os
from collections.abc import Mapping

import msgpack

from lighter.daemon.content.digest import Digest
from lighter.daemon.content.ingest import Ingest
from lighter.daemon.errors import from_os
from lighter.daemon.files import write_whole
from lighter.daemon.images.graph import Documents
from lighter.daemon.whole import whole
from lighter.proto.errors import DataLoss, InvalidArgument, NotFound, ResourceExhausted

MAX_LIST_BYTES = 64 << 20
_LIST = "blobs.msgpack"


class Arrived:
    """The blobs by digest, and digests by their path in the archive. Looks like `Documents`.

    What the archive lacks is looked for in `store`.
    """

    def __init__(self, ingest: Ingest, store: Documents) -> None:
        self._ingest = ingest
        self._store = store
        self._blobs: dict[Digest, tuple[str, int]] = {}
        self._names: dict[str, Digest] = {}

    async def load(self) -> None:
        """Read the list that the worker left. Raises DataLoss when it is no such list."""
        data = await self.document(_LIST, MAX_LIST_BYTES)
        try:
            listed = msgpack.unpackb(data, max_ext_len=0)
            for blob in listed["blobs"]:
                digest = blob["digest"]
                if isinstance(digest, str) and digest.startswith("sha256:"):
                    path = self._ingest.file(blob["file"])
                    self._blobs[Digest.parse(digest)] = (path, int(blob["size_bytes"]))
            names: Mapping[str, str] = listed["names"]
            self._names = {
                name: Digest.parse(digest)
                for name, digest in names.items()
                if digest.startswith("sha256:")
            }
        except (ValueError, KeyError, TypeError, AttributeError, InvalidArgument) as err:
            raise DataLoss(f"import archive: the worker's list is damaged: {err}") from err

    async def document(self, name: str, max_bytes: int) -> bytes:
        """A whole file of the ingest directory. Raises ResourceExhausted."""
        return await asyncio.to_thread(_read_file, self._ingest.file(name), max_bytes)

    def named(self, path: str) -> Digest:
        """What stands at `path` in the archive. Raises NotFound."""
        digest = self._names.get(path.removeprefix("./"))
        if digest is None:
            raise NotFound(f"import archive: it names {path[:200]!r} and does not hold it")
        return digest

    def file(self, digest: str) -> tuple[str, int] | None:
        """(path, size) of a blob that the archive brought."""
        return self._blobs.get(Digest.parse(digest))

    async def begins(self, digest: str) -> bytes:
        """The first bytes of a blob, enough to tell its compression."""
        found = self.file(digest)
        if found is None:
            raise NotFound(f"import archive: content {digest} is missing")
        return await asyncio.to_thread(_read_start, found[0])

    async def add(self, data: bytes) -> Digest:
        """Put a document of ours beside the blobs, synced."""
        digest = Digest.of(data)
        path = self._ingest.file(f"made-{digest.hex}")
        if digest not in self._blobs:
            await whole(asyncio.to_thread(write_whole, path, data, 0o600, True))
            self._blobs[digest] = (path, len(data))
        return digest

    def new_file(self, name: str) -> str:
        """A path beside the blobs, for one that is to be put there."""
        return self._ingest.file(name)

    def put(self, path: str, digest: Digest, size_bytes: int) -> None:
        """Take a blob that was made of another one, synced."""
        self._blobs[digest] = (path, size_bytes)

    # --- Documents

    def size(self, digest: str) -> int | None:
        found = self.file(digest)
        return found[1] if found else self._store.size(digest)

    async def read(self, digest: str, max_bytes: int) -> bytes:
        found = self.file(digest)
        if found is None:
            return await self._store.read(digest, max_bytes)
        path, size = found
        data = await asyncio.to_thread(_read_file, path, max_bytes)
        if len(data) != size or hashlib.sha256(data).hexdigest() != Digest.parse(digest).hex:
            raise DataLoss(f"import archive: content {digest} has other bytes")
        return data


def _open(path: str) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as err:
        raise from_os("import archive", err) from err


def _read_start(path: str) -> bytes:
    fd = _open(path)
    try:
        return os.pread(fd, 8, 0)
    finally:
        os.close(fd)


def _read_file(path: str, max_bytes: int) -> bytes:
    fd = _open(path)
    try:
        size = os.fstat(fd).st_size
        if size > max_bytes:
            name = os.path.basename(path)
            raise ResourceExhausted(
                f"import archive: {name} has {size} bytes, at most {max_bytes} are read"
            )
        with os.fdopen(os.dup(fd), "rb") as file:
            return file.read(max_bytes)
    finally:
        os.close(fd)
