"""Job `remap`: give every file of a snapshot to the ids that stand for its owners on the host.

    {job: "remap", mounts: [[type, source, [option]]], uids: [[container, host, size]], gids: …}
    → {entries}

The snapshot is mounted in the worker's own namespace and becomes its root, so that a link in it
leads nowhere else. chown(2) clears setuid bits and file capabilities: both are put back.
"""

import os
import stat
from typing import Any

from lighter.proto.errors import InvalidArgument
from lighter.shim import linux
from lighter.shim.worker import lockin, syscalls
from lighter.shim.worker.channel import Channel
from lighter.shim.worker.failure import typed

_CAPABILITY = "security.capability"
_V2_BYTES, _V3_BYTES, _V3_MAGIC = 20, 24, 0x03000000
_PATH_LIMIT = 4095  # PATH_MAX without its NUL

Ranges = list[tuple[int, int, int]]


def run(job: dict[str, Any], fds: list[int], channel: Channel) -> dict[str, Any]:
    """Do the job; see the module's head. Raises typed errors."""
    uids, gids = _ranges(job, "uids"), _ranges(job, "gids")
    lockin.close_all_but([channel.fileno(), *fds])
    lockin.private_mounts()
    try:
        mounts = [(kind, source, list(options)) for kind, source, options in job["mounts"]]
        linux.mount_all(mounts, lockin.SPARE_DIR)
    except OSError as err:
        raise typed(err, "remap snapshot: mount it") from err
    lockin.pivot(lockin.SPARE_DIR)
    lockin.drop_privileges(
        (
            *(syscalls.CAP_CHOWN, syscalls.CAP_DAC_OVERRIDE, syscalls.CAP_FOWNER),
            *(syscalls.CAP_FSETID, syscalls.CAP_SETFCAP),
        )
    )
    return {"entries": give_away(b"/", uids, gids, channel)}


def give_away(top: bytes, uids: Ranges, gids: Ranges, channel: Channel | None = None) -> int:
    """Change the owners of `top` and of all below it; returns how many entries were seen."""
    given: dict[tuple[int, int], tuple[int, int]] = {}
    waiting = [top]
    count = 0
    while waiting:
        path = waiting.pop()
        if len(path) > _PATH_LIMIT:
            raise InvalidArgument(f"remap snapshot: a path has over {_PATH_LIMIT} bytes")
        try:
            is_directory = _give(path, uids, gids, given)
            if is_directory:
                with os.scandir(path) as entries:
                    waiting += [os.path.join(path, os.fsencode(entry.name)) for entry in entries]
        except OSError as err:
            raise typed(err, f"remap snapshot: {os.fsdecode(path[:256])}") from err
        count += 1
        if channel is not None:
            channel.tick(entries=count)
    return count


def _give(
    path: bytes, uids: Ranges, gids: Ranges, given: dict[tuple[int, int], tuple[int, int]]
) -> bool:
    """Change the owner of one entry; tells whether it is a directory."""
    status = os.lstat(path)
    is_directory = stat.S_ISDIR(status.st_mode)
    owner = (status.st_uid, status.st_gid)
    # A file of several names comes again, on overlayfs perhaps as one of its own by then.
    if given.get((status.st_dev, status.st_ino)) == owner:
        return False
    wanted = (_mapped(owner[0], uids, path, "uid"), _mapped(owner[1], gids, path, "gid"))
    regular = stat.S_ISREG(status.st_mode)
    capability = _capability(path, uids) if regular else b""
    os.chown(path, *wanted, follow_symlinks=False)
    if regular and status.st_mode & (stat.S_ISUID | stat.S_ISGID):
        os.chmod(path, stat.S_IMODE(status.st_mode))
    if capability:
        os.setxattr(path, _CAPABILITY, capability)
    if status.st_nlink > 1 and not is_directory:
        given[status.st_dev, os.lstat(path).st_ino] = wanted
        given[status.st_dev, status.st_ino] = wanted
    return is_directory


def _capability(path: bytes, uids: Ranges) -> bytes:
    """File capabilities as they hold in the user namespace: those of version 2 would be the host's.

    struct vfs_ns_cap_data, linux/capability.h: magic and flags, two pairs of words, root's id.
    """
    try:
        value = os.getxattr(path, _CAPABILITY)
    except OSError:
        return b""
    if len(value) not in (_V2_BYTES, _V3_BYTES):
        return value
    root = int.from_bytes(value[_V2_BYTES:], "little")
    flags = int.from_bytes(value[:4], "little") & 0xFFFFFF
    head = (_V3_MAGIC | flags).to_bytes(4, "little")
    return head + value[4:_V2_BYTES] + _mapped(root, uids, path, "uid").to_bytes(4, "little")


def _mapped(number: int, ranges: Ranges, path: bytes, what: str) -> int:
    for container, host, size in ranges:
        if container <= number < container + size:
            return host + number - container
    raise InvalidArgument(
        f"remap snapshot: {os.fsdecode(path[:256])} belongs to {what} {number}, "
        "which the mapping leaves out"
    )


def _ranges(job: dict[str, Any], key: str) -> Ranges:
    ranges = job.get(key)
    if not isinstance(ranges, list) or not ranges:
        raise InvalidArgument(f"remap snapshot: {key} has no range")
    found = []
    for one in ranges:
        if len(one) != 3 or not all(type(number) is int for number in one):
            raise InvalidArgument(f"remap snapshot: {key} has {one!r}")
        found.append(tuple(one))
    return found
