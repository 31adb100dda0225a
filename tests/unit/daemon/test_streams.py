"""A stream whose client does not do its part."""

import asyncio

import pytest
from google.protobuf.any_pb2 import Any

from lighter.daemon.grpc.streams import MAX_STREAMS, Stream, Streams
from lighter.proto.errors import InvalidArgument, ResourceExhausted, Unavailable


def test_one_that_is_not_read_is_not_waited_for_at_the_end() -> None:
    async def work() -> None:
        stream = Stream("silent")
        for _ in range(4):
            await stream.send(Any())
        await asyncio.wait_for(stream.close(0.05), 30)

    asyncio.run(work())


def test_whoever_waits_hears_that_the_client_has_gone() -> None:
    async def work() -> None:
        stream = Stream("lost")
        for step in (stream.receive(), _sent_for_ever(stream)):
            waiting = asyncio.ensure_future(step)
            await asyncio.sleep(0)
            stream.lost()
            with pytest.raises(Unavailable, match="stream lost: the client has gone"):
                await asyncio.wait_for(waiting, 30)

    asyncio.run(work())


async def _sent_for_ever(stream: Stream) -> None:
    while True:
        await stream.send(Any())


def test_streams_are_bounded_and_named() -> None:
    async def work() -> None:
        streams = Streams()
        for number in range(MAX_STREAMS):
            streams.open("default", f"s-{number}")
        with pytest.raises(ResourceExhausted):
            streams.open("default", "one-more")
        streams.drop("default", "s-0")
        for name in ("", "n" * 257):
            with pytest.raises(InvalidArgument):
                streams.open("default", name)

    asyncio.run(work())
