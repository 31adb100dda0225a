"""The one place that waits for children.

A shim is a child subreaper: everything a container leaves behind becomes its child. Exits may
come before anyone asks: between the end of `runc exec` and the reading of its pid file the exec's
process can be gone already. Such an early exit is kept, but only while a runc create or exec is in
flight, because with a shared pid namespace strangers are reaped too and their pids come round.
"""

import os
import signal
import time
from collections.abc import Callable

from lighter.shim.loop import READ, Loop

OnExit = Callable[[int, int], None]  # (exit status, time in ns since the epoch)


def exit_status(info: "os.waitid_result") -> int:
    """A shell's number for how a process ended: its code, or 128 plus the signal."""
    if info.si_code == os.CLD_EXITED:
        return info.si_status
    return 128 + info.si_status


class Reaper:
    """Turns SIGCHLD into calls by pid."""

    __slots__ = ("_early", "_in_flight", "_waiting", "_wakeup")

    def __init__(self, loop: Loop) -> None:
        self._waiting: dict[int, OnExit] = {}
        self._early: dict[int, tuple[int, int]] = {}
        self._in_flight = 0
        self._wakeup = _sigchld_pipe()
        loop.watch(self._wakeup, READ, self._on_wakeup)

    def expect(self, pid: int, on_exit: OnExit) -> None:
        """Call `on_exit` when this child ends; at once if it has ended already."""
        early = self._early.pop(pid, None)
        if early is not None:
            on_exit(*early)
        else:
            self._waiting[pid] = on_exit

    def hold(self) -> None:
        """Keep exits of unknown pids: a runc call is under way whose child is not known yet."""
        self._in_flight += 1

    def release(self) -> None:
        self._in_flight -= 1
        if not self._in_flight:
            self._early.clear()

    def _on_wakeup(self, _events: int) -> None:
        try:
            os.read(self._wakeup, 512)
        except BlockingIOError:
            pass
        self.drain()

    def drain(self) -> None:
        while True:
            try:
                info = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG)
            except ChildProcessError:
                return
            if info is None:
                return
            now = time.time_ns()
            on_exit = self._waiting.pop(info.si_pid, None)
            if on_exit is not None:
                on_exit(exit_status(info), now)
            elif self._in_flight:
                self._early[info.si_pid] = (exit_status(info), now)


def _sigchld_pipe() -> int:
    """The read end of a pipe that gets a byte at each SIGCHLD."""
    read_end, write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    # The default action is to ignore SIGCHLD without a wakeup; any Python handler arms it.
    signal.signal(signal.SIGCHLD, _ignore)
    return read_end


def _ignore(_signum: int, _frame: object) -> None:
    pass
