"""The loop of an attached process: its pipes, ctl's own descriptors, signals and the manager.

Bytes are moved by splice(2) where both ends allow it, and are never read before there is somebody
to take them, so that a slow reader of ctl slows the container down and nothing else.
"""

from __future__ import annotations

import fcntl
import select
import sys

from lighter.ctl.cli import Interrupted
from lighter.ctl.connect import Call, Manager
from lighter.ctl.stdio import DETACH_KEYS, DetachKeys, Pipes, window_size
from lighter.proto.errors import LighterError, Unavailable

TYPE_CHECKING = False
if TYPE_CHECKING:
    import os
    import signal
    from types import FrameType, TracebackType
    from typing import Any
else:
    import _signal as signal  # the same numbers, without enums, which take 5 ms to load
    import posix as os  # system calls alone; what `os` brings besides takes a millisecond

FIONREAD = 0x541B  # ioctl_tty(2): how many bytes wait; `termios`, which has it, is loaded late
CHUNK_BYTES = 64 * 1024
SPLICE_BYTES = 1024 * 1024
LOOK_MS = 50  # how often pipes are looked at that nobody reads yet
FORWARDED = (
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGTERM,
)
# As often as this an impatient user presses Ctrl-C before ctl itself ends.
IMPATIENCE = 3


class Detached(Exception):
    """The keys to detach were typed: the process runs on without ctl."""


class Flow:
    """One direction of one stream: from `source` to `target`, in step with the slower of the two.

    `keys`: what is typed is looked at, so it is copied. Over when the source has ended
    (`ended`), or when nobody takes the bytes any more (`broken`).
    """

    def __init__(self, source: int, target: int, keys: DetachKeys | None = None) -> None:
        self.source = source
        self.target = target
        self.ended = False
        self.broken = False
        self._keys = keys
        self._splices = keys is None and not os.isatty(source) and not os.isatty(target)
        self._waits_for_target = False
        self._rest = b""

    @property
    def open(self) -> bool:
        return not (self.ended or self.broken)

    def interest(self) -> tuple[int, int]:
        """Which descriptor to wait for, and what."""
        if self._waits_for_target:
            return self.target, select.POLLOUT
        return self.source, select.POLLIN

    def move(self) -> None:
        """Pass on what can be passed on at once. Raises Detached, OSError."""
        self._waits_for_target = not _ready(self.target, select.POLLOUT)
        if self._waits_for_target:
            return
        try:
            moved = self._splice() if self._splices else self._copy()
        except BlockingIOError:
            # An empty source too, when another reader of it was faster.
            self._waits_for_target = _ready(self.source, select.POLLIN)
            return
        except BrokenPipeError:
            self.broken = True
            return
        self.ended = moved == 0 and not self._rest

    def _splice(self) -> int:
        flags = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK
        try:
            return os.splice(self.source, self.target, SPLICE_BYTES, flags=flags)
        except BlockingIOError:
            raise
        except OSError as err:
            # A target opened with O_APPEND, or a kind of file without splice (EINVAL).
            if isinstance(err, BrokenPipeError):
                raise
            self._splices = False
            return self._copy()

    def _copy(self) -> int:
        data, self._rest = self._rest, b""
        if not data:
            if not _ready(self.source, select.POLLIN):
                return 1
            data = _read(self.source)
            if not data:
                return 0
            if self._keys is not None:
                data, detach = self._keys.filter(data)
                if detach:
                    raise Detached
        try:
            written = os.write(self.target, data) if data else 0
        except BlockingIOError:
            written = 0
        self._rest = data[written:]
        self._waits_for_target = bool(self._rest)
        return 1


def output_flows(pipes: Pipes) -> list[Flow]:
    """From the pipes that a process writes into to ctl's own standard output and error."""
    ends = ((pipes.stdout, 1), (pipes.stderr, 2))
    return [Flow(source, target) for source, target in ends if source >= 0]


def answered(manager: Manager, call: Call, outputs: list[Flow]) -> Any:
    """The answer to a create or exec; what the runtime prints over it cannot hold it up.

    Its standard output is the container's: one that filled the pipe would wait for its deadline.
    What fills less than half of a pipe stays there until the answer: of a runtime that fails it is
    the message that the answer repeats. Raises what was answered, BrokenPipeError when nobody reads
    standard output any more.
    """
    while not call.done:
        if manager.process():
            continue
        poll = select.poll()
        fd, events = manager.interest()
        if fd >= 0:
            poll.register(fd, events)
        by_fd = {}
        most_ms = manager.wait_ms()
        for flow in filter(lambda flow: flow.open, outputs):
            if _fills(flow.source):
                end, events = flow.interest()
                poll.register(end, events)
                by_fd[end] = flow
            else:
                most_ms = LOOK_MS if most_ms is None else min(LOOK_MS, most_ms)
        for fd, _events in poll.poll(most_ms):
            if fd in by_fd:
                by_fd[fd].move()
                if by_fd[fd].broken and by_fd[fd].target == 1:
                    raise BrokenPipeError
        manager.check_deadline()
    return call.result()


def _fills(pipe: int) -> bool:
    """Whether a pipe is half full."""
    waiting = fcntl.ioctl(pipe, FIONREAD, bytes(4))
    return 2 * int.from_bytes(waiting, sys.byteorder) >= fcntl.fcntl(pipe, fcntl.F_GETPIPE_SZ)


class Signals:
    """Signals as bytes of a pipe, for as long as the context lasts (signal(7), self-pipe)."""

    def __init__(self, numbers: tuple[signal.Signals, ...]) -> None:
        self._numbers = numbers
        self._before: dict[int, Any] = {}
        self._interrupts = 0
        self._read_end, self._write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def fileno(self) -> int:
        return self._read_end

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        """The wake-up is the work; but who interrupts again and again means ctl."""
        self._interrupts += number == signal.SIGINT
        if self._interrupts >= IMPATIENCE:
            raise KeyboardInterrupt

    def taken(self) -> bytes:
        """Numbers of the signals that came since."""
        try:
            return os.read(self._read_end, 256)
        except BlockingIOError:
            return b""

    def __enter__(self) -> Signals:
        self._wakeup_before = signal.set_wakeup_fd(self._write_end, warn_on_full_buffer=False)
        for number in self._numbers:
            # What nohup(1), or a shell for its background, has ignored is for neither side.
            if signal.getsignal(number) != signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup_before)
        os.close(self._read_end)
        os.close(self._write_end)


class Pump:
    """Moves everything between ctl and one attached process until that has ended.

    `process` is {id, exec_id}. `ends_stdin`: the end of ctl's standard input is the process's
    too. `passes_signals`: else they end ctl. Used inside `Signals`, so that no signal is missed
    between the start of the process and the loop.
    """

    def __init__(
        self,
        manager: Manager,
        process: dict[str, str],
        pipes: Pipes,
        outputs: list[Flow],
        signals: Signals,
        *,
        terminal: bool,
        passes_signals: bool,
        ends_stdin: bool,
        detach_keys: bytes = DETACH_KEYS,
    ) -> None:
        self._manager = manager
        self._ends_stdin = ends_stdin
        self._process = process
        self._pipes = pipes
        self._signals = signals
        self._passes_signals = passes_signals
        self._outputs = outputs
        self._input: Flow | None = None
        if pipes.stdin >= 0:
            keys = DetachKeys(detach_keys) if terminal and detach_keys else None
            self._input = Flow(0, pipes.stdin, keys)
        self._stdin_closing: Call | None = None
        self._resizing: Call | None = None
        self._resize_wanted = False

    def run(self, wait: Call) -> Any:
        """Pump until `wait` is answered and the output has ended; returns the answer.

        Raises what was answered, Detached, Interrupted, BrokenPipeError when nobody reads
        standard output any more.
        """
        while not (wait.done and not any(flow.open for flow in self._outputs)):
            self._close_stdin_again()
            self._manager.process()
            self._resize()
            if wait.done and not any(flow.open for flow in self._outputs):
                break
            self._turn()
        return wait.result()

    def _turn(self) -> None:
        flows = [flow for flow in (*self._outputs, self._input) if flow is not None and flow.open]
        poll = select.poll()
        manager, events = self._manager.interest()
        if manager >= 0:
            poll.register(manager, events)
        poll.register(self._signals.fileno(), select.POLLIN)
        by_fd: dict[int, Flow] = {}
        for flow in flows:
            fd, events = flow.interest()
            poll.register(fd, events)
            by_fd[fd] = flow
        for fd, _events in poll.poll(self._manager.wait_ms()):
            if fd in by_fd:
                self._move(by_fd[fd])
            elif fd == self._signals.fileno():
                for number in self._signals.taken():
                    self._signal(number)
        self._manager.check_deadline()

    def _move(self, flow: Flow) -> None:
        flow.move()
        if flow.open:
            return
        if flow is self._input:
            # Closed only now: all that was read from standard input is in the pipe.
            self._pipes.close_stdin()
            if flow.ended and self._ends_stdin:
                self._close_stdin()
        elif flow.broken:
            if flow.target == 1:
                raise BrokenPipeError
            self._pipes.close_stderr()

    # standard input's end has to arrive, whichever manager hears of it

    def _close_stdin(self) -> None:
        try:
            self._stdin_closing = self._manager.begin("tasks.close_stdin", **self._process)
        except LighterError as err:
            self._stdin_closing = Call(self._manager, "tasks.close_stdin", {}, "")
            self._stdin_closing.finish(error=err)

    def _close_stdin_again(self) -> None:
        call = self._stdin_closing
        if call is not None and isinstance(call.error, Unavailable) and self._manager.connected:
            self._close_stdin()

    # signals

    def _signal(self, number: int) -> None:
        if number == signal.SIGWINCH:
            self._resize_wanted = True
            self._resize()
        elif not self._passes_signals:
            raise Interrupted(number)
        else:
            self._forward(number)

    def _resize(self) -> None:
        """Pass on one size at a time: dragging a window sends hundreds, of which only the last one
        counts.
        """
        call = self._resizing
        if not self._resize_wanted or not self._manager.connected:
            return
        if call is not None and not call.done:
            return
        self._resize_wanted = False
        body: dict[str, Any] = {**self._process, **window_size()}
        try:
            self._resizing = self._manager.begin("tasks.resize", **body)
        except LighterError:
            pass

    def _forward(self, number: int) -> None:
        if self._manager.connected:
            try:
                self._manager.begin("tasks.kill", **self._process, signal=number, all=False)
            except LighterError:
                pass
        elif number not in (signal.SIGUSR1, signal.SIGUSR2):
            raise Interrupted(number)


def watched_signals(terminal: bool) -> tuple[signal.Signals, ...]:
    """The signals to pass on. With a terminal, keys go through it, and a signal from elsewhere ends
    ctl.
    """
    return (*FORWARDED, signal.SIGWINCH) if terminal else FORWARDED


def _read(fd: int) -> bytes:
    """What cannot be read has ended: a terminal whose other end has gone (EIO), a connection that
    was reset, what nohup(1) puts in a terminal's place (EBADF). Raises BlockingIOError.
    """
    try:
        return os.read(fd, CHUNK_BYTES)
    except BlockingIOError:
        raise
    except OSError:
        return b""


def _ready(fd: int, event: int) -> bool:
    poll = select.poll()
    poll.register(fd, event)
    return bool(poll.poll(0))
