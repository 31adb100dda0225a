"""What the kernel's OOM killer does to a container.

The counter is the truth: the v1 eventfd also fires when the cgroup is removed, and a process of
the container may have been ended long before its init is (cgroup-v1/memory.rst, cgroup-v2.rst).
Once the cgroup has gone there is no counter, and the kernel's log is asked (printk's /dev/kmsg,
Documentation/ABI/testing/dev-kmsg).
"""

import os
from collections.abc import Callable

from lighter.shim.cgroup import Cgroup
from lighter.shim.loop import Loop

# v1 fires before the killer has chosen and counted, v2 when it has counted. On an event only.
AGAIN_S = (0.05, 0.5, 2.0)
_KMSG = "/dev/kmsg"
_KMSG_BYTES = 8192  # no record is longer; a shorter read fails
_KMSG_RECORDS = 100_000  # more than the largest buffer of the kernel's holds


class OomWatch:
    """Calls `on_kill` when the counter has grown since the watch began or since the last call."""

    __slots__ = ("_before", "_fd", "_group", "_loop", "_on_kill", "_seen")

    def __init__(self, loop: Loop, group: Cgroup, on_kill: Callable[[], None]) -> None:
        self._loop = loop
        self._group = group
        self._on_kill = on_kill
        self._before = self._seen = group.oom_kills()
        self._fd, events = group.watch_oom()
        if self._fd >= 0:
            loop.watch(self._fd, events, self._on_event)

    @property
    def killed(self) -> bool:
        """Whether the OOM killer has ended a process here."""
        return self._seen > self._before

    def look(self) -> None:
        """Count now. The cgroup must be there still: before its container is deleted."""
        kills = self._group.oom_kills()
        if kills > self._seen:
            self._seen = kills
            self._on_kill()

    def look_back(self, pid: int) -> None:
        """`look` for a process that SIGKILL has ended.

        systemd removes the cgroup of a scope as soon as nobody lives there, which on a busy host
        is before its shim has run: nothing but the kernel's log knows the killer's victims then.
        """
        self.look()
        if not self.killed and self._group.has_gone() and is_logged(pid):
            self._seen += 1
            self._on_kill()

    def close(self) -> None:
        if self._fd >= 0:
            self._loop.unwatch(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _on_event(self, _events: int) -> None:
        try:
            os.read(self._fd, 4096)
            os.lseek(self._fd, 0, os.SEEK_SET)  # memory.events; an eventfd does not seek
        except OSError:
            pass
        self.look()
        if not self._group.v2:
            for delay_s in AGAIN_S:
                self._loop.call_later(delay_s, self.look)


def is_logged(pid: int, path: str = _KMSG) -> bool:
    """Whether the kernel's log has this process among those that the OOM killer ended.

    False where the log may not be read, or counts processes of another pid namespace. A pid that
    was given anew since an older record is not told from the one before.
    """
    victim = b"Killed process %d (" % pid
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        for _ in range(_KMSG_RECORDS):
            try:
                record = os.read(fd, _KMSG_BYTES)
            except BrokenPipeError:
                continue  # records were overwritten; the next read is of the oldest that is left
            # "level and facility,number,time,flags;text": a facility but 0 is not the kernel.
            head, _, text = record.partition(b",")
            if not record or (head.isdigit() and int(head) < 8 and victim in text):
                return bool(record)
    except OSError:
        pass  # EAGAIN at its end
    finally:
        os.close(fd)
    return False
