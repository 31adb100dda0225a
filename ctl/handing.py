"""Handing files to the manager: by `/proc/<pid>/fd/<n>`, so it reads and writes what ctl may.

What cannot be opened by such a name (a socket), or is no one file (a layout's directory), goes
through a pipe. A file that is written appears under its name when it is whole, not before.
"""

import contextlib
import os
import secrets
import select
import stat
import threading
from collections.abc import Callable, Iterator

from lighter.proto.errors import FailedPrecondition, Internal, InvalidArgument, LighterError

_COPY_BYTES = 1 << 16


class Handed:
    """`path` is what the manager opens. A pipe has a thread that fills or empties it, but one that
    somebody else reads (`others_read`).
    """

    def __init__(self, fd: int, *, others_read: bool = False) -> None:
        self.path = f"/proc/{os.getpid()}/fd/{fd}"
        self._read_by_others = fd if others_read else None
        self._error: Exception | None = None
        self._thread: threading.Thread | None = None
        self._complete: Callable[[], None] = lambda: None

    def run(self, work: Callable[[], None], pipe_fd: int) -> None:
        """Do the pipe's other half in a thread, which closes `pipe_fd` at its end."""

        def guarded() -> None:
            try:
                work()
            except Exception as err:  # whoever waits hears of it, whatever it is
                self._error = _told(err)
            finally:
                os.close(pipe_fd)

        self._thread = threading.Thread(target=guarded, daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise what our half met: it is the cause of what the manager says of the pipe.

        That is BrokenPipeError when nobody reads what was to be written.
        """
        if self._error is not None:
            raise self._error
        if self._read_by_others is not None and not _has_reader(self._read_by_others):
            raise BrokenPipeError

    def when_complete(self, act: Callable[[], None]) -> None:
        self._complete = act

    def complete(self) -> None:
        """The manager has written everything: let it be seen."""
        self._complete()
        if self._thread is not None:
            self._thread.join()
            if self._error is not None:
                raise self._error


def _told(err: Exception) -> Exception:
    """As an error that ctl can tell in a line."""
    if isinstance(err, OSError | LighterError):
        return err
    why = "it is too deep" if isinstance(err, RecursionError) else f"{type(err).__name__}: {err}"
    told = Internal(f"copy: {why}")
    told.__cause__ = err
    return told


@contextlib.contextmanager
def handed_source(path: str) -> Iterator[Handed]:
    """A file to read; `-` is standard input, a directory an OCI layout."""
    with contextlib.ExitStack() as undo:
        if path == "-":
            if stat.S_ISSOCK(os.fstat(0).st_mode) or _is_read_already(0):
                yield filled_pipe(undo, lambda fd: _copy(0, fd))
            else:
                yield Handed(0)
            return
        try:
            file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY)
        except OSError as err:
            raise InvalidArgument(f"open {path}: {err.strerror}") from err
        undo.callback(os.close, file)
        if stat.S_ISDIR(os.fstat(file).st_mode):
            from lighter.ctl.layout import write_archive

            yield filled_pipe(undo, lambda fd: write_archive(path, fd))
        else:
            yield Handed(file)


def filled_pipe(undo: contextlib.ExitStack, fill: Callable[[int], None]) -> Handed:
    """A pipe that the manager reads and `fill` fills, in a thread."""
    read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
    undo.callback(os.close, read_fd)
    handed = Handed(read_fd)

    def work() -> None:
        with contextlib.suppress(BrokenPipeError):  # the manager wants no more, and says why
            fill(write_fd)

    handed.run(work, write_fd)
    return handed


def emptied_pipe(undo: contextlib.ExitStack, take: Callable[[int], None]) -> Handed:
    """A pipe that the manager fills and `take` reads, in a thread."""
    read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
    # The thread sees the end when the manager and ctl have closed the pipe for writing.
    closing = undo.enter_context(contextlib.ExitStack())
    closing.callback(os.close, write_fd)
    handed = Handed(write_fd)
    handed.when_complete(closing.close)
    handed.run(lambda: take(read_fd), read_fd)
    return handed


def _has_reader(pipe: int) -> bool:
    poll = select.poll()
    poll.register(pipe, 0)
    return not poll.poll(0)  # POLLERR


def _is_read_already(fd: int) -> bool:
    """Whether somebody has read a part of a file: who opens it anew would begin before that."""
    try:
        return os.lseek(fd, 0, os.SEEK_CUR) > 0
    except OSError:  # a pipe, a terminal
        return False


def _copy(source: int, target: int) -> None:
    while data := os.read(source, _COPY_BYTES):
        view = memoryview(data)
        while view:
            view = view[os.write(target, view) :]


@contextlib.contextmanager
def handed_target(path: str) -> Iterator[Handed]:
    """A file to write; `-` is standard output, which is never a terminal.

    Leaving without `complete` leaves what was there before, even when ctl is killed.
    """
    with contextlib.ExitStack() as undo:
        if path == "-":
            if os.isatty(1):
                raise InvalidArgument("write archive: standard output is a terminal; name a file")
            is_pipe = stat.S_ISFIFO(os.fstat(1).st_mode)
            if is_pipe:
                yield Handed(1, others_read=True)
            else:
                yield emptied_pipe(undo, lambda fd: _copy(fd, 1))
            return
        try:
            handed = _special_file(undo, path) or _new_file(undo, os.path.realpath(path))
        except OSError as err:
            raise InvalidArgument(f"write {path}: {err.strerror}") from err
        yield handed


def _special_file(undo: contextlib.ExitStack, path: str) -> Handed | None:
    """What is there and no regular file (a FIFO, /dev/null) is written, not replaced."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISREG(os.stat(path).st_mode):
            fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOCTTY)
            undo.callback(os.close, fd)
            is_pipe = stat.S_ISFIFO(os.fstat(fd).st_mode)
            return Handed(fd) if is_pipe else emptied_pipe(undo, lambda end: _copy(end, fd))
    return None


def _new_file(undo: contextlib.ExitStack, path: str) -> Handed:
    """Written without a name where the file system can, which takes it away with its writer."""
    folder, name = os.path.split(path)
    passing = f"{folder}/.{name[:200]}.{secrets.token_hex(4)}"
    try:
        fd = os.open(folder, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o666)
        is_named = False
    except OSError:  # EOPNOTSUPP, and others on network file systems
        fd = os.open(passing, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        undo.callback(_unlink, passing)
        is_named = True
    undo.callback(os.close, fd)

    def appear() -> None:
        try:
            with contextlib.suppress(FileNotFoundError):
                os.fchmod(fd, stat.S_IMODE(os.stat(path).st_mode))
            os.fsync(fd)
            if not is_named:
                # Without a dir_fd Python calls link(2), which does not follow /proc's link.
                os.link(f"/proc/self/fd/{fd}", passing, src_dir_fd=fd, follow_symlinks=True)
                undo.callback(_unlink, passing)
            os.rename(passing, path)
        except OSError as err:
            raise FailedPrecondition(f"write {path}: {err.strerror}") from err

    handed = Handed(fd)
    handed.when_complete(appear)
    return handed


def _unlink(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


@contextlib.contextmanager
def opened_directory(path: str) -> Iterator[str]:
    """A directory by the name under which the manager can see which one it is."""
    try:
        fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as err:
        raise InvalidArgument(f"open {path}: {err.strerror}") from err
    try:
        yield f"/proc/{os.getpid()}/fd/{fd}"
    finally:
        os.close(fd)
