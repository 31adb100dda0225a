"""A small event loop over epoll: descriptors, timers, and coroutines that wait for a Future.

asyncio would cost each shim about two megabytes of touched memory. This loop has what a shim
needs and makes no system call while nothing happens: without a timer, epoll waits for ever.
"""

import errno
import heapq
import select
import time
from collections.abc import Callable, Coroutine, Generator
from typing import Any

from lighter.proto.errors import DeadlineExceeded

READ = select.EPOLLIN
WRITE = select.EPOLLOUT
PRIORITY = select.EPOLLPRI

LATE_S = 0.1
MAX_EVENTS = 16  # of one round; the default takes 12 KiB for 1023


class Future:
    """A value that comes later. Await it, or set it once."""

    __slots__ = ("_callbacks", "_error", "_value", "done")

    def __init__(self) -> None:
        self.done = False
        self._value: Any = None
        self._error: BaseException | None = None
        self._callbacks: list[Callable[[], None]] = []

    def set(self, value: Any = None) -> None:
        if not self.done:
            self._value = value
            self._finish()

    def fail(self, error: BaseException) -> None:
        if not self.done:
            self._error = error
            self._finish()

    def _finish(self) -> None:
        self.done = True
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()

    def when_done(self, callback: Callable[[], None]) -> None:
        if self.done:
            callback()
        else:
            self._callbacks.append(callback)

    def __await__(self) -> Generator["Future", None, Any]:
        if not self.done:
            yield self
        if self._error is not None:
            raise self._error
        return self._value


class Timer:
    """One callback at one time; `cancel` makes it pass silently."""

    __slots__ = ("at", "callback")

    def __init__(self, at: float, callback: Callable[[], None]) -> None:
        self.at = at
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        self.callback = None

    def __lt__(self, other: "Timer") -> bool:
        return self.at < other.at


class Loop:
    """Runs callbacks until `stop`.

    `on_error` gets what a callback or a coroutine has raised and nobody caught; the loop goes on,
    because a shim that ended would take its container with it.
    """

    __slots__ = (
        *("_epoll", "_fresh", "_late", "_ready", "_running", "_timers", "_watched"),
        "on_error",
    )

    def __init__(self, on_error: Callable[[BaseException], None]) -> None:
        self._epoll = select.epoll(flags=select.EPOLL_CLOEXEC)
        self._watched: dict[int, Callable[[int], None]] = {}
        self._fresh: set[int] = set()  # watched since the last poll
        self._late: dict[int, int] = {}  # watched, but epoll had no memory for it
        self._timers: list[Timer] = []
        self._ready: list[Callable[[], None]] = []
        self._running = False
        self.on_error = on_error

    def watch(self, fd: int, events: int, callback: Callable[[int], None]) -> None:
        """Call `callback(events)` while any of them holds. Watching again replaces both.

        Where the kernel lacks memory for one more, that begins once it has some: who watches goes
        on by this callback alone.
        """
        if fd in self._watched and fd not in self._late:
            self._epoll.modify(fd, events)
        else:
            self._register(fd, events)
        self._watched[fd] = callback
        self._fresh.add(fd)

    def _register(self, fd: int, events: int) -> None:
        try:
            self._epoll.register(fd, events)
        except OSError as err:
            if err.errno not in (errno.ENOMEM, errno.ENOSPC):  # epoll_ctl(2)
                raise
            if not self._late:
                self.call_later(LATE_S, self._register_late)
            self._late[fd] = events
        else:
            self._late.pop(fd, None)

    def _register_late(self) -> None:
        late, self._late = self._late, {}
        for fd, events in late.items():
            self._call(self._register, fd, events)

    def unwatch(self, fd: int) -> None:
        """Forget the descriptor; must come before it is closed."""
        if self._watched.pop(fd, None) is not None and self._late.pop(fd, None) is None:
            self._epoll.unregister(fd)

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Timer:
        timer = Timer(time.monotonic() + delay_s, callback)
        heapq.heappush(self._timers, timer)
        return timer

    def call_soon(self, callback: Callable[[], None]) -> None:
        self._ready.append(callback)

    def spawn(self, coroutine: Coroutine[Future, None, Any]) -> Future:
        """Run a coroutine; the Future has its result. Errors go to `on_error` as well."""
        result = Future()

        def step() -> None:
            try:
                waits_for = coroutine.send(None)
            except StopIteration as stop:
                result.set(stop.value)
            except Exception as err:
                self.on_error(err)
                result.fail(err)
            else:
                waits_for.when_done(step)

        self.call_soon(step)
        return result

    async def pause(self, delay_s: float) -> None:
        """Let other coroutines and callbacks run for a while."""
        over = Future()
        self.call_later(delay_s, over.set)
        await over

    async def within(self, future: Future, timeout_s: float, what: str) -> Any:
        """Await with a limit. Raises DeadlineExceeded("<what>: no answer within …")."""
        limit = Future()
        timer = self.call_later(timeout_s, limit.set)
        future.when_done(limit.set)
        await limit
        timer.cancel()
        if not future.done:
            raise DeadlineExceeded(f"{what}: no answer within {timeout_s:g} s")
        return await future

    def stop(self) -> None:
        self._running = False

    def run(self) -> None:
        """Run until a callback calls `stop`."""
        self._running = True
        while self._running:
            self._run_ready()
            if self._running:
                self._poll()
                self._run_due()

    def close(self) -> None:
        self._epoll.close()

    def _run_ready(self) -> None:
        while self._ready and self._running:
            ready, self._ready = self._ready, []
            for callback in ready:
                self._call(callback)

    def _poll(self) -> None:
        self._fresh.clear()
        for fd, events in self._epoll.poll(self._wait_s(), MAX_EVENTS):
            # An event of this round is not meant for who was given the number during this round.
            callback = None if fd in self._fresh else self._watched.get(fd)
            if callback is not None:
                self._call(callback, events)

    def _run_due(self) -> None:
        now = time.monotonic()
        while self._timers and self._timers[0].at <= now:
            due = heapq.heappop(self._timers).callback
            if due is not None:
                self._call(due)

    def _call(self, callback: Callable[..., None], *args: int) -> None:
        try:
            callback(*args)
        except Exception as err:
            self.on_error(err)

    def _wait_s(self) -> float:
        if self._ready:
            return 0
        while self._timers and self._timers[0].callback is None:
            heapq.heappop(self._timers)
        if not self._timers:
            return -1
        return max(0.0, self._timers[0].at - time.monotonic())
