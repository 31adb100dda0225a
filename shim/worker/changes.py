"""Job `changes`: which names one tree has otherwise than another, as `docker diff` lists them.

    {job: "changes", lower: […], upper: […]: as of job diff} + [where the list is written]
    → {entries}

A record is a letter (A added, C changed, D deleted), an absolute path and a NUL byte. A directory
is changed when something in it is.
"""

import os
from typing import Any

from lighter.proto.errors import Canceled, InvalidArgument
from lighter.shim import linux
from lighter.shim.worker import lockin
from lighter.shim.worker.channel import Channel
from lighter.shim.worker.diff import Differ, enter
from lighter.shim.worker.failure import typed

_BENEATH = linux.RESOLVE_BENEATH | linux.RESOLVE_NO_SYMLINKS
_FLUSH_BYTES = 64 << 10


class Lister:
    """Takes what a tar writer would, and writes names."""

    __slots__ = ("_fd", "_lower", "_waiting")

    def __init__(self, fd: int, lower: int) -> None:
        self._fd = fd
        self._lower = lower
        self._waiting = bytearray()

    def entry(
        self,
        path: bytes,
        _status: os.stat_result,
        _xattrs: dict[bytes, bytes],
        *,
        link: bytes = b"",
        hardlink: bytes = b"",
        content: int = -1,
    ) -> None:
        """A name that is there; what it holds does not matter."""
        self._record(b"C" if self._was_there(path) else b"A", path)

    def whiteout(self, parent: bytes, name: bytes) -> None:
        self._record(b"D", parent + b"/" + name if parent else name)

    def finish(self) -> None:
        """Raises OSError."""
        while self._waiting:
            del self._waiting[: os.write(self._fd, self._waiting)]

    def _record(self, kind: bytes, path: bytes) -> None:
        self._waiting += kind + b"/" + path + b"\0"
        if len(self._waiting) > _FLUSH_BYTES:
            self.finish()

    def _was_there(self, path: bytes) -> bool:
        if self._lower < 0:
            return False
        try:
            os.close(linux.openat2(self._lower, path, os.O_PATH | os.O_NOFOLLOW, _BENEATH))
        except OSError:  # a link or a file stands where a directory is now, or nothing
            return False
        return True


def run(job: dict[str, Any], fds: list[int], channel: Channel) -> dict[str, Any]:
    """Do the job; see the module's head. Raises typed errors."""
    if len(fds) != 1:
        raise InvalidArgument(f"list changes: expected one descriptor, got {len(fds)}")
    lockin.close_all_but([channel.fileno(), fds[0]])
    lower, upper = enter(job)
    lister = Lister(fds[0], lower)
    differ = Differ(lister, channel)
    try:
        differ.directory(lower, upper, b"")
        lister.finish()
    except BrokenPipeError as err:
        raise Canceled("list changes: nobody reads them any more") from err
    except OSError as err:
        raise typed(err, "list changes") from err
    return {"entries": differ.entries}
