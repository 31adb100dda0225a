"""All processes of the machine as /proc shows them, for tests that look at them again and again.

A look at three hundred costs some milliseconds, where psutil takes a fifth of a second.
"""

import contextlib
import functools
import gc
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Process:
    """One at a moment: proc_pid_stat(5), proc_pid_cmdline(5). `title` joins the arguments, without
    the zero bytes that a process leaves behind a title of its own.
    """

    pid: int
    ppid: int
    name: str
    is_zombie: bool
    title: str

    def is_in_cgroup(self, parts: tuple[str, ...]) -> bool:
        """Whether one of `parts` is in the paths of its cgroups; false when it is gone."""
        if not parts:
            return False
        paths = _read(self.pid, "cgroup")
        return any(part in paths for part in parts)

    def root_mount(self) -> str:
        """The line of proc_pid_mountinfo(5) for the root of a process with mounts of its own, ""
        for one that sees ours or is gone: a container's names its snapshot.
        """
        try:
            if os.readlink(f"/proc/{self.pid}/ns/mnt") == _mounts_here():
                return ""
            lines = _read(self.pid, "mountinfo").splitlines()
        except OSError:
            return ""
        return next((line for line in lines if line.split()[4] == "/"), "")


@functools.cache
def _mounts_here() -> str:
    return os.readlink("/proc/self/ns/mnt")


def every_process() -> Iterator[Process]:
    """Those that do not end meanwhile."""
    for entry in os.listdir("/proc"):
        if not entry.isdecimal():
            continue
        pid = int(entry)
        # The name is in parentheses, and may hold some itself.
        name, closed, rest = _read(pid, "stat").partition(" (")[2].rpartition(") ")
        if closed:
            state, ppid = rest.split(maxsplit=2)[:2]
            title = _read(pid, "cmdline").rstrip("\0").replace("\0", " ")
            yield Process(pid, int(ppid), name, state in "ZX", title)


def with_title(start: str) -> list[int]:
    """Pids of those whose title begins so."""
    return [
        process.pid
        for process in every_process()
        if not process.is_zombie and process.title.startswith(start)
    ]


def spawners(instance: str) -> list[int]:
    """Pids of the spawners that serve a manager; a child has its parent's title at first."""
    title = f"lighter-spawner --instance {instance}"
    found = {
        process.pid: process.ppid
        for process in every_process()
        if not process.is_zombie and process.title.startswith(title)
    }
    return [pid for pid, parent in found.items() if parent not in found]


def descriptors(pid: int) -> Iterator[tuple[str, str]]:
    """(number, target) of each descriptor; one that is closed meanwhile is left out."""
    folder = f"/proc/{pid}/fd"
    try:
        numbers = os.listdir(folder)
    except OSError:
        return
    for number in numbers:
        try:
            yield number, os.readlink(f"{folder}/{number}")
        except OSError:
            continue


def own_descriptors() -> set[str]:
    """Numbers of this process's descriptors, without those that only garbage has open: whatever
    test it was of, it is closed at some moment or other.
    """
    gc.collect()
    return set(os.listdir("/proc/self/fd"))


def _read(pid: int, name: str) -> str:
    """The file's text; "" for a process that is gone."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        fd = os.open(f"/proc/{pid}/{name}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.read(fd, 1 << 17).decode(errors="replace")
        finally:
            os.close(fd)
    return ""


def plain_oom_score() -> int:
    """What a process has that nothing protects: 0, or this one's own where that cannot be lowered
    to it (proc_pid_oom_score_adj(5)).
    """
    path = Path("/proc/self/oom_score_adj")
    own = path.read_text()
    try:
        path.write_text("0")
    except PermissionError:
        return int(own)
    path.write_text(own)
    return 0
