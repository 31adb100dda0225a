"""Unpacking what came out of a container into a directory of the host, as whoever runs ctl.

A container chose the names. So each part of a path is opened from the directory above it and never
followed, set-user-ID bits are taken off unless the owner is kept too, and devices are left out.
"""

import contextlib
import os
import stat
import tarfile
from collections.abc import Callable, Iterator

from lighter.proto.errors import FailedPrecondition, InvalidArgument, LighterError

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_CHUNK = 1 << 18
_MOST_S = 1 << 62  # of time; a pax header may say any number, and that it is none


class Untar:
    """Writes below the open directory `root`. `owner`: keep uid, gid and all bits of the mode.

    Without `replaces`, a file that is there is an error.
    """

    def __init__(
        self, root: int, *, owner: bool, complain: Callable[[str], None], replaces: bool = True
    ) -> None:
        self._root = root
        self._replaces = replaces
        self._owner = owner
        self._complain = complain
        self._late: list[tuple[list[str], tarfile.TarInfo]] = []

    def run(self, fd: int) -> None:
        """Unpack the tar that `fd` gives. Raises LighterError, OSError."""
        with os.fdopen(os.dup(fd), "rb") as file:
            try:
                # Of no byte at all it says already here that it is no tar.
                with tarfile.open(fileobj=file, mode="r|") as tar:
                    for member in tar:
                        self._member(tar, member)
            except tarfile.TarError as err:
                raise InvalidArgument(f"unpack: {err}") from err
            while file.read(_CHUNK):
                pass  # what follows the end is not ours, and its writer must not be held up
        for parts, member in reversed(self._late):
            with self._parent([*parts, ""]) as fd_of:
                self._dress(fd_of, member)

    def _member(self, tar: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        parts = _parts(member.name)
        if not parts:
            return
        with self._parent(parts) as parent:
            try:
                self._make(tar, member, parent, parts)
            except OSError as err:
                raise FailedPrecondition(f"unpack {member.name!r}: {err.strerror}") from err

    def _make(
        self, tar: tarfile.TarFile, member: tarfile.TarInfo, parent: int, parts: list[str]
    ) -> None:
        name = parts[-1]
        if member.isdir():
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, 0o700, dir_fd=parent)
            if not stat.S_ISDIR(os.lstat(name, dir_fd=parent).st_mode):
                raise FailedPrecondition(f"unpack {member.name!r}: it is there and no directory")
            self._late.append((parts, member))
            return
        if member.isdev() and not member.isfifo():
            self._complain(f"unpack {member.name!r}: it is a device and left out")
            return
        self._clear(parent, name, member)
        if member.isreg():
            content = tar.extractfile(member)
            fd = os.open(name, _CREATE, 0o600, dir_fd=parent)
            try:
                while content is not None and (data := content.read(_CHUNK)):
                    view = memoryview(data)
                    while view:
                        view = view[os.write(fd, view) :]
                self._dress(fd, member)
            finally:
                os.close(fd)
        elif member.issym():
            os.symlink(member.linkname, name, dir_fd=parent)
            if self._owner:
                os.chown(name, member.uid, member.gid, dir_fd=parent, follow_symlinks=False)
        elif member.islnk():
            source = _parts(member.linkname)
            with self._parent(source) as folder:
                os.link(
                    *(source[-1], name),
                    src_dir_fd=folder,
                    dst_dir_fd=parent,
                    follow_symlinks=False,
                )
        elif member.isfifo():
            os.mkfifo(name, member.mode & 0o777, dir_fd=parent)

    def _clear(self, parent: int, name: str, member: tarfile.TarInfo) -> None:
        with contextlib.suppress(FileNotFoundError):
            mode = os.lstat(name, dir_fd=parent).st_mode
            if stat.S_ISDIR(mode):
                raise FailedPrecondition(f"unpack {member.name!r}: a directory is there")
            if not self._replaces:
                raise FailedPrecondition(f"unpack {member.name!r}: it is there already")
            is_plain = stat.S_ISREG(mode) or stat.S_ISLNK(mode)
            if not is_plain and not (stat.S_ISFIFO(mode) and member.isfifo()):
                raise FailedPrecondition(f"unpack {member.name!r}: a special file is there")
            os.unlink(name, dir_fd=parent)

    def _dress(self, fd: int, member: tarfile.TarInfo) -> None:
        if self._owner:
            os.fchown(fd, member.uid, member.gid)
        os.fchmod(fd, member.mode & (0o7777 if self._owner else 0o1777))
        mtime = min(max(member.mtime, -_MOST_S), _MOST_S) if member.mtime == member.mtime else 0
        os.utime(fd, (mtime, mtime))

    @contextlib.contextmanager
    def _parent(self, parts: list[str]) -> Iterator[int]:
        fd = os.dup(self._root)
        try:
            for part in parts[:-1]:
                try:
                    below = os.open(part, _DIRECTORY, dir_fd=fd)
                except FileNotFoundError:
                    os.mkdir(part, 0o755, dir_fd=fd)
                    below = os.open(part, _DIRECTORY, dir_fd=fd)
                os.close(fd)
                fd = below
            yield fd
        except NotADirectoryError as err:
            raise LighterError(f"unpack {'/'.join(parts)!r}: it leads through a link") from err
        finally:
            os.close(fd)


def _parts(name: str) -> list[str]:
    """Raises InvalidArgument for a name that leads out of where it is unpacked."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise InvalidArgument(f"unpack {name!r}: '..' is not allowed")
    return parts
