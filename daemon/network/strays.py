"""Plugins that a dead manager, or another plugin's end, has left running: found and ended.

By the token that only they have in their environment. The kernel gives a process's environment out
under the lock of its memory, and one that waits for a dead disk may hold that for ever: so this is
a thread's work that has a deadline, and a process that does not answer is passed over.
"""

import logging
import os
import signal
from collections.abc import Iterable

from lighter.daemon.looks import Looks
from lighter.proto.errors import DeadlineExceeded, ResourceExhausted

log = logging.getLogger("lighter.network")

TOKEN = "LIGHTER_ATTACHMENT"  # noqa: S105 (a variable's name)
LOOK_S = 2.0
_MAX_ENVIRON_BYTES = 1 << 18


class Strays:
    """Remembers which processes do not answer: each is waited for once."""

    def __init__(self, look_s: float = LOOK_S) -> None:
        self._looks = Looks(look_s, who="a process")
        self._left_behind: list[_Sweep] = []

    async def end(self, tokens: Iterable[str]) -> list[int]:
        """Kill what carries one of these; returns their pids."""
        marks = {f"{TOKEN}={token}".encode() for token in tokens if token}
        found: list[int] = []
        if not marks:
            return found
        self._left_behind = [sweep for sweep in self._left_behind if not sweep.is_over]
        silent = {sweep.pid for sweep in self._left_behind}
        pids = [int(name) for name in os.listdir("/proc") if name.isdecimal()]
        todo = [pid for pid in pids if pid not in silent]
        while todo:
            sweep = _Sweep(marks, todo, found)
            try:
                await self._looks.at("look for plugins that were left", sweep.run)
            except DeadlineExceeded as err:
                sweep.given_up = True
                self._left_behind.append(sweep)
                log.warning("pass over process %d: %s", sweep.pid, err)
            except ResourceExhausted as err:
                log.warning("%s", err)
                break
            todo = sweep.todo[:]
        return found


class _Sweep:
    """One thread's way through `todo`. Given up, it ends behind the process that it is at."""

    def __init__(self, marks: set[bytes], todo: list[int], found: list[int]) -> None:
        self.marks = marks
        self.todo = todo
        self.found = found
        self.pid = 0
        self.given_up = False
        self.is_over = False

    def run(self) -> None:
        try:
            ours = os.readlink("/proc/self/ns/pid")
            while self.todo and not self.given_up:
                self.pid = self.todo.pop()
                try:
                    pidfd = os.pidfd_open(self.pid)
                except OSError:
                    continue
                try:
                    if _may_be_plugin(self.pid, ours) and self._is_marked():
                        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                        self.found.append(self.pid)
                except OSError:
                    continue
                finally:
                    os.close(pidfd)
        finally:
            self.is_over = True

    def _is_marked(self) -> bool:
        with open(f"/proc/{self.pid}/environ", "rb") as file:
            return not self.marks.isdisjoint(file.read(_MAX_ENVIRON_BYTES).split(b"\0"))


def _may_be_plugin(pid: int, our_namespace: str) -> bool:
    """Whether it is a process of our user in our pid namespace, and no container's; this look does
    not wait for its memory. Raises OSError for one that is gone.
    """
    if os.readlink(f"/proc/{pid}/ns/pid") != our_namespace:
        return False
    with open(f"/proc/{pid}/status", "rb") as file:
        uids = file.read(4096).partition(b"\nUid:")[2].partition(b"\n")[0].split()
    return str(os.geteuid()).encode() in uids
