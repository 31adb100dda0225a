"""An upload as aiohttp sends it. Imports aiohttp, so it is itself imported with a request."""

import aiohttp
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http import StreamWriter

from lighter.daemon.registry.upload import PIECE_BYTES, Feed


class Body(aiohttp.AsyncIterablePayload):
    """Pieces of an upload, of which the connection holds few that the kernel has not taken.

    asyncio lets 512 KiB wait in a TLS connection and goes on below 128 KiB, so that a slow line
    shows no progress for long.
    """

    def __init__(self, feed: Feed) -> None:
        super().__init__(feed.pieces())  # type: ignore[arg-type]  # any buffer will do

    async def write_with_length(
        self, writer: AbstractStreamWriter, content_length: int | None
    ) -> None:
        if isinstance(writer, StreamWriter) and writer.transport is not None:
            writer.transport.set_write_buffer_limits(PIECE_BYTES)
        await super().write_with_length(writer, content_length)
