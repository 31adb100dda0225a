"""The service manager's protocol (sd_notify(3)): a datagram to $NOTIFY_SOCKET."""

import os
import socket


class Notifier:
    """Tells systemd how far we are; without NOTIFY_SOCKET every call does nothing."""

    def __init__(self, address: str | None) -> None:
        # An abstract socket is written with '@' and addressed with NUL.
        self._address = "\0" + address[1:] if address and address[0] == "@" else address

    @classmethod
    def from_environment(cls) -> "Notifier":
        """Take the address out of the environment, so that nothing started later talks there."""
        return cls(os.environ.pop("NOTIFY_SOCKET", None))

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

    def stopping(self) -> None:
        self.send("STOPPING=1")
