"""The standard streams of one process, container or exec: pipes or a terminal, log, who listens.

The runtime hands its own standard streams on to the process it creates, so `child_fds` are what
the runtime is started with. Without a log, a listener or an open stdin a stream is /dev/null.
"""

import array
import fcntl
import os
import socket
import termios
import time

from lighter.proto.daemon_api import STDERR, STDOUT
from lighter.proto.errors import FailedPrecondition, InvalidArgument, LighterError
from lighter.shim.logfile import LogFile
from lighter.shim.loop import READ, Future, Loop
from lighter.shim.sender import SentLog
from lighter.shim.sinks import Sink
from lighter.shim.streams import InputStream, OutputStream, SharedBuffer

ACCEPT_S = 0.1
READERS_S = 0.05
LOOKS = 25
PASS_ON_S = 0.2


class Stdio:
    """Streams of one process. Closed by `close`, or stream by stream as their ends are reached."""

    def __init__(
        self,
        loop: Loop,
        buffer: SharedBuffer,
        spool_prefix: str,
        policy: str,
        log: LogFile | SentLog | None,
        owner: tuple[int, int] = (0, 0),
    ) -> None:
        self._owner = owner
        self._loop = loop
        self._buffer = buffer
        self._spool_prefix = spool_prefix
        self._policy = policy
        self._log = log
        self._input: InputStream | None = None
        self._outputs: dict[int, OutputStream] = {}
        self._child_fds: list[int] = []
        self._spools = 0
        self._ended = Future()
        self._master = -1

    @property
    def is_terminal(self) -> bool:
        return self._master >= 0

    def open_pipes(self, stdin: bool, stdout: bool, stderr: bool) -> tuple[int, int, int]:
        """Make the pipes that are wanted; returns what the runtime gets as 0, 1 and 2."""
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        self._child_fds.append(null)
        fds = [null, null, null]
        if stdin:
            fds[0], write_end = self._pipe()
            self._input = InputStream(self._loop, write_end, False, self._buffer)
        for number, wanted in ((STDOUT, stdout), (STDERR, stderr)):
            if wanted:
                read_end, fds[number] = self._pipe(child_writes=True)
                self._add_output(number, read_end)
        return fds[0], fds[1], fds[2]

    def _pipe(self, child_writes: bool = False) -> tuple[int, int]:
        read_end, write_end = os.pipe2(os.O_CLOEXEC)
        childs = write_end if child_writes else read_end
        self._child_fds.append(childs)
        if self._owner != (0, 0):  # of a user namespace: so that it may open /dev/stdout again
            os.fchown(childs, *self._owner)
        return read_end, write_end

    def set_terminal(self, master: int, rows: int, cols: int) -> None:
        """Use the terminal that the runtime has made and sent; takes the descriptor."""
        self._add_output(STDOUT, master)
        self._master = os.dup(master)
        self._input = InputStream(self._loop, os.dup(master), True, self._buffer)
        if rows and cols:
            self.resize(rows, cols)

    def _add_output(self, number: int, fd: int) -> None:
        self._outputs[number] = OutputStream(
            self._loop, fd, number, self._log, self._buffer, self._check_ended
        )

    def begin(self) -> None:
        """Let output through: the runtime is done, whose own complaints are nobody's output."""
        self.look()
        for stream in self._outputs.values():
            stream.begin()

    def look(self) -> bool:
        """Look for readers again, before something is written; whether all are there."""
        seen = [stream.look() for stream in self._outputs.values()]
        return all(seen)

    async def readers_come(self) -> None:
        """Give clients that open their FIFOs in the background READERS_S to do so.

        containerd's do, and give it up when the process has ended: one that is over at once would
        have written for nobody. containerd itself waits here for as long as the client does.
        """
        for _ in range(LOOKS):
            if self.look():
                return
            await self._loop.pause(READERS_S / LOOKS)

    async def passed_on(self) -> None:
        """Once the process has ended, and before anybody hears of it: let what it has written go
        where it has to, as long as others who have its pipes do not go on for PASS_ON_S.

        ctr 1.7 gives up a FIFO that it has not begun to read when it hears of the end. Of a process
        that is over at once it would have nothing, one time in twelve on a busy host.
        """
        until, pause_s = time.monotonic() + PASS_ON_S, READERS_S / LOOKS
        while any(stream.arrives for stream in self._outputs.values()):
            if time.monotonic() > until:
                return
            await self._loop.pause(pause_s)
            pause_s *= 2

    def release_child_fds(self) -> None:
        """Close what the runtime has by now; only then does a pipe end with its container."""
        for fd in self._child_fds:
            os.close(fd)
        self._child_fds.clear()

    def attach(self, stdin: str, stdout: str, stderr: str, policy: str = "") -> None:
        """Let a caller's FIFOs or pipes take part, by a policy other than the process's own.

        Raises FailedPrecondition for a stream that the process does not have, InvalidArgument for
        a path that is no FIFO or cannot be opened.
        """
        added: list[Sink] = []
        try:
            for number, path in ((STDOUT, stdout), (STDERR, "" if self.is_terminal else stderr)):
                if path:
                    added.append(self._add_sink(number, path, policy))
            if stdin and self._input is not None:
                self._input.add(stdin)
        except (OSError, LighterError) as err:
            for sink in added:
                sink.close()
            if isinstance(err, OSError):
                raise InvalidArgument(f"attach {err.filename}: {err.strerror}") from err
            raise

    def _add_sink(self, number: int, path: str, policy: str) -> Sink:
        stream = self._outputs.get(number)
        if stream is None or stream.ended:
            name = "stdout" if number == STDOUT else "stderr"
            raise FailedPrecondition(f"attach {name}: the process has no open {name}")
        self._spools += 1
        spool_path = f"{self._spool_prefix}{number}-{self._spools}.spool"
        return stream.add(path, policy or self._policy, spool_path)

    def close_stdin(self) -> None:
        if self._input is not None:
            self._input.close_soon()

    def resize(self, rows: int, cols: int) -> None:
        """Set the window size; the kernel sends SIGWINCH. Raises FailedPrecondition."""
        if self._master < 0:
            raise FailedPrecondition("resize terminal: the process has none")
        size = array.array("H", [rows, cols, 0, 0])
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, size)

    async def drain(self, timeout_s: float) -> None:
        """Wait until all output is passed on or the time is over, then close everything."""
        self._check_ended()
        timer = self._loop.call_later(timeout_s, self._ended.set)
        await self._ended
        timer.cancel()
        self.close()

    def _check_ended(self) -> None:
        if all(stream.flushed for stream in self._outputs.values()):
            self._ended.set()

    def release(self) -> None:
        """Wait no longer for readers that are not there, once the process has written all."""
        for stream in self._outputs.values():
            stream.release()

    def close(self) -> None:
        self.release_child_fds()
        if self._input is not None:
            self._input.close()
        for stream in self._outputs.values():
            stream.close()
        if self._master >= 0:
            os.close(self._master)
            self._master = -1


class ConsoleSocket:
    """Where the runtime sends the master of a new terminal (runc(8), --console-socket)."""

    __slots__ = ("_arrived", "_connections", "_fd", "_listener", "_loop", "path")

    def __init__(self, loop: Loop, path: str) -> None:
        self.path = path
        self._loop = loop
        self._arrived = Future()
        self._fd = -1
        self._connections: list[socket.socket] = []
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self._listener.bind(path)
        os.chmod(path, 0o600)
        self._listener.listen(1)
        self._listen()

    async def master(self, timeout_s: float) -> int:
        """The terminal's descriptor; the caller owns it. Raises DeadlineExceeded."""
        await self._loop.within(self._arrived, timeout_s, "receive terminal")
        master, self._fd = self._fd, -1
        return master

    def close(self) -> None:
        """Listen no longer. A terminal that nobody has taken ends."""
        self._loop.unwatch(self._listener.fileno())
        self._listener.close()
        for connection in list(self._connections):
            self._drop(connection)
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        try:
            os.unlink(self.path)
        except FileNotFoundError:
            pass

    def _listen(self) -> None:
        if self._listener.fileno() >= 0:
            self._loop.watch(self._listener.fileno(), READ, self._on_connection)

    def _on_connection(self, _events: int) -> None:
        try:
            connection, _address = self._listener.accept()
        except OSError:  # no descriptor is free: who has connected waits
            self._loop.unwatch(self._listener.fileno())
            self._loop.call_later(ACCEPT_S, self._listen)
            return
        connection.setblocking(False)
        self._connections.append(connection)
        self._loop.watch(connection.fileno(), READ, lambda _events: self._receive(connection))
        self._receive(connection)  # it sends right after it connects: mostly it is there already

    def _receive(self, connection: socket.socket) -> None:
        """Take what a runtime has sent, if it has."""
        try:
            _name, fds, _flags, _from = socket.recv_fds(
                connection, 4096, 1, socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return
        except OSError:
            fds = []
        self._drop(connection)
        for fd in fds:
            if self._arrived.done:
                os.close(fd)
            else:
                self._fd = fd
                self._arrived.set()

    def _drop(self, connection: socket.socket) -> None:
        self._connections.remove(connection)
        self._loop.unwatch(connection.fileno())
        connection.close()
