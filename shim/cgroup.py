"""The container's cgroup: who is in it, ending all of them, freezing, and what OOM did.

Paths come from /proc/<init>/cgroup after the runtime placed init, never from names, so they are
right on cgroup v1, v2 and the hybrid of both. Kernel: Documentation/admin-guide/cgroup-v2.rst,
cgroup-v1/memory.rst, cgroup-v1/freezer-subsystem.rst.
"""

import os
import signal
import time

from lighter.shim.files import read_text
from lighter.shim.loop import PRIORITY, READ

_ROUNDS = 100  # of moving, or ending, what a process forks while that is done
_MOUNT = "/sys/fs/cgroup"


class Cgroup:
    """`v2` is the unified directory or ""; `v1` maps a controller to its directory.

    `beside` is the directory that a hybrid layout has on the unified tree, which rules nothing.
    """

    __slots__ = ("beside", "v1", "v2")

    def __init__(self, v1: dict[str, str], v2: str, beside: str = "") -> None:
        self.v1 = v1
        self.v2 = v2
        self.beside = beside

    @property
    def known(self) -> bool:
        """Whether it is anywhere."""
        return bool(self.v1 or self.v2)

    def pids(self) -> list[int]:
        """All processes, those of nested cgroups too.

        One of a pid namespace that is not ours is shown as 0, which names our own group to kill(2).
        """
        top = self.v2 or self.v1.get("pids") or self.v1.get("memory") or self.v1.get("freezer")
        if not top:
            return []
        found: list[int] = []
        for directory, _subdirs, _files in os.walk(top):
            found += [int(word) for word in read_text(directory + "/cgroup.procs").split()]
        return [pid for pid in found if pid]

    def kill_all(self, signum: int = signal.SIGKILL) -> None:
        """Signal every process. With SIGKILL nothing can fork away from it: the kernel kills the
        cgroup (from Linux 5.14 on, v2), or all of it is frozen before."""
        if not self.pids():
            return
        if signum != signal.SIGKILL:
            self._signal(signum)
        elif not self.v2 or not _write(self.v2 + "/cgroup.kill", "1"):
            self._freeze()
            try:
                # And again, for what one that was late to freeze has forked meanwhile.
                seen: set[int] = set()
                for _ in range(_ROUNDS):
                    if seen.issuperset(found := self.pids()):
                        break
                    seen.update(found)
                    self._signal(signum)
            finally:
                self.thaw()

    def _signal(self, signum: int) -> None:
        for pid in self.pids():
            try:
                os.kill(pid, signum)
            except ProcessLookupError:
                pass

    def thaw(self) -> None:
        """v1: a frozen process does not act on SIGKILL until it is thawed."""
        freezer = self.v1.get("freezer")
        if freezer:
            _write(freezer + "/freezer.state", "THAWED")
        if self.v2:
            _write(self.v2 + "/cgroup.freeze", "0")

    def _freeze(self) -> None:
        freezer = self.v1.get("freezer")
        if freezer:
            order, word = freezer + "/freezer.state", "FROZEN"
            state, frozen = order, word
        elif self.v2:
            order, word = self.v2 + "/cgroup.freeze", "1"
            state, frozen = self.v2 + "/cgroup.events", "frozen 1"
        else:
            return
        if not _write(order, word):
            return
        # It takes well under a millisecond; a process in uninterruptible sleep may hold it up, and
        # is then killed as it is.
        deadline = time.monotonic() + 0.1
        while frozen not in read_text(state).splitlines():
            if time.monotonic() > deadline:
                return

    def remove(self) -> bool:
        """Remove its directories; False at one that is in use or has others below it."""
        for directory in (*self.v1.values(), self.v2, self.beside):
            if directory:
                try:
                    os.rmdir(directory)
                except FileNotFoundError:
                    pass  # two controllers of one hierarchy
                except OSError:
                    return False
        return True

    def oom_kills(self) -> int:
        """How many processes the OOM killer ended here (0 where the kernel does not tell)."""
        if self.v2:
            return _oom_kills(self.v2 + "/memory.events")
        memory = self.v1.get("memory")
        return _oom_kills(memory + "/memory.oom_control") if memory else 0

    def gone(self) -> str:
        """What the kernel calls the cgroup that counted OOM kills and is no more; else ""."""
        counts = self.v2 or self.v1.get("memory", "")
        if not counts or os.path.exists(counts):
            return ""
        return counts.removeprefix(_MOUNT if self.v2 else _MOUNT + "/memory")

    def watch_oom(self) -> tuple[int, int]:
        """(descriptor, epoll events) that fire when the OOM killer may have acted; (-1, 0) if none.

        The v1 eventfd also fires when the cgroup is removed: count, never believe the event.
        """
        if self.v2:
            try:
                fd = os.open(self.v2 + "/memory.events", os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                return -1, 0
            return fd, PRIORITY  # kernfs reports a change of memory.events so
        memory = self.v1.get("memory")
        if not memory:
            return -1, 0
        try:
            control = os.open(memory + "/memory.oom_control", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return -1, 0
        fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        armed = _write(memory + "/cgroup.event_control", f"{fd} {control}")
        os.close(control)
        if not armed:
            os.close(fd)
            return -1, 0
        return fd, READ


def of_process(pid: int, path: str) -> Cgroup:
    """The cgroups that are a container's own, by its init: `path`, or one below it.

    What a spec has placed elsewhere by other words than we read is nobody's own, nor is one that
    holds the caller as well (the root; or the runtime placed nothing): ending all in it would end
    the shims and more.

    An init that has ended is in the root of v1 (cgroups(7)), or has no entry any more: then it is
    what stands at `path`.
    """
    v1: dict[str, str] = {}
    v2 = ""
    own = dict(_paths("self"))
    for controllers, found in _paths(str(pid)):
        if not _is_below(found, path):
            continue
        if (own.get(controllers, "") + "/").startswith(found.rstrip("/") + "/"):
            continue
        if not controllers:
            v2 = _unified(found)
            continue
        for controller in controllers.split(","):
            directory = f"{_MOUNT}/{controller.removeprefix('name=')}{found}"
            if os.path.isdir(directory):
                v1[controller] = directory
    if not v1 and not _rules(v2) and not any(_is_below(at, path) for at in own.values()):
        return at_path(path)
    # On the hybrid layout the unified tree holds no controllers: v1 has the say there.
    return Cgroup(v1, "", v2) if v1 else Cgroup(v1, v2)


def _rules(unified: str) -> bool:
    """Whether this directory is of a unified tree that is not beside v1."""
    return bool(unified) and not unified.startswith(_MOUNT + "/unified/")


def _is_below(place: str, path: str) -> bool:
    return f"{place}/".startswith(f"{path}/")


def gather(init: int, path: str) -> None:
    """Bring a restored container's processes into the cgroup of this path, which the runtime made.

    On cgroup v2 CRIU restores them where they were when they were frozen, which is another's place
    if they come back under another name. Known by the pid namespace of their own; without one they
    stay. Nothing is done where they are at home.
    """
    home = _unified(path)
    found = dict(_paths(str(init))).get("", "")
    if not home or not found or _is_below(found, path):
        return
    own = _pid_namespace(init)
    if own in ("", _pid_namespace(os.getpid())):
        return
    strange = Cgroup({}, _unified(found))
    for _ in range(_ROUNDS):
        moved = [pid for pid in strange.pids() if _pid_namespace(pid) == own]
        if not moved:
            break
        for pid in moved:  # and once more, for what one has forked meanwhile
            _move(pid, home)
    try:
        os.rmdir(strange.v2)  # CRIU made it anew, unless somebody is in it
    except OSError:
        pass


def _move(pid: int, directory: str) -> None:
    fd = os.open(directory + "/cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, str(pid).encode())
    except ProcessLookupError:
        pass
    finally:
        os.close(fd)


def _pid_namespace(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/ns/pid")
    except OSError:
        return ""


def remove(path: str) -> bool:
    """Remove what is empty of this path, and below it, in every hierarchy; whether all of it was.

    A runtime that is killed over its work leaves cgroups that no state of it knows.
    """
    gone = True
    for top in (_MOUNT + path, *(f"{_MOUNT}/{name}{path}" for name in os.listdir(_MOUNT))):
        for directory, _subdirs, _files in os.walk(top, topdown=False):
            try:
                os.rmdir(directory)
            except FileNotFoundError:
                pass
            except OSError:
                gone = False
    return gone


def _paths(pid: str) -> list[tuple[str, str]]:
    """(controllers, path) of each hierarchy; controllers are "" on v2 (cgroups(7))."""
    lines = read_text(f"/proc/{pid}/cgroup").splitlines()
    return [(line.split(":", 2)[1], line.split(":", 2)[2]) for line in lines]


def at_path(path: str) -> Cgroup:
    """The cgroups of this path in every hierarchy that has it."""
    v1 = {}
    for name in sorted(os.listdir(_MOUNT)):
        directory = f"{_MOUNT}/{name}{path}"
        if name != "unified" and os.path.exists(directory + "/cgroup.procs"):
            v1[name] = directory
    unified = _unified(path)
    return Cgroup(v1, "", unified) if v1 else Cgroup({}, unified)


def _unified(path: str) -> str:
    for mount in (_MOUNT, _MOUNT + "/unified"):
        if os.path.exists(f"{mount}{path}/cgroup.procs"):
            return mount + path
    return ""


def _oom_kills(path: str) -> int:
    for line in read_text(path).splitlines():
        key, _, value = line.partition(" ")
        if key == "oom_kill" and value.isdigit():
            return int(value)
    return 0


def _write(path: str, text: str) -> bool:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        os.write(fd, text.encode())
    except OSError:
        return False
    finally:
        os.close(fd)
    return True
