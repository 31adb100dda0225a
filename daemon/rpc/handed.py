"""Files that a caller has open and hands over by name: `/proc/<its pid>/fd/<n>`.

The manager opens them anew, as root. So what a caller may only read is not opened for writing: the
kernel's word for how it was opened is its fdinfo (proc_pid_fdinfo(5)).
"""

import os
import re
import stat

from lighter.proto.errors import InvalidArgument, PermissionDenied

_NAME = re.compile(r"/proc/[0-9]+/fd/[0-9]{1,9}", re.ASCII)
_FLAGS = re.compile(r"^flags:\s*([0-7]+)$", re.MULTILINE)


def open_source(verb: str, path: str, pid: int) -> int:
    """A file or pipe to read from, blocking; the caller closes the result."""
    fd = _open(verb, path, pid, os.O_RDONLY)
    os.set_blocking(fd, True)
    return fd


def open_target(verb: str, path: str, pid: int) -> int:
    """A file to write from its start, or a pipe, non-blocking; the caller closes the result.

    Raises PermissionDenied when it is not open for writing there.
    """
    fd = _open(verb, path, pid, os.O_WRONLY)
    try:
        with open(path.replace("/fd/", "/fdinfo/"), encoding="ascii") as info:
            flags = _FLAGS.search(info.read(4096))
    except OSError as err:
        os.close(fd)
        raise InvalidArgument(f"{verb} {path}: {err.strerror}") from err
    if flags is None or int(flags[1], 8) & os.O_ACCMODE == os.O_RDONLY:
        os.close(fd)
        raise PermissionDenied(f"{verb} {path}: process {pid} has it open for reading alone")
    return fd


def open_place(verb: str, path: str, pid: int) -> int:
    """A directory, to be named and not to be read (O_PATH); the caller closes the result."""
    if not _NAME.fullmatch(path) or not path.startswith(f"/proc/{pid}/"):
        raise InvalidArgument(f"{verb} {path}: it is no descriptor of process {pid}")
    try:
        return os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as err:
        raise InvalidArgument(f"{verb} {path}: {err.strerror}") from err


def _open(verb: str, path: str, pid: int, mode: int) -> int:
    if not _NAME.fullmatch(path) or not path.startswith(f"/proc/{pid}/"):
        raise InvalidArgument(f"{verb} {path}: it is no descriptor of process {pid}")
    try:
        fd = os.open(path, mode | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK)
    except OSError as err:
        raise InvalidArgument(f"{verb} {path}: {err.strerror}") from err
    kind = os.fstat(fd).st_mode
    if not stat.S_ISREG(kind) and not stat.S_ISFIFO(kind):
        os.close(fd)
        raise InvalidArgument(f"{verb} {path}: it is neither a file nor a pipe")
    return fd
