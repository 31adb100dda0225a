"""Job `relabel`: give a file or a tree of the host, and what is mounted in it, one SELinux label.

    {job: "relabel", path, label, system: [path], closed: [path]} -> {entries, changed}

`system` are directories that may be neither the tree nor in it, by any of their names; nothing at
or below a `closed` one is touched. With label "" only that is checked. Who may write in the tree
may swap its directories while it is walked: each is opened by its name in its parent, no link is
followed, and the tree is all that is left of the file system by then. What cannot have a label
stays as it is, what vanishes is left out.
"""

import errno
import os
import stat
from typing import Any

from lighter.proto.errors import Aborted, InvalidArgument
from lighter.shim.worker import lockin, syscalls
from lighter.shim.worker.channel import Channel
from lighter.shim.worker.failure import show, typed
from lighter.shim.worker.walking import MAX_DEPTH, VANISHED, allow_depth

ATTRIBUTE = "security.selinux"
_UNLABELLED = frozenset((errno.ENOTSUP, errno.ENODATA))
_OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

Identity = tuple[int, int]  # st_dev, st_ino


class Relabelling:
    """One walk: `entries` were seen, `changed` of them got the label."""

    __slots__ = ("_channel", "_label", "_path", "_system", "changed", "entries")

    def __init__(
        self,
        path: bytes,
        label: bytes,
        system: dict[Identity, str],
        channel: Channel | None = None,
    ) -> None:
        """`path` is for messages."""
        self._path = path
        self._label = label
        self._system = system
        self._channel = channel
        self.entries = 0
        self.changed = 0

    def check(self, status: os.stat_result, path: bytes) -> None:
        """Raises InvalidArgument for a directory that the host needs as it is."""
        name = self._system.get((status.st_dev, status.st_ino))
        if name is not None:
            raise InvalidArgument(f"relabel {show(path)}: it is {name} of the host")

    def tree(self, fd: int) -> None:
        """The open directory and what is below it. Raises typed errors, PeerGone."""
        self._directory(fd, self._path, 1)

    def entry(self, target: int | bytes, path: bytes, *, follow: bool) -> None:
        """A descriptor, or a path: `follow` for /proc's link to an open file."""
        self.entries += 1
        if self._channel is not None:
            self._channel.tick(entries=self.entries)
        try:
            if _label_of(target, follow=follow) != self._label:
                os.setxattr(target, ATTRIBUTE, self._label, follow_symlinks=follow)
                self.changed += 1
        except OSError as err:
            if err.errno == errno.ENOTSUP or (err.errno in VANISHED and path != self._path):
                return
            raise typed(err, f"relabel {show(path)}") from err

    def _directory(self, fd: int, path: bytes, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise InvalidArgument(
                f"relabel {show(self._path)}: more than {MAX_DEPTH} directories in each other"
            )
        self.check(os.fstat(fd), path)
        self.entry(fd, path, follow=True)
        try:
            with os.scandir(fd) as listing:
                found = [
                    (os.fsencode(item.name), item.is_dir(follow_symlinks=False)) for item in listing
                ]
        except OSError as err:
            raise typed(err, f"relabel {show(path)}: list it") from err
        os.fchdir(fd)  # setxattrat(2) came with Linux 6.13
        for name, is_directory in found:
            if not is_directory:
                self.entry(name, path + b"/" + name, follow=False)
        for name, is_directory in found:
            if is_directory:
                self._below(fd, name, path + b"/" + name, depth)

    def _below(self, fd: int, name: bytes, path: bytes, depth: int) -> None:
        try:
            child = os.open(name, _OPEN_DIRECTORY, dir_fd=fd)
        except OSError as err:
            if err.errno in VANISHED:
                return
            raise typed(err, f"relabel {show(path)}") from err
        try:
            self._directory(child, path, depth + 1)
        finally:
            os.close(child)


def _label_of(target: int | bytes, *, follow: bool) -> bytes:
    """b"" for none. The kernel tells it with a NUL at the end."""
    try:
        return os.getxattr(target, ATTRIBUTE, follow_symlinks=follow).rstrip(b"\0")
    except OSError as err:
        if err.errno in _UNLABELLED:
            return b""
        raise


def run(job: dict[str, Any], fds: list[int], channel: Channel) -> dict[str, Any]:
    """Do the job; see the module's head. Raises typed errors."""
    path, label = str(job["path"]), os.fsencode(str(job["label"]))
    if not path.startswith("/"):
        raise InvalidArgument(f"relabel {path[:256]!r}: it is no absolute path")
    lockin.close_all_but([channel.fileno()])
    try:
        # Once: what is looked at from here on is this file, whatever has its name by then.
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        status = os.fstat(fd)
        real = lockin.path_of(fd)
    except OSError as err:
        raise typed(err, f"relabel {path}") from err
    _check_path(path, real, job["system"], job["closed"])
    walk = Relabelling(os.fsencode(path), label, _identities(job["system"]), channel)
    walk.check(status, os.fsencode(path))
    is_directory = stat.S_ISDIR(status.st_mode)
    if label and is_directory:
        _lock_in(path, real, fd)
        walk.tree(os.open("/tree", _OPEN_DIRECTORY))
    elif label:
        walk.entry(b"/proc/self/fd/%d" % fd, os.fsencode(path), follow=True)
    return {"entries": walk.entries, "changed": walk.changed}


def _check_path(path: str, real: str, system: list[str], closed: list[str]) -> None:
    """By name, which a mount cannot hide. Raises InvalidArgument."""
    for name in system:
        if real == name:
            raise InvalidArgument(f"relabel {path}: it is {name} of the host")
    for name in closed:
        if f"{real}/".startswith((f"{name}/", f"{os.path.realpath(name)}/")):
            raise InvalidArgument(f"relabel {path}: what is in {name} keeps its labels")


def _identities(paths: list[str]) -> dict[Identity, str]:
    found: dict[Identity, str] = {}
    for path in paths:
        try:
            status = os.stat(path)
        except OSError:
            continue
        found.setdefault((status.st_dev, status.st_ino), path)
    return found


def _lock_in(path: str, real: str, fd: int) -> None:
    """Make the tree all that this process can reach. Raises Aborted when it is another by now."""
    try:
        allow_depth()
    except OSError as err:
        raise typed(err, f"relabel {path}: allow for deep directories") from err
    binds = [lockin.Bind(real, "tree", lockin.RECURSIVE)]
    lockin.enter(binds, (syscalls.CAP_DAC_OVERRIDE, syscalls.CAP_FOWNER))
    if not lockin.same_file(fd, "/tree"):
        raise Aborted(f"relabel {path}: another directory took its place meanwhile")
    os.close(fd)
