"""What a manager that has no work, and its spawner, still hold: descriptors, threads, the dead.

Judged by kind, so that no look before the work is needed. An idle manager has event and poll
descriptors, sockets, its database, its locks and its log, of processes a pidfd for its spawner and
for each client, and of connections those of its clients. A pipe, a netns, a deleted file or one of
a container's is then somebody's who forgot it. Lists are empty when all is well, and for a process
that is gone.
"""

import os
import re
from collections import Counter
from collections.abc import Iterator

from tests.census import Owners
from tests.processes import descriptors, every_process, with_title

MOST_THREADS = 32  # 11 were seen
MOST_PAIRS = 16  # sockets without a name, of its loops and of its spawner: 5 were seen
MOST_SPARES = 1  # shims that a spawner has ready: a pidfd each, and a pipe beside its own
_OF_WORK = re.compile(
    r"/(tasks|runc|snapshots|content|logs|exits|network|netns|addresses|volumes)/"
)
_LISTENS = "00010000"  # a flag in /proc/net/unix
_NEVER = re.compile(r"/memfd:.*|(net|mnt|pid|user):\[\d+\]|.* \(deleted\)")


def left_in_manager(owners: Owners, pid: int, clients: int) -> list[str]:
    """`clients`: how many it counts, the one who has asked among them."""
    return [
        *_of_work(owners, pid, "manager"),
        *_too_many(pid, "manager", {"pidfd": 1 + clients, "pipe": 0}),
        *_too_many_sockets(pid, "manager", {"shims.sock": 0, "lighter.sock": clients}),
        *_threads(pid, "manager"),
        *_zombies_of(pid, "manager"),
    ]


def left_in_spawners(instance: str) -> list[str]:
    """Once the shims of the instance have ended."""
    left = []
    for pid in with_title(f"lighter-spawner --instance {instance}"):
        left += [
            *(f"spawner's {target}" for _, target in descriptors(pid) if _NEVER.fullmatch(target)),
            *_too_many(pid, "spawner", {"pidfd": MOST_SPARES, "pipe": 2 + MOST_SPARES}),
            *_zombies_of(pid, "spawner"),
        ]
    return left


def _of_work(owners: Owners, pid: int, who: str) -> Iterator[str]:
    for fd, target in descriptors(pid):
        if _NEVER.fullmatch(target) or (owners.own(target) and _OF_WORK.search(f"{target}/")):
            yield f"{who}'s descriptor {fd}: {target}"


def _too_many(pid: int, who: str, most: dict[str, int]) -> Iterator[str]:
    """More descriptors of a kind than it may have, with whom or what they are about."""
    found: dict[str, list[str]] = {kind: [] for kind in most}
    for fd, target in descriptors(pid):
        kind = target.removeprefix("anon_inode:[").partition(":")[0].rstrip("]")
        if kind in found:
            found[kind].append(_process_of(pid, fd) if kind == "pidfd" else target)
    for kind, those in found.items():
        if len(those) > most[kind]:
            yield f"{who}'s {len(those)} of kind {kind}, {most[kind]} expected: {', '.join(those)}"


def _too_many_sockets(pid: int, who: str, most: dict[str, int]) -> Iterator[str]:
    """More connections to one of its sockets than may be, by the socket's name, or pairs.

    Who is connected over gRPC the manager need not know, so those are nobody's leak.
    """
    try:
        with open(f"/proc/{pid}/net/unix", encoding="utf-8", errors="replace") as file:
            rows = [line.split(maxsplit=7) for line in file.read().splitlines()[1:]]
    except OSError:
        return
    names = {
        row[6]: row[7].rpartition("/")[2] if len(row) == 8 else "a pair"
        for row in rows
        if row[3] != _LISTENS
    }
    found = Counter(names.get(target[len("socket:[") : -1]) for _, target in descriptors(pid))
    for name, allowed in {**most, "a pair": MOST_PAIRS}.items():
        if found[name] > allowed:
            yield f"{who}'s {found[name]} sockets of {name}, {allowed} expected"


def _threads(pid: int, who: str) -> Iterator[str]:
    try:
        count = len(os.listdir(f"/proc/{pid}/task"))
    except OSError:
        return
    if count > MOST_THREADS:
        yield f"{who}'s threads: {count}, {MOST_THREADS} expected"


def _zombies_of(pid: int, who: str) -> Iterator[str]:
    for process in every_process():
        if process.is_zombie and process.ppid == pid:
            yield f"{who}'s zombie {process.pid} {process.name}"


def _process_of(pid: int, fd: str) -> str:
    """The process a pidfd is of, -1 for one that has ended."""
    try:
        with open(f"/proc/{pid}/fdinfo/{fd}", encoding="ascii") as file:
            fields = dict(line.split(":", 1) for line in file.read().splitlines() if ":" in line)
    except OSError:
        return "?"
    return fields.get("Pid", "?").strip()
