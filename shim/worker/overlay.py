"""Applying a layer to the upper directory of an overlayfs: what is deleted is written down.

The directory starts empty and holds this layer alone (kernel, overlayfs.rst): a whiteout is a
character device 0:0, an opaque directory hides the ones below it by trusted.overlay.opaque=y. An
archive names its layer's changes, not their surroundings, so two things come from the layers below
(`lowers`, nearest first): the attributes of a directory that no entry describes, else /tmp would
lose its 1777, and a file that is only hard-linked to here.

The layers below may be applied at the same time by workers of their own. So directories that are
only implied are remembered, and dressed when all else is done; only then, or at the first link to
a file below, the lower layers are waited for. Applied one after another or side by side, it is this
same code, and the tree is the same.
"""

import errno
import os
import stat
from collections.abc import Callable

from lighter.proto.errors import InvalidArgument, NotFound
from lighter.shim.worker.budget import Budget
from lighter.shim.worker.failure import show
from lighter.shim.worker.metadata import (
    OPAQUE,
    LateTimes,
    add_xattrs,
    copied_xattrs,
    dress,
    link_xattrs,
    set_link_xattrs,
)
from lighter.shim.worker.tree import Directory, Tree

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_COPY = 1 << 30
_CHUNK = 1 << 20
_NOT_BY_KERNEL = (errno.EXDEV, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)


class Overlay:
    """The rules for one upper directory. `lowers` are descriptors of lower layers, kept open;
    `await_lowers` returns when they are whole."""

    __slots__ = (
        "_absent",
        "_await_lowers",
        "_budget",
        "_implied",
        "_lowers",
        "_opaque",
        "_times",
        "_waited",
        "tree",
    )

    def __init__(
        self,
        target_fd: int,
        lowers: list[int],
        times: LateTimes,
        budget: Budget,
        await_lowers: Callable[[], None],
    ) -> None:
        self.tree = Tree(target_fd, self.make_parent)
        self._lowers = lowers
        self._await_lowers = await_lowers
        self._waited = False
        # Real paths of implied directories: their inode, and whether an entry came later.
        self._implied: dict[bytes, tuple[int, bool]] = {}
        self._times = times
        self._budget = budget
        self._opaque: set[bytes] = set()
        # Directories of which the layers below show nothing, and so nothing of what is in them: a
        # deep path of new directories is looked up once, not once per directory.
        self._absent: set[bytes] = set()

    def make_parent(self, parent: Directory, name: bytes) -> None:
        """Make a directory that is only implied: root's with mode 0755, until `finish` looks."""
        path = parent.child(name)
        hidden = False
        try:
            os.mkdir(name, 0o755, dir_fd=parent.fd)
        except FileExistsError as err:
            if not _is_whiteout(os.lstat(name, dir_fd=parent.fd)):
                raise InvalidArgument(f"{show(path)} is not a directory") from err
            os.unlink(name, dir_fd=parent.fd)
            os.mkdir(name, 0o755, dir_fd=parent.fd)
            hidden = True
        self._budget.directory()
        directory = self.tree.enter(parent, name)
        if hidden:
            self.hide_below(directory)
        self._implied.pop(path, None)
        # Hidden or not is decided now: a marker that comes later is about files, not about it.
        if not self._is_hidden(path):
            self._implied[path] = (os.fstat(directory.fd).st_ino, False)

    def described(self, directory: Directory, *, fresh: bool) -> None:
        """An entry describes a directory, made for it (`fresh`) or before it."""
        path = directory.path
        if fresh:
            self._implied.pop(path, None)
        elif path in self._implied:
            self._implied[path] = (self._implied[path][0], True)

    def hide_below(self, directory: Directory) -> None:
        """Make a directory opaque: what lower layers have at its path is not seen."""
        os.setxattr(directory.fd, OPAQUE, b"y")
        self._opaque.add(directory.path)

    def whiteout(self, parent_path: bytes, name: bytes) -> None:
        """Delete what lower layers have; what this layer itself has at the name stays."""
        parent = self.tree.make(parent_path)
        try:
            os.mknod(name, stat.S_IFCHR, 0, dir_fd=parent.fd)
        except FileExistsError:
            if stat.S_ISDIR(os.lstat(name, dir_fd=parent.fd).st_mode):
                self.hide_below(self.tree.enter(parent, name))

    def opaque(self, path: bytes) -> None:
        """Delete what lower layers have in the directory."""
        directory = self.tree.make(path)
        if directory.path not in self._opaque:
            self.hide_below(directory)

    def made(self, path: bytes) -> None:
        """Nothing to remember: all that is here was made by this layer."""

    def link_source(self, path: bytes, name: bytes) -> Directory:
        """The directory in which a hard link's target `name` is, copied up if it lies below."""
        parent = self.tree.find(path)
        if parent is not None and _exists(parent, name):
            return parent
        real = path + b"/" + name if path else name
        found = None if self._is_whited_out(real) else self._below(real)
        if found is None or stat.S_ISDIR(found[1].st_mode):
            raise NotFound(f"link target {show(real)} does not exist")
        lower_fd, status = found
        try:
            parent = self.tree.make(path)
            self._copy_up(lower_fd, status, parent, name)
        finally:
            os.close(lower_fd)
        return parent

    def _is_whited_out(self, path: bytes) -> bool:
        """Whether this layer has deleted `path` or a directory above it."""
        here = os.dup(self.tree.root.fd)
        try:
            for part in path.split(b"/"):
                if _is_whiteout(os.lstat(part, dir_fd=here)):
                    return True
                child = os.open(part, _DIRECTORY, dir_fd=here)
                os.close(here)
                here = child
        except (FileNotFoundError, NotADirectoryError):
            pass
        finally:
            os.close(here)
        return False

    def finish(self) -> None:
        """Dress the implied directories as they are below. An image's root has attributes too, and
        few layers have an entry for it."""
        for path, (inode, described) in self._implied.items():
            directory = self.tree.at(path)
            # What has taken its place since is not meant.
            if directory is not None and os.fstat(directory.fd).st_ino == inode:
                self._dress_as_below(directory, self._look_below(path), described=described)
        if b"" not in self._times:
            self._dress_as_below(self.tree.root, self._below(b""), described=False)

    def _dress_as_below(
        self,
        directory: Directory,
        found: tuple[int, os.stat_result] | None,
        *,
        described: bool,
    ) -> None:
        """`described`: an entry has said all but the attributes that it did not name."""
        if found is None:
            return
        lower_fd, status = found
        try:
            if not stat.S_ISDIR(status.st_mode):
                return
            fd = os.open(_last(directory.path), _DIRECTORY, dir_fd=lower_fd)
        finally:
            os.close(lower_fd)
        try:
            xattrs = copied_xattrs(fd)
        finally:
            os.close(fd)
        self._budget.xattrs(xattrs)
        if described:
            add_xattrs(directory.fd, xattrs)
            return
        mode = stat.S_IMODE(status.st_mode)
        dress(directory.fd, status.st_uid, status.st_gid, mode, xattrs)
        self._times.set(directory, status.st_atime_ns, status.st_mtime_ns)

    def _below(self, path: bytes) -> tuple[int, os.stat_result] | None:
        """What the layers below show at a real path: descriptor of its parent there, and status.

        None where they show nothing: the caller closes the descriptor otherwise.
        """
        return None if self._is_hidden(path) else self._look_below(path)

    def _look_below(self, path: bytes) -> tuple[int, os.stat_result] | None:
        """`_below` as if this layer hid nothing."""
        if path and path.rpartition(b"/")[0] in self._absent:
            self._absent.add(path)
            return None
        found = self._first_below(path)
        if found is None:
            self._absent.add(path)
        return found

    def _is_hidden(self, path: bytes) -> bool:
        """Whether this layer hides what is below at `path`, there or further up."""
        if self._opaque:
            while path:
                if path in self._opaque:
                    return True
                path = path.rpartition(b"/")[0]
        return path in self._opaque

    def _first_below(self, path: bytes) -> tuple[int, os.stat_result] | None:
        """The nearest lower layer that has the path decides."""
        if not self._waited:
            self._await_lowers()
            self._waited = True
        parts = path.split(b"/") if path else []
        for lower in self._lowers:
            found = _look_up(lower, parts)
            if found is None:
                continue
            parent_fd, status = found
            if status is not None and not _is_whiteout(status):
                return parent_fd, status
            if parent_fd >= 0:
                os.close(parent_fd)
            return None
        return None

    def _copy_up(
        self, lower_fd: int, status: os.stat_result, parent: Directory, name: bytes
    ) -> None:
        mode = stat.S_IMODE(status.st_mode)
        times = (status.st_atime_ns, status.st_mtime_ns)
        if stat.S_ISREG(status.st_mode):
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
            source = os.open(name, flags, dir_fd=lower_fd)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            copy = os.open(name, flags, 0o600, dir_fd=parent.fd)
            try:
                xattrs = copied_xattrs(source)
                self._budget.file(status.st_size)
                self._budget.xattrs(xattrs)
                _copy_bytes(source, copy)
                dress(copy, status.st_uid, status.st_gid, mode, xattrs)
                os.utime(copy, ns=times)
            finally:
                os.close(copy)
                os.close(source)
            return
        if stat.S_ISLNK(status.st_mode):
            target = os.readlink(name, dir_fd=lower_fd)
            self._budget.symlink(target)
            os.symlink(target, name, dir_fd=parent.fd)
        else:
            os.mknod(name, status.st_mode, status.st_rdev, dir_fd=parent.fd)
        os.chown(name, status.st_uid, status.st_gid, dir_fd=parent.fd, follow_symlinks=False)
        xattrs = link_xattrs(lower_fd, name)
        self._budget.xattrs(xattrs)
        set_link_xattrs(parent, name, xattrs)
        if not stat.S_ISLNK(status.st_mode) and mode & (stat.S_ISUID | stat.S_ISGID):
            os.chmod(name, mode, dir_fd=parent.fd)  # chown(2) took these bits away
        os.utime(name, ns=times, dir_fd=parent.fd, follow_symlinks=False)


def _copy_bytes(source: int, target: int) -> None:
    """Let the kernel copy what is left of `source`, or do it: it refuses between file systems, and
    an image of erofs is one."""
    try:
        while os.copy_file_range(source, target, _COPY):
            pass
    except OSError as err:
        if err.errno not in _NOT_BY_KERNEL:
            raise
        while data := os.read(source, _CHUNK):
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(target, rest) :]


def _look_up(lower: int, parts: list[bytes]) -> tuple[int, os.stat_result | None] | None:
    """What one lower layer says about a path: None nothing, status None that there is nothing,
    here or further down. The descriptor is the parent's, and the caller's."""
    here = os.dup(lower)
    hidden = False
    try:
        for part in parts[:-1]:
            hidden = hidden or _is_opaque(here)
            try:
                child = os.open(part, _DIRECTORY, dir_fd=here)
            except FileNotFoundError:
                return (-1, None) if hidden else None
            except OSError:
                return (-1, None)  # a whiteout, a file or a link: it hides what is further down
            os.close(here)
            here = child
        try:
            status = os.lstat(_last(b"/".join(parts)), dir_fd=here)
        except FileNotFoundError:
            return (-1, None) if hidden or _is_opaque(here) else None
        found, here = here, -1
        return found, status
    finally:
        if here >= 0:
            os.close(here)


def _last(path: bytes) -> bytes:
    return path.rpartition(b"/")[2] or b"."


def _exists(parent: Directory, name: bytes) -> bool:
    try:
        status = os.lstat(name, dir_fd=parent.fd)
    except FileNotFoundError:
        return False
    return not _is_whiteout(status)


def _is_whiteout(status: os.stat_result) -> bool:
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def _is_opaque(fd: int) -> bool:
    try:
        return os.getxattr(fd, OPAQUE) == b"y"
    except OSError:
        return False
