"""The namespaces of other containers that a new task is to join.

A runtime is told of them by a path with the number of a process, and opens it much later, when that
process may have ended and the number be another's. So they are opened here first, and what has been
created is compared with them before it runs anything.
"""

import errno
import json
import os
from collections.abc import Callable
from dataclasses import replace

from lighter.daemon.errors import from_os
from lighter.daemon.oci.sharing import PROC_NAMES, join
from lighter.daemon.procfs import parent_of
from lighter.daemon.tasks.entry import Entry
from lighter.daemon.types import Container
from lighter.proto.errors import FailedPrecondition


class Joins:
    """Holds the namespaces that one container joins, from `joined` until it is closed."""

    def __init__(self, find_task: Callable[[str, str], Entry]) -> None:
        self._find_task = find_task
        self._open: dict[str, tuple[str, int]] = {}

    def joined(self, container: Container) -> Container:
        """The container with the paths of the namespaces that it joins, of the containers that it
        names as they run now. Raises NotFound, FailedPrecondition for one that does not run.
        """
        joins = container.options.get("joins")
        if not joins:
            return container
        pids = {}
        for kind, other in joins.items():
            entry = self._find_task(container.namespace, other)
            status = entry.view().status
            if status not in ("created", "running", "paused"):
                raise FailedPrecondition(
                    f"join {kind} namespace of container {other}: it is {status}"
                )
            self._open[kind] = other, _opened(entry, kind)
            pids[kind] = entry.pid
        spec = json.loads(container.spec)
        join(spec, pids)
        return replace(container, spec=json.dumps(spec).encode())

    def check(self, pid: int) -> None:
        """That the created init is in them. Raises FailedPrecondition."""
        for kind, (other, fd) in self._open.items():
            try:
                there = os.stat(f"/proc/{pid}/ns/{PROC_NAMES[kind]}")
            except OSError:
                return  # it is dead, which its shim tells
            if not os.path.samestat(there, os.fstat(fd)):
                raise FailedPrecondition(
                    f"join {kind} namespace of container {other}: it ended meanwhile"
                )

    def close(self) -> None:
        for _other, fd in self._open.values():
            os.close(fd)
        self._open.clear()


def _opened(entry: Entry, kind: str) -> int:
    """Open a namespace of a task's init, and make sure that its pid has not been given to another
    process. Raises FailedPrecondition.
    """
    what = f"join {kind} namespace of container {entry.id}: its process is gone"
    try:
        fd = os.open(f"/proc/{entry.pid}/ns/{PROC_NAMES[kind]}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as err:
        if err.errno not in (errno.ENOENT, errno.ESRCH):
            raise from_os(what.partition(":")[0], err) from err
        raise FailedPrecondition(what) from err
    # A shim reaps its container's processes alone: a child of it is none of somebody else's.
    if entry.pidfd < 0 or parent_of(entry.pid) != entry.shim_pid:
        os.close(fd)
        raise FailedPrecondition(what)
    return fd
