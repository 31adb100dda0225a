"""The conversation with lighterd: blocking for a verb, or driven by the loop of an attached one.

A DEALER connects, and connects again when the manager was restarted. Each connection begins with
the manager's welcome, which ctl answers with a hello; nothing is sent before. What was outstanding
over a restart is asked again where that is safe (see resume.py), and fails where it is not.
"""

from __future__ import annotations

import select
import time

from lighter.ctl.resume import Resumption, resumption
from lighter.proto import codec
from lighter.proto.calls import PendingCalls
from lighter.proto.dealer import RECONNECT_S, Dealer
from lighter.proto.errors import (
    DeadlineExceeded,
    LighterError,
    Unavailable,
    from_wire,
)
from lighter.proto.version import VERSION

TYPE_CHECKING = False
if TYPE_CHECKING:
    import os
    from collections import deque
    from collections.abc import Callable, Iterator
    from typing import Any
else:
    import posix as os  # system calls alone; what `os` brings besides takes a millisecond
    from _collections import deque  # what `collections` brings besides takes a millisecond

# A manager that is started again is back after some tenths of a second: until then a client tries
# often, and from then on as a shim does. One that had a manager may be one of many: it waits at
# most an eighth longer than the manager was away.
SOON_S = 1.0
SOON_PAUSE_S = 0.005
SHARE = 8
# A manager that lives answers its welcome long before this, so a probe is rarely made.
PROBE_AFTER_S = 0.15
UNDO_S = 10.0
MAX_OUTSTANDING = 64
CREDIT_BYTES = 256 * 1024
READ_BYTES = 256 * 1024


class Call:
    """One request and what came of it. Iterating takes the items of a stream as they come."""

    def __init__(self, manager: Manager, method: str, body: dict[str, Any], namespace: str):
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
    call. `forced`: calls mean what is another program's too. A call waits up to
    `connect_timeout_s` for a manager that is away, then raises Unavailable; an outstanding wait is
    not limited.
    """

    def __init__(
        self,
        path: str,
        namespace: str,
        *,
        connect_timeout_s: float,
        timeout_s: float | None = None,
        trace: Callable[[str], None] | None = None,
        forced: bool = False,
    ) -> None:
        self.path = path
        self.namespace = namespace
        self._forced = forced
        self._connect_timeout_s = connect_timeout_s
        self._deadline = None if timeout_s is None else time.monotonic() + timeout_s
        self._timeout_s = timeout_s
        self._call_timeout_s: float | None = None
        self._trace = trace
        self._generation = 0
        self._version = 0
        self._ident = 0
        self._owed_bytes = 0
        self._pending: PendingCalls[Call] = PendingCalls(MAX_OUTSTANDING)
        self._dealer = Dealer(path, b"", READ_BYTES)
        self._away_since = time.monotonic()

    @property
    def connected(self) -> bool:
        """Whether a manager has welcomed us and was not seen to end."""
        return self._generation > 0

    def close(self) -> None:
        self._dealer.close()

    # calls

    def connect(self) -> None:
        """Return once a manager has welcomed us. Raises Unavailable, and what probe.py finds."""
        self._await_welcome()

    def renew(self) -> None:
        """Connect anew for the next call: a manager that refused a connection goes on doing so."""
        self._dealer.close()
        self._generation = 0
        self._away_since = time.monotonic()

    def own(self) -> None:
        """From now on calls are about what this command has made: it may end that anywhere."""
        self._forced = True

    def limit_calls(self, timeout_s: float) -> None:
        """From now on each call has this much time; where the command has a timeout, that one."""
        if self._timeout_s is None or self._call_timeout_s is not None:
            self._call_timeout_s = self._timeout_s = timeout_s

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
            self.trace_call(method, begun)

    def trace_call(self, method: str, begun: float) -> None:
        """Tell how long a call took, for --debug; `begun`: by the monotonic clock."""
        if self._trace:
            self._trace(f"call {method}: {(time.monotonic() - begun) * 1000:.1f} ms")

    def begin(self, method: str, *, namespace: str | None = None, **body: Any) -> Call:
        """Ask without waiting. Raises Unavailable when no manager can be reached."""
        if self._call_timeout_s is not None:
            self._deadline = time.monotonic() + self._call_timeout_s
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
            {"namespace": call.namespace, **({"force": "true"} if self._forced else {})},
            body,
        )
        self._pending.open(self._generation, call.ident, call, f"call {call.method}")
        try:
            while not self._try_send(request):
                if self._dealer.peer_closed:
                    return  # the next welcome asks again, or fails the call
                self._wait(select.POLLOUT)
                self.check_deadline()
        except UnicodeEncodeError as err:  # a word of the command line, or a variable
            from lighter.ctl.cli import Unsendable

            self._pending.forget(self._generation, call.ident)
            raise Unsendable(f"call {call.method}: {err.object} is not UTF-8") from err

    # the loop

    def interest(self) -> tuple[int, int]:
        """The descriptor to wait for, -1 while no manager is there, and what for (poll(2))."""
        events = select.POLLIN | select.POLLOUT if self._dealer.unsent else select.POLLIN
        return self._dealer.fileno(), events

    def wait_ms(self) -> int | None:
        """How long to wait for it at most, for poll(2); None for ever."""
        left = self.left_ms()
        if self._dealer.connected:
            return left
        away_s = time.monotonic() - self._away_since
        pause_s = SOON_PAUSE_S if away_s < SOON_S else RECONNECT_S
        if self._version:
            pause_s = min(max(SOON_PAUSE_S, away_s / SHARE), RECONNECT_S)
        pause = int(pause_s * 1000)
        return pause if left is None else min(pause, left)

    def turn(self) -> None:
        """Handle what came, waiting for it. Raises DeadlineExceeded when the time is over."""
        if not self.process():
            self._wait()
            self.check_deadline()

    def process(self) -> bool:
        """Handle all that came, without waiting; whether there was anything.

        When the manager has ended, its last words are taken first; then what nobody will answer
        fails, and a new manager that is there already is connected.
        """
        if not self._dealer.connected and not self._dealer.connect():
            return False
        came = False
        self._dealer.flush()
        for frames in self._dealer.receive():
            came = True
            self._take(frames)
        if self._dealer.lost:
            came = True
            self._dealer.close()
            if self._generation:  # not for one that accepts and says nothing
                self._away_since = time.monotonic()
            self._generation = 0
            self._reopen()
        return came

    def _take(self, frames: list[bytes]) -> None:
        try:
            message = codec.decode(frames)
        except codec.ProtocolError as err:
            if self._trace:
                self._trace(f"drop message: {err}")
            return
        if isinstance(message, codec.Welcome):
            self._welcome(message)
        else:
            self._answer(message, sum(len(frame) for frame in frames))

    def _wait(self, events: int = 0, most_ms: int | None = None) -> None:
        """Wait until there is something to do, or `events` alone, or the time is over."""
        poll = select.poll()
        fd, interest = self.interest()
        if fd >= 0:
            poll.register(fd, events or interest)
        limits = [limit for limit in (self.wait_ms(), most_ms) if limit is not None]
        poll.poll(min(limits, default=None))

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
                from lighter.ctl import probe  # brings `socket`, which takes 7 ms to load

                reason = probe.why_silent(self.path)
            left = (until if reason else min(until, begun + PROBE_AFTER_S)) - time.monotonic()
            if reason and left <= 0:
                raise Unavailable(f"connect {self.path}: no manager answers there ({reason})")
            self._wait(most_ms=max(0, int(left * 1000) + 1))
            self.process()
            if not self.connected:
                self.check_deadline()

    def _welcome(self, welcome: codec.Welcome) -> None:
        """Greet a manager, and ask again what is outstanding: answers to it are lost."""
        self._generation = welcome.generation
        version = codec.choose_version(welcome.versions)
        identity = {"kind": "client", "pid": os.getpid(), "version": VERSION}
        self._try_send(codec.Hello(welcome.generation, version, [], identity))
        if version == 0:
            from lighter.ctl.cli import OtherVersion

            # Who was spoken with before may have been asked for something, and is not asked again.
            raise (Unavailable if self._version else OtherVersion)(
                f"connect {self.path}: the manager speaks versions {welcome.versions} of the "
                f"protocol, ctl {VERSION} speaks {list(codec.SUPPORTED)}"
            )
        self._version = version
        self._reopen()

    def _reopen(self) -> None:
        """Fail the calls that cannot go on; ask for the rest of the others when connected."""
        for call in self._pending.drop_all():
            if call.resumption is None:
                ended = f"call {call.method}: the manager ended meanwhile"
                call.finish(error=Unavailable(ended))
            elif self.connected:
                self._ask(call, call.resumption.body())
            else:
                self._pending.open(0, call.ident, call, f"call {call.method}")

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
        return self._dealer.send(codec.encode(message, self._version or codec.VERSION))
