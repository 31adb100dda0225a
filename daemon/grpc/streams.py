"""Streams: conversations that a client opens, and that a later call of it refers to by name.

    client ──StreamInit{id}──►            opens a stream, under its namespace
           ◄──Empty──────────             it is known now: a call may name it
           ◄─messages of both─►           whatever the call and the client have to say
           ◄──end────────────             the call is done with it

Nothing is read from a stream that no call has taken, so what a client sends waits with it. One that
is not taken within TAKE_S is ended.
"""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from typing import TypeVar

from google.protobuf.any_pb2 import Any
from google.protobuf.empty_pb2 import Empty

from lighter.daemon.grpc import anys
from lighter.daemon.grpc.calls import Call
from lighter.daemon.grpc.pb import streaming_pb2 as pb
from lighter.proto.errors import (
    AlreadyExists,
    DeadlineExceeded,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
)

MAX_STREAMS = 256  # of all clients
MAX_ID = 256
INIT_S = 10.0
TAKE_S = 60.0
CLOSE_S = 5.0
_WAITING = 4  # messages of each direction

T = TypeVar("T")
Key = tuple[str, str]


class Stream:
    """One conversation, as the call that took it sees it; Streams makes and ends it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.taken = asyncio.Event()
        self._in: asyncio.Queue[Any | None] = asyncio.Queue(_WAITING)
        self._out: asyncio.Queue[Any | None] = asyncio.Queue(_WAITING)
        self._said_all = False  # the client
        self._sent = asyncio.Event()  # to the client, all that was said
        self._gone = asyncio.Event()  # the client
        self._cut_off = False  # its end was not to be waited for

    async def receive(self) -> Any | None:
        """The client's next message; None once it has no more. Raises Unavailable."""
        if self._said_all:
            return None
        message = (
            await self._unless_gone("read", self._in.get())
            if self._in.empty()
            else self._in.get_nowait()
        )
        self._said_all = message is None
        return message

    async def send(self, message: Any) -> None:
        """Raises Unavailable when the client has gone."""
        await self._unless_gone("write to", self._out.put(message))

    async def finish(self) -> None:
        """End it once the client was sent all that was said, however long it takes to read that.

        Raises Unavailable when it has gone.
        """
        await self._unless_gone("end", self._out.put(None))
        await self._unless_gone("end", self._sent.wait())

    async def close(self, wait_s: float = CLOSE_S) -> None:
        """End it; a client that does not read in time gets what waits for it, and no end."""
        if self._sent.is_set():
            return
        try:
            async with asyncio.timeout(wait_s):
                await self.finish()
        except Unavailable:
            pass
        except TimeoutError:
            self._cut_off = True

    async def _unless_gone(self, verb: str, step: Coroutine[object, object, T]) -> T:
        doing = asyncio.ensure_future(step)
        gone = asyncio.ensure_future(self._gone.wait())
        try:
            await asyncio.wait((doing, gone), return_when=asyncio.FIRST_COMPLETED)
            if not doing.done():
                raise Unavailable(f"{verb} stream {self.name}: the client has gone")
            return doing.result()
        finally:
            doing.cancel()
            gone.cancel()

    # --- the client's side

    async def listen(self, requests: AsyncIterator[Any]) -> None:
        """Take in what the client says, once somebody wants to hear it."""
        await self.taken.wait()
        try:
            async for request in requests:
                await self._in.put(request)
        except Exception:  # no message of this kind: nobody waits for a better one
            self.lost()
            raise
        await self._in.put(None)

    async def answers(self) -> AsyncIterator[Any]:
        """What is said to the client, until the call ends it."""
        while (message := await self._out.get()) is not None:
            yield message
            if self._cut_off and self._out.empty():
                raise DeadlineExceeded(f"read stream {self.name}: nobody has in {CLOSE_S:.0f} s")
        self._sent.set()

    def lost(self) -> None:
        """The conversation is over, whoever ended it: nobody waits on."""
        self._gone.set()


class Streams:
    """The open streams of all namespaces."""

    def __init__(self) -> None:
        self._open: dict[Key, Stream] = {}

    def open(self, namespace: str, stream_id: str) -> Stream:
        """Raises InvalidArgument, AlreadyExists, ResourceExhausted."""
        if not 0 < len(stream_id) <= MAX_ID:
            raise InvalidArgument(f"open stream: an id has 1 to {MAX_ID} characters")
        if (namespace, stream_id) in self._open:
            raise AlreadyExists(f"open stream {stream_id}: it is open already")
        if len(self._open) >= MAX_STREAMS:
            raise ResourceExhausted(f"open stream {stream_id}: {MAX_STREAMS} are open")
        stream = self._open[namespace, stream_id] = Stream(stream_id)
        return stream

    def take(self, namespace: str, stream_id: str) -> Stream:
        """The stream that a call names, to be spoken on by this call alone. Raises NotFound,
        AlreadyExists.
        """
        stream = self._open.get((namespace, stream_id))
        if stream is None:
            raise NotFound(f"find stream {stream_id}: no such stream is open")
        if stream.taken.is_set():
            raise AlreadyExists(f"take stream {stream_id}: another call has it")
        stream.taken.set()
        return stream

    def drop(self, namespace: str, stream_id: str) -> None:
        self._open.pop((namespace, stream_id)).lost()


class StreamingService:
    NAME = "containerd.services.streaming.v1.Streaming"

    def __init__(self, streams: Streams) -> None:
        self._streams = streams

    async def stream(self, call: Call, requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
        namespace, init = call.namespace, pb.StreamInit()
        try:
            async with asyncio.timeout(INIT_S):
                anys.unpack(await anext(requests), init)
        except StopAsyncIteration as err:
            raise InvalidArgument("open stream: the client says nothing") from err
        except TimeoutError as err:
            raise DeadlineExceeded(f"open stream: nothing is said in {INIT_S:.0f} s") from err
        stream = self._streams.open(namespace, init.id)
        listening = asyncio.ensure_future(stream.listen(requests))
        try:
            yield anys.pack(Empty())
            try:
                async with asyncio.timeout(TAKE_S):
                    await stream.taken.wait()
            except TimeoutError as err:
                raise DeadlineExceeded(
                    f"open stream {init.id}: no call has taken it in {TAKE_S:.0f} s"
                ) from err
            async for answer in stream.answers():
                yield answer
        finally:
            listening.cancel()
            self._streams.drop(namespace, init.id)
            await asyncio.wait((listening,))
            if not listening.cancelled():
                listening.exception()  # looked at: the stream is over, however it ended
