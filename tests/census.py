"""The leak check that runs after each test: what one instance, or the test, left on the machine.

    before = Census.take(owners)
    …
    left = Census.settled(owners, before)      # {} when nothing is left; waits up to 30 s

A *marked* thing names an instance of this product (its id, its root or its state directory) and
is always counted. An *unmarked* kind (netns, links, loop devices, /dev/shm, other mounts, other
cgroups) is compared with the baseline, and only where nothing else uses the machine
(CENSUS_EXCLUSIVE=1 in the environment), since a neighbour's netns looks like a leaked one.
What a manager that goes on still holds is looked for by tests/held.py.
"""

import fcntl
import ipaddress
import os
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

from pyroute2 import IPRoute

from tests.processes import Process, every_process

DEADLINE_S = 30.0
_POLL_S = 0.05
_CGROUPS = Path("/sys/fs/cgroup")
INIT = 1
_OUR_COMMS = ("lighter", "runc")
# At the top of a hierarchy: systemd's, and our instances' own.
_OTHERS_CGROUPS = ("*.slice", "*.scope", "*.service", "lighter*")

# For a shell in a machine that has Lighter installed and no containers: it prints what is left.
LOOK_INSIDE = """{
find /run/lighter/tasks /run/lighter/runc /var/lib/lighter/exits -mindepth 2
find /run/lighter/s /run/lighter/netns -mindepth 1
find /sys/fs/cgroup -path '*/lighter/*/*/*' -type d
grep /run/lighter/tasks /proc/self/mountinfo
pgrep -a -f ^lighter-shim
} 2>/dev/null
true"""

Things = dict[str, frozenset[str]]


@dataclass
class Owners:
    """The instances a test made: their ids, and their root, state and scratch directories.

    `cgroups`: paths in each hierarchy ("/space-12ab") below which clients put their containers.
    """

    instances: set[str] = field(default_factory=set)
    dirs: set[str] = field(default_factory=set)
    exclusive: bool = field(default_factory=lambda: os.environ.get("CENSUS_EXCLUSIVE") == "1")
    cgroups: set[str] = field(default_factory=set)

    def own(self, text: str) -> bool:
        """Whether `text` (a path, a title, a mount option) carries a mark of ours."""
        return any(mark in text for mark in (*self.instances, *self.dirs))


@dataclass(frozen=True)
class Census:
    """What was there at one moment, by kind."""

    things: Things

    @classmethod
    def take(cls, owners: Owners) -> "Census":
        marked: dict[str, Callable[[Owners], Iterable[str]]] = {
            "process": marked_processes,
            "zombie": zombies,
            "mount": marked_mounts,
            "cgroup": marked_cgroups,
            "open socket": marked_sockets,
            "directory": marked_directories,
            "lock": marked_locks,
        }
        things = {kind: frozenset(list_them(owners)) for kind, list_them in marked.items()}
        if owners.exclusive:
            unmarked: dict[str, Callable[[], Iterable[str]]] = {
                # The first `ip netns add` after a boot mounts this for all of the later ones.
                "any mount": lambda: (mount for mount, _ in mounts() if mount != "/run/netns"),
                "any cgroup": any_cgroups,
                "netns": lambda: _names(Path("/run/netns")),
                "link": links,
                "loop device": loop_devices,
                "shared memory": lambda: _names(Path("/dev/shm")),
                "temporary directory": lambda: _names(Path("/tmp"), "lighter"),
            }
            things.update({kind: frozenset(list_them()) for kind, list_them in unmarked.items()})
        return cls(things)

    def since(self, before: "Census") -> dict[str, list[str]]:
        """What is here now and was not before, by kind; kinds without a difference are left out."""
        left = {
            kind: sorted(now - before.things.get(kind, frozenset()))
            for kind, now in self.things.items()
        }
        return {kind: things for kind, things in left.items() if things}

    @classmethod
    def settled(
        cls, owners: Owners, before: "Census", deadline_s: float = DEADLINE_S
    ) -> dict[str, list[str]]:
        """Leaks against `before`, taken until there are none or the time is up."""
        end = time.monotonic() + deadline_s
        while True:
            left = cls.take(owners).since(before)
            if not left or time.monotonic() >= end:
                return left
            time.sleep(_POLL_S)


def report(left: dict[str, list[str]]) -> str:
    """The leaks as lines for a person."""
    return "\n".join(f"left {kind}: {thing}" for kind, things in left.items() for thing in things)


def processes(owners: Owners) -> list[Process]:
    """Processes of the owners' instances: by title, by a path in their arguments, by cgroup, by the
    root they see.
    """
    return _marked(list(every_process()), owners)


def _marked(everyone: list[Process], owners: Owners) -> list[Process]:
    parents = ("lighter", "lighter-shims")
    cgroups = (
        *(f"/{parent}/{instance}" for instance in owners.instances for parent in parents),
        *_places(owners),
    )
    return [
        process
        for process in everyone
        if not process.is_zombie
        and (
            owners.own(process.title)
            or process.is_in_cgroup(cgroups)
            or owners.own(process.root_mount())
        )
    ]


def marked_processes(owners: Owners) -> Iterator[str]:
    return map(_shown, processes(owners))


def _shown(process: Process) -> str:
    return f"{process.pid} {(process.title or process.name)[:160]}"


def zombies(owners: Owners) -> Iterator[str]:
    """Dead children nobody waits for: this process's, and those of our own programs."""
    everyone = list(every_process())
    parents = {os.getpid(), *(process.pid for process in _marked(everyone, owners))}
    for process in everyone:
        if is_forgotten(process, parents, exclusive=owners.exclusive):
            yield f"{process.pid} {process.name} of {process.ppid}"


def is_forgotten(process: Process, parents: set[int], *, exclusive: bool) -> bool:
    """Whether it is dead and one of `parents` does not wait for it, on a machine of our own anybody
    but init: that reaps in its own time what it has inherited, here and there once a second.
    """
    ours = exclusive and process.ppid != INIT and process.name.startswith(_OUR_COMMS)
    return process.is_zombie and (process.ppid in parents or ours)


def mounts() -> Iterator[tuple[str, str]]:
    """(mount point, the whole line) of each mount here: proc_pid_mountinfo(5)."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        yield line.split()[4], line


def marked_mounts(owners: Owners) -> Iterator[str]:
    return (point for point, line in mounts() if owners.own(line))


def hierarchies() -> list[Path]:
    """Where cgroups are: v1 and hybrid hosts mount one hierarchy per folder, v2 the root alone."""
    if (_CGROUPS / "cgroup.procs").exists():
        return [_CGROUPS]
    return [path for path in _CGROUPS.iterdir() if path.is_dir() and not path.is_symlink()]


def marked_cgroups(owners: Owners) -> Iterator[str]:
    """Directories of the instances in every hierarchy: containers' and shims', and what is below
    the places that clients chose.
    """
    for hierarchy in hierarchies():
        for instance in owners.instances:
            for parent in ("lighter", "lighter-shims"):
                top = hierarchy / parent / instance
                yield from (path for path, _, _ in os.walk(top))
    yield from chosen_cgroups(owners)


def chosen_cgroups(owners: Owners) -> Iterator[str]:
    for hierarchy in hierarchies():
        for place in owners.cgroups:
            for path, below, _ in os.walk(f"{hierarchy}{place}"):
                yield from (f"{path}/{name}" for name in below)


def any_cgroups() -> Iterator[str]:
    """All but systemd's and the instances', and but the directory of the usual namespace, which
    stays when its containers are gone, as with containerd.
    """
    for hierarchy in hierarchies():
        for path, below, _ in os.walk(hierarchy):
            if path == str(hierarchy):
                below[:] = [
                    name
                    for name in below
                    if not any(fnmatch(name, other) for other in _OTHERS_CGROUPS)
                ]
            yield from (f"{path}/{name}" for name in below if name != "default")


def _places(owners: Owners) -> tuple[str, ...]:
    """What is in the path of each cgroup of a container."""
    return (
        *(f"/lighter/{instance}/" for instance in owners.instances),
        *(f"{place}/" for place in owners.cgroups),
    )


def left_of_containers(owners: Owners) -> Iterator[str]:
    """What the kernel still has of an instance's containers while its manager runs on."""
    yield from marked_mounts(owners)
    for path in marked_cgroups(Owners(owners.instances)):
        for instance in owners.instances:
            # Below it: a namespace's, which stays, and in that a container's.
            if "/" in path.partition(f"/lighter/{instance}/")[2]:
                yield path
    yield from chosen_cgroups(owners)
    places = _places(owners)
    for process in every_process():
        if not process.is_zombie and (
            process.is_in_cgroup(places) or owners.own(process.root_mount())
        ):
            yield _shown(process)


def marked_sockets(owners: Owners) -> Iterator[str]:
    """Unix sockets bound to a path of ours (/proc/net/unix), open even when the file is gone."""
    for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
        fields = line.split(maxsplit=7)
        if len(fields) == 8 and owners.own(fields[7]):
            yield fields[7]


def marked_directories(owners: Owners) -> Iterator[str]:
    return (path for path in owners.dirs if os.path.lexists(path))


def marked_locks(owners: Owners) -> Iterator[str]:
    """Locks of instances that a process still holds: of a dead one's the kernel does not tell
    (/proc/locks), so each is tried.
    """
    for folder in owners.dirs:
        for path in (f"{folder}/lock", *map(str, Path(folder).glob("*/lock"))):
            try:
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            except OSError:
                continue  # there is none
            try:
                fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                yield path
            finally:
                os.close(fd)


def links() -> list[str]:
    """But for what the kernel makes with its module for the bandwidth plugin, and keeps."""
    with IPRoute() as netlink:
        names = [link.get("ifname") or "?" for link in netlink.get_links()]
    return [name for name in names if name not in ("ifb0", "ifb1")]


def loop_devices() -> Iterator[str]:
    for device in Path("/sys/block").glob("loop*"):
        if (device / "loop" / "backing_file").exists():
            yield device.name


def firewall_rules() -> frozenset[str]:
    """Rules and chains of the machine's packet filter, without counters, as iptables saves them.

    Not a kind of the census: two programs are run for it, which is too much for each test.
    """
    rules = set()
    for program in ("iptables-save", "ip6tables-save"):
        try:
            saved = subprocess.run([program], capture_output=True, text=True, check=False).stdout
        except FileNotFoundError:
            continue
        table = ""
        for line in saved.splitlines():
            if line.startswith("*"):
                table = line
            # The policy of a chain that is the kernel's has no "-" here; a look makes such tables.
            elif line.startswith("-A ") or (line.startswith(":") and " - " in line):
                rules.add(f"{program} {table} {line.partition(' [')[0]}")
    return frozenset(rules)


def _names(folder: Path, prefix: str = "") -> Iterator[str]:
    if folder.is_dir():
        yield from (path.name for path in folder.iterdir() if path.name.startswith(prefix))


def leftovers_on_disk(root: Path, state: Path) -> list[str]:
    """What an instance without containers still keeps of one: bundles, runc's state, FIFOs,
    sockets for runc, exit records, what was attached to networks and their addresses, half-written
    content.
    """
    folders = (
        (state / "tasks", 2),
        (state / "runc", 2),
        (state / "s", 1),
        (state / "netns", 1),
        (root / "exits", 2),
        (root / "logs", 2),
        (root / "network", 1),
        (root / "content" / "ingest", 1),
    )
    return [
        *(
            str(path)
            for folder, depth in folders
            for path in sorted(folder.glob("/".join("*" * depth)))
            if not path.name.startswith(".")
        ),
        *(str(path) for path in sorted((root / "addresses").glob("*/*")) if _is_address(path.name)),
    ]


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
