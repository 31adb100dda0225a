"""The one place that waits for children.

A shim is a child subreaper: everything a container leaves behind becomes its child. Exits may
come before anyone asks: between the end of `runc exec` and the reading of its pid file the exec's
process can be gone already. So while a runc create or exec is in flight, a child that nobody has
asked for stays a zombie, which also keeps its pid from coming round; at all other times strangers
(a shared pid namespace sends them here) are reaped at once.
"""

import os
import signal
import time
from collections.abc import Callable

from lighter.proto.shim_api import LISTENING
from lighter.shim.loop import READ, Loop

OnExit = Callable[[int, int], None]  # (exit status, time in ns since the epoch)


def exit_status(info: "os.waitid_result") -> int:
    """A shell's number for how a process ended: its code, or 128 plus the signal."""
    if info.si_code == os.CLD_EXITED:
        return info.si_status
    return 128 + info.si_status


class Reaper:
    """Turns SIGCHLD into calls by pid. The process must be armed.

    `on_listening` is called when a manager has sent word that it listens (proto/shim_api).
    """

    __slots__ = ("_in_flight", "_loop", "_waiting", "_wakeup", "on_listening")

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._waiting: dict[int, OnExit] = {}
        self._in_flight = 0
        self.on_listening: Callable[[], None] | None = None
        self._wakeup = _signal_pipe()
        loop.watch(self._wakeup, READ, self._on_wakeup)

    def expect(self, pid: int, on_exit: OnExit) -> None:
        """Call `on_exit` when this child ends; at once if it has ended already.

        Raises ChildProcessError for a pid that is no child of this process.
        """
        self._waiting[pid] = on_exit
        try:
            self._reap(os.P_PID, pid)
        except ChildProcessError:
            del self._waiting[pid]
            raise

    @property
    def expected(self) -> list[int]:
        """The children whose end somebody waits for: none of them is reaped yet."""
        return list(self._waiting)

    def has(self, pid: int) -> bool:
        """Whether this is a child that nobody has reaped, so that its pid is its own."""
        try:
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except (ChildProcessError, OverflowError):
            return False
        return True

    def hold(self) -> None:
        """Leave unknown children unreaped: a runc call is under way whose child is not known."""
        self._in_flight += 1

    def release(self) -> None:
        self._in_flight -= 1
        if not self._in_flight:
            self._loop.call_soon(self.drain)

    def close(self) -> None:
        """Take the wakeup back: for a process that goes on without this reaper."""
        self._loop.unwatch(self._wakeup)
        os.close(self._wakeup)
        os.close(signal.set_wakeup_fd(-1))

    def _on_wakeup(self, _events: int) -> None:
        try:
            signals = os.read(self._wakeup, 512)
        except BlockingIOError:
            signals = b""
        self.drain()
        if LISTENING in signals and self.on_listening is not None:
            self.on_listening()

    def drain(self) -> None:
        """Take in every exit that may be taken in now."""
        try:
            if self._in_flight:
                for pid in list(self._waiting):
                    self._reap(os.P_PID, pid)
            else:
                while self._reap(os.P_ALL, 0):
                    pass
        except ChildProcessError:
            pass  # no child is left

    def _reap(self, id_type: int, number: int) -> bool:
        info = os.waitid(id_type, number, os.WEXITED | os.WNOHANG)
        if info is None:
            return False
        on_exit = self._waiting.pop(info.si_pid, None)
        if on_exit is not None:
            on_exit(exit_status(info), time.time_ns())
        return True


def arm() -> None:
    """Let both signals wake whoever reads the wakeup descriptor; a fork inherits it.

    Without a Python handler there is no wakeup. Not the reaper's own act, because `signal.signal`
    touches a hundred kilobytes that are free in the parent.
    """
    signal.signal(signal.SIGCHLD, _ignore)
    signal.signal(LISTENING, _ignore)


def _signal_pipe() -> int:
    """The read end of a pipe that gets the number of each signal as a byte."""
    read_end, write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    return read_end


def _ignore(_signum: int, _frame: object) -> None:
    pass
