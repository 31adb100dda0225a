"""Where output goes: one Sink per reader, each with its own pace.

    FIFO or pipe with a reader that keeps up     written at once
    … that is slow                               the rest waits here; the container waits with it
    … that has gone                              spooled beside the task, then dropped and counted,
                                                 or the container waits (policy)
    file://                                      appended

A pipe reached as /proc/<pid>/fd/<n> belongs to its caller alone: nobody can open it again, so when
its reader has gone the sink is over. A FIFO by path may find a new reader, who first gets what
the kernel's pipe still holds, then the spool, then new output, in order.
"""

import errno
import os
import stat
from collections.abc import Callable

from lighter.proto.errors import InvalidArgument
from lighter.shim.loop import WRITE, Loop, Timer

SPOOL_BYTES = 8 * 1024 * 1024
RETRY_S = 0.1
_CHUNK = 64 * 1024


def is_callers_pipe(uri: str) -> bool:
    """Whether the path names a descriptor of the calling process rather than a file."""
    return uri.startswith("/proc/")


def open_fifo(path: str, flags: int) -> int:
    """Open a FIFO without blocking. Raises InvalidArgument for anything else, or OSError."""
    extra = 0 if is_callers_pipe(path) else os.O_NOFOLLOW
    fd = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY | extra)
    if not stat.S_ISFIFO(os.fstat(fd).st_mode):
        os.close(fd)
        raise InvalidArgument(f"open {path}: it is not a FIFO")
    return fd


class Sink:
    """What one reader gets of one stream. `on_room` is called when it can take more again."""

    __slots__ = (
        "_fd",
        "_loop",
        "_on_room",
        "_path",
        "_pending",
        "_policy",
        "_retry",
        "_spool",
        "_spool_path",
        "_spool_read",
        "_spool_size",
        "closed",
        "dropped_bytes",
        "waiting",
    )

    def __init__(
        self, loop: Loop, path: str, policy: str, spool_path: str, on_room: Callable[[], None]
    ) -> None:
        self._loop = loop
        self._path = path
        self._policy = policy
        self._spool_path = spool_path
        self._on_room = on_room
        self._pending = b""
        self._retry: Timer | None = None
        self._spool = -1
        self._spool_size = 0
        self._spool_read = 0
        self.closed = False
        self.waiting = False  # nobody reads at the moment
        self.dropped_bytes = 0
        self._fd = self._open()
        if self._fd >= 0:
            self._watch_reader()

    @property
    def blocked(self) -> bool:
        """Whether the container has to wait for this reader."""
        if self.closed:
            return False
        return bool(self._pending) or (
            self.waiting and self._policy == "block" and self._spool_size >= SPOOL_BYTES
        )

    @property
    def idle(self) -> bool:
        """Whether nothing waits here to be read."""
        return self.closed or not (self._pending or self._spool_size)

    @property
    def splice_fd(self) -> int:
        """The descriptor to splice into while the reader keeps up; -1 otherwise."""
        return -1 if self.closed or self.waiting or self._pending else self._fd

    def write(self, data: "memoryview | bytes") -> None:
        if self.closed:
            return
        if self._pending:
            # Only a drain after the container's end comes here: the stream pauses before.
            self._pending += bytes(data)
            return
        if self.waiting and (self._spool_size or not self._reopen()):
            self._to_spool(data)
            return
        written = self._put(data)
        if written < len(data) and not self.closed:
            rest = bytes(data[written:])
            if self.waiting:
                self._to_spool(rest)
            else:
                self.wait_for_room(rest)

    def wait_for_room(self, rest: bytes = b"") -> None:
        """Call `on_room` once the reader has taken something."""
        self._pending = rest
        self._loop.watch(self._fd, WRITE, self._on_writable)

    def reader_gone(self) -> None:
        """The reader closed its end: over for a caller's pipe, a wait for a FIFO."""
        if self.closed:
            return
        self._loop.unwatch(self._fd)
        rest, self._pending = self._pending, b""
        if is_callers_pipe(self._path):
            self.dropped_bytes += len(rest)
            self.close()
        else:
            self.waiting = True
            if rest:
                self._to_spool(rest)
        self._on_room()

    def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        if self._retry:
            self._retry.cancel()
        if self._fd >= 0:
            self._loop.unwatch(self._fd)
            os.close(self._fd)
            self._fd = -1
        if self._spool >= 0:
            os.close(self._spool)
            self._spool = -1
            self._spool_size = 0
            os.unlink(self._spool_path)

    def _open(self) -> int:
        if self._path.startswith("file://"):
            path = self._path.removeprefix("file://")
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            return os.open(path, flags, 0o600)
        try:
            return open_fifo(self._path, os.O_WRONLY)
        except OSError as err:
            if err.errno != errno.ENXIO:
                raise
            self.waiting = True
            return -1

    def _watch_reader(self) -> None:
        try:
            # No event asked for: epoll reports EPOLLERR, the reader's end, in any case.
            self._loop.watch(self._fd, 0, self._on_reader_event)
        except PermissionError:
            pass  # a regular file cannot be watched, and never fills up

    def _on_reader_event(self, _events: int) -> None:
        self.reader_gone()

    def _put(self, data: "memoryview | bytes") -> int:
        try:
            return os.write(self._fd, data)
        except BlockingIOError:
            return 0
        except BrokenPipeError:
            self.reader_gone()
            return 0
        except OSError:  # file:// on a full or failing disk
            self.dropped_bytes += len(data)
            return len(data)

    def _on_writable(self, events: int) -> None:
        if self._pending:
            written = self._put(self._pending)
            if self.closed or self.waiting:
                return
            self._pending = self._pending[written:]
            if self._pending:
                return
        elif not events & WRITE:
            self.reader_gone()
            return
        self._watch_reader()
        self._on_room()

    def _reopen(self) -> bool:
        """Try to reach a reader again; True when there is one."""
        if self._fd < 0:
            try:
                self._fd = open_fifo(self._path, os.O_WRONLY)
            except (OSError, InvalidArgument):
                return False
        elif not self._has_reader():
            return False
        self.waiting = False
        self._watch_reader()
        return True

    def _has_reader(self) -> bool:
        # A second open of the FIFO for writing tells: ENXIO while nobody reads.
        try:
            os.close(open_fifo(self._path, os.O_WRONLY))
        except (OSError, InvalidArgument):
            return False
        return True

    def _to_spool(self, data: "memoryview | bytes") -> None:
        room = SPOOL_BYTES - self._spool_size
        if self._policy == "drop" and len(data) > room:
            self.dropped_bytes += len(data)
            return
        try:
            if self._spool < 0:
                flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
                self._spool = os.open(self._spool_path, flags, 0o600)
                self._spool_read = 0
            os.pwrite(self._spool, data, self._spool_read + self._spool_size)
        except OSError:
            self.dropped_bytes += len(data)
            return
        self._spool_size += len(data)
        self._retry_later()

    def _retry_later(self) -> None:
        if self._retry is None:
            self._retry = self._loop.call_later(RETRY_S, self._unspool)

    def _unspool(self) -> None:
        """Give a reader that came back what was kept for it."""
        self._retry = None
        if self.closed or (self.waiting and not self._reopen()):
            if not self.closed:
                self._retry_later()
            return
        while self._spool_size:
            data = os.pread(self._spool, min(_CHUNK, self._spool_size), self._spool_read)
            written = self._put(data)
            self._spool_read += written
            self._spool_size -= written
            if written < len(data):
                self._retry_later()
                return
        os.close(self._spool)
        self._spool = -1
        os.unlink(self._spool_path)
        self._on_room()
