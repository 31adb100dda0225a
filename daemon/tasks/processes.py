"""Processes of a container, read from the kernel: no shim is asked, none can hold it up.

Only the host's /proc and cgroup file systems are read, nothing inside the container. But the
arguments lie in the process's own memory, which may be locked for as long as a dead disk does not
answer: who reads them has a thread for it (see looks.py).
"""

import contextlib
import os
import re
import signal

from lighter.daemon.procfs import has_ended, stat_of
from lighter.daemon.spawning.placement import is_place_of_shims
from lighter.daemon.tasks.entry import Entry

MAX_ARGS_BYTES = 4096


def of_task(entry: Entry) -> dict[int, str]:
    """The members of the task's cgroup: pid → id of the exec that it is, "" for none."""
    if entry.exit is not None or not entry.pid:
        return {}
    # Of a copy: the loop goes on adding some while a thread is here.
    known = list(entry.execs.values())
    execs = {exec_.pid: exec_.exec_id for exec_ in known if exec_.exit is None}
    return {pid: execs.get(pid, "") for pid in cgroup_members(entry)}


def described(entry: Entry) -> list[dict[str, object]]:
    """{pid, exec_id, args, container_pid, ppid, uid, state, cpu_s} of each that still is there.

    It may take for ever.
    """
    found: list[dict[str, object]] = []
    try:
        depth = len(_status(entry.pid)["NSpid"].split())
    except (OSError, KeyError):
        return found  # it has ended
    for pid, exec_id in of_task(entry).items():
        with contextlib.suppress(OSError, ValueError, IndexError, KeyError):
            row = {"pid": pid, "exec_id": exec_id, "args": _args(pid)}
            found.append({**row, **_facts(pid, depth)})
    return found


def _status(pid: int) -> dict[str, str]:
    """proc_pid_status(5). Raises OSError for a process that is gone."""
    with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
        lines = file.read(1 << 16).splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


def _facts(pid: int, depth: int) -> dict[str, object]:
    """`depth`: how many pid namespaces the container's init is in, from the host's on.

    proc_pid_stat(5). Raises OSError for a process that is gone.
    """
    status = _status(pid)
    fields = stat_of(pid)
    return {
        "container_pid": int(status["NSpid"].split()[:depth][-1]),
        "ppid": int(status["PPid"]),
        "uid": int(status["Uid"].split()[0]),
        "state": status["State"][:1],
        "cpu_s": (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"),
    }


def cgroup_members(entry: Entry) -> list[int]:
    """All pids in the task's cgroup and below it (v1: the pids controller's, else another)."""
    for _number, controllers, at in sorted(cgroups_of(entry.pid), key=lambda f: f[1] != "pids"):
        path = own_cgroup(entry, at)
        if path == "/":
            continue
        for base in (f"/sys/fs/cgroup/{controllers}", "/sys/fs/cgroup"):
            if os.path.exists(f"{base}{path}/cgroup.procs"):
                return _below(base + path)
    return []


def own_cgroup(entry: Entry, path: str) -> str:
    """The task's own cgroup, of the `path` where its init is now: that may have gone below it.

    Below the place of an outer container the kernel's paths begin with that.
    """
    chosen = str(entry.options.get("cgroup") or "")
    own = chosen or f"/{entry.namespace}/{entry.id}"
    above = "" if chosen else "/lighter/[0-9a-f]{8}"
    found = re.match(f".*?{above}{re.escape(own)}(?=/|$)", path)
    return found[0] if found else path


def in_cgroup(path: str, mount: str = "/sys/fs/cgroup") -> bool:
    """Whether a process is in the cgroup of this path, or below it, in any hierarchy."""
    if not path.startswith("/"):
        return False
    bases = [mount, *(entry.path for entry in os.scandir(mount) if entry.is_dir())]
    return any(_below(base + path) for base in bases)


def cgroups_of(pid: int) -> list[list[str]]:
    """(number, controllers, path) of each hierarchy; controllers are "" on v2 (cgroups(7))."""
    try:
        with open(f"/proc/{pid}/cgroup", encoding="utf-8") as file:
            return [line.rstrip("\n").split(":", 2) for line in file]
    except OSError:
        return []


def _below(directory: str) -> list[int]:
    found: list[int] = []
    for folder, _subdirs, _files in os.walk(directory):
        with contextlib.suppress(OSError):
            with open(folder + "/cgroup.procs", encoding="ascii") as file:
                found += [int(word) for word in file.read().split()]
    return sorted(found)


def _args(pid: int) -> list[str]:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            raw = file.read(MAX_ARGS_BYTES)
    except OSError:
        return []
    return [part.decode(errors="replace") for part in raw.rstrip(b"\0").split(b"\0")]


def end_session(leader: int, instance: str) -> None:
    """SIGKILL to what a dead shim has left in its session: runs of the runtime, which know nothing
    of its end. What runs in a container has a session of its own.

    The shim may be dead for long, and a daemon of somebody else's have led a session by its pid and
    have ended: only who is where shims of this instance are born is ended.
    """
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        with contextlib.suppress(ProcessLookupError):
            if os.getsid(pid) == leader:
                _end_member(pid, leader, instance)


def _end_member(pid: int, leader: int, instance: str) -> None:
    """Raises ProcessLookupError when it is gone."""
    pidfd = os.pidfd_open(pid)
    try:
        # A session's id is not given to a process while the session lasts (credentials(7)): if
        # `leader` names a living process, it is another, with another session.
        if os.getsid(pid) != leader or not has_ended(leader):
            return
        if any(is_place_of_shims(path, instance) for _, _, path in cgroups_of(pid)):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    finally:
        os.close(pidfd)
