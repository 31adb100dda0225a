"""An answer of a registry, its body read within deadlines and caps."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lighter.daemon.registry.addresses import Link, Origin
from lighter.daemon.registry.failures import MAX_ERROR_BYTES, Broken, reason
from lighter.proto.errors import LighterError, ResourceExhausted

if TYPE_CHECKING:
    import aiohttp

_MAX_DRAINED_BYTES = 64 << 10  # cheaper than a new connection


@dataclass(frozen=True)
class Deadlines:
    """In seconds. A body must bring `progress_bytes` in each `stall_s` that we wait for it."""

    head_s: float = 30.0
    stall_s: float = 30.0
    progress_bytes: int = 1024
    stored_s: float = 300.0  # for the answer to an upload: the registry may copy it somewhere


class Answer:
    """The head of an answer, its body still to come. `origin` is who gave it, after redirects."""

    def __init__(
        self, response: "aiohttp.ClientResponse", link: Link, what: str, deadlines: Deadlines
    ) -> None:
        self.status = response.status
        self.headers = response.headers
        self.link = link
        self._response = response
        self._what = what
        self._deadlines = deadlines

    @property
    def origin(self) -> Origin:
        return self.link.origin

    def header(self, name: str) -> str:
        return self.headers.get(name, "")

    @property
    def length(self) -> int | None:
        """What Content-Length says; None for nothing, or nonsense."""
        text = self.header("Content-Length")
        return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else None

    async def read(self, max_bytes: int) -> bytes:
        """The whole body. Raises ResourceExhausted above `max_bytes`, Broken as `chunks`."""
        if (self.length or 0) > max_bytes:
            raise self._too_large(max_bytes)
        data = bytearray()
        async for chunk in self.chunks():
            data += chunk
            if len(data) > max_bytes:
                raise self._too_large(max_bytes)
        return bytes(data)

    async def read_error(self) -> bytes:
        """As much of an error's body as is of use; b"" when it does not come."""
        try:
            return await self.read(MAX_ERROR_BYTES)
        except LighterError:
            return b""

    def _too_large(self, max_bytes: int) -> LighterError:
        return ResourceExhausted(f"{self._what}: the answer has more than {max_bytes} bytes")

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it comes. Raises Broken when it ends early or comes too slowly."""
        import aiohttp

        loop = asyncio.get_running_loop()
        waited_s, arrived = 0.0, 0
        read = self._response.content.readany
        while True:
            began = loop.time()
            try:
                async with asyncio.timeout(max(self._deadlines.stall_s - waited_s, 0.001)):
                    chunk = await read()
            except TimeoutError:
                chunk = None
            except (aiohttp.ClientError, OSError, ssl.SSLError) as err:
                raise Broken(f"{self._what}: the connection broke ({reason(err)})") from err
            # What the reader does with a chunk, writing to a slow disk, is not waiting.
            waited_s += loop.time() - began
            arrived += len(chunk or b"")
            if chunk == b"":
                return
            if waited_s >= self._deadlines.stall_s:
                if arrived < self._deadlines.progress_bytes:
                    raise Broken(
                        f"{self._what}: {arrived} bytes came in {self._deadlines.stall_s:g} s"
                    )
                waited_s, arrived = 0.0, 0
            if chunk:
                yield chunk

    async def release(self) -> None:
        """Give the connection back if little is left of the body, else close it."""
        if self._response.closed:
            return
        length = self.length
        if self._response.method == "HEAD" or (length is not None and length <= _MAX_DRAINED_BYTES):
            try:
                async with asyncio.timeout(1.0):
                    await self._response.read()
            except Exception:
                self._response.close()
        else:
            self._response.close()
