"""Delete a tree that anybody may have filled: by descriptors, no link followed, no mount entered.

Each directory is opened from its parent with RESOLVE_NO_XDEV, so the kernel itself refuses to
step onto a mount (bind mounts of the same file system too, which a comparison of st_dev would
miss). What cannot be deleted (a mount, an immutable file) stays and is reported; the rest goes.
"""

import errno
import os
from typing import Any

from lighter.proto.errors import InvalidArgument
from lighter.shim import linux
from lighter.shim.worker import lockin, syscalls
from lighter.shim.worker.channel import Channel
from lighter.shim.worker.failure import typed

# Directories open at once. A deeper one is first renamed to the top of the tree, so that neither
# descriptors nor path lengths bound what can be deleted.
_MAX_DEPTH = 64
_MAX_REPORTED = 32
_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_RESOLVE = linux.RESOLVE_NO_XDEV | linux.RESOLVE_NO_SYMLINKS | linux.RESOLVE_BENEATH


class Remains:
    """What a removal did: `removed` entries are gone; `left` names some of those that are not."""

    __slots__ = ("_channel", "left", "left_count", "removed")

    def __init__(self, channel: Channel | None = None) -> None:
        self.removed = 0
        self.left: list[tuple[str, str]] = []
        self.left_count = 0
        self._channel = channel

    def gone(self) -> None:
        self.removed += 1
        if self._channel is not None:
            self._channel.tick(removed=self.removed)

    def keep(self, path: bytes, err: OSError) -> None:
        self.left_count += 1
        if len(self.left) < _MAX_REPORTED:
            cause = "a mount is on it" if err.errno in (errno.EXDEV, errno.EBUSY) else err.strerror
            self.left.append((os.fsdecode(path[:256]), cause or ""))


def remove_tree(dir_fd: int, name: bytes, channel: Channel | None = None) -> Remains:
    """Delete `name` in the directory `dir_fd`, whatever it is. Raises PeerGone only."""
    remains = Remains(channel)
    try:
        top = _open(dir_fd, name)
    except OSError as err:
        if err.errno in (errno.ENOTDIR, errno.ELOOP):
            _unlink(dir_fd, name, name, remains)
        elif err.errno != errno.ENOENT:
            remains.keep(name, err)
        return remains
    try:
        moved = _Moved(top)
        # Renamed directories arrive at the top while it is read: until none is left there.
        while True:
            before = moved.count
            _empty(top, name, 0, moved, remains)
            if moved.count == before:
                break
            remains.left.clear()
            remains.left_count = 0
    finally:
        os.close(top)
    _rmdir(dir_fd, name, name, remains)
    return remains


class _Moved:
    """Brings a deep directory up to the top under a name of its own."""

    __slots__ = ("_top", "count")

    def __init__(self, top: int) -> None:
        self._top = top
        self.count = 0

    def lift(self, dir_fd: int, name: bytes) -> None:
        self.count += 1
        place = b".removing-%d-%d" % (os.getpid(), self.count)
        os.rename(name, place, src_dir_fd=dir_fd, dst_dir_fd=self._top)


def _open(dir_fd: int, name: bytes) -> int:
    return linux.openat2(dir_fd, name, _FLAGS, _RESOLVE)


def _empty(fd: int, path: bytes, depth: int, moved: _Moved, remains: Remains) -> None:
    """Delete what the directory `fd` holds; `path` is for the report."""
    for name, is_dir in _list(fd):
        below = path + b"/" + name
        if not is_dir:
            _unlink(fd, name, below, remains)
        elif depth >= _MAX_DEPTH:
            try:
                moved.lift(fd, name)
            except OSError as err:
                remains.keep(below, err)
        else:
            try:
                child = _open(fd, name)
            except OSError as err:
                remains.keep(below, err)
                continue
            try:
                _empty(child, below, depth + 1, moved, remains)
            finally:
                os.close(child)
            _rmdir(fd, name, below, remains)


def _list(fd: int) -> list[tuple[bytes, bool]]:
    """Names and whether they are directories: d_type tells, so nothing is looked up."""
    with os.scandir(fd) as listing:
        return [(os.fsencode(item.name), item.is_dir(follow_symlinks=False)) for item in listing]


def _unlink(fd: int, name: bytes, path: bytes, remains: Remains) -> None:
    try:
        os.unlink(name, dir_fd=fd)
    except OSError as err:
        remains.keep(path, err)
    else:
        remains.gone()


def _rmdir(fd: int, name: bytes, path: bytes, remains: Remains) -> None:
    try:
        os.rmdir(name, dir_fd=fd)
    except OSError as err:
        if err.errno != errno.ENOTEMPTY:  # then what is in it was reported
            remains.keep(path, err)
    else:
        remains.gone()


def run(job: dict[str, Any], fds: list[int], channel: Channel) -> dict[str, Any]:
    """Job `remove`: {dir: absolute path} → {removed, left_count, left: [[path, cause]]}.

    The parent directory is all that stays reachable, with the mounts below it: a mount that is
    not visible would be deleted from underneath.
    """
    path = job.get("dir")
    if not isinstance(path, str) or not path.startswith("/") or os.path.normpath(path) != path:
        raise InvalidArgument(f"remove {path!r}: it is not a clean absolute path")
    parent, name = os.path.split(path)
    if not name:
        raise InvalidArgument("remove '/': it is the root")
    lockin.close_all_but([channel.fileno()])
    lockin.enter(
        [lockin.Bind(parent, "parent", lockin.RECURSIVE)],
        (syscalls.CAP_DAC_OVERRIDE, syscalls.CAP_FOWNER),
    )
    try:
        parent_fd = os.open("/parent", os.O_PATH | os.O_DIRECTORY)
    except OSError as err:
        raise typed(err, f"remove {path}") from err
    remains = remove_tree(parent_fd, os.fsencode(name), channel)
    return {
        "removed": remains.removed,
        "left_count": remains.left_count,
        "left": [list(item) for item in remains.left],
    }
