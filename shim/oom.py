"""What the kernel's OOM killer does to a container.

The counter is the truth: the v1 eventfd also fires when the cgroup is removed, and a process of
the container may have been ended long before its init is (cgroup-v1/memory.rst, cgroup-v2.rst).
Once the cgroup has gone there is no counter, and the kernel's log is asked (printk's /dev/kmsg,
Documentation/ABI/testing/dev-kmsg).
"""

import os
import time
from collections.abc import Callable

from lighter.shim.cgroup import Cgroup
from lighter.shim.loop import Loop

# v1 fires before the killer has chosen and counted, v2 when it has counted. On an event only.
AGAIN_S = (0.05, 0.5, 2.0)
_KMSG = "/dev/kmsg"
_KMSG_BYTES = 8192  # no record is longer; a shorter read fails
_KMSG_RECORDS = 100_000  # more than the largest buffer of the kernel's holds
_CLOCKS_S = 0.5  # by which printk's clock may be before ours: both begin at the boot


class OomWatch:
    """Calls `on_kill` when the counter has grown since the watch began or since the last call."""

    __slots__ = ("_before", "_began_s", "_fd", "_group", "_loop", "_on_kill", "_seen")

    def __init__(self, loop: Loop, group: Cgroup, on_kill: Callable[[], None]) -> None:
        self._loop = loop
        self._group = group
        self._on_kill = on_kill
        # Of printk's kind: neither is set or slewed, and both stand still in a suspend.
        self._began_s = time.clock_gettime(time.CLOCK_MONOTONIC_RAW)
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

    def look_back(self, init: int) -> None:
        """`look` for the last time, once the container's init has ended.

        systemd removes the cgroup of a scope as soon as nobody lives there, which on a busy host
        is before its shim has run: nothing but the kernel's log knows the killer's victims then.
        """
        self.look()
        gone = "" if self.killed else self._group.gone()
        if gone and is_logged(gone, init, int((self._began_s - _CLOCKS_S) * 1e6)):
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


def is_logged(group: str, pid: int, since_us: int, path: str = _KMSG) -> bool:
    """Whether the kernel's log has a victim of the OOM killer in this cgroup, or this process.

    The cgroup's record names it and is left out when many are written at once; the process's own
    never is. Times are microseconds of CLOCK_MONOTONIC_RAW: names and pids are given anew.
    False where the log may not be read, or the names are those of other namespaces.
    """
    inside = b",task_memcg=" + group.encode()
    inside_or_below = inside + b",", inside + b"/"
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
            head, _, text = record.partition(b";")
            level, _number, at_us = head.split(b",")[:3]
            if int(level) >= 8 or int(at_us) < since_us:
                continue
            if victim in text or any(word in text for word in inside_or_below):
                return True
    except (OSError, ValueError):
        pass  # EAGAIN at its end; or no log
    finally:
        os.close(fd)
    return False
