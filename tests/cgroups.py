"""A container's cgroups as the host shows them, on v1 and v2."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

MOUNT = Path("/sys/fs/cgroup")
IS_V2 = (MOUNT / "cgroup.controllers").exists()

# In a container: what the JVM and .NET read of the cgroups that are shown there, on v1 and v2, and
# whether they can be changed. /sys/fs/cgroup itself is a tmpfs on v1, and on v2, in the host's
# cgroup namespace, the host's whole tree.
SHOWN_LIMIT = """
    cd /sys/fs/cgroup
    if [ -d memory ]; then cd memory
    elif [ ! -f memory.max ]; then cd ".$(sed -n 's/^0:://p' /proc/self/cgroup)"
    fi
    cat memory.limit_in_bytes memory.max 2>/dev/null
    mkdir x 2>/dev/null && rmdir x && echo changed
    :
"""


def of_process(pid: int, controller: str, *, or_root: bool = False) -> Path:
    """The directory that counts and limits for this process.

    Raises AssertionError for a root, unless that will do.
    """
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _number, controllers, path = line.split(":", 2)
        if IS_V2 if not controllers else controller in controllers.split(","):
            assert or_root or path != "/", f"{pid} is in the root of {controller}"
            return MOUNT / ("" if IS_V2 else controllers) / path.lstrip("/")
    raise AssertionError(f"{pid} has no cgroup of {controller}")


def members(cgroup: Path) -> set[int]:
    """All processes in it and below."""
    return {
        int(word)
        for directory, _, _ in os.walk(cgroup)
        for word in Path(directory, "cgroup.procs").read_text().split()
    }


def is_frozen(pid: int) -> bool:
    """Whether the kernel has stopped all of the process's cgroup."""
    cgroup = of_process(pid, "freezer")
    if IS_V2:
        return "frozen 1" in (cgroup / "cgroup.events").read_text().splitlines()
    return (cgroup / "freezer.state").read_text().strip() == "FROZEN"


def thaw(group: Path) -> None:
    """Let a cgroup run, if there is one and it can be frozen."""
    name, on = ("cgroup.freeze", "0") if IS_V2 else ("freezer.state", "THAWED")
    with suppress(OSError):
        (group / name).write_text(on)


@contextmanager
def thawed_after(pid: int) -> Iterator[None]:
    """What was frozen in the block runs after it: else a test that has failed left it for ever."""
    group = of_process(pid, "freezer")
    try:
        yield
    finally:
        thaw(group)


def limit_memory(pid: int, size_bytes: int) -> None:
    name = "memory.max" if IS_V2 else "memory.limit_in_bytes"
    (of_process(pid, "memory") / name).write_text(str(size_bytes))


def memory_limit(pid: int) -> str:
    name = "memory.max" if IS_V2 else "memory.limit_in_bytes"
    return (of_process(pid, "memory") / name).read_text().strip()


@contextmanager
def without_memory(pid: int, name: str, more_bytes: int = 4096) -> Iterator[Path]:
    """A process in a cgroup of its own, where it gets so much more than it has, and then no page.

    The cgroup is removed; what still lives there is out of it then.
    """
    group = MOUNT / ("" if IS_V2 else "memory") / name
    group.mkdir()
    try:
        (group / ("memory.max" if IS_V2 else "memory.limit_in_bytes")).write_text(str(more_bytes))
        with suppress(OSError):  # a kernel without swap has no file for it
            (group / ("memory.swap.max" if IS_V2 else "memory.swappiness")).write_text("0")
        (group / "cgroup.procs").write_text(str(pid))
        yield group
    finally:
        for member in members(group):
            (group.parent / "cgroup.procs").write_text(str(member))
        group.rmdir()


@contextmanager
def throttled(pids: Sequence[int], name: str, share: float) -> Iterator[Callable[[], int]]:
    """Processes, and those that they make, share so much of one processor while the block runs.

    Yields a function that tells how many times they had to wait for it. The cgroup is removed; what
    was born there goes where the last of `pids` was.
    """
    top = MOUNT if IS_V2 else MOUNT / "cpu"
    group = top / name
    homes = {pid: of_process(pid, "cpu", or_root=True) for pid in pids}
    group.mkdir()

    def times() -> int:
        rows = dict(row.split() for row in (group / "cpu.stat").read_text().splitlines())
        return int(rows["nr_throttled"])

    try:
        period_us = 100_000
        quota_us = int(period_us * share)
        if IS_V2:
            (group / "cpu.max").write_text(f"{quota_us} {period_us}")
        else:
            (group / "cpu.cfs_period_us").write_text(str(period_us))
            (group / "cpu.cfs_quota_us").write_text(str(quota_us))
        for pid in homes:
            (group / "cgroup.procs").write_text(str(pid))
        yield times
    finally:
        while left := members(group):
            for pid in left:
                with suppress(OSError):  # it has ended
                    home = homes.get(pid, homes[pids[-1]])
                    (home / "cgroup.procs").write_text(str(pid))
        group.rmdir()


def oom_kills(group: Path) -> int:
    """Processes that the OOM killer has ended there."""
    name = "memory.events" if IS_V2 else "memory.oom_control"
    rows = dict(row.split() for row in (group / name).read_text().splitlines())
    return int(rows["oom_kill"])
