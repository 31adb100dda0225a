"""The jobs that image services hand to a worker: a process of its own, locked in, for one job.

The worker reads hostile bytes so that the manager does not. The jobs, their fields and answers
stand at the head of the modules of lighter.shim.worker: import (archive.py), apply, read
(readfiles.py), remove.
"""

import os
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol

import msgpack

from lighter.daemon.snapshots.types import TreeRemover
from lighter.daemon.types import Mount
from lighter.proto.errors import FailedPrecondition, Internal, ResourceExhausted

MAX_FILE_BYTES = 10 << 20


class Worker(Protocol):
    """Runs one job at a time in a process forked for it; cancelling the call ends the process."""

    async def run(
        self,
        job: dict[str, Any],
        fds: Sequence[int],
        progress: Callable[[dict[str, Any]], None] | None = None,
    ) -> dict[str, Any]:
        """Send the job with its descriptors (which stay the caller's); return its answer.

        Raises the LighterError that the worker answered, or one that says how it ended.
        """


async def naming_place(path: str, work: Coroutine[Any, Any, dict[str, Any]]) -> dict[str, Any]:
    """The worker's answer; that there is no room is told with the path, which it does not know."""
    try:
        return await work
    except ResourceExhausted as err:
        if not path:
            raise
        raise ResourceExhausted(f"{err.message}: {path}", **err.details) from err


def tree_remover(worker: Worker) -> TreeRemover:
    """How snapshotters delete directories: job `remove`; what stays is an error."""

    async def remove(path: str) -> None:
        result = await worker.run({"job": "remove", "dir": path}, ())
        if result["left_count"]:
            name, cause = result["left"][0]
            raise FailedPrecondition(
                f"remove {path}: {result['left_count']} entries stay, the first is {name}: {cause}"
            )

    return remove


async def read_files(
    worker: Worker,
    mounts: Sequence[Mount],
    paths: Sequence[str],
    max_bytes: int = MAX_FILE_BYTES,
) -> dict[str, bytes | None]:
    """Regular files of a snapshot, by absolute path inside it; None where there is none.

    Raises InvalidArgument for what is no regular file, ResourceExhausted above `max_bytes` each.
    """
    job = {
        "job": "read",
        "mounts": [[mount.type, mount.source, list(mount.options)] for mount in mounts],
        "paths": list(paths),
        "max_bytes": max_bytes,
    }
    fd = os.memfd_create("lighter-read", os.MFD_CLOEXEC)
    try:
        result = await worker.run(job, [fd])
        size_bytes = int(result["size_bytes"])
        packed = os.pread(fd, size_bytes, 0)
    finally:
        os.close(fd)
    if len(packed) != size_bytes:
        raise Internal(f"read snapshot: {len(packed)} of {size_bytes} bytes came back")
    files: dict[str, bytes | None] = msgpack.unpackb(packed, max_ext_len=0)["files"]
    return files
