"""Where output goes: one sink per reader, each with its own pace.

    FIFO or pipe with a reader that keeps up     written at once
    … that is slow                               the rest waits here; the container waits with it
    … that has gone                              spooled beside the task, then dropped and counted,
                                                 or the container waits (policy)
    … of one who must hold nothing up (policy)   spooled, then dropped and counted, also when slow
    file://                                      appended; what the disk does not take is counted

A pipe reached as /proc/<pid>/fd/<n> belongs to its caller alone: nobody can open it again, so when
its reader has gone the sink is over. One reached as /proc/self/fd/<n> is a logging program's, which
nobody has sent away: when that has ended it is told, and what it does not get is counted. A FIFO by
path may find a new reader, who first gets what the kernel's pipe still holds (it does as long as
our end is open, pipe(7)), then the spool, then new output, in order.
"""

import array
import errno
import fcntl
import os
import stat
import termios
import time
from collections.abc import Callable

from lighter.proto.errors import DataLoss, InvalidArgument
from lighter.shim.loop import WRITE, Loop, Timer

NEVER_WAIT = "never-wait"
SPOOL_BYTES = 8 * 1024 * 1024
RETRY_S = 0.1
STUCK_S, LAST_S = 0.5, 2.0  # NEVER_WAIT at the end: without progress, and in all
_CHUNK = 64 * 1024


def is_callers_pipe(uri: str) -> bool:
    """Whether the path names a descriptor of the calling process rather than a file."""
    return uri.startswith("/proc/")


def is_loggers_pipe(uri: str) -> bool:
    """Whether it is one that this process has made for a logging program (logger.py)."""
    return uri.startswith("/proc/self/")


def unread_bytes(fd: int) -> int:
    """What stands in a pipe, or in a terminal that has not been closed."""
    count = array.array("i", [0])
    try:
        fcntl.ioctl(fd, termios.FIONREAD, count)
    except OSError:
        return 0
    return count[0]


def open_fifo(path: str, flags: int) -> int:
    """Open a FIFO without blocking. Raises InvalidArgument for anything else, or OSError."""
    extra = 0 if is_callers_pipe(path) else os.O_NOFOLLOW
    fd = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY | extra)
    if not stat.S_ISFIFO(os.fstat(fd).st_mode):
        os.close(fd)
        raise InvalidArgument(f"open {path}: it is not a FIFO")
    return fd


class FileSink:
    """A file that grows. It is always there and never makes the container wait."""

    __slots__ = ("_fd", "_loop", "closed", "dropped_bytes", "path")

    blocked = False
    is_waited_for = True  # at the end of the process
    splice_fd = -1  # splice(2) refuses a file that is open for appending

    def __init__(self, loop: Loop, path: str) -> None:
        self._loop = loop
        self.path = path
        # Without NONBLOCK a FIFO at this path would hold the whole shim up.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        flags |= os.O_NONBLOCK | os.O_NOCTTY
        os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
        self._fd = os.open(path, flags, 0o600)
        self.closed = False
        self.dropped_bytes = 0

    def write(self, data: "memoryview | bytes") -> None:
        written = 0
        try:
            while written < len(data):  # a nearly full disk takes a part first
                written += os.write(self._fd, data[written:])
        except OSError:
            self.dropped_bytes += len(data) - written

    def finish(self) -> None:
        self.close()

    def look(self) -> bool:
        return True

    def release(self) -> None:
        self.close()

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            os.close(self._fd)
            _report_loss(self._loop, self.path, self.dropped_bytes)


class FifoSink:
    """A FIFO or a caller's pipe. `on_room` is called when it can take more again, or is over.

    What it has not passed on stands, in this order, in the kernel's pipe, in `_rest` (the end of
    one write that did not fit) and in the spool.
    """

    __slots__ = (
        "_dead",
        "_fd",
        "_left",
        "_loop",
        "_on_room",
        "_policy",
        "_rest",
        "_retry",
        "_spool",
        "_until",
        "closed",
        "dropped_bytes",
        "path",
        "waiting",
    )

    def __init__(
        self, loop: Loop, path: str, policy: str, spool_path: str, on_room: Callable[[], None]
    ) -> None:
        self._loop = loop
        self._on_room = on_room
        self._policy = policy
        self._rest = b""
        self._retry: Timer | None = None
        self._until = 0.0  # for the last of a NEVER_WAIT, of which `_left` bytes waited at a look
        self._left = 0
        self._spool = Spool(spool_path)
        self.path = path
        self.closed = False
        self.waiting = False  # nobody reads at the moment
        self.dropped_bytes = 0
        self._dead = False  # a logging program that has ended: all is dropped
        self._fd = -1
        try:
            self._fd = open_fifo(path, os.O_WRONLY)
        except OSError as err:
            if err.errno != errno.ENXIO:  # fifo(7): no reader
                raise
            self.waiting = True
        else:
            self._watch_reader()

    @property
    def is_waited_for(self) -> bool:
        """Whether the end of the process waits for this sink to be drained."""
        return self._policy != NEVER_WAIT or not self.waiting

    @property
    def blocked(self) -> bool:
        """Whether the container has to wait for this reader."""
        if self.closed or self._policy == NEVER_WAIT:
            return False
        if self.waiting:
            return self._policy == "block" and self._spool.size >= SPOOL_BYTES
        return not self.idle

    @property
    def idle(self) -> bool:
        """Whether nothing waits here to be read."""
        return self.closed or not (self._rest or self._spool.size)

    @property
    def splice_fd(self) -> int:
        """The descriptor to splice into while the reader keeps up; -1 otherwise."""
        if self._policy == NEVER_WAIT or self.waiting or self._dead or not self.idle:
            return -1
        return self._fd

    def write(self, data: "memoryview | bytes") -> None:
        if self.closed:
            return
        if self.idle and self.waiting:
            self._find_reader()
        if not self.idle or self.waiting:
            self._keep(data)
            return
        written = self._put(data)
        if written < len(data):
            self._keep_rest(data[written:])

    def wait_for_room(self) -> None:
        """Call `on_room` once the reader has taken something."""
        self._loop.watch(self._fd, WRITE, self._on_writable)

    def reader_gone(self) -> None:
        """The reader closed its end: over for a caller's pipe, a wait for a FIFO."""
        if self.closed or self.waiting or self._dead:
            return
        self._loop.unwatch(self._fd)
        if is_loggers_pipe(self.path):
            self._logger_gone()
        elif is_callers_pipe(self.path):
            self._rest = b""
            self.close()
        else:
            self.waiting = True
            if not self.idle:
                self._retry_later()
        self._on_room()

    def _logger_gone(self) -> None:
        self._loop.on_error(DataLoss(f"write output {_named(self.path)}: it has ended"))
        self.dropped_bytes += unread_bytes(self._fd) + len(self._rest) + self._spool.size
        self._rest = b""
        self._spool.close()
        self._dead = True

    def finish(self) -> None:
        """No more will be written: close as soon as a reader has, or can get, all of it."""
        if not self.idle or (self.waiting and self._unread()):
            if self.waiting:
                self._retry_later()
            elif self._policy == NEVER_WAIT and not self._until:
                self._until = time.monotonic() + LAST_S
                self._look_again()
        else:
            self.close()

    def _look_again(self) -> None:
        self._left = len(self._rest) + self._spool.size
        self._retry = self._loop.call_later(STUCK_S, self._on_look)

    def _on_look(self) -> None:
        """One who must hold nothing up is waited for while he reads, and not for long."""
        self._retry = None
        if len(self._rest) + self._spool.size < self._left and time.monotonic() < self._until:
            self._look_again()
        else:
            self.close()
            self._on_room()

    def look(self) -> bool:
        """Whether somebody reads, or nobody will."""
        if self.waiting and self.idle and not self.closed:
            self._find_reader()
        return self.closed or not self.waiting

    def release(self) -> None:
        """Close unless somebody reads, or has come to read since this was last looked at."""
        if self.closed or not self.waiting:
            return
        if self._find_reader():
            self.wait_for_room()
        else:
            self.close()

    def close(self) -> None:
        if self.closed:
            return
        self.dropped_bytes += len(self._rest) + self._spool.size
        self.closed = True
        if self._retry:
            self._retry.cancel()
        if self._fd >= 0:
            self._loop.unwatch(self._fd)
            os.close(self._fd)
            self._fd = -1
        self._spool.close()
        _report_loss(self._loop, self.path, self.dropped_bytes)

    def _unread(self) -> bool:
        """Whether the kernel's pipe holds bytes, which would go with our end of it."""
        return self._fd >= 0 and unread_bytes(self._fd) > 0

    def _watch_reader(self) -> None:
        # No event asked for: epoll reports EPOLLERR, the reader's end, in any case.
        self._loop.watch(self._fd, 0, lambda _events: self.reader_gone())

    def _put(self, data: "memoryview | bytes") -> int:
        """Write what fits; how much that was. May find that the reader has gone."""
        try:
            return os.write(self._fd, data)
        except BlockingIOError:
            return 0
        except BrokenPipeError:
            self.reader_gone()
            return 0

    def _keep_rest(self, data: "memoryview | bytes") -> None:
        if self._dead:  # found so by this write or before it: EPIPE either way
            self.dropped_bytes += len(data)
        elif self.waiting:
            self._keep(data)
        elif not self.closed:
            self._rest = bytes(data)
            self.wait_for_room()

    def _keep(self, data: "memoryview | bytes") -> None:
        room = SPOOL_BYTES - self._spool.size
        may_drop = (self.waiting and self._policy == "drop") or self._policy == NEVER_WAIT
        if may_drop and len(data) > room:
            self.dropped_bytes += len(data)
            return
        if not self._spool.append(data):
            self.dropped_bytes += len(data)
        elif self.waiting:
            self._retry_later()

    def _retry_later(self) -> None:
        if self._retry is None:
            self._retry = self._loop.call_later(RETRY_S, self._on_retry)

    def _on_retry(self) -> None:
        self._retry = None
        if self.closed:
            return
        if self._find_reader():
            self.wait_for_room()
        else:
            self._retry_later()

    def _on_writable(self, _events: int) -> None:
        """Pass on what waits; once nothing does, the reader keeps up again."""
        while not self.idle:
            data = self._rest or self._spool.peek(_CHUNK)
            written = self._put(data)
            if self.closed or self.waiting or self._dead:
                return
            if self._rest:
                self._rest = self._rest[written:]
            else:
                self._spool.skip(written)
            if written < len(data):
                return
        self._watch_reader()
        self._on_room()

    def _find_reader(self) -> bool:
        """Look whether somebody reads now; if so this sink no longer waits."""
        try:
            fd = open_fifo(self.path, os.O_WRONLY)
        except (OSError, InvalidArgument):
            return False
        if self._fd >= 0 and os.path.samestat(os.fstat(fd), os.fstat(self._fd)):
            os.close(fd)
        else:  # the first reader ever, or one who has put a FIFO of his own there
            if self._fd >= 0:
                os.close(self._fd)
            self._fd = fd
        self.waiting = False
        self._watch_reader()
        return True


Sink = FileSink | FifoSink


class Spool:
    """Bytes that wait in a file for a reader; the file exists while there are any."""

    __slots__ = ("_fd", "_path", "_read", "size")

    def __init__(self, path: str) -> None:
        self._path = path
        self._fd = -1
        self._read = 0
        self.size = 0

    def append(self, data: "memoryview | bytes") -> bool:
        """Whether it was kept; all of it or nothing."""
        try:
            if self._fd < 0:
                flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
                self._fd = os.open(self._path, flags, 0o600)
            if os.pwrite(self._fd, data, self._read + self.size) < len(data):
                return False
        except OSError:
            return False
        self.size += len(data)
        return True

    def peek(self, size_bytes: int) -> bytes:
        return os.pread(self._fd, min(size_bytes, self.size), self._read)

    def skip(self, size_bytes: int) -> None:
        """These bytes have been read."""
        self._read += size_bytes
        self.size -= size_bytes
        if not self.size:
            self.close()
        elif self._read >= SPOOL_BYTES:
            self._move_up()

    def _move_up(self) -> None:
        """Bring what is left to the beginning: for a reader who is always behind, too, the file
        takes no more than twice what may wait.
        """
        moved = 0
        while block := os.pread(self._fd, min(_CHUNK, self.size - moved), self._read + moved):
            os.pwrite(self._fd, block, moved)
            moved += len(block)
        os.ftruncate(self._fd, self.size)
        self._read = 0

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            self._read = self.size = 0
            try:
                os.unlink(self._path)
            except OSError:
                pass  # gone with its directory, by hand; or its disk is read-only by now


def _report_loss(loop: Loop, path: str, dropped_bytes: int) -> None:
    if dropped_bytes:
        loop.on_error(DataLoss(f"write output {_named(path)}: {dropped_bytes} bytes are lost"))


def _named(path: str) -> str:
    return "to the logging program" if is_loggers_pipe(path) else path


def open_sink(
    loop: Loop, uri: str, policy: str, spool_path: str, on_room: Callable[[], None]
) -> Sink:
    """The sink of a stdio value (proto/daemon_api). Raises OSError or InvalidArgument."""
    if uri.startswith("file://"):
        return FileSink(loop, uri.removeprefix("file://"))
    return FifoSink(loop, uri, policy, spool_path, on_room)
