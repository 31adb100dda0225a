"""Why a process lives on after SIGKILL, read from the kernel: proc_pid_stat(5), cgroups(7)."""

from collections.abc import Sequence

_FROZEN = (
    ("/sys/fs/cgroup/freezer", "freezer.state", ("FROZEN", "FREEZING")),
    ("/sys/fs/cgroup", "cgroup.freeze", ("1",)),
)


def why_alive(*pids: int) -> str:
    """One clause for a message; "" when none of them lives or nothing is odd about them."""
    reasons = [reason for pid in pids if pid and (reason := _why(pid))]
    return "; ".join(reasons[:3])


def all_alive(pids: Sequence[int]) -> str:
    """The same, where that they live is odd already."""
    shown = ", ".join(map(str, pids[:8]))
    return why_alive(*pids) or f"SIGKILL does not end process {shown}"


def _why(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            head, _, tail = file.read(4096).rpartition(")")
        with open(f"/proc/{pid}/cgroup", encoding="utf-8") as file:
            cgroups = [line.rstrip("\n").split(":", 2) for line in file]
    except OSError:
        return ""
    what = f"process {pid} ({head.partition('(')[2]})"
    frozen = next(filter(None, (_frozen(*fields[1:]) for fields in cgroups)), "")
    if frozen:
        return f"{what} does not end: cgroup {frozen} is frozen"
    if tail.split()[0] == "D":
        return f"{what} does not end: it is in uninterruptible sleep{_wait_channel(pid)}"
    return ""


def _frozen(controllers: str, path: str) -> str:
    """The cgroup at or above this path that is frozen; "" for none."""
    for mount, name, words in _FROZEN:
        if controllers not in ("", "freezer"):
            continue
        at = path.rstrip("/")
        while at:
            if _read(f"{mount}{at}/{name}") in words and _is_self_frozen(mount + at):
                return at
            at = at.rpartition("/")[0]
    return ""


def _is_self_frozen(directory: str) -> bool:
    """v1 shows FROZEN below a frozen cgroup too (cgroup-v1/freezer-subsystem.rst)."""
    return _read(f"{directory}/freezer.self_freezing") in ("", "1")


def _wait_channel(pid: int) -> str:
    name = _read(f"/proc/{pid}/wchan")
    return f" ({name})" if name not in ("", "0") else ""


def _read(path: str) -> str:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read(4096).strip()
    except OSError:
        return ""
