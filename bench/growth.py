"""How cost grows: the same figures with few containers and with many, both sides in one run.

All containers of a size are started under one manager, and removed before the next size: shims
of many managers would have less memory in common. containerd is followed up to `compared` of
them, which is a matter of the bench's time and not of containerd.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from time import sleep

from accounting import CONTAINER, KERNEL, QUIET_S, account, settled, snapshot
from exits import Exits
from measure import CommandFailed, Row, pss_kib, rss_kib, run, seconds, together, until
from peers import Lighter, Peer

_KIB_IN_MB = 1024 / 1e6
_REST_S = 10
_RESTING_NS = 5_000_000
IDLE_SHARE = 0.1  # of a core, in hundredths

_names = count(1)


@dataclass(frozen=True)
class Effort:
    """Sizes, the last one for containerd, seconds of doing nothing, repetitions of the rest."""

    sizes: tuple[int, ...]
    compared: int
    idle_s: int
    lists: int
    restarts: int


FULL = Effort(sizes=(1, 10, 100, 500, 1000), compared=500, idle_s=60, lists=11, restarts=3)
QUICK = Effort(sizes=(1, 10, 30), compared=10, idle_s=5, lists=3, restarts=1)


def growth_rows(peers: Sequence[Peer], effort: Effort) -> Iterator[Row]:
    """Each figure of a size as soon as it is measured."""
    for size in (0, *effort.sizes):
        there = [p for p in peers if isinstance(p, Lighter) or size <= effort.compared]
        for peer in there:
            _rest(peer)  # the manager is a new one
        names = [_name() for _ in range(size or 1)]
        start = _start(there, names)
        if size:  # the first one warms up
            yield start
            yield from _lists(there, size, effort)
            yield from _memory(there, size)
            yield _idle(there, size, effort.idle_s)
            yield from _restarts(there, size, effort.restarts)
        for peer in there:
            peer.remove(names)


def _name() -> str:
    return f"g{next(_names)}"


def _start(peers: Sequence[Peer], names: Sequence[str]) -> Row:
    size = len(names)
    row = Row("detached starts, four at a time", "1/s", smaller_is_better=False, size=size)
    for peer in peers:
        row.add(peer.name, size / together(4, map(peer.detach_argv, names)))
        until(partial(_all_run, peer, size), 60, f"{peer.name}: {size} run")
    return row


def _all_run(peer: Peer, size: int) -> bool:
    return peer.running() == size


def _lists(peers: Sequence[Peer], size: int, effort: Effort) -> Iterator[Row]:
    command = Row("`tasks ls`, whole command", "ms", size=size)
    answer = Row("the same as one call of the API", "ms", size=size)
    for turn in range(effort.lists + 1):
        for peer in peers:
            taken = seconds(partial(run, peer.list_argv())) * 1000
            if turn:
                command.add(peer.name, taken)
    yield command
    for peer in peers:
        if isinstance(peer, Lighter):
            for taken in peer.seconds_of_lists(effort.lists):
                answer.add(peer.name, taken * 1000)
    yield answer


def _memory(peers: Sequence[Peer], size: int) -> Iterator[Row]:
    monitors = Row("monitor memory per container: PSS", "MB", size=size)
    manager = Row("manager memory: RSS", "MiB", size=size)
    for peer in peers:
        assert peer.manager is not None
        monitors.add(peer.name, sum(map(pss_kib, peer.monitors())) / size * _KIB_IN_MB)
        manager.add(peer.name, rss_kib(peer.manager.pid) / 1024)
    yield monitors
    yield manager


def _idle(peers: Sequence[Peer], size: int, idle_s: int) -> Row:
    """Of all processes but the containers' own, in one stretch of time for both sides."""
    row = Row(
        f"processor time while idle, over {idle_s} s", "% of a core", at_most=IDLE_SHARE, size=size
    )
    with Exits() as exits:
        ends = [_idle_from(peer, exits) for peer in peers]
        sleep(idle_s)
        for peer, end in zip(peers, ends, strict=True):
            row.add(peer.name, end() / idle_s / 1e9 * 100)
    return row


def _idle_from(peer: Peer, exits: Exits) -> Callable[[], int]:
    """From when it rests; what is returned tells the nanoseconds since."""
    assert peer.manager is not None
    _rest(peer)
    manager = peer.manager.pid
    if isinstance(peer, Lighter):
        instance = peer.instance
        before = snapshot(manager, instance)
        exits.take()

        def taken() -> int:
            found = account(before, snapshot(manager, instance), exits.take())
            others = (KERNEL, CONTAINER)
            return sum(t.cpu_ns for part, t in found.parts.items() if part not in others)

        return taken
    pids = [manager, *peer.monitors()]
    begun = _cpu_ns(pids)
    return lambda: _cpu_ns(pids) - begun


def _rest(peer: Peer) -> None:
    """Wait until it does nothing any more, or for a while: that it never rests is a figure too."""
    assert peer.manager is not None
    if isinstance(peer, Lighter):
        with suppress(CommandFailed):
            settled(peer.manager.pid, peer.instance, _REST_S)
        return
    pids = [peer.manager.pid, *peer.monitors()]
    spent = _cpu_ns(pids)

    def rests() -> bool:
        nonlocal spent
        before, spent = spent, _cpu_ns(pids)
        return spent - before < _RESTING_NS

    with suppress(CommandFailed):
        until(rests, _REST_S, f"{peer.name} has come to rest", QUIET_S)


def _cpu_ns(pids: Sequence[int]) -> int:
    spent = 0
    for pid in pids:
        for file in Path(f"/proc/{pid}/task").glob("*/schedstat"):
            with suppress(OSError):  # it has ended
                spent += int(file.read_text().split()[0])
    return spent


def _restarts(peers: Sequence[Peer], size: int, times: int) -> Iterator[Row]:
    listed = Row("`kill -9` of the manager until all are listed running", "s", size=size)
    adopted = Row("the same, until all shims are connected", "s", size=size)
    for _ in range(times):
        for peer in peers:
            listed.add(peer.name, seconds(partial(_until_listed, peer, size)))
            if isinstance(peer, Lighter):
                adopted.add(peer.name, seconds(partial(peer.restart, size)))
    yield listed
    yield adopted


def _until_listed(peer: Peer, size: int) -> None:
    peer.kill9()
    peer.launch()
    until(partial(_all_run, peer, size), 60, f"{peer.name}: all are listed again")
