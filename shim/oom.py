"""What the kernel's OOM killer does to a container.

The counter is the truth: the v1 eventfd also fires when the cgroup is removed, and a process of
the container may have been ended long before its init is (cgroup-v1/memory.rst, cgroup-v2.rst).
"""

import os
from collections.abc import Callable

from lighter.shim.cgroup import Cgroup
from lighter.shim.loop import Loop

# v1 fires before the killer has chosen and counted, v2 when it has counted. On an event only.
AGAIN_S = (0.05, 0.5, 2.0)


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
