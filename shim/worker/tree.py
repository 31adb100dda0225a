"""Directories of the tree being written, found name by name from its root, never by a joined path.

Every step opens one component with O_NOFOLLOW from its parent's descriptor. A symbolic link among
the parents of an entry is followed as chroot would: absolute from the tree's root, ".." no
further than it. Descriptors of directories are kept by their real path (the one without links),
since an archive lists a directory's files together; a second table remembers which real directory
a written path led to. Whoever removes or replaces a name calls `forget` for it, which empties the
second table and closes what was open at or below that name.
"""

import errno
import os
from typing import Protocol

from lighter.proto.errors import InvalidArgument
from lighter.shim.worker.failure import show, typed

MAX_PATH = 4096
_MAX_OPEN = 128
_MAX_NAMES = 1024
_MAX_LINKS = 40  # as the kernel's (path_resolution(7))
# Names in one look-up, links and ".." included: of a path of MAX_PATH bytes 2048, looked up twice
# when they are made.
_MAX_STEPS = 10_000
_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Directory:
    """An open directory; valid until the next look-up in its tree. `path` is b"" for the root."""

    __slots__ = ("fd", "path")

    def __init__(self, fd: int, path: bytes) -> None:
        self.fd = fd
        self.path = path

    def child(self, name: bytes) -> bytes:
        """The real path of `name` in here."""
        return self.path + b"/" + name if self.path else name


class MakeParent(Protocol):
    """Makes the directory `name` that an entry needs above it and that no entry has made: nothing
    is there, or something that is neither a directory nor a link. Raises when it may not."""

    def __call__(self, parent: Directory, name: bytes) -> None: ...


class Tree:
    """Look-ups below one root descriptor, which the caller owns."""

    __slots__ = ("_by_name", "_make_parent", "_open", "_steps", "root")

    def __init__(self, root_fd: int, make_parent: MakeParent) -> None:
        self.root = Directory(root_fd, b"")
        self._make_parent = make_parent
        self._open: dict[bytes, Directory] = {}
        self._by_name: dict[bytes, Directory] = {}
        self._steps = 0

    def make(self, path: bytes) -> Directory:
        """The directory `path`, with every missing one on the way made."""
        found = self._by_name.get(path)
        if found is not None and found.fd >= 0:
            return found
        directory = self._walk(path, create=True)
        assert directory is not None
        if len(self._by_name) >= _MAX_NAMES:
            self._by_name.clear()
        self._by_name[path] = directory
        return directory

    def find(self, path: bytes) -> Directory | None:
        """The directory `path`, None where there is none."""
        return self._walk(path, create=False)

    def at(self, path: bytes) -> Directory | None:
        """The directory whose real path this is, None where there is none (any more).

        From the nearest one above it that is open: many that lie in each other, one after the
        other, are one step each.
        """
        self._steps = 0
        return self._at(path)

    def _at(self, path: bytes) -> Directory | None:
        here = self.root
        names: list[bytes] = []
        while path:
            known = self._kept(path)
            if known is not None:
                here = known
                break
            path, _, name = path.rpartition(b"/")
            names.append(name)
        for name in reversed(names):
            self._step(path)
            real = here.child(name)
            try:
                fd = os.open(name, _FLAGS, dir_fd=here.fd)
            except OSError as err:
                if err.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                    return None
                raise typed(err, f"open directory {show(real)}") from err
            here = self._keep(fd, real)
        return here

    def enter(self, parent: Directory, name: bytes) -> Directory:
        """The directory `name` in the directory that was looked up last; it is no link."""
        path = parent.child(name)
        return self._open.get(path) or self._keep(os.open(name, _FLAGS, dir_fd=parent.fd), path)

    def forget(self, path: bytes) -> None:
        """What was at the real path `path` is no longer what it was."""
        self._by_name.clear()
        below = path + b"/"
        for known in [key for key in self._open if key == path or key.startswith(below)]:
            self._close(known)

    def close(self) -> None:
        """Close all but the root."""
        for known in list(self._open):
            self._close(known)

    def _step(self, path: bytes) -> None:
        self._steps += 1
        if self._steps > _MAX_STEPS:
            raise InvalidArgument(
                f"open directory {show(path)}: it leads through more than {_MAX_STEPS} names"
            )

    def _walk(self, path: bytes, *, create: bool) -> Directory | None:
        self._steps = 0
        here = self.root
        todo = path.split(b"/")
        todo.reverse()
        links = 0
        while todo:
            name = todo.pop()
            self._step(path)
            if name in (b"", b"."):
                continue
            if name == b"..":
                above = self._at(here.path.rpartition(b"/")[0])
                assert above is not None  # `here` lies in it
                here = above
                continue
            real = here.child(name)
            known = self._kept(real)
            if known is not None:
                here = known
                continue
            try:
                fd = os.open(name, _FLAGS, dir_fd=here.fd)
            except FileNotFoundError:
                if not create:
                    return None
                self._make_parent(here, name)
                todo.append(name)
            except OSError as err:
                if err.errno not in (errno.ENOTDIR, errno.ELOOP):
                    raise typed(err, f"open directory {show(real)}") from err
                target = _link(here, name)
                if target is not None:
                    links += 1
                    if links > _MAX_LINKS:
                        raise InvalidArgument(
                            f"open directory {show(path)}: more than {_MAX_LINKS} links"
                        ) from err
                    if target.startswith(b"/"):
                        here = self.root
                    todo.extend(reversed(target.split(b"/")))
                elif create:
                    self._make_parent(here, name)
                    todo.append(name)
                else:
                    return None
            else:
                here = self._keep(fd, real)
        return here

    def _kept(self, real: bytes) -> Directory | None:
        known = self._open.pop(real, None)
        if known is not None:
            self._open[real] = known  # in order of use
        return known

    def _keep(self, fd: int, real: bytes) -> Directory:
        if len(real) > MAX_PATH:
            os.close(fd)
            raise InvalidArgument(
                f"open directory {show(real)}: path has more than {MAX_PATH} bytes"
            )
        if len(self._open) >= _MAX_OPEN:
            self._close(next(iter(self._open)))
        directory = self._open[real] = Directory(fd, real)
        return directory

    def _close(self, real: bytes) -> None:
        directory = self._open.pop(real)
        os.close(directory.fd)
        directory.fd = -1


def _link(parent: Directory, name: bytes) -> bytes | None:
    """Where the symbolic link `name` points, None if it is none."""
    try:
        return os.readlink(name, dir_fd=parent.fd)
    except OSError as err:
        if err.errno == errno.EINVAL:
            return None
        raise typed(err, f"read link {show(parent.child(name))}") from err
