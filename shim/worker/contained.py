"""The files of one container as the whole world of a worker: how jobs enter them.

Of a container that lives it is the container's own mount namespace, with its volumes and tmpfs; of
one that does not, its snapshot and the binds of its spec, mounted here alone. Either way the
container's root is the worker's from then on, its capabilities are few and it runs no program. So a
container that swaps its directories for links while they are read or written leads nowhere but
to other files of its own.

    mounts: [[type, source, [option]]], binds: [[source, destination, ro]], writable: bool
    + the mount namespace's descriptor, in place of both
"""

import errno
import os
import stat
from typing import Any

from lighter.proto.errors import Aborted, InvalidArgument
from lighter.shim import linux
from lighter.shim.worker import lockin, syscalls
from lighter.shim.worker.failure import typed
from lighter.shim.worker.readfiles import read_only

# Below it the tree is built; not lockin's /proc, through which descriptors are named here.
_PLACE = "/sys"
# Not for copying: the tree is built over /sys, so that a source there would be a path of the
# container's own; and what /proc has are no files, and its links lead out of every tree.
_HIDDEN = ("/proc", "/sys")
RESOLVE = linux.RESOLVE_IN_ROOT | linux.RESOLVE_NO_MAGICLINKS
READING = (syscalls.CAP_DAC_OVERRIDE,)
WRITING = (
    syscalls.CAP_CHOWN,
    syscalls.CAP_DAC_OVERRIDE,
    syscalls.CAP_FOWNER,
    syscalls.CAP_FSETID,
    syscalls.CAP_SETFCAP,
)
_TRIES = 100  # openat2(2): EAGAIN when something was renamed on the way


def enter(job: dict[str, Any], namespace_fd: int) -> int:
    """Make the container's root this process's; returns a descriptor of it (O_RDONLY).

    `namespace_fd` is -1 for a container that does not live. Other descriptors are the caller's to
    close before. Raises typed errors.
    """
    writable = bool(job.get("writable"))
    if namespace_fd >= 0:
        try:
            linux.setns(namespace_fd, linux.CLONE_NEWNS)
        except OSError as err:
            raise typed(err, "enter container's mount namespace") from err
        os.close(namespace_fd)
    else:
        _build(job.get("mounts") or [], job.get("binds") or [], writable=writable)
    lockin.drop_privileges(WRITING if writable else READING)
    return os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def _build(mounts: list[Any], binds: list[Any], *, writable: bool) -> None:
    if not mounts:
        raise InvalidArgument("enter container: it has no root file system of ours")
    lockin.private_mounts()
    directory, prepared = ("/", _to_write(mounts)) if writable else read_only(mounts, _PLACE)
    binds = [bind for bind in binds if not _is_hidden(os.path.realpath(bind[0]))]
    try:
        os.chdir(directory)
        linux.mount_all(prepared, _PLACE)
        os.chdir("/")
        root_fd = os.open(_PLACE, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        for source, destination, is_read_only in binds:
            if writable:
                _make_place(root_fd, source, os.fsencode(destination))
            _bind(root_fd, source, destination, is_read_only=is_read_only or not writable)
        os.close(root_fd)
    except OSError as err:
        raise typed(err, "enter container: mount its files") from err
    lockin.pivot(_PLACE)


def _is_hidden(source: str) -> bool:
    return any(f"{source}/".startswith(f"{one}/") for one in _HIDDEN)


def _to_write(mounts: list[Any]) -> list[tuple[str, str, list[str]]]:
    return [(fstype, source, [*options, "nosuid", "nodev"]) for fstype, source, options in mounts]


def _make_place(root_fd: int, source: str, destination: bytes) -> None:
    """Make what a bind is mounted on, as the runtime will: what is written there is the volume's.

    Links are followed as the container sees them; one that leads nowhere gets nothing.
    """
    parts = [part for part in destination.split(b"/") if part]
    for number, name in enumerate(parts, start=1):
        path = b"/" + b"/".join(parts[:number])
        try:
            os.close(find(root_fd, path, os.O_PATH))
            continue
        except FileNotFoundError:
            pass
        except NotADirectoryError:
            return
        parent = find(root_fd, os.path.dirname(path), os.O_PATH | os.O_DIRECTORY)
        try:
            if number < len(parts) or os.path.isdir(source):
                os.mkdir(name, 0o755, dir_fd=parent)
            else:
                os.mknod(name, 0o644 | stat.S_IFREG, dir_fd=parent)
        except FileExistsError:
            return
        finally:
            os.close(parent)


def _bind(root_fd: int, source: str, destination: str, *, is_read_only: bool) -> None:
    """One bind, on the place that the container's own links lead to; none where nothing is yet."""
    try:
        place = find(root_fd, os.fsencode(destination), os.O_PATH)
    except (FileNotFoundError, NotADirectoryError):
        return
    linux.mount(source, f"/proc/self/fd/{place}", "", linux.MS_BIND | linux.MS_REC)
    os.close(place)
    if is_read_only:
        on_top = find(root_fd, os.fsencode(destination), os.O_PATH)
        flags = linux.MS_BIND | linux.MS_REMOUNT | linux.MS_RDONLY
        linux.mount("", f"/proc/self/fd/{on_top}", "", flags)
        os.close(on_top)


def find(root_fd: int, path: bytes, flags: int) -> int:
    """Open `path` as the container sees it. Raises OSError, or Aborted when that changes."""
    for _ in range(_TRIES):
        try:
            return linux.openat2(root_fd, path, flags, RESOLVE)
        except OSError as err:
            if err.errno != errno.EAGAIN:
                raise
    raise Aborted(f"open {os.fsdecode(path)[:256]!a}: it is renamed all the time")


def check_path(job: dict[str, Any]) -> bytes:
    """The job's path, absolute, as bytes. Raises InvalidArgument."""
    path = job.get("path")
    if not isinstance(path, bytes) or b"\0" in path or len(path) > 4096:
        raise InvalidArgument("enter container: the path is none")
    return path if path.startswith(b"/") else b"/" + path
