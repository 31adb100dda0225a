"""The kernel's wait before a process can be moved between cgroups, had while the runtime starts.

Every write to cgroup.procs takes one lock of the whole kernel for writing
(cgroup_threadgroup_rwsem, kernel/cgroup/cgroup.c). Its first writer after a pause waits for an RCU
grace period, 8 to 12 ms on an idle host; who follows within about the same time waits for nothing
(kernel/rcu/sync.c). A runtime moves its child on every create and exec, milliseconds after it was
started. So a thread here takes the lock when such a request arrives, by a move that moves nothing:
the manager's process into the cgroup that it is in. The wait and the runtime's start then pass
side by side. Where cgroups are mounted with favordynmods nobody waits, and nothing is lost.
"""

import logging
import os
import threading

from lighter.daemon.spawning.placement import MOUNT

log = logging.getLogger("lighter.tasks")

_OWN = "/proc/self/cgroup"
_OWN_BYTES = 64 * 1024


class CgroupLock:
    """Takes the lock ahead of a runtime. One thread, made at the first call, that ends with us.

    `mount` is where cgroups are, `own` what cgroups(7) describes as /proc/<pid>/cgroup.
    """

    def __init__(self, mount: str = MOUNT, own: str = _OWN) -> None:
        self._mount = mount
        self._own = own
        self._asked = threading.Event()
        self._thread: threading.Thread | None = None

    def take_soon(self) -> None:
        """Returns at once. Calls while the thread is at it are one."""
        if self._thread is None:
            thread = threading.Thread(target=self._take, name="cgroup-lock", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # there is no thread more: runtimes wait for themselves
                return
            self._thread = thread
        self._asked.set()

    def _take(self) -> None:
        while True:
            self._asked.wait()
            self._asked.clear()
            try:
                self.take()
            except OSError as error:
                # A host without cgroups, or not ours to write: runtimes wait for themselves.
                log.debug("take the cgroup lock: %s", error)

    def take(self) -> None:
        """Wait for the lock and leave it. Raises OSError.

        Where we are is looked up each time: who moved the manager does not want it moved back.
        """
        with open(self._own, encoding="ascii", errors="surrogateescape") as file:
            path = procs_file(file.read(_OWN_BYTES), self._mount)
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(descriptor, b"0")  # whoever writes, with all of its threads
        finally:
            os.close(descriptor)


def procs_file(own: str, mount: str) -> str:
    """The cgroup.procs of one cgroup that a process is in; any hierarchy has the same lock.

    Raises FileNotFoundError.
    """
    for line in own.splitlines():
        _number, controllers, path = line.split(":", 2)
        names = (controllers.removeprefix("name="),) if controllers else ("", "unified")
        for name in names:
            found = os.path.normpath(f"{mount}/{name}/{path}/cgroup.procs")
            if found.startswith(mount + "/") and os.path.exists(found):
                return found
    raise FileNotFoundError(f"no cgroup of this process is below {mount}")
