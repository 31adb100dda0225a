"""A program on a terminal, and somebody who types and reads there."""

import fcntl
import os
import pty
import re
import select
import signal
import struct
import termios
import time


class Typist:
    """Executes `argv` on a terminal of its own."""

    def __init__(self, argv: list[str]) -> None:
        self.seen = b""
        self._pid, self.fd = pty.fork()
        if not self._pid:
            try:
                os.execv(argv[0], argv)
            finally:
                os._exit(99)
        self._code: int | None = None

    def type(self, data: bytes) -> None:
        os.write(self.fd, data)

    def expect(self, pattern: bytes, timeout_s: float = 20) -> bytes:
        """Read until `pattern` has come; returns what came up to its end, and forgets that."""
        end = time.monotonic() + timeout_s
        while not (found := re.search(pattern, self.seen)):
            ready, _, _ = select.select([self.fd], [], [], max(0, end - time.monotonic()))
            assert ready, f"{pattern!r} has not come: {self.seen!r}"
            try:
                data = os.read(self.fd, 1 << 16)
            except OSError:  # EIO: nobody has the terminal any more
                data = b""
            assert data, f"the terminal ended without {pattern!r}: {self.seen!r}"
            self.seen += data
        before, self.seen = self.seen[: found.end()], self.seen[found.end() :]
        return before

    def resize(self, rows: int, cols: int) -> None:
        """The kernel sends SIGWINCH to the terminal's foreground: ioctl_tty(2)."""
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, cols, 0, 0))

    def wait(self, timeout_s: float = 20) -> int:
        """The program's exit code; what it still writes is read meanwhile."""
        code = self.poll(timeout_s)
        assert code is not None, f"it runs on: {self.seen!r}"
        return code

    def poll(self, timeout_s: float) -> int | None:
        """As `wait`; None for a program that runs on."""
        end = time.monotonic() + timeout_s
        while self._code is None:
            pid, status = os.waitpid(self._pid, os.WNOHANG)
            if pid:
                self._code = os.waitstatus_to_exitcode(status)
                while self._read_more(0):  # its last words
                    pass
                break
            if time.monotonic() >= end:
                return None
            self._read_more(0.02)
        return self._code

    def _read_more(self, timeout_s: float) -> bool:
        """Whether there was something to read."""
        if not select.select([self.fd], [], [], timeout_s)[0]:
            return False
        try:
            data = os.read(self.fd, 1 << 16)
        except OSError:  # EIO: nobody has the terminal any more
            return False
        self.seen += data
        return bool(data)

    def close(self) -> None:
        if self._code is None:
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
        os.close(self.fd)
