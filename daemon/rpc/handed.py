"""Files that a caller has open and hands over by name: `/proc/<its pid>/fd/<n>`.

The manager opens them anew, as root. So a caller gets no more by it than it has: what it may only
read is not opened for writing, what it may only write or name (O_PATH) not for reading. The
kernel's word for how it was opened is its fdinfo (proc_pid_fdinfo(5)); that says too which file it
is about, so that none can be exchanged between the two looks.
"""

import os
import re
import stat

from lighter.proto.errors import InvalidArgument, PermissionDenied

_NAME = re.compile(r"/proc/[0-9]+/fd/[0-9]{1,9}", re.ASCII)
_FLAGS = re.compile(r"^flags:\s*([0-7]+)$", re.MULTILINE)
_WHICH = re.compile(r"^(?:mnt_id|ino):.*$", re.MULTILINE)  # ino since Linux 5.14


def open_source(verb: str, path: str, pid: int, *, blocking: bool = True) -> int:
    """A file or pipe to read from; the caller closes the result.

    Raises PermissionDenied when it is not open for reading there.
    """
    fd = _open(verb, path, pid, os.O_RDONLY)
    os.set_blocking(fd, blocking)
    return fd


def open_target(verb: str, path: str, pid: int, *, append: bool = False) -> int:
    """A file to write from its start or at its end, or a pipe, non-blocking; the caller closes it.

    Raises PermissionDenied when it is not open for writing there.
    """
    return _open(verb, path, pid, os.O_WRONLY | (os.O_APPEND if append else 0))


def open_place(verb: str, path: str, pid: int) -> int:
    """A directory, to be named and not to be read (O_PATH); the caller closes the result."""
    if not _NAME.fullmatch(path) or not path.startswith(f"/proc/{pid}/"):
        raise InvalidArgument(f"{verb} {path}: it is no descriptor of process {pid}")
    try:
        return os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as err:
        raise InvalidArgument(f"{verb} {path}: {err.strerror}") from err


def _open(verb: str, path: str, pid: int, flags: int) -> int:
    if not _NAME.fullmatch(path) or not path.startswith(f"/proc/{pid}/"):
        raise InvalidArgument(f"{verb} {path}: it is no descriptor of process {pid}")
    try:
        fd = os.open(path, flags | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK)
    except OSError as err:
        raise InvalidArgument(f"{verb} {path}: {err.strerror}") from err
    try:
        kind = os.fstat(fd).st_mode
        if not stat.S_ISREG(kind) and not stat.S_ISFIFO(kind):
            raise InvalidArgument(f"{verb} {path}: it is neither a file nor a pipe")
        _check_right(verb, path, pid, fd, flags & os.O_ACCMODE)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _check_right(verb: str, path: str, pid: int, fd: int, wanted: int) -> None:
    """Whether the process may do with its descriptor what we can with ours."""
    try:
        theirs = _fdinfo(path)
        ours = _fdinfo(f"/proc/self/fd/{fd}")
    except OSError as err:
        raise InvalidArgument(f"{verb} {path}: {err.strerror}") from err
    if _WHICH.findall(theirs) != _WHICH.findall(ours):
        raise InvalidArgument(f"{verb} {path}: process {pid} has exchanged it")
    found = _FLAGS.search(theirs)
    flags = int(found[1], 8) if found else os.O_PATH
    if flags & os.O_PATH or flags & os.O_ACCMODE not in (wanted, os.O_RDWR):
        other = "naming" if flags & os.O_PATH else "reading" if wanted else "writing"
        raise PermissionDenied(f"{verb} {path}: process {pid} has it open for {other} alone")


def _fdinfo(path: str) -> str:
    with open(path.replace("/fd/", "/fdinfo/"), encoding="ascii") as info:
        return info.read(4096)
