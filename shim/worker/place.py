"""Job `place`: where a path of a snapshot leads, for what is to be mounted there.

    {job: "place", path, mounts: …see contained.py} → {place: path}

As runtimes take a mount's destination: link after link inside the root, what is missing by its
name. The snapshot is its maker's alone, so nothing is swapped meanwhile.
"""

import errno
import os
from typing import Any

from lighter.proto.errors import InvalidArgument
from lighter.shim.worker import contained, lockin
from lighter.shim.worker.channel import Channel
from lighter.shim.worker.failure import show, typed

_MAX_LINKS = 40  # as the kernel's, path_resolution(7)


def real_place(path: bytes) -> bytes:
    """Where `path` leads in this process's root. Raises InvalidArgument, or a typed error.

    What cannot be looked at, as below a path that is too long, is no plain name: it may be a link.
    """
    left, here, links = path.split(b"/")[::-1], b"", 0
    while left:
        part = left.pop()
        if part in (b"", b"."):
            continue
        if part == b"..":
            here = here.rpartition(b"/")[0]
            continue
        try:
            link = os.readlink(here + b"/" + part)
        except OSError as err:
            if err.errno not in (errno.EINVAL, errno.ENOENT, errno.ENOTDIR):
                raise typed(err, f"look at {show(path)}") from err
            here += b"/" + part
            continue
        links += 1
        if links > _MAX_LINKS:
            raise InvalidArgument(f"look at {show(path)}: more than {_MAX_LINKS} links")
        if link.startswith(b"/"):
            here = b""
        left += link.split(b"/")[::-1]
    return here or b"/"


def run(job: dict[str, Any], fds: list[int], channel: Channel) -> dict[str, Any]:
    """Do the job; see the module's head. Raises typed errors."""
    path = contained.check_path(job)
    if fds:
        raise InvalidArgument(f"look at {show(path)}: got {len(fds)} descriptors")
    lockin.close_all_but([channel.fileno()])
    os.close(contained.enter(job, -1))
    return {"place": real_place(path)}
