"""How cost grows: the same figures with few containers and with many, both sides in one run.

All containers of a size are started under one manager, and removed before the next size: shims
of many managers would have less memory in common. containerd is followed up to `compared` of
them, which is a matter of the bench's time and not of containerd. Both sides' containers come in
chunks by turns, so neither is started into a machine that is fuller of the other's.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from time import monotonic, sleep

from accounting import CONTAINER, KERNEL, QUIET_S, account, settled, snapshot
from exits import Exits
from measure import (
    LISTED,
    CommandFailed,
    Row,
    in_turn,
    pss_kib,
    rss_kib,
    run,
    seconds,
    together,
    until,
)
from peer import Peer
from peers import Lighter

_KIB_IN_MB = 1024 / 1e6
_REST_S = 10
_RESTING_NS = 5_000_000
_ALL_S = 300
CHUNK = 50
IDLE_SHARE = 0.1  # of a core, in hundredths
# What must hold from a number of containers on (PSS: fewer have less in common), or at one.
MONITOR_MB, MANY = 2.0, 100
MANAGER_MIB = {100: 70}
LISTED_S = {1000: 1.0}

_names = count(1)


@dataclass(frozen=True)
class Effort:
    """Sizes, the last one for containerd, seconds of doing nothing, repetitions."""

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
    for turn, begin in enumerate(range(0, size, CHUNK)):
        chunk = names[begin : begin + CHUNK]
        then = begin + len(chunk)
        for peer in in_turn(peers, turn):
            row.add(peer.name, len(chunk) / together(4, map(peer.detach_argv, chunk)))
            until(partial(_all_run, peer, then), _ALL_S, f"{peer.name}: {then} run")
    return row


def _all_run(peer: Peer, size: int) -> bool:
    return peer.running() == size


def _lists(peers: Sequence[Peer], size: int, effort: Effort) -> Iterator[Row]:
    command = Row("`tasks ls`, whole command", "ms", size=size)
    answer = Row("the same as one call of the API", "ms", size=size)
    for turn in range(effort.lists + 1):
        for peer in in_turn(peers, turn):
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
    most = MONITOR_MB if size >= MANY else None
    monitors = Row("monitor memory per container: PSS", "MB", at_most=most, size=size)
    shared = Row("what shims come from, spawner and spare: PSS", "MB", size=size)
    manager = Row("manager memory: RSS", "MiB", at_most=MANAGER_MIB.get(size), size=size)
    for peer in peers:
        assert peer.manager is not None
        monitors.add(peer.name, _monitor_mb(peer, size))
        if isinstance(peer, Lighter):
            shared.add(peer.name, sum(map(_pss_kib_if_there, peer.shared())) * _KIB_IN_MB)
        manager.add(peer.name, rss_kib(peer.manager.pid) / 1024)
    yield monitors
    yield shared
    yield manager


def _monitor_mb(peer: Peer, size: int) -> float:
    return sum(map(pss_kib, peer.monitors_of(size))) / size * _KIB_IN_MB


def _pss_kib_if_there(pid: int) -> int:
    with suppress(OSError):  # a spare one has become a shim, or has ended
        return pss_kib(pid)
    return 0


def _idle(peers: Sequence[Peer], size: int, idle_s: int) -> Row:
    """Of all processes but the containers' own; each side's from when it rests to its end."""
    row = Row(
        f"processor time while idle, over {idle_s} s", "% of a core", at_most=IDLE_SHARE, size=size
    )
    with Exits() as exits:
        shares = [_idle_from(peer, exits) for peer in peers]
        sleep(idle_s)
        for peer, share in zip(peers, shares, strict=True):
            row.add(peer.name, share() * 100)
    return row


def _idle_from(peer: Peer, exits: Exits) -> Callable[[], float]:
    """From when it rests; what is returned tells the share of a core since."""
    spent_ns = _spending(peer, exits)
    begun = monotonic()

    def share() -> float:
        spent = spent_ns()
        return spent / 1e9 / (monotonic() - begun)

    return share


def _spending(peer: Peer, exits: Exits) -> Callable[[], int]:
    """The nanoseconds since now, when it has come to rest."""
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
    most = LISTED_S.get(size)
    listed = Row(f"`kill -9` of the manager until all {LISTED}", "s", at_most=most, size=size)
    adopted = Row("the same, until all shims are connected", "s", size=size)
    for turn in range(times):
        for peer in in_turn(peers, turn):
            listed.add(peer.name, seconds(partial(_until_listed, peer, size)))
            if isinstance(peer, Lighter):
                adopted.add(peer.name, seconds(partial(peer.restart, size)))
    yield listed
    yield adopted


def _until_listed(peer: Peer, size: int) -> None:
    peer.kill9()
    peer.launch()
    until(partial(_all_run, peer, size), _ALL_S, f"{peer.name}: all are listed again")
