"""The manager's one socket to all shims: who is there, calls to them, events from them.

A shim is known by its incarnation, which is its routing id. Nothing here waits for a shim: every
send is non-blocking, at most 16 calls to one are outstanding, every call has a deadline.
"""

import asyncio
import logging
import os
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import zmq

from lighter.daemon.limits import SILENT, TASKS
from lighter.daemon.wire.connections import HELLO_S, Strangers, connection_of, peer_credentials
from lighter.daemon.wire.sockets import SHIM_HWM, bind_router, listen
from lighter.proto import codec, shim_api
from lighter.proto.calls import PendingCalls
from lighter.proto.errors import DeadlineExceeded, Internal, LighterError, Unavailable, from_wire

log = logging.getLogger("lighter.shims")

RUNTIME_S = 120.0
MARGIN_S = 10.0  # for the shim to end a runtime that hangs, and to say so
REPEAT_S = 1.0  # between an event that could not be recorded and its repetition


class Peer:
    """A connected shim."""

    def __init__(self, router: "ShimRouter", incarnation: str) -> None:
        self.incarnation = incarnation
        self.connection = (-1, 0)  # that it has said hello by
        self.identity: dict[str, Any] = {}
        self.version = 0
        self.silent_since: float | None = None  # a call was not answered, and nothing came since
        self.stalled = False  # an event could not be applied; later ones wait for its repetition
        self.refusal: Exception | None = None  # why, the last time
        self._router = router
        self._pending: PendingCalls[asyncio.Future[Any]] = PendingCalls()

    async def call(
        self, method: str, body: dict[str, Any] | None = None, timeout_s: float = 0
    ) -> Any:
        """Ask the shim. Raises its error, Unavailable when it is gone, DeadlineExceeded.

        Without a time limit of its own, it takes as long as a call of the runtime may.
        """
        what = f"{method} task"
        timeout_s = timeout_s or self._router.runtime_s + MARGIN_S
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        ident = self._router.next_ident()
        generation = self._router.generation
        self._pending.open(generation, ident, answer, what)
        deadline = time.monotonic_ns() + int(timeout_s * 1e9)
        request = codec.Request(
            generation, ident, shim_api.SERVICE, method, deadline, {}, body or {}
        )
        try:
            self._router.send(self.incarnation, codec.encode(request, self.version), what)
            async with asyncio.timeout(timeout_s):
                return await answer
        except TimeoutError as err:
            self.silent_since = self.silent_since or time.monotonic()
            raise DeadlineExceeded(f"{what}: its shim did not answer in {timeout_s:g} s") from err
        finally:
            self._pending.forget(generation, ident)

    def take(self, message: codec.Response | codec.Error) -> bool:
        """Whether somebody waits for this answer."""
        self.silent_since = None
        waiting = self._pending.close(message.generation, message.ident)
        if waiting is None or waiting.done():
            return False
        if isinstance(message, codec.Error):
            waiting.set_exception(from_wire(message.code, message.message, message.details))
        else:
            waiting.set_result(message.body)
        return True

    def stalled_by(self, attempt: str) -> LighterError:
        """The error for `attempt` that tells why this shim's events cannot be applied."""
        if isinstance(self.refusal, LighterError):
            return type(self.refusal)(f"{attempt}: {self.refusal.message}")
        return Internal(f"{attempt}: what its shim told could not be applied: {self.refusal!r}")

    def fail_all(self, why: str, kind: type[LighterError] = Unavailable) -> None:
        for waiting in self._pending.drop_all():
            if not waiting.done():
                waiting.set_exception(kind(why))


OnHello = Callable[[Peer], None]
OnEvent = Callable[[Peer, codec.Event], bool]


class ShimRouter:
    """Binds the ROUTER and turns its messages into calls.

    `on_hello` learns of each shim that says who it is; `on_event` applies an event and returns
    whether it is committed, which is when it is acknowledged.
    """

    def __init__(
        self,
        generation: int,
        on_hello: OnHello,
        on_event: OnEvent,
        hello_s: float = HELLO_S,
        runtime_s: float = RUNTIME_S,
    ) -> None:
        self.runtime_s = runtime_s
        self._hello_s = hello_s
        self.generation = generation
        self.peers: dict[str, Peer] = {}
        self.dropped = 0
        self._on_hello = on_hello
        self._on_event = on_event
        self._idents = 0
        self._creates: dict[int, asyncio.Future[Any]] = {}
        self._held: list[tuple[Peer, codec.Event]] | None = None
        self._due: dict[Peer, int] = {}  # up to which number each shim's events are committed
        self._socket: zmq.Socket[bytes] | None = None
        self._path = ""
        self._strangers: Strangers | None = None

    def bind(self, ctx: "zmq.Context[zmq.Socket[bytes]]", path: str) -> None:
        self._path = path
        self._socket = bind_router(ctx, path, 0o600, -1, SHIM_HWM)
        self._strangers = Strangers(ctx, self._socket, path, self._most_silent, self._hello_s)
        fd = int(self._socket.getsockopt(zmq.FD))
        asyncio.get_running_loop().add_reader(fd, self._pump)
        asyncio.get_running_loop().call_soon(self._pump)

    def hold_events(self) -> None:
        """Shims are welcomed, and what they tell is kept for `release_events`."""
        self._held = []

    def release_events(self) -> None:
        """Apply the events that were held: those who follow them are there now."""
        held, self._held = self._held or [], None
        for peer, message in held:
            try:
                # What one that has ended since told us is in its exit record too.
                if self.peers.get(peer.incarnation) is peer and not peer.stalled:
                    self._event(peer, message)
            except Exception:
                log.exception("message of shim %s", peer.incarnation)

    def listen_again(self) -> None:
        """Put the socket's file back if somebody deleted it: new shims could not connect."""
        rests = self._strangers is not None and self._strangers.rests
        if self._socket is not None and not rests and not os.path.lexists(self._path):
            log.warning("socket %s was deleted; listening again", self._path)
            listen(self._socket, self._path, 0o600, -1)

    def _most_silent(self) -> int:
        """How many connections may be silent. A new manager's shims all come at once: until then
        their places may be taken.
        """
        return max(SILENT.places(), TASKS.places() - len(self.peers))

    def close(self) -> None:
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(int(self._socket.getsockopt(zmq.FD)))
            if self._strangers is not None:
                self._strangers.close()
            self._socket.close(0)
            self._socket = None

    def next_ident(self) -> int:
        self._idents += 1
        return self._idents

    def expect_created(self, ident: int) -> "asyncio.Future[Any]":
        """The answer to a create that travels with a fork."""
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._creates[ident] = answer
        answer.add_done_callback(lambda _answer: self._creates.pop(ident, None))
        return answer

    def send(self, incarnation: str, frames: list[bytes], what: str) -> None:
        """Raises Unavailable at once when the shim is gone or does not read."""
        if self._socket is None:
            raise Unavailable(f"{what}: the manager is stopping")
        # The descriptor is edge-triggered: a send, even one that fails, may consume the edge of an
        # arrival.
        asyncio.get_running_loop().call_soon(self._pump)
        try:
            self._socket.send_multipart([incarnation.encode(), *frames], zmq.DONTWAIT)
        except zmq.ZMQError as err:
            if err.errno == zmq.EHOSTUNREACH and incarnation in self.peers:
                self._displaced(self.peers[incarnation])
            raise Unavailable(f"{what}: its shim does not take messages") from err

    def acknowledge_soon(self, peer: Peer, sequence: int) -> None:
        """One message for what has come together, after those who wait for it were woken."""
        if not self._due:
            asyncio.get_running_loop().call_soon(self._acknowledge)
        self._due[peer] = max(sequence, self._due.get(peer, 0))

    def _acknowledge(self) -> None:
        due, self._due = self._due, {}
        for peer, sequence in due.items():
            ack = codec.encode(codec.Ack(self.generation, sequence), peer.version)
            with suppress(Unavailable):  # it sends the event again when it is back
                self.send(peer.incarnation, ack, "acknowledge event")

    def forget(self, incarnation: str, why: str, kind: type[LighterError] = Unavailable) -> None:
        """The shim's process has ended: who waits for an answer of it gets this error."""
        peer = self.peers.pop(incarnation, None)
        if peer is not None:
            peer.fail_all(why, kind)

    def _pump(self) -> None:
        while self._socket is not None:
            try:
                frames = self._socket.recv_multipart(zmq.DONTWAIT, copy=False)
            except zmq.Again:
                return
            incarnation = frames[0].bytes.decode("ascii", "replace")
            try:
                self._take(incarnation, frames[1:])
            except LighterError as err:
                log.warning("message of shim %s: %s", incarnation, err)
            except Exception:
                log.exception("message of shim %s", incarnation)

    def _take(self, incarnation: str, frames: "list[zmq.Frame]") -> None:
        if len(frames) == 1 and len(frames[0].bytes) == 0:
            self._greeted(incarnation, frames[0])
            self._welcome(incarnation)
            return
        try:
            message = codec.decode([frame.bytes for frame in frames])
        except codec.ProtocolError as err:
            self.dropped += 1
            log.debug("drop message of shim %s: %s", incarnation, err)
            return
        if message.generation != self.generation:
            self.dropped += 1
        elif isinstance(message, codec.Hello):
            self._hello(incarnation, message, frames[0])
        elif (peer := self._greeted(incarnation, frames[0])) is None:
            self.dropped += 1
        elif isinstance(message, codec.Response | codec.Error):
            self._answer(peer, message)
        elif isinstance(message, codec.Event):
            if self._held is not None:
                self._held.append((peer, message))
            elif not peer.stalled:
                self._event(peer, message)
        else:
            self.dropped += 1

    def _greeted(self, incarnation: str, frame: "zmq.Frame") -> Peer | None:
        """Who has said hello on the connection that this came by. The routing id alone says
        nothing: whoever connects chooses it.
        """
        peer = self.peers.get(incarnation)
        if peer is not None and peer.connection != connection_of(frame):
            self._displaced(peer)
            return None
        return peer

    def _displaced(self, peer: Peer) -> None:
        """Another connection has its routing id now. Its own stays open, and nobody reads from it,
        so it is ended: it comes again and takes its place. Nothing when it has ended it itself.
        """
        if self._strangers is not None:
            self._strangers.end(peer.connection, f"its routing id {peer.incarnation} was taken")

    def _event(self, peer: Peer, message: codec.Event) -> None:
        peer.silent_since = None
        try:
            if self._on_event(peer, message):
                peer.refusal = None
                self.acknowledge_soon(peer, message.sequence)
        except Exception as err:
            # An acknowledgement covers all numbers before it, so nothing later may be applied.
            peer.stalled = True
            peer.refusal = err
            asyncio.get_running_loop().call_later(REPEAT_S, self.ask_again, peer.incarnation)
            raise

    def ask_again(self, incarnation: str) -> None:
        """A further welcome makes the shim say hello and send all that is not acknowledged."""
        if incarnation in self.peers:
            with suppress(Unavailable):
                self._welcome(incarnation)

    def _welcome(self, incarnation: str) -> None:
        welcome = codec.Welcome(self.generation, list(codec.SUPPORTED), [])
        self.send(incarnation, codec.encode(welcome), "welcome shim")

    def _hello(self, incarnation: str, hello: codec.Hello, frame: "zmq.Frame") -> None:
        identity = hello.identity
        pid, uid, _gid = peer_credentials(frame)
        said = (identity.get("incarnation"), identity.get("pid"))
        if said != (incarnation, pid) or uid not in (0, os.getuid()):
            self.dropped += 1
            log.warning(
                "drop hello of shim %s: it is not who it says (pid %d, user %d)",
                *(incarnation, pid, uid),
            )
            return
        if hello.version and hello.version not in codec.SUPPORTED:
            self.dropped += 1
            log.warning("drop hello of shim %s: version %d", incarnation, hello.version)
            return
        connection = connection_of(frame)
        if self._strangers is not None:
            self._strangers.greeted(connection)
        peer = self.peers.get(incarnation)
        if peer is None:
            peer = self.peers[incarnation] = Peer(self, incarnation)
        else:
            peer.fail_all("call shim: it connected again")
        peer.stalled = False
        peer.connection = connection
        peer.identity = identity
        peer.version = hello.version
        self._on_hello(peer)

    def _answer(self, peer: Peer, message: codec.Response | codec.Error) -> None:
        create = self._creates.get(message.ident)
        if create is not None and not create.done():
            if isinstance(message, codec.Error):
                create.set_exception(from_wire(message.code, message.message, message.details))
            else:
                create.set_result(message.body)
        elif not peer.take(message):
            self.dropped += 1
