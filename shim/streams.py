"""One stream of a container: output is pumped to the log and to sinks, input to the container.

The log is written first and never waits; a sink whose reader is slow pauses the reading, so that
the container waits as it would for any slow pipe. Where one FIFO is all that listens, the bytes
go from pipe to pipe by splice(2) and never enter this process.
"""

import mmap
import os
from collections.abc import Callable
from functools import partial

from lighter.proto.logchunks import MAX_CHUNK
from lighter.shim.logfile import LogFile
from lighter.shim.loop import READ, WRITE, Loop
from lighter.shim.sender import SentLog
from lighter.shim.sinks import (
    FifoSink,
    Sink,
    is_callers_pipe,
    open_fifo,
    open_sink,
    unread_bytes,
)

_SPLICE_BYTES = 1 << 20
_LAST_BYTES = 1 << 20  # what a pipe holds at most, unless root has let it be larger (pipe(7))
_NEWLINE = 0x0A
_EOF_CHAR = b"\x04"  # ^D
_LINE_ENDS = b"\n\r\x04"  # a client's raw terminal sends \r for Enter, and ICRNL makes it \n
_SPLICE_FLAGS = 0x01 | 0x02  # SPLICE_F_MOVE | SPLICE_F_NONBLOCK


class SharedBuffer:
    """The one copy buffer of a process: its pages are touched only when bytes are copied."""

    __slots__ = ("view",)

    def __init__(self) -> None:
        self.view = memoryview(mmap.mmap(-1, MAX_CHUNK))


class OutputStream:
    """From the container's pipe or terminal to its log and sinks, until the last writer is gone.

    Nothing is read before `begin`.
    """

    __slots__ = (
        "_begun",
        "_buffer",
        "_fd",
        "_log",
        "_loop",
        "_number",
        "_on_end",
        "_paused",
        "sinks",
    )

    def __init__(
        self,
        loop: Loop,
        fd: int,
        number: int,
        log: LogFile | SentLog | None,
        buffer: SharedBuffer,
        on_end: Callable[[], None],
    ) -> None:
        os.set_blocking(fd, False)
        self._loop = loop
        self._fd = fd
        self._number = number
        self._log = log
        self._buffer = buffer
        self._on_end = on_end
        self._paused = False
        self._begun = False
        self.sinks: list[Sink] = []

    def begin(self) -> None:
        """Pass on what comes from now on, and what stands in the pipe."""
        if not self._begun and self._fd >= 0:
            self._loop.watch(self._fd, READ, self._on_readable)
            self._begun = True

    def look(self) -> bool:
        """Look for readers who were not there when they were listed; whether all are now."""
        seen = [sink.look() for sink in self.sinks]  # each, whatever the others say
        return all(seen)

    @property
    def ended(self) -> bool:
        return self._fd < 0

    @property
    def arrives(self) -> bool:
        """Whether something stands in the pipe that the next turns of the loop pass on."""
        return self._fd >= 0 and not self._paused and unread_bytes(self._fd) > 0

    def add(self, path: str, policy: str, spool_path: str) -> Sink:
        """Let one more reader listen. Raises OSError or InvalidArgument."""
        sink = open_sink(self._loop, path, policy, spool_path, self._on_room)
        self.sinks.append(sink)
        return sink

    def release(self) -> None:
        """Of a source that has ended: give up sinks that nobody reads."""
        if self._fd < 0:
            for sink in self.sinks:
                sink.release()
            self._on_end()

    def close(self) -> None:
        """Stop. What a slow reader has kept from being read goes to the log and to files first."""
        if self._begun:
            self._read_last()
        self._end()
        for sink in self.sinks:
            sink.close()
        self.sinks.clear()

    def _on_readable(self, _events: int) -> None:
        self._drop_closed()
        sink = self.sinks[0] if len(self.sinks) == 1 and self._log is None else None
        if not isinstance(sink, FifoSink) or sink.splice_fd < 0 or not self._splice(sink):
            self._copy()

    def _splice(self, sink: FifoSink) -> bool:
        """Move bytes inside the kernel; False when these two ends cannot be spliced."""
        try:
            moved = os.splice(self._fd, sink.splice_fd, _SPLICE_BYTES, flags=_SPLICE_FLAGS)
        except BlockingIOError:
            # The source is readable, so it is the sink that is full.
            self._pause()
            sink.wait_for_room()
            return True
        except BrokenPipeError:
            sink.reader_gone()
            return True
        except OSError:  # EINVAL: a terminal
            return False
        if moved == 0:
            self._end()
        return True

    def _read_last(self) -> None:
        """Read what stands in the pipe, up to _LAST_BYTES of it: somebody may go on writing."""
        self._drop_closed()
        left = _LAST_BYTES
        while self._fd >= 0 and left > 0:
            length = self._copy()
            if not length:
                return
            left -= length
        if self._fd >= 0:
            lost = unread_bytes(self._fd)
            if self._log is not None:
                self._log.lose(lost)
            for sink in self.sinks:
                sink.dropped_bytes += lost

    def _copy(self) -> int:
        """Pass on one read; how many bytes, 0 for none at the moment or ever."""
        try:
            length = os.readv(self._fd, [self._buffer.view])
        except BlockingIOError:
            return 0
        except OSError:
            length = 0  # EIO: the last process closed the terminal
        if length == 0:
            self._end()
            return 0
        data = self._buffer.view[:length]
        if self._log is not None:
            self._log.append(self._number, data)
        blocked = False
        for sink in self.sinks:
            sink.write(data)
            blocked = blocked or sink.blocked
        if blocked:
            self._pause()
        return length

    def _pause(self) -> None:
        if not self._paused and self._fd >= 0:
            self._paused = True
            self._loop.unwatch(self._fd)

    def _on_room(self) -> None:
        self._drop_closed()
        if self._paused and self._fd >= 0 and not any(sink.blocked for sink in self.sinks):
            self._paused = False
            self._loop.watch(self._fd, READ, self._on_readable)
        elif self._fd < 0:
            self._finish_sinks()

    def _drop_closed(self) -> None:
        if any(sink.closed for sink in self.sinks):
            self.sinks = [sink for sink in self.sinks if not sink.closed]

    def _end(self) -> None:
        if self._fd < 0:
            return
        self._loop.unwatch(self._fd)
        os.close(self._fd)
        self._fd = -1
        self._finish_sinks()

    def _finish_sinks(self) -> None:
        # The close is the reader's end of file; a reader that is behind gets its rest first.
        for sink in self.sinks:
            if not sink.closed:
                sink.finish()
        self._on_end()

    @property
    def flushed(self) -> bool:
        """Whether the source has ended and every sink has all it will get."""
        return self._fd < 0 and all(sink.closed or not sink.is_waited_for for sink in self.sinks)


class InputStream:
    """From whoever attaches to the container's standard input, which stays open between them.

    For a terminal `fd` is a duplicate of the master, so that it can be watched on its own.
    """

    __slots__ = (
        "_buffer",
        "_closing",
        "_fd",
        "_is_terminal",
        "_last",
        "_loop",
        "_pending",
        "_sources",
    )

    def __init__(self, loop: Loop, fd: int, is_terminal: bool, buffer: SharedBuffer) -> None:
        os.set_blocking(fd, False)
        self._loop = loop
        self._fd = fd
        self._is_terminal = is_terminal
        self._buffer = buffer
        self._pending = b""
        self._last = _NEWLINE  # the byte that the container was given last
        self._closing = False
        self._sources: list[int] = []

    def add(self, path: str) -> None:
        """Read from one more FIFO or caller's pipe. Raises OSError or InvalidArgument."""
        if self._fd < 0 or self._closing:
            return
        # Held open for writing too, a FIFO does not end when one of its writers goes away.
        flags = os.O_RDONLY if is_callers_pipe(path) else os.O_RDWR
        fd = open_fifo(path, flags)
        self._sources.append(fd)
        if not self._pending:
            self._loop.watch(fd, READ, partial(self._on_readable, fd))

    def close_soon(self) -> None:
        """End of input, after what stands in the sources already."""
        self._closing = True
        if not self._pending:
            self._finish()

    def close(self) -> None:
        for fd in list(self._sources):
            self._drop(fd)
        if self._fd >= 0:
            self._loop.unwatch(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _finish(self) -> None:
        for fd in list(self._sources):
            while self._move(fd):
                if self._pending or self._fd < 0:
                    return  # comes back here when the container has read
            self._drop(fd)
        if self._is_terminal:
            # A terminal has no end of file but the character for it (VEOF, termios(3)). Behind half
            # a line it only hands that over: a second one, on an empty line, is the end.
            self._closing = False
            self._put(_EOF_CHAR if self._last in _LINE_ENDS else _EOF_CHAR * 2)
        else:
            self.close()

    def _on_readable(self, fd: int, _events: int) -> None:
        moved = self._move(fd)
        if moved == 0:
            self._drop(fd)

    def _move(self, fd: int) -> int | None:
        """Pass on one read: bytes moved, 0 at the end of the source, None when it is empty now."""
        try:
            length = os.readv(fd, [self._buffer.view])
        except BlockingIOError:
            return None
        except OSError:
            return 0
        if length:
            self._put(bytes(self._buffer.view[:length]))
        return length

    def _put(self, data: bytes) -> None:
        try:
            written = os.write(self._fd, data)
        except BlockingIOError:
            written = 0
        except OSError:  # the container closed its standard input
            self.close()
            return
        if written:
            self._last = data[written - 1]
        if written < len(data):
            self._pending = data[written:]
            for fd in self._sources:
                self._loop.unwatch(fd)
            self._loop.watch(self._fd, WRITE, self._on_writable)

    def _on_writable(self, _events: int) -> None:
        data, self._pending = self._pending, b""
        self._put(data)
        if self._pending or self._fd < 0:
            return
        self._loop.unwatch(self._fd)
        if self._closing:
            self._finish()
            return
        for fd in self._sources:
            self._loop.watch(fd, READ, partial(self._on_readable, fd))

    def _drop(self, fd: int) -> None:
        if fd in self._sources:
            self._sources.remove(fd)
            self._loop.unwatch(fd)
            os.close(fd)
