"""Job `read`: a few small files out of a snapshot, before there is a container (SEC-39).

    {job: "read", mounts: [[type, source, [option]]], paths: [path], stat: [path], max_bytes} +
    [memfd, optional] → {files: {path: bytes | nil}, stat: {path: [mode, uid, gid, size] | nil}}

With a descriptor the map {files, stat} is written there as msgpack, and the answer is {size_bytes}
of it: a packet is limited. nil is a file that does not exist. The snapshot is mounted read-only in
the worker's own namespace and becomes its root, so a link in it leads nowhere else.
"""

import os
import stat
from typing import Any

import msgpack

from lighter.proto.errors import InvalidArgument, ResourceExhausted
from lighter.shim import linux
from lighter.shim.worker import lockin, syscalls
from lighter.shim.worker.channel import Channel
from lighter.shim.worker.failure import typed

DEFAULT_MAX_BYTES = 10 << 20
_CHUNK = 1 << 20
_RESOLVE = linux.RESOLVE_IN_ROOT | linux.RESOLVE_NO_MAGICLINKS
_READ_ONLY = ["ro", "nosuid", "nodev", "noexec"]
_PATH_LIMIT = 4096
_MAX_LOWERS = 500  # OVL_MAX_STACK in fs/overlayfs


def read_file(root_fd: int, path: str, max_bytes: int) -> bytes | None:
    """The content of a regular file below `root_fd`, links resolved in there; None: no such file.

    Raises InvalidArgument for anything that is not a regular file, ResourceExhausted when it is
    larger than `max_bytes`. It never waits: a FIFO is opened without its writer.
    """
    try:
        if _status(root_fd, path) is None:
            return None
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY
        fd = linux.openat2(root_fd, path, flags, _RESOLVE)
    except OSError as err:
        raise typed(err, f"read {path} from the snapshot") from err
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise InvalidArgument(f"read {path} from the snapshot: it is not a regular file")
        found = bytearray()
        while len(found) <= max_bytes:
            chunk = os.read(fd, min(_CHUNK, max_bytes + 1 - len(found)))
            if not chunk:
                return bytes(found)
            found += chunk
    finally:
        os.close(fd)
    raise ResourceExhausted(f"read {path} from the snapshot: it has more than {max_bytes} bytes")


def stat_file(root_fd: int, path: str) -> tuple[int, int, int, int] | None:
    """(mode, uid, gid, size) of what `path` leads to, None if it leads to nothing."""
    try:
        status = _status(root_fd, path)
    except OSError as err:
        raise typed(err, f"look up {path} in the snapshot") from err
    if status is None:
        return None
    return status.st_mode, status.st_uid, status.st_gid, status.st_size


def _status(root_fd: int, path: str) -> os.stat_result | None:
    """Looked at without being opened: opening a device or a FIFO may already do something."""
    try:
        fd = linux.openat2(root_fd, path, os.O_PATH, _RESOLVE)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        return os.fstat(fd)
    finally:
        os.close(fd)


def read_only(
    mounts: list[Any], target: str = lockin.SPARE_DIR
) -> tuple[str, list[tuple[str, str, list[str]]]]:
    """The snapshot's mounts as they are mounted for reading, and the directory to do it from.

    An overlay's upper directory becomes its nearest lower one: a second overlay with the same
    workdir would clear it under a running container. Layers are named relative to their common
    directory when the text would not fit into one page of mount data. Where that makes one layer
    more than an overlay takes, the upper directory gets an overlay of its own upon the others',
    which is mounted at `target` before.
    """
    directory, result = "/", []
    for fstype, source, options in mounts:
        if fstype != "overlay":
            result.append((fstype, source, _for_reading(options)))
            continue
        layers, others = _layers(options)
        directory = _common(layers)
        stacks = [layers]
        if len(layers) > _MAX_LOWERS:
            stacks = [layers[1:], [layers[0], target]]
        for stack in stacks:
            names = [os.path.relpath(layer, directory) for layer in stack]
            lowers = ":".join(names if directory != "/" else stack)
            result.append((fstype, source, _for_reading([*others, f"lowerdir={lowers}"])))
    return directory, result


def _for_reading(options: list[str]) -> list[str]:
    return [*(option for option in options if option != "rw"), *_READ_ONLY]


def _layers(options: list[str]) -> tuple[list[str], list[str]]:
    """An overlay's layers, nearest first, and its other options but workdir."""
    layers: list[str] = []
    others: list[str] = []
    for option in options:
        key, _, value = option.partition("=")
        if key == "lowerdir":
            layers += value.split(":")
        elif key == "upperdir":
            layers.insert(0, value)
        elif key != "workdir":
            others.append(option)
    return layers, others


def _common(layers: list[str]) -> str:
    if sum(len(layer) + 1 for layer in layers) <= linux.MAX_MOUNT_DATA // 2:
        return "/"
    return os.path.commonpath(layers)


def run(job: dict[str, Any], fds: list[int], channel: Channel) -> dict[str, Any]:
    """Do the job; see the module's head. Raises typed errors."""
    if len(fds) > 1:
        raise InvalidArgument(f"read snapshot: expected at most one descriptor, got {len(fds)}")
    paths, looked_up = _paths(job, "paths"), _paths(job, "stat")
    max_bytes = job.get("max_bytes") or DEFAULT_MAX_BYTES
    lockin.close_all_but([channel.fileno(), *fds])
    root_fd = _enter(job.get("mounts") or [])
    result: dict[str, Any] = {
        "files": {path: read_file(root_fd, path, max_bytes) for path in paths},
        "stat": {path: stat_file(root_fd, path) for path in looked_up},
    }
    if not fds:
        return result
    return {"size_bytes": _write(fds[0], msgpack.packb(result))}


def _paths(job: dict[str, Any], key: str) -> list[str]:
    paths = job.get(key) or []
    for path in paths:
        if not isinstance(path, str) or not path or "\0" in path or len(path) > _PATH_LIMIT:
            raise InvalidArgument(f"read snapshot: {path!r} is not a path")
    return list(paths)


def _enter(mounts: list[Any]) -> int:
    """Mount the snapshot and make it the root; returns the descriptor of it."""
    if not mounts:
        raise InvalidArgument("read snapshot: there is no mount")
    lockin.private_mounts()
    directory, prepared = read_only(mounts)
    try:
        os.chdir(directory)
        linux.mount_all(prepared, lockin.SPARE_DIR)
    except OSError as err:
        raise typed(err, "read snapshot: mount it") from err
    lockin.pivot(lockin.SPARE_DIR)
    lockin.drop_privileges((syscalls.CAP_DAC_OVERRIDE,))
    return os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


def _write(fd: int, packed: bytes) -> int:
    try:
        rest = memoryview(packed)
        while rest:
            rest = rest[os.write(fd, rest) :]
    except OSError as err:
        raise typed(err, "read snapshot: write result") from err
    return len(packed)
