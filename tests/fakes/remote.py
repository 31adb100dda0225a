"""A repository in memory, as downloads see one, with answers that a test chooses."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from lighter.daemon.images.downloads import Body
from lighter.daemon.images.reference import Reference
from lighter.daemon.types import Descriptor
from lighter.proto.errors import NotFound, Unavailable

HOST = "registry.test"
CHUNK_BYTES = 64 << 10


class MemoryBody:
    """Bytes from `offset` on; raises Unavailable once `cut_at` bytes of the blob were given."""

    def __init__(self, remote: "MemoryRemote", data: bytes, offset: int, cut_at: int) -> None:
        self.offset = offset
        self.hosts: list[str] = []
        self._remote = remote
        self._data = data
        self._cut_at = cut_at

    async def __aiter__(self) -> AsyncIterator[bytes]:
        position = self.offset
        while position < len(self._data):
            await self._remote.gate.wait()
            await asyncio.sleep(0)
            if position >= self._cut_at:
                raise Unavailable(f"download from {HOST}: the connection broke at {position}")
            self.hosts = [HOST]
            end = min(position + CHUNK_BYTES, self._cut_at, len(self._data))
            self._remote.sent_bytes += end - position
            yield self._data[position:end]
            position = end


class MemoryRemote:
    """`blobs` by digest. `cuts`: where the next bodies break, one after the other. `gate` holds up
    all bytes while it is clear. `asked`: (digest, offset) of each body that was asked for.
    """

    def __init__(self, *blobs: bytes) -> None:
        self.reference = Reference.parse(f"{HOST}/image:1")
        self.blobs = {f"sha256:{hashlib.sha256(blob).hexdigest()}": blob for blob in blobs}
        self.cuts: list[int] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.asked: list[tuple[str, int]] = []
        self.sent_bytes = 0
        self.ranges = True
        self.distrusted = 0

    def descriptor(self, media_type: str = "application/octet-stream") -> Descriptor:
        """Of the first blob."""
        digest, blob = next(iter(self.blobs.items()))
        return Descriptor(media_type, digest, len(blob))

    def _find(self, descriptor: Descriptor) -> bytes:
        try:
            return self.blobs[descriptor.digest]
        except KeyError:
            raise NotFound(f"download {descriptor.digest} from {HOST}: it has none") from None

    @asynccontextmanager
    async def blob(self, descriptor: Descriptor, offset: int = 0) -> AsyncIterator[Body]:
        self.asked.append((descriptor.digest, offset))
        data = self._find(descriptor)
        cut_at = self.cuts.pop(0) if self.cuts else len(data) + 1
        yield MemoryBody(self, data, offset if self.ranges else 0, cut_at)

    def distrust(self, *_hosts: str) -> bool:
        self.distrusted += 1
        return False
