"""Telling others how we are: the service manager, and the shell that ran `--daemon`."""

import asyncio
import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

SEND_S = 5.0
LOOK_S = 1.0
MOST_LOOK_S = 8.0


class Notifier:
    """sd_notify(3): a datagram to $NOTIFY_SOCKET; without one every call does nothing.

    `watchdog_s`: how often the service manager wants to hear of us (sd_watchdog_enabled(3)), 0 for
    never; when it does not, it kills this process.
    """

    def __init__(self, address: str | None, shell: int = -1, watchdog_s: float = 0.0) -> None:
        # An abstract socket is written with '@' and addressed with NUL.
        self._address = "\0" + address[1:] if address and address[0] == "@" else address
        self._shell = shell
        self.watchdog_s = watchdog_s

    @classmethod
    def from_environment(cls, shell: int = -1) -> "Notifier":
        """Take it all out of the environment, so that nothing started later talks there.

        `shell` is the pipe to the waiting parent of `fork_and_wait`, -1 without one.
        """
        usec, pid = os.environ.pop("WATCHDOG_USEC", ""), os.environ.pop("WATCHDOG_PID", "")
        for_us = usec.isdecimal() and pid in ("", str(os.getpid()))
        watchdog_s = int(usec) / 1e6 if for_us else 0.0
        return cls(os.environ.pop("NOTIFY_SOCKET", None), shell, watchdog_s)

    def send(self, *states: str, timeout_s: float = SEND_S) -> None:
        """Tell; 0 as `timeout_s` drops what a busy service manager has no room for."""
        if not self._address:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.settimeout(timeout_s)
            try:
                sock.sendto("\n".join(states).encode(), self._address)
            except OSError:
                pass  # nobody listens any more: not our failure

    async def keep_telling(self, status: Callable[[], str]) -> None:
        """For ever: that we are alive, and our status when it has changed.

        It comes from the event loop, so that a loop that hangs is missed. The longer nothing has
        changed, the later it is looked at.
        """
        most_s = min(self.watchdog_s / 3, MOST_LOOK_S) if self.watchdog_s else MOST_LOOK_S
        told, pause_s = "", 0.0
        while self._address:
            states = ["WATCHDOG=1"] if self.watchdog_s else []
            now = status()
            if now != told:
                states.append(f"STATUS={now}")
                told, pause_s = now, 0.0
            if states:
                self.send(*states, timeout_s=0)
            pause_s = min(2 * pause_s or LOOK_S, most_s)
            await asyncio.sleep(pause_s)

    def reloading(self) -> None:
        """A reload begins; `reloaded` ends it."""
        self.send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def reloaded(self) -> None:
        self.send("READY=1")

    def ready(self) -> None:
        self.send("READY=1", f"MAINPID={os.getpid()}")
        self._tell_shell("ready\n")

    def failed(self, reason: str) -> None:
        """The start has failed, in one line. After `ready` nobody waits for it any more."""
        self._tell_shell(f"lighterd: {reason}\n")

    def _tell_shell(self, word: str) -> None:
        if self._shell < 0:
            return
        with suppress(BrokenPipeError):  # the shell's command was interrupted meanwhile
            os.write(self._shell, word.encode(errors="backslashreplace"))
        os.close(self._shell)
        self._shell = -1

    def stopping(self) -> None:
        self.send("STOPPING=1")


def fork_and_wait() -> int:
    """Fork; the child returns a pipe and goes on, the parent waits for word on it and ends.

    The word is "ready", or the one line of an error, which the parent prints before it exits
    with 1. So `lighterd --daemon` returns when the manager serves, or says why it does not.
    """
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    if os.fork():
        os.close(write_end)
        _report(read_end)
    os.close(read_end)
    return write_end


def _report(read_end: int) -> NoReturn:
    with os.fdopen(read_end, "rb") as pipe:
        word = pipe.read(64 * 1024)
    if word == b"ready\n":
        os._exit(0)
    os.write(2, word or b"lighterd: start manager: it ended before it was ready\n")
    os._exit(1)
