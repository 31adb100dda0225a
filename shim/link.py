"""The shim's end of the wire: one connection to whichever manager there is.

A new manager shows as a welcome. The shim answers hello and sends again every event that no
manager has acknowledged. Requests of a manager that is gone are dropped by their generation, and
so are answers to it: an answer belongs to the one who asked.
"""

import time
from collections import deque
from collections.abc import Callable
from typing import Any

from lighter.proto import codec, shim_api
from lighter.proto.dealer import RECONNECT_MAX_S, RECONNECT_S, Dealer
from lighter.proto.errors import DeadlineExceeded, Internal, InvalidArgument, LighterError
from lighter.shim.loop import READ, WRITE, Future, Loop, Timer

READ_BYTES = 4096

OnRequest = Callable[[codec.Request], None]
Identity = Callable[[], dict[str, Any]]


class Link:
    """Sends and receives for one shim. Nothing here blocks, nothing is sent before a welcome."""

    def __init__(
        self, loop: Loop, path: str, incarnation: str, identity: Identity, on_request: OnRequest
    ) -> None:
        self._loop = loop
        self._identity = identity
        self._on_request = on_request
        self._generation = 0
        self._version = 0
        self._sequence = 0
        self._asked = 0  # the ident of this generation's last request
        self._unacknowledged: deque[codec.Event] = deque()
        self._outgoing: deque[list[bytes]] = deque()
        self._empty: list[Future] = []
        self._early: list[tuple[int, codec.Message]] = []
        self.dropped = 0
        self._dealer = Dealer(path, incarnation.encode(), READ_BYTES)
        self._pause_s = RECONNECT_S
        self._retry: Timer | None = None
        self._fd = -1  # of the connection that the loop watches
        self._writes = False  # the loop waits for room too
        # Not before the loop runs: what was asked of it earlier goes first.
        loop.call_soon(self._connect)

    def _connect(self) -> None:
        """Try to connect, and again in a while when no manager listens."""
        self._retry = None
        is_watched = False
        try:
            if self._dealer.connect():
                self._fd = self._dealer.fileno()
                self._writes = False
                self._loop.watch(self._fd, READ, self._on_ready)
                is_watched = True
        finally:
            if not is_watched:  # whatever the cause: nobody else would try again
                self._dealer.close()
                self._connect_later()

    def _connect_later(self) -> None:
        """Try again after a pause, which grows until somebody says welcome."""
        self._retry = self._loop.call_later(self._pause_s, self._connect)
        self._pause_s = min(2 * self._pause_s, RECONNECT_MAX_S)

    def hurry(self) -> None:
        """A manager listens, as it says itself: what is left of the pause is not waited for."""
        if self._retry is not None:
            self._retry.cancel()
            self._pause_s = RECONNECT_S
            self._connect()

    def _lost(self) -> None:
        """The manager has gone: nothing more is sent before the welcome of the next.

        One that takes connections and ends each is no reason to use a processor up.
        """
        self._loop.unwatch(self._fd)
        self._dealer.close()
        self._version = 0
        self._outgoing.clear()
        self._connect_later()

    @property
    def generation(self) -> int:
        """The generation of the manager that said welcome last; 0 before the first."""
        return self._generation

    @property
    def sequence(self) -> int:
        """The number of the last event; 0 before the first."""
        return self._sequence

    @property
    def connected(self) -> bool:
        """Whether a manager lives and takes messages now."""
        return bool(self._version) and not self._outgoing and not self._dealer.peer_closed

    def is_waiting(self, topic: str) -> bool:
        """Whether an event of this topic is not acknowledged yet."""
        return any(event.topic == topic for event in self._unacknowledged)

    def close(self) -> None:
        """End the connection."""
        self._loop.unwatch(self._fd)
        self._dealer.close()

    def publish(self, topic: str, body: dict[str, Any], timestamp: int = 0) -> int:
        """Send an event now and again until it is acknowledged. Returns its sequence number."""
        self._sequence += 1
        at = timestamp or time.time_ns()
        event = codec.Event(self._generation, self._sequence, topic, at, body)
        self._unacknowledged.append(event)
        self._send(event)
        return self._sequence

    async def all_acknowledged(self) -> None:
        """Wait until a manager has committed every event; as long as it takes for one to come."""
        if self._unacknowledged:
            empty = Future()
            self._empty.append(empty)
            await empty

    async def welcomed(self, timeout_s: float) -> None:
        """Wait until a manager has said welcome once, and has been told what was to be told."""
        until = time.monotonic() + timeout_s
        while not self._generation and time.monotonic() < until:
            await self._loop.pause(RECONNECT_MAX_S)

    def respond(self, request: codec.Request, body: Any) -> None:
        self._answer(request, codec.Response(request.generation, request.ident, body))

    def fail(self, request: codec.Request, error: BaseException) -> None:
        if not isinstance(error, LighterError):
            error = Internal(f"{request.method} task: {type(error).__name__}: {error}")
        answer = codec.Error(
            request.generation, request.ident, error.code, error.message, error.details
        )
        self._answer(request, answer)

    def _answer(self, request: codec.Request, answer: codec.Message) -> None:
        if request.generation == self._generation:
            self._send(answer)
        elif not self._generation:
            # The create that came with the fork may be answered before the first welcome.
            self._early.append((request.generation, answer))

    def _send(self, message: codec.Message) -> None:
        if self._version:
            self._outgoing.append(codec.encode(message, self._version))
            self._flush()

    def _flush(self) -> None:
        """Send now what the connection takes; the loop tells when it takes more."""
        while self._outgoing and self._dealer.send(self._outgoing[0]):
            self._outgoing.popleft()
        writes = bool(self._outgoing) or self._dealer.unsent
        if writes != self._writes:
            self._loop.watch(self._fd, READ | WRITE if writes else READ, self._on_ready)
            self._writes = writes

    def _on_ready(self, events: int) -> None:
        for frames in self._dealer.receive():
            self._take(frames)
        if self._dealer.lost:
            self._lost()
        elif events & WRITE or self._dealer.unsent:
            self._dealer.flush()
            self._flush()

    def _take(self, frames: list[bytes]) -> None:
        try:
            message = codec.decode(frames)
        except codec.MalformedRequest as err:
            self._on_malformed(err)
            return
        except codec.ProtocolError:
            self.dropped += 1
            return
        try:
            self._dispatch(message)
        except Exception as err:
            self._loop.on_error(err)  # here, because the messages behind it have come too

    def _dispatch(self, message: codec.Message) -> None:
        if isinstance(message, codec.Welcome):
            self._on_welcome(message)
        elif message.generation != self._generation or not self._version:
            self.dropped += 1
        elif isinstance(message, codec.Request):
            self._on_fresh_request(message)
        elif isinstance(message, codec.Ack):
            self._on_ack(message.sequence)
        else:
            self.dropped += 1

    def _on_welcome(self, welcome: codec.Welcome) -> None:
        if welcome.generation < self._generation:
            self.dropped += 1
            return
        if welcome.generation > self._generation:
            self._asked = 0
        self._generation = welcome.generation
        self._version = codec.choose_version(welcome.versions)
        self._pause_s = RECONNECT_S
        self._outgoing.clear()  # meant for the manager before
        hello = codec.Hello(self._generation, self._version, shim_api.FEATURES, self._identity())
        self._outgoing.append(codec.encode(hello))
        early = [answer for generation, answer in self._early if generation == self._generation]
        self._early.clear()
        if self._version:
            # Why a create failed comes before the event that it is all over.
            failures = [answer for answer in early if isinstance(answer, codec.Error)]
            events = [e._replace(generation=self._generation) for e in self._unacknowledged]
            others = [answer for answer in early if answer not in failures]
            for message in (*failures, *events, *others):
                self._outgoing.append(codec.encode(message, self._version))
        self._flush()

    def _on_malformed(self, err: codec.MalformedRequest) -> None:
        if err.generation != self._generation:
            self.dropped += 1
            return
        answer = InvalidArgument(f"read request: {err}")
        self._send(codec.Error(err.generation, err.ident, answer.code, answer.message, {}))

    def _on_fresh_request(self, request: codec.Request) -> None:
        # A manager's idents rise as it sends: what does not is a repeat, and once is enough.
        if request.ident <= self._asked:
            self.dropped += 1
            return
        self._asked = request.ident
        if request.deadline_ns is not None and request.deadline_ns < time.monotonic_ns():
            late = DeadlineExceeded(f"{request.method} task: the request came too late")
            self.fail(request, late)
        else:
            self._on_request(request)

    def _on_ack(self, sequence: int) -> None:
        while self._unacknowledged and self._unacknowledged[0].sequence <= sequence:
            self._unacknowledged.popleft()
        if not self._unacknowledged:
            waiting, self._empty = self._empty, []
            for future in waiting:
                future.set()
