"""A small blocking client of the manager's native socket, for tests alone.

It speaks through lighter.proto's codec and sockets and knows no service: what a test sends is what
travels, well-formed or not. One call at a time.
"""

import os
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any

import zmq

from lighter.daemon.wire import sockets
from lighter.proto import codec, errors
from tests import zeromq

INITIAL_CREDIT_BYTES = 1024 * 1024


class Client:
    """Connected and greeted when made. Raises Unavailable when no welcome comes in `timeout_s`.

    `context`: one that many share, whose owner ends it.
    """

    def __init__(
        self,
        path: str,
        namespace: str = "default",
        timeout_s: float = 10,
        context: "zmq.Context[zmq.Socket[bytes]] | None" = None,
    ) -> None:
        self.namespace = namespace
        self.welcome: codec.Welcome
        self._own_context = sockets.context() if context is None else None
        self._ident = 0
        self.socket = zeromq.connect_dealer(self._own_context or context, path, sockets.CLIENT_HWM)
        try:
            self._greet(time.monotonic() + timeout_s)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self.socket.close(0)
        if self._own_context is not None:
            self._own_context.term()

    def call(self, service: str, method: str, *, timeout_s: float = 20, **body: Any) -> Any:
        """The answer's body. Raises what the manager answered, or DeadlineExceeded."""
        stream = self.stream(service, method, timeout_s=timeout_s, **body)
        items = list(stream)
        if items:
            raise AssertionError(f"{service}.{method} answered with a stream of {len(items)} items")
        return stream.result

    def stream(self, service: str, method: str, *, timeout_s: float = 20, **body: Any) -> "Stream":
        """The items of a streaming call, by iteration; its end's body is `.result`."""
        self._ident += 1
        end = time.monotonic() + timeout_s
        request = codec.Request(
            self.welcome.generation,
            self._ident,
            service,
            method,
            time.clock_gettime_ns(time.CLOCK_MONOTONIC) + int(timeout_s * 1e9),
            {"namespace": self.namespace},
            body,
        )
        self.send(request)
        return Stream(self, request, end)

    def send(self, message: codec.Message) -> None:
        self.socket.send_multipart(codec.encode(message), zmq.NOBLOCK)

    def receive(self, end: float, what: str) -> tuple[codec.Message, int]:
        """The next message and its size in bytes. Raises DeadlineExceeded after `end`."""
        left_ms = max(0, int((end - time.monotonic()) * 1000))
        if not self.socket.poll(left_ms):
            raise errors.DeadlineExceeded(f"{what}: no answer in time")
        frames = self.socket.recv_multipart()
        return codec.decode(frames), sum(len(frame) for frame in frames)

    def _greet(self, end: float) -> None:
        message, _ = self.receive(end, "connect")
        if not isinstance(message, codec.Welcome):
            raise AssertionError(f"the manager's first message is {message!r}")
        self.welcome = message
        version = codec.choose_version(message.versions)
        identity = {"kind": "client", "pid": os.getpid()}
        self.send(codec.Hello(message.generation, version, [], identity))


class Stream:
    """Iterates over the items; gives credit for what was taken; `result` is set at the end."""

    def __init__(self, client: Client, request: codec.Request, end: float) -> None:
        self.result: Any = None
        self._client = client
        self._request = request
        self._end = end

    def __iter__(self) -> Iterator[Any]:
        generation, ident = self._request.generation, self._request.ident
        what = f"{self._request.service}.{self._request.method}"
        while True:
            message, size_bytes = self._client.receive(self._end, what)
            if getattr(message, "ident", ident) != ident:
                continue  # an answer to a call that was given up
            match message:
                case codec.Data():
                    # Many small items are read faster than a queue of CLIENT_HWM credits empties.
                    self._client.socket.poll(1000, zmq.POLLOUT)
                    self._client.send(codec.Credit(generation, ident, size_bytes))
                    yield message.body
                case codec.Response() | codec.End():
                    self.result = message.body
                    return
                case codec.Error():
                    raise errors.from_wire(message.code, message.message, message.details)
                case codec.Welcome():
                    raise errors.Unavailable(f"{what}: the manager was restarted")
                case _:
                    raise AssertionError(f"{what}: answered with {message!r}")

    def cancel(self) -> None:
        self._client.send(codec.Cancel(self._request.generation, self._request.ident))
