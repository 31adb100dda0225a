"""Whose processor time it was: every thread of an instance before and after some work.

What lives is read from /proc, exactly (schedstat, in nanoseconds); what ended in between is told
by the kernel (exits.py). Only the kernel's share is counted in ticks, so it is true of many turns
and not of one.
"""

import os
import resource
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from exits import Ended
from measure import titles, until

_TICK_US = 1_000_000 // os.sysconf("SC_CLK_TCK")
_KERNEL = 2  # kthreadd, the parent of the kernel's own threads
QUIET_S = 0.25
_RESTING_NS = 1_000_000

MAIN, PYTHON, ZEROMQ, GRPC = (
    f"lighterd: {which}" for which in ("main thread", "its threads", "ZeroMQ's", "gRPC's")
)
CTL, SPAWNER, WORKER, SHIM = "ctl", "lighter-spawner", "lighter-worker", "lighter-shim"
RUNTIME, CONTAINER = "runtime", "runtime's init, then the container"
HELPER = "lighterd's helpers"
KERNEL = "the kernel's own threads"
_LIVES = (CTL, WORKER, RUNTIME, CONTAINER)  # a shim's begins as a spare one's
PARTS = (CTL, MAIN, PYTHON, ZEROMQ, GRPC, HELPER, SPAWNER, WORKER, SHIM, RUNTIME, CONTAINER, KERNEL)


@dataclass
class Taken:
    """Processor time, how much of it was the kernel's by ticks, and time waited for a processor."""

    cpu_ns: int = 0
    user_us: int = 0
    system_us: int = 0
    waited_ns: int = 0

    def add(self, other: "Taken", sign: int = 1) -> None:
        self.cpu_ns += sign * other.cpu_ns
        self.user_us += sign * other.user_us
        self.system_us += sign * other.system_us
        self.waited_ns += sign * other.waited_ns

    @property
    def kernel_share(self) -> float:
        ticks = self.user_us + self.system_us
        return self.system_us / ticks if ticks else 0.0


@dataclass(frozen=True)
class Thread:
    """A living thread, and the part of the whole that it is of."""

    process: int
    part: str
    taken: Taken


@dataclass
class Snapshot:
    """All threads of an instance by number; what ended children of its processes have taken."""

    threads: dict[int, Thread] = field(default_factory=dict)
    children_ns: dict[int, int] = field(default_factory=dict)
    own_children_ns: int = 0  # of the bench

    def ours(self) -> dict[int, Thread]:
        """Without the kernel's own."""
        return {tid: thread for tid, thread in self.threads.items() if thread.part != KERNEL}

    @property
    def cpu_ns(self) -> int:
        """What the instance has taken, of which what has ended is no part."""
        return sum(thread.taken.cpu_ns for thread in self.ours().values())

    def processes(self) -> dict[int, str]:
        return {tid: thread.part for tid, thread in self.threads.items() if tid == thread.process}


def thread_part(name: str, is_main: bool) -> str:
    """Whose a thread of the manager is."""
    if is_main:
        return MAIN
    if name.startswith("ZMQ"):
        return ZEROMQ
    return PYTHON if name == "lighterd" else GRPC


def child_part(parent: str, name: str) -> str:
    """The part that a process is of, from its parent's and its name."""
    if name.startswith("lighter-"):
        given = (SPAWNER, WORKER)
        return next((part for part in given if name.startswith(part)), SHIM)  # or `lighter-spare`
    if parent == SPAWNER:
        return SHIM
    if parent in (SHIM, RUNTIME, CONTAINER):
        return RUNTIME if name.startswith(("runc", "crun", "exe")) else CONTAINER
    return HELPER


def snapshot(manager: int, instance: str) -> Snapshot:
    """What lives of the instance, the processes in its containers included."""
    found = Snapshot(own_children_ns=_own_children_ns())
    parents, names, children_ns = _processes()
    parts = {manager: MAIN}
    for pid, title in titles().items():
        if f" --instance {instance}" in title and title.startswith("lighter-"):
            parts[pid] = child_part("", title)
    parts |= {pid: KERNEL for pid, parent in parents.items() if _KERNEL in (pid, parent)}
    _spread(parts, ((pid, parent, names[pid]) for pid, parent in parents.items()))
    for pid, part in parts.items():
        for tid, name, taken in _threads(pid):
            mine = thread_part(name, tid == pid) if pid == manager else part
            found.threads[tid] = Thread(pid, mine, taken)
        if part != KERNEL and pid in children_ns:
            found.children_ns[pid] = children_ns[pid]
    return found


def _spread(parts: dict[int, str], born: Iterable[tuple[int, int, str]]) -> None:
    """Give the descendants of those who have a part theirs: of (pid, parent, name)."""
    rest = list(born)
    while True:
        left = []
        for pid, parent, name in rest:
            if pid in parts:
                continue
            if parent in parts:
                parts[pid] = child_part(parts[parent], name)
            else:
                left.append((pid, parent, name))
        if len(left) == len(rest):
            return
        rest = left


def _processes() -> tuple[dict[int, int], dict[int, str], dict[int, int]]:
    """Parent, name, and processor time of ended children, of every process that is no zombie."""
    parents, names, children_ns = {}, {}, {}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with suppress(OSError):
                name, fields = _stat(Path(entry.path, "stat"))
                if fields[0] != "Z":
                    pid = int(entry.name)
                    names[pid], parents[pid] = name, int(fields[1])
                    children_ns[pid] = (int(fields[13]) + int(fields[14])) * _TICK_US * 1000
    return parents, names, children_ns


def _threads(pid: int) -> Iterator[tuple[int, str, Taken]]:
    with suppress(OSError):
        for entry in os.scandir(f"/proc/{pid}/task"):
            with suppress(OSError):
                name, fields = _stat(Path(entry.path, "stat"))
                cpu_ns, waited_ns = map(int, Path(entry.path, "schedstat").read_text().split()[:2])
                user, system = int(fields[11]) * _TICK_US, int(fields[12]) * _TICK_US
                yield int(entry.name), name, Taken(cpu_ns, user, system, waited_ns)


def _stat(file: Path) -> tuple[str, list[str]]:
    """The name, and the fields behind it (proc_pid_stat(5)): the state comes first."""
    text = file.read_text()
    name, _, rest = text.partition("(")[2].rpartition(")")
    return name, rest.split()


def _own_children_ns() -> int:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return round((usage.ru_utime + usage.ru_stime) * 1e9)


def settled(manager: int, instance: str, timeout_s: float = 30) -> Snapshot:
    """Wait until the instance does nothing any more. Raises CommandFailed after `timeout_s`."""
    last = snapshot(manager, instance)

    def rests() -> bool:
        nonlocal last
        before, last = last, snapshot(manager, instance)
        return (
            RUNTIME not in last.processes().values()
            and last.ours().keys() == before.ours().keys()
            and last.cpu_ns - before.cpu_ns < _RESTING_NS
        )

    until(rests, timeout_s, "the instance has come to rest", QUIET_S)
    return last


@dataclass
class Account:
    """What each part took, how long each ended process of it lived, and what ending them took."""

    parts: dict[str, Taken] = field(default_factory=dict)
    lives_us: dict[str, list[int]] = field(default_factory=dict)
    ending_ns: int = 0

    def add(self, other: "Account") -> None:
        for part, taken in other.parts.items():
            self.parts.setdefault(part, Taken()).add(taken)
        for part, lives in other.lives_us.items():
            self.lives_us.setdefault(part, []).extend(lives)
        self.ending_ns += other.ending_ns


def account(before: Snapshot, after: Snapshot, ended: Collection[Ended]) -> Account:
    """What was taken from `before` to `after`, of which the kernel told `ended`."""
    found = Account()
    gone = _add_ended(found, before, after, ended)
    for tid, thread in after.threads.items():
        found.parts.setdefault(thread.part, Taken()).add(thread.taken)
        if tid in before.threads:
            found.parts[thread.part].add(before.threads[tid].taken, -1)
    # The kernel tells of an end before it takes the memory down; a parent hears the whole.
    heard = after.own_children_ns - before.own_children_ns
    heard += sum(ns - before.children_ns.get(pid, 0) for pid, ns in after.children_ns.items())
    left = before.children_ns.keys() - after.children_ns.keys()
    heard -= sum(before.children_ns[pid] for pid in left)
    found.ending_ns = heard - gone
    return found


def _add_ended(found: Account, before: Snapshot, after: Snapshot, ended: Collection[Ended]) -> int:
    """Count those that ended and are the instance's; what whole processes of them had told."""
    parts = before.processes() | after.processes()
    parts |= {one.process: CTL for one in ended if _is_command(one)}
    _spread(parts, ((o.process, o.parent, o.name) for o in ended if o.pid == o.process))
    whole_ns = 0
    for one in ended:
        old = before.threads.get(one.pid)
        part = old.part if old else parts.get(one.process)
        if part is None or part == KERNEL:
            continue
        if part == MAIN and one.pid != one.process:
            part = thread_part(one.name, is_main=False)
        taken = found.parts.setdefault(part, Taken())
        taken.add(Taken(one.cpu_ns, one.user_us, one.system_us, one.waited_ns))
        if old:
            taken.add(old.taken, -1)
        if one.process not in after.processes():
            whole_ns += one.cpu_ns
        # What the runtime starts for a moment is no call of it.
        if (
            not old
            and one.pid == one.process
            and part in _LIVES
            and parts.get(one.parent) != RUNTIME
        ):
            found.lives_us.setdefault(part, []).append(one.life_us)
    return whole_ns


def _is_command(one: Ended) -> bool:
    return one.parent == os.getpid() and one.name == "ctl"
