"""Telling others that we are ready: the service manager, and the shell that ran `--daemon`."""

import os
import socket
from contextlib import suppress
from typing import NoReturn


class Notifier:
    """sd_notify(3): a datagram to $NOTIFY_SOCKET; without one every call does nothing."""

    def __init__(self, address: str | None, shell: int = -1) -> None:
        # An abstract socket is written with '@' and addressed with NUL.
        self._address = "\0" + address[1:] if address and address[0] == "@" else address
        self._shell = shell

    @classmethod
    def from_environment(cls, shell: int = -1) -> "Notifier":
        """Take the address out of the environment, so that nothing started later talks there.

        `shell` is the pipe to the waiting parent of `fork_and_wait`, -1 without one.
        """
        return cls(os.environ.pop("NOTIFY_SOCKET", None), shell)

    def send(self, *states: str) -> None:
        if not self._address:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            try:
                sock.sendto("\n".join(states).encode(), self._address)
            except OSError:
                pass  # nobody listens any more: not our failure

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
