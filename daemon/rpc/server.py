"""The native front end: one ROUTER for `ctl` and whoever else speaks proto/PROTOCOL.md.

It knows methods by name and nothing of what they do. Each client is a process the kernel vouches
for; when that process ends or closes its connection, everything it had under way is cancelled.
"""

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import nullcontext, suppress
from functools import partial
from typing import Any

import zmq

from lighter.daemon.errors import from_os
from lighter.daemon.limits import CLIENTS, SILENT, STREAMS, Places
from lighter.daemon.rpc.client import Client, Credit
from lighter.daemon.rpc.methods import (
    NO_MEMORY,
    Call,
    Method,
    MethodTable,
    Result,
    in_words,
    no_such,
)
from lighter.daemon.wire.connections import (
    COMPLAIN_S,
    HELLO_S,
    Strangers,
    connection_of,
    is_open,
    peer_credentials,
    peer_groups,
)
from lighter.daemon.wire.sockets import CLIENT_BACKLOG, CLIENT_HWM, bind_router, listen
from lighter.proto import codec
from lighter.proto.errors import (
    Canceled,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    LighterError,
    PermissionDenied,
    ResourceExhausted,
)

log = logging.getLogger("lighter.rpc")

MAX_CALLS = 64
MAX_REFUSED = 1024  # refusals that are remembered
MAX_SHOWN = 4096  # of an error's text: what a caller wrote is quoted in it, however long it is
HEAD_BYTES = 32  # of a request, its kind and its two numbers
CREDIT_BYTES = 1 << 20
RETRY_S = 0.02
LOOK_S = 0.5  # after an end is heard of, libzmq has closed its descriptor by then
KEPT = 16  # of so many clients' places, one is root's alone


class ClientServer:
    """Binds the socket and runs calls as asyncio tasks."""

    def __init__(
        self,
        generation: int,
        methods: Mapping[str, Method],
        most_silent: Callable[[], int] = SILENT.places,
        most_clients: Callable[[], int] = CLIENTS.places,
        hello_s: float = HELLO_S,
        more_to_come: bool = False,
    ) -> None:
        """With `more_to_come`, calls of methods that are not there wait for `complete`."""
        self._generation = generation
        self._methods = MethodTable(methods, more_to_come)
        self._most_silent = most_silent
        self._most_clients = most_clients
        self._streams = Places(STREAMS)
        self._hello_s = hello_s
        self._socket: zmq.Socket[bytes] | None = None
        self._clients: dict[bytes, Client] = {}
        self._refused: dict[bytes, LighterError] = {}
        self._refused_at = -1e9
        self._waiting: set[Client] = set()  # those that something is queued for
        self._pump_is_due = False
        self._retry: asyncio.TimerHandle | None = None
        self._look: asyncio.TimerHandle | None = None  # at what was closed
        self._place = ("", 0, -1)
        self._strangers: Strangers | None = None
        self.dropped = 0

    @property
    def silent_count(self) -> int:
        """Connections that have not said hello yet."""
        return self._strangers.silent_count if self._strangers is not None else 0

    @property
    def client_count(self) -> int:
        return len(self._clients)

    @property
    def is_asked(self) -> bool:
        """Whether somebody is about to ask, or waits for what can be answered already."""
        calls = sum(len(client.calls) for client in self._clients.values())
        return self.silent_count > 0 or calls > self._methods.awaited

    def complete(self, methods: Mapping[str, Method]) -> None:
        """The other methods."""
        self._methods.complete(methods)

    def bind(self, ctx: "zmq.Context[zmq.Socket[bytes]]", path: str, gid: int, mode: int) -> None:
        """Listen. Served are root, the manager's own user, and the group's members (gid -1: none),
        whatever becomes of the file's mode.
        """
        self._place = (path, mode, gid)
        self._socket = bind_router(
            ctx, path, mode, gid, CLIENT_HWM, backlog=CLIENT_BACKLOG, handover=False
        )
        self._strangers = Strangers(
            ctx, self._socket, path, self._most_silent, self._hello_s, self._look_soon
        )
        fd = int(self._socket.getsockopt(zmq.FD))
        loop = asyncio.get_running_loop()
        loop.add_reader(fd, self._pump)
        loop.call_soon(self._pump)

    def listen_again(self) -> None:
        """Put the socket's file back if somebody deleted it. Connections made before stay."""
        rests = self._strangers is not None and self._strangers.rests
        if self._socket is not None and not rests and not os.path.lexists(self._place[0]):
            log.warning("socket %s was deleted; listening again", self._place[0])
            listen(self._socket, *self._place)

    def close(self) -> None:
        for client in list(self._clients.values()):
            self._drop_client(client.routing_id, client.connection)
        for timer in (self._retry, self._look):
            if timer is not None:
                timer.cancel()
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(int(self._socket.getsockopt(zmq.FD)))
            if self._strangers is not None:
                self._strangers.close()
            self._socket.close(0)
            self._socket = None

    # in

    def _pump(self) -> None:
        """Take what has arrived. The socket's descriptor also tells of a client that reads again.

        It is edge-triggered, and any call on the socket may consume the edge: so an attempt to
        send, even a failed one, is always followed by one to receive.
        """
        self._pump_is_due = False
        self._take_all()
        if self._waiting:
            self._send_queued()
            self._take_all()

    def _pump_soon(self) -> None:
        if not self._pump_is_due:
            self._pump_is_due = True
            asyncio.get_running_loop().call_soon(self._pump)

    def _take_all(self) -> None:
        while self._socket is not None:
            try:
                frames = self._socket.recv_multipart(zmq.DONTWAIT, copy=False)
            except zmq.Again:
                return
            try:
                self._take(frames[0].bytes, frames[1:])
            except Exception:
                log.exception("message of a client")

    def _take(self, routing_id: bytes, frames: "list[zmq.Frame]") -> None:
        if not frames:
            self.dropped += 1
            return
        if len(frames) == 1 and len(frames[0].bytes) == 0:
            welcome = codec.Welcome(self._generation, list(codec.SUPPORTED), [])
            self._put(routing_id, codec.encode(welcome))
            return
        client = self._clients.get(routing_id)
        if client is not None and client.connection != connection_of(frames[0]):
            client = None  # the routing id alone says nothing: whoever connects may choose it
        try:
            message = codec.decode([frame.bytes for frame in frames])
        except codec.MalformedRequest as err:
            if client is not None:
                error = InvalidArgument(f"read request: {err}")
                self._fail(client, err.generation, err.ident, error)
            return
        except codec.ProtocolError as err:
            self.dropped += 1
            log.debug("drop message of a client: %s", err)
            return
        except MemoryError:
            if client is not None:
                self._too_large(client, frames[-1])
            return
        if message.generation != self._generation:
            self.dropped += 1
        elif isinstance(message, codec.Hello):
            self._hello(routing_id, message, frames[0])
        elif client is None:
            self.dropped += 1
            if isinstance(message, codec.Request):
                self._reject(routing_id, message)
        elif isinstance(message, codec.Request):
            self._request(client, message)
        elif isinstance(message, codec.Cancel):
            task = client.calls.get(message.ident)
            if task is not None:
                task.cancel()
        elif isinstance(message, codec.Credit):
            if message.ident in client.credits:
                client.credits[message.ident].grant(message.size_bytes)
        else:
            self.dropped += 1

    def _too_large(self, client: Client, body: "zmq.Frame") -> None:
        head = codec.request_head(bytes(body.buffer[:HEAD_BYTES]))
        if head is not None and head[0] == self._generation:
            error = ResourceExhausted(f"read request of {len(body)} bytes: {NO_MEMORY}")
            self._fail(client, *head, error)

    def _hello(self, routing_id: bytes, hello: codec.Hello, frame: "zmq.Frame") -> None:
        connection = connection_of(frame)
        before = self._clients.get(routing_id)
        self._drop_client(routing_id, connection)
        self._greet(routing_id, hello, frame, connection)
        was_greeted = before is not None and before.connection == connection
        if was_greeted and routing_id not in self._clients and self._strangers is not None:
            self._strangers.silent_again(connection)

    def _greet(
        self,
        routing_id: bytes,
        hello: codec.Hello,
        frame: "zmq.Frame",
        connection: tuple[int, int],
    ) -> None:
        """Make it a client, unless there is a reason not to."""
        pid, uid, gid = peer_credentials(frame)
        if not pid or not hello.version or hello.version not in codec.SUPPORTED:
            self.dropped += 1
            return
        if not self._serves(uid, gid, frame):
            self._refuse(routing_id, PermissionDenied(f"connect: user {uid} is not served"))
            return
        most = self._most_clients()
        if uid != 0:
            most -= most // KEPT
        if len(self._clients) >= most:
            self._drop_closed()
        if len(self._clients) >= most:
            error = ResourceExhausted(f"connect: {most} clients are connected already; try again")
            self._refuse(routing_id, error)
            return
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            return
        except OSError as err:
            self._refuse(routing_id, from_os("connect", err))
            return
        client = Client(routing_id, pid, uid, pidfd, connection)
        client.version = hello.version
        if self._strangers is not None:
            self._strangers.greeted(client.connection)
        self._clients[routing_id] = client
        asyncio.get_running_loop().add_reader(pidfd, self._drop_client, routing_id)

    def _serves(self, uid: int, gid: int, frame: "zmq.Frame") -> bool:
        """Whether the kernel's word for a peer is of one who may use the socket."""
        served = self._place[2]
        if uid in (0, os.getuid()):
            return True
        return served >= 0 and (gid == served or served in peer_groups(frame))

    def _refuse(self, routing_id: bytes, error: LighterError) -> None:
        """Remember why, for the first call of this peer; the handshake has no place for it."""
        self.dropped += 1
        if time.monotonic() - self._refused_at > COMPLAIN_S:
            self._refused_at = time.monotonic()
            log.warning("refuse client: %s", error.message)
        while len(self._refused) >= MAX_REFUSED:
            del self._refused[next(iter(self._refused))]
        self._refused[routing_id] = error

    def _reject(self, routing_id: bytes, request: codec.Request) -> None:
        """Answer a call of a peer that is no client: silence would let it wait."""
        error = self._refused.get(routing_id) or FailedPrecondition(
            "call manager: hello was not said on this connection"
        )
        answer = codec.Error(self._generation, request.ident, error.code, error.message, {})
        self._put(routing_id, codec.encode(answer))

    def _look_soon(self) -> None:
        if self._look is None:
            self._look = asyncio.get_running_loop().call_later(LOOK_S, self._on_look)

    def _on_look(self) -> None:
        self._look = None
        self._drop_closed()

    def _drop_closed(self) -> None:
        """Forget all that was closed: of a process that lives on it would keep places, and run."""
        for client in list(self._clients.values()):
            if not is_open(client.connection):
                self._drop_client(client.routing_id)

    def _drop_client(self, routing_id: bytes, but: tuple[int, int] = (-1, 0)) -> None:
        """It is no client any more, and its connection takes no descriptor: `but` that one stays.

        A process that has inherited it can hold it open.
        """
        self._refused.pop(routing_id, None)
        client = self._clients.pop(routing_id, None)
        if client is None:
            return
        if self._strangers is not None and client.connection != but:
            self._strangers.end(client.connection)
        self._waiting.discard(client)
        client.outbox.close()
        asyncio.get_running_loop().remove_reader(client.pidfd)
        os.close(client.pidfd)
        for task in client.calls.values():
            task.cancel()

    # calls

    def _request(self, client: Client, request: codec.Request) -> None:
        name = f"{request.service[:64]}.{request.method[:64]}"
        method = self._methods.get(name)
        if request.ident in client.calls:
            self.dropped += 1  # a repeat of what is under way already
        elif method is None and self._methods.is_complete:
            self._fail(client, request.generation, request.ident, no_such(name))
        elif len(client.calls) >= MAX_CALLS:
            error = ResourceExhausted(f"call {name}: {MAX_CALLS} calls of this client are open")
            self._fail(client, request.generation, request.ident, error)
        else:
            task = asyncio.get_running_loop().create_task(self._run(client, request, method))
            client.calls[request.ident] = task
            task.add_done_callback(lambda ended: self._ended(client, request, ended))

    def _ended(self, client: Client, request: codec.Request, task: "asyncio.Task[None]") -> None:
        client.calls.pop(request.ident, None)
        if task.cancelled():  # before its first step, where it could not answer itself
            self._fail(client, request.generation, request.ident, _canceled(request))

    async def _run(self, client: Client, request: codec.Request, method: Method | None) -> None:
        name = f"{request.service}.{request.method}"
        metadata = request.metadata
        forced = bool(metadata.get("force"))
        call = Call(metadata.get("namespace", ""), client.pid, client.uid, forced)
        deadline_s = None
        if request.deadline_ns is not None:
            deadline_s = max(0.0, (request.deadline_ns - time.monotonic_ns()) / 1e9)
        late = DeadlineExceeded(f"call {name}: not done when its time was over")
        limit = asyncio.timeout(deadline_s)
        try:
            if deadline_s == 0:  # a timeout of 0 would let it run up to its first wait
                raise late
            async with limit:
                if method is None:
                    method = await self._methods.wait_for(name)
                if method.unary is not None:
                    answer = await method.unary(call, request.body)
                    self._answer(client, codec.Response(self._generation, request.ident, answer))
                elif method.stream is not None:
                    place = (
                        nullcontext() if method.uncounted else self._streams.take(f"call {name}")
                    )
                    with place:
                        await self._stream(client, request, method.stream(call, request.body))
        except LighterError as err:
            self._fail(client, request.generation, request.ident, err)
        except TimeoutError as err:
            # A dead disk's ETIMEDOUT is one as well.
            error = late if limit.expired() else in_words(name, err)
            self._fail(client, request.generation, request.ident, error)
        except asyncio.CancelledError:
            self._fail(client, request.generation, request.ident, _canceled(request))
        except Exception as err:
            self._fail(client, request.generation, request.ident, in_words(name, err))

    async def _stream(
        self, client: Client, request: codec.Request, items: AsyncIterator[Any]
    ) -> None:
        ident = request.ident
        client.credits[ident] = Credit(CREDIT_BYTES)
        result: Any = None
        try:
            async for item in items:
                if isinstance(item, Result):
                    result = item.value
                else:
                    await self._send_item(client, ident, item)
            self._answer(client, codec.End(self._generation, ident, result))
        finally:
            with suppress(RuntimeError):
                await items.aclose()  # type: ignore[attr-defined]
            del client.credits[ident]

    async def _send_item(self, client: Client, ident: int, item: Any) -> None:
        frames = codec.encode(codec.Data(self._generation, ident, item), client.version)
        size = sum(map(len, frames))
        await client.outbox.emptied()
        await client.credits[ident].spend(size)
        self._put(client.routing_id, frames)

    # out

    def _answer(self, client: Client, message: codec.Message) -> None:
        self._put(client.routing_id, codec.encode(message, client.version))

    def _fail(self, client: Client, generation: int, ident: int, error: LighterError) -> None:
        if client.routing_id in self._clients:
            # A file's name may be no UTF-8; it is shown with escapes.
            text = error.message[:MAX_SHOWN].encode("utf-8", "backslashreplace").decode()
            self._answer(client, codec.Error(generation, ident, error.code, text, error.details))

    def _put(self, routing_id: bytes, frames: list[bytes]) -> None:
        """Send, or queue for a client that does not read; one that never does is dropped."""
        self._pump_soon()
        client = self._clients.get(routing_id)
        if client is None:
            self._send(routing_id, frames)
        elif client.outbox or not self._send(routing_id, frames):
            if client.outbox.add(frames):
                self._waiting.add(client)
                self._retry_later()
            else:
                log.warning("drop client pid=%d: it does not read", client.pid)
                self._drop_client(routing_id)

    def _send(self, routing_id: bytes, frames: list[bytes]) -> bool:
        """False when the client's queue is full; a client that is gone takes everything."""
        if self._socket is None:
            return True
        try:
            self._socket.send_multipart([routing_id, *frames], zmq.DONTWAIT)
        except zmq.Again:
            return False
        except zmq.ZMQError:
            self._drop_client(routing_id)
        return True

    def _retry_later(self) -> None:
        if self._retry is None:
            self._retry = asyncio.get_running_loop().call_later(RETRY_S, self._on_retry)

    def _on_retry(self) -> None:
        self._retry = None
        self._pump()

    def _send_queued(self) -> None:
        for client in list(self._waiting):
            client.outbox.flush(partial(self._send, client.routing_id))
            if not client.outbox:
                self._waiting.discard(client)
        if self._waiting:
            self._retry_later()


def _canceled(request: codec.Request) -> Canceled:
    return Canceled(f"call {request.service}.{request.method}: canceled by its caller")
