"""The conversation with lighterd: blocking for a verb, or driven by the loop of an attached one.

A DEALER connects, and connects again when the manager was restarted. Each connection begins with
the manager's welcome, which ctl answers with a hello; nothing is sent before. What was outstanding
over a restart is asked again where that is safe (see resume.py), and fails where it is not.
"""

import os
import select
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import zmq

from lighter.ctl import probe
from lighter.ctl.resume import Resumption, resumption
from lighter.proto import codec, sockets
from lighter.proto.calls import PendingCalls
from lighter.proto.errors import DeadlineExceeded, LighterError, Unavailable, from_wire
from lighter.proto.version import VERSION

# A manager that lives answers its welcome long before this, so a probe is rarely made.
PROBE_AFTER_S = 0.15
# What a manager said just before it ended may still stand in the socket.
LAST_WORDS_S = 0.2
UNDO_S = 10.0
MAX_OUTSTANDING = 64
CREDIT_BYTES = 256 * 1024

_UCRED = struct.Struct("iII")


class Call:
    """One request and what came of it. Iterating takes the items of a stream as they come."""

    def __init__(self, manager: "Manager", method: str, body: dict[str, Any], namespace: str):
        self.method = method
        self.body = body
        self.namespace = namespace
        self.ident = 0
        self.done = False
        self.value: Any = None
        self.error: LighterError | None = None
        self.items: deque[Any] = deque()
        self.resumption: Resumption | None = resumption(method, body)
        self._manager = manager

    def finish(self, value: Any = None, error: LighterError | None = None) -> None:
        self.done, self.value, self.error = True, value, error

    def result(self) -> Any:
        """Wait for the last answer. Raises what was answered, or DeadlineExceeded."""
        while not self.done:
            self._manager.turn()
        if self.error is not None:
            raise self.error
        return self.value

    def __iter__(self) -> Iterator[Any]:
        try:
            while True:
                while self.items:
                    ident, size_bytes, item = self.items.popleft()
                    yield item
                    self._manager.consumed(self, ident, size_bytes)
                if self.done:
                    self.result()
                    return
                self._manager.turn()
        finally:
            self._manager.cancel(self)


class Manager:
    """A connection to the manager at `path`; to be closed.

    `timeout_s` limits everything that is done with it, None does not. `trace` gets a line per
    call. A call waits up to `connect_timeout_s` for a manager that is away, then raises
    Unavailable; an outstanding wait is not limited.
    """

    def __init__(
        self,
        path: str,
        namespace: str,
        *,
        connect_timeout_s: float,
        timeout_s: float | None = None,
        trace: Callable[[str], None] | None = None,
    ) -> None:
        self.path = path
        self.namespace = namespace
        self._connect_timeout_s = connect_timeout_s
        self._deadline = None if timeout_s is None else time.monotonic() + timeout_s
        self._timeout_s = timeout_s
        self._trace = trace
        self._generation = 0
        self._version = 0
        self._ident = 0
        self._peer = -1
        self._owed_bytes = 0
        self._pending: PendingCalls[Call] = PendingCalls(MAX_OUTSTANDING)
        self._context = sockets.context()
        try:
            self._socket = sockets.connect_dealer(self._context, path, sockets.CLIENT_HWM)
        except BaseException:
            self._context.term()
            raise

    @property
    def connected(self) -> bool:
        """Whether a manager has welcomed us and was not seen to end."""
        return self._generation > 0

    def close(self) -> None:
        self._forget_peer()
        self._socket.close(0)
        self._context.term()

    # calls

    def connect(self) -> None:
        """Return once a manager has welcomed us. Raises Unavailable, and what probe.py finds."""
        self._await_welcome()

    def undo(self, method: str, **body: Any) -> None:
        """Take something back, even when the timeout is over: it gets a time of its own."""
        if self._deadline is not None:
            self._deadline = time.monotonic() + UNDO_S
        self.call(method, **body)

    def call(self, method: str, **body: Any) -> Any:
        """Ask "service.method" and wait; returns the answer's body, raises what was answered."""
        begun = time.monotonic()
        try:
            return self.begin(method, **body).result()
        finally:
            if self._trace:
                self._trace(f"call {method}: {(time.monotonic() - begun) * 1000:.1f} ms")

    def begin(self, method: str, *, namespace: str | None = None, **body: Any) -> Call:
        """Ask without waiting. Raises Unavailable when no manager can be reached."""
        self._await_welcome()
        call = Call(self, method, body, self.namespace if namespace is None else namespace)
        self._ask(call, body)
        return call

    def cancel(self, call: Call) -> None:
        """Tell the manager that nobody waits for `call`; nothing when it is done."""
        if not call.done:
            self._pending.forget(self._generation, call.ident)
            call.finish()
            if self.connected:
                self._try_send(codec.Cancel(self._generation, call.ident))

    def consumed(self, call: Call, ident: int, size_bytes: int) -> None:
        """Give credit for an item that was used, in portions."""
        if ident != call.ident or call.done:
            return
        self._owed_bytes += size_bytes
        if self._owed_bytes >= CREDIT_BYTES and self._try_send(
            codec.Credit(self._generation, ident, self._owed_bytes)
        ):
            self._owed_bytes = 0

    def _ask(self, call: Call, body: dict[str, Any]) -> None:
        self._ident += 1
        call.ident = self._ident
        service, _, method = call.method.partition(".")
        request = codec.Request(
            self._generation,
            call.ident,
            service,
            method,
            None if self._deadline is None else int(self._deadline * 1e9),
            {"namespace": call.namespace},
            body,
        )
        self._pending.open(self._generation, call.ident, call, f"call {call.method}")
        while not self._try_send(request):
            self._poll(zmq.POLLOUT)
            if not self.connected:
                self._await_welcome()
                return  # the welcome has asked again, or failed the call

    # the loop

    def fileno(self) -> int:
        """Readable when `process` may have something to do; edge-triggered as zmq_getsockopt(3)
        says, so call `process` before waiting for it."""
        return self._option(zmq.FD)

    def peer_fileno(self) -> int:
        """A pidfd of the manager's process, readable once it has ended; -1 when there is none."""
        return self._peer

    def turn(self) -> None:
        """Handle what came, waiting for it. Raises DeadlineExceeded when the time is over."""
        if not self.process():
            self._poll(zmq.POLLIN)

    def process(self) -> bool:
        """Handle all that came, without waiting; whether there was anything."""
        came = False
        while True:
            try:
                frames = self._socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return came
            came = True
            size_bytes = sum(len(frame) for frame in frames)
            try:
                message = codec.decode([frame.bytes for frame in frames])
            except codec.ProtocolError as err:
                if self._trace:
                    self._trace(f"drop message: {err}")
                continue
            if isinstance(message, codec.Welcome):
                self._welcome(message, frames[0].get(zmq.SRCFD))
            else:
                self._answer(message, size_bytes)

    def check_peer(self) -> None:
        """Once the manager's process has ended: fail what nobody will answer.

        Its last words are taken first, and a new manager that is there already is greeted.
        """
        if self._peer < 0 or not select.select([self._peer], [], [], 0)[0]:
            return
        ended = self._generation
        until = time.monotonic() + LAST_WORDS_S
        while self._generation == ended and (left := until - time.monotonic()) > 0:
            if not self._socket.poll(int(left * 1000) + 1):
                break
            self.process()
        if self._generation == ended:
            self._forget_peer()
            self._generation = 0
            self._reopen("the manager ended meanwhile")

    def _poll(self, events: int) -> None:
        """Wait until the socket is ready, the manager's process ends, or the time is over."""
        if self._option(zmq.EVENTS) & events:
            return
        poller = zmq.Poller()
        poller.register(self._socket, events)
        if self._peer >= 0:
            poller.register(self._peer, zmq.POLLIN)
        poller.poll(self.left_ms())
        self.check_deadline()
        self.check_peer()

    def _option(self, option: int) -> int:
        value = self._socket.getsockopt(option)
        assert isinstance(value, int)
        return value

    def left_ms(self) -> int | None:
        """What is left of the timeout, for poll(2); None without one."""
        if self._deadline is None:
            return None
        return max(0, int((self._deadline - time.monotonic()) * 1000) + 1)

    def check_deadline(self) -> None:
        """Raises DeadlineExceeded once the timeout is over."""
        if self._deadline is not None and time.monotonic() >= self._deadline:
            raise DeadlineExceeded(f"wait for {self.path}: {self._timeout_s:g} s are over")

    # coming and going of managers

    def _await_welcome(self) -> None:
        """Return once connected. Raises Unavailable after the connect timeout, and what
        probe.py finds out about a peer that is no lighterd."""
        self.process()
        if self.connected:
            return
        begun = time.monotonic()
        until = begun + self._connect_timeout_s
        reason = ""
        while not self.connected:
            if not reason and time.monotonic() >= begun + PROBE_AFTER_S:
                reason = probe.why_silent(self.path)
            left = (until if reason else min(until, begun + PROBE_AFTER_S)) - time.monotonic()
            if reason and left <= 0:
                raise Unavailable(f"connect {self.path}: no manager answers there ({reason})")
            limit = self.left_ms()
            pause = max(0, int(left * 1000) + 1)
            self._socket.poll(pause if limit is None else min(pause, limit))
            self.process()
            if not self.connected:
                self.check_deadline()

    def _welcome(self, welcome: codec.Welcome, connection: int) -> None:
        """Greet a manager, and ask again what is outstanding: answers to it are lost."""
        self._forget_peer()
        self._peer = _open_peer(connection)
        self._generation = welcome.generation
        version = codec.choose_version(welcome.versions)
        identity = {"kind": "client", "pid": os.getpid(), "version": VERSION}
        self._try_send(codec.Hello(welcome.generation, version, [], identity))
        if version == 0:
            raise Unavailable(
                f"connect {self.path}: the manager speaks versions {welcome.versions} of the "
                f"protocol, ctl {VERSION} speaks {list(codec.SUPPORTED)}"
            )
        self._version = version
        self._reopen("the manager was restarted meanwhile")

    def _reopen(self, reason: str) -> None:
        """Fail the calls that cannot go on; ask for the rest of the others when connected."""
        for call in self._pending.drop_all():
            if call.resumption is None:
                call.finish(error=Unavailable(f"call {call.method}: {reason}"))
            elif self.connected:
                self._ask(call, call.resumption.body())
            else:
                self._pending.open(0, call.ident, call, f"call {call.method}")

    def _forget_peer(self) -> None:
        if self._peer >= 0:
            os.close(self._peer)
            self._peer = -1

    def _answer(self, message: codec.Message, size_bytes: int) -> None:
        match message:
            case codec.Data(generation, ident, item):
                call = self._pending.get(generation, ident)
                if call is not None:
                    if call.resumption is not None:
                        item = call.resumption.take(item)
                    if item is None:
                        self.consumed(call, ident, size_bytes)
                    else:
                        call.items.append((ident, size_bytes, item))
            case codec.Response(generation, ident, body) | codec.End(generation, ident, body):
                call = self._pending.close(generation, ident)
                if call is not None:
                    call.finish(body)
            case codec.Error(generation, ident, code, text, details):
                call = self._pending.close(generation, ident)
                if call is not None:
                    call.finish(error=from_wire(code, text, details))

    def _try_send(self, message: codec.Message) -> bool:
        """Send without waiting; whether there was room, and somebody connected."""
        try:
            self._socket.send_multipart(
                codec.encode(message, self._version or codec.VERSION), zmq.NOBLOCK
            )
        except zmq.Again:
            return False
        return True


def _open_peer(connection: int) -> int:
    """A pidfd of the process at the other end of libzmq's `connection`, -1 when it has none.

    A ZeroMQ socket does not tell that its peer has gone; the kernel does.
    """
    try:
        with socket.socket(fileno=os.dup(connection)) as peer:
            size = _UCRED.size
            pid, _uid, _gid = _UCRED.unpack(
                peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
            )
        return os.pidfd_open(pid) if pid > 0 else -1
    except OSError:
        return -1
