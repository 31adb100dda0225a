"""The two ends of an attached process's streams: pipes given to its shim, and ctl's own terminal.

ctl makes a pipe per stream and names the shim's end as `/proc/<pid of ctl>/fd/<n>`. The shim opens
it anew, so after that ctl closes its copy: then the shim's close is ctl's end of file, and ctl's
close is the shim's.
"""

from __future__ import annotations

import fcntl

TYPE_CHECKING = False
if TYPE_CHECKING:
    import os
    from types import TracebackType
    from typing import Any
else:
    import posix as os  # system calls alone; what `os` brings besides takes a millisecond

# Fewer and longer turns for a container that writes much; refused over
# /proc/sys/fs/pipe-user-pages-soft, which costs speed alone.
OUTPUT_PIPE_BYTES = 1024 * 1024


class Pipes:
    """Up to three pipes; a context manager that closes what is still open.

    `stdin`, `stdout`, `stderr` are ctl's own ends, -1 for a stream that is not wanted.
    """

    def __init__(self, *, stdin: bool, stdout: bool, stderr: bool) -> None:
        self._given: dict[str, int] = {}
        self.stdin = self.stdout = self.stderr = -1
        try:
            if stdin:
                self._given["stdin"], self.stdin = os.pipe2(os.O_CLOEXEC)
                os.set_blocking(self.stdin, False)
            if stdout:
                self.stdout, self._given["stdout"] = _output_pipe()
            if stderr:
                self.stderr, self._given["stderr"] = _output_pipe()
        except BaseException:
            self.close()
            raise

    def uris(self) -> dict[str, str]:
        """What to call the shim's ends: fields of tasks.create, exec and attach."""
        pid = os.getpid()
        return {
            name: f"/proc/{pid}/fd/{self._given[name]}" if name in self._given else ""
            for name in ("stdin", "stdout", "stderr")
        }

    def give_away(self) -> None:
        """Close the shim's ends, which it has opened by now."""
        for fd in self._given.values():
            os.close(fd)
        self._given.clear()

    def close_stdin(self) -> None:
        if self.stdin >= 0:
            os.close(self.stdin)
            self.stdin = -1

    def close_stderr(self) -> None:
        if self.stderr >= 0:
            os.close(self.stderr)
            self.stderr = -1

    def close(self) -> None:
        self.give_away()
        self.close_stdin()
        self.close_stderr()
        if self.stdout >= 0:
            os.close(self.stdout)
            self.stdout = -1

    def __enter__(self) -> Pipes:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


NO_STDIO = {"stdin": "", "stdout": "", "stderr": ""}


def _output_pipe() -> tuple[int, int]:
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    try:
        fcntl.fcntl(read_end, fcntl.F_SETPIPE_SZ, OUTPUT_PIPE_BYTES)
    except OSError:
        pass
    return read_end, write_end


class Terminal:
    """ctl's terminal in raw mode for as long as the context lasts; nothing when it has none.

    `raw`: whether it is wanted.
    """

    def __init__(self, *, raw: bool) -> None:
        self._raw = raw
        self._before: list[Any] | None = None

    def __enter__(self) -> Terminal:
        if self._raw and os.isatty(0):
            import termios
            import tty

            self._before = termios.tcgetattr(0)
            # TCSANOW: what was typed ahead is for the container.
            tty.setraw(0, termios.TCSANOW)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._before is not None:
            import termios

            termios.tcsetattr(0, termios.TCSANOW, self._before)


def window_size() -> dict[str, int]:
    """{rows, cols} of the first standard descriptor that is a terminal; zeros for none."""
    for fd in (0, 1, 2):
        try:
            cols, rows = os.get_terminal_size(fd)
        except OSError:
            continue
        return {"rows": rows, "cols": cols}
    return {"rows": 0, "cols": 0}


DETACH_KEYS = b"\x10\x11"  # Ctrl-P Ctrl-Q


class DetachKeys:
    """The keys to detach in what is typed, as docker has them. Holds what may begin them."""

    def __init__(self, keys: bytes = DETACH_KEYS) -> None:
        self._keys = keys
        self._held = b""

    def filter(self, typed: bytes) -> tuple[bytes, bool]:
        """(what goes to the container, whether the keys to detach came)."""
        data = self._held + typed
        self._held = b""
        if not self._keys:
            return data, False
        before, keys, _after = data.partition(self._keys)
        if keys:
            return before, True
        for size in range(min(len(self._keys) - 1, len(data)), 0, -1):
            if data.endswith(self._keys[:size]):
                self._held = data[-size:]
                return data[:-size], False
        return data, False


def parse_keys(text: str) -> bytes:
    """Docker's notation, `ctrl-p,ctrl-q` or `a,b`, as the bytes that a terminal sends.

    "" is no keys at all: nothing detaches. Raises ValueError naming the key that is none.
    """
    keys = bytearray()
    for word in text.split(",") if text else ():
        control = word.lower().removeprefix("ctrl-")
        if len(word) == 1 and word.isascii():
            keys.append(ord(word))
        elif word.lower() == "del":
            keys.append(0x7F)
        elif len(control) == 1 and control != word.lower() and control in _CONTROLS:
            keys.append(_CONTROLS.index(control))
        else:
            raise ValueError(word)
    return bytes(keys)


# What Ctrl makes of a key, by its code: ascii(7), the C0 column of control codes.
_CONTROLS = "@abcdefghijklmnopqrstuvwxyz[\\]^_"
