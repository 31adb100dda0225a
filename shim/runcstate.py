"""What `runc start` and `runc delete` do, without starting runc for it, which takes five
milliseconds each time.

The init of a created container waits in open(2) of a FIFO until somebody reads it; then it writes
one byte and executes its program. What is left of one that has ended is cgroups that are empty and
a directory of one or two files.

It is done here only where it is that simple: another runtime's state, hooks to run, cgroups that
are in use, unknown, or have others below them are left to the runtime, and what an order leaves
to it.
"""

import os
import time

from lighter.proto.errors import DeadlineExceeded, FailedPrecondition
from lighter.shim.cgroup import Cgroup, at_path, remove
from lighter.shim.files import holds, remove_tree
from lighter.shim.loop import READ, Future, Loop

# From runc 1.2 on, the hooks of this kind are run by `runc start`.
NO_HOOK_AT_START = b'"poststart":null'
# In the state of a container for which a delete has no more to do. (A text that somebody chose
# could not look so: its quotes would be escaped.)
NOTHING_MORE = (b'"poststop":null', b'"intel_rdt_path":""')
# libcontainer's state, and the FIFO that `runc start` opens, there until it has.
_FILES = frozenset(("state.json", "exec.fifo"))
EMPTY_S = 5.0  # for processes to end that were killed
_POLL_S = 0.05


async def start(loop: Loop, directory: str, ended: Future, timeout_s: float) -> bool:
    """Let the init of the container with this state `directory` go; False when the runtime has to.

    `ended` is done when init is reaped. Raises FailedPrecondition when it has ended and never went,
    DeadlineExceeded.
    """
    fifo = directory + "/exec.fifo"
    try:
        if not _FILES.issuperset(os.listdir(directory)):
            return False
        if not holds(directory + "/state.json", NO_HOOK_AT_START):
            return False
        fd = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    gone = Future()
    try:
        # Nobody has written yet: epoll waits, and tells of no hang-up before a first writer's.
        loop.watch(fd, READ, lambda _events: gone.set())
        ended.when_done(gone.set)
        await loop.within(gone, timeout_s, "start container process")
        if not _has_byte(fd):
            raise FailedPrecondition("start container process: it has ended already")
    finally:
        loop.unwatch(fd)
        os.close(fd)
    try:
        os.unlink(fifo)
    except OSError:  # it runs; only `runc state` would call it created
        pass
    return True


def _has_byte(fd: int) -> bool:
    try:
        return bool(os.read(fd, 1))
    except BlockingIOError:
        return False


def delete(directory: str, cgroup: Cgroup) -> bool:
    """Remove the state `directory` and the cgroups; False when the runtime has to do it.

    Some of it may be gone then, which the runtime takes as done.
    """
    try:
        names = os.listdir(directory)
        if "state.json" not in names or not _FILES.issuperset(names):
            return False
        if not cgroup.known or not holds(directory + "/state.json", *NOTHING_MORE):
            return False
        if not cgroup.remove():
            return False
        for name in names:
            os.unlink(f"{directory}/{name}")
        os.rmdir(directory)
    except OSError:
        return False
    return True


async def remove_traces(loop: Loop, container_id: str, directory: str, cgroup_path: str) -> None:
    """What a runtime leaves that was ended over its work: processes, cgroups, its state.

    Its state would refuse the next container of this id. Raises DeadlineExceeded.
    """
    until = time.monotonic() + EMPTY_S
    while not remove(cgroup_path):
        if time.monotonic() > until:
            raise DeadlineExceeded(f"end processes of {container_id}: SIGKILL does not end them")
        at_path(cgroup_path).kill_all()
        await loop.pause(_POLL_S)
    remove_tree(directory)
