"""The rows: what is measured, in which order, and the ratio to containerd that must be reached.

Each row takes its samples in turns (A B B A …), so that a change of the machine's mood falls on
both, and what one leaves to do behind its answer is not always the same other's loss. Figures
compare within one run only.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count

from life import life_rows
from limit import Limit
from measure import (
    LISTED,
    CommandFailed,
    Row,
    drained_bytes,
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

_MIB = 1024 * 1024
_KIB_IN_MB = 1024 / 1e6
_ALL_S = 120


@dataclass(frozen=True)
class Effort:
    """How much is done: repetitions of a command, of a crowd, its size, megabytes of output."""

    commands: int
    crowds: int
    crowd: int
    output_mib: int


FULL = Effort(commands=31, crowds=3, crowd=100, output_mib=2000)
QUICK = Effort(commands=7, crowds=1, crowd=30, output_mib=500)

EXECS = 30

_names = count(1)


def _name() -> str:
    return f"b{next(_names)}"


def _timed(row: Row, works: Mapping[str, Callable[[], object]], times: int) -> Row:
    """Milliseconds of each work, in turns; the first turn warms up and is not kept."""
    for turn in range(times + 1):
        for name, work in in_turn(list(works.items()), turn):
            taken = seconds(work) * 1000
            if turn:
                row.add(name, taken)
    return row


def version(peers: Sequence[Peer], effort: Effort) -> Row:
    row = Row("`version`, whole command", "ms", at_most=30)
    works = {peer.name: partial(run, peer.version_argv()) for peer in peers}
    return _timed(row, works, effort.commands)


def run_command(peers: Sequence[Peer], limit: Limit, effort: Effort) -> Row:
    row = Row("`run --rm IMAGE true`, whole command", "ms", bound=0.7)

    def once(argv: Callable[..., list[str]], *command: str) -> None:
        run(argv(_name(), *command))

    works = {peer.name: partial(once, peer.run_argv, "true") for peer in peers}
    works[limit.name] = partial(once, limit.run_argv)
    return _timed(row, works, effort.commands)


def exec_command(peers: Sequence[Peer], limit: Limit, effort: Effort) -> Row:
    row = Row("`exec … true`, whole command", "ms", bound=0.8)
    target = _name()

    def once(peer: Peer) -> None:
        run(peer.exec_argv(target, _name()))

    works: dict[str, Callable[[], object]] = {p.name: partial(once, p) for p in peers}
    works[limit.name] = partial(run, limit.exec_argv(target))
    for peer in peers:
        run(peer.detach_argv(target))
    limit.detach(target)
    _timed(row, works, effort.commands)
    limit.remove(target)
    for peer in peers:
        peer.remove([target])
    return row


def execs_at_once(peers: Sequence[Peer], effort: Effort) -> Row:
    row = Row(f"{EXECS} execs at once into one container, until the last has ended", "s", at_most=2)
    target = _name()
    for peer in peers:
        run(peer.detach_argv(target))
    for turn in range(effort.crowds + 1):
        for peer in in_turn(peers, turn):
            argvs = [peer.exec_argv(target, _name()) for _ in range(EXECS)]
            row.add(peer.name, together(EXECS, argvs))
    for peer in peers:
        peer.remove([target])
    return row


def list_one(peers: Sequence[Peer], effort: Effort) -> Row:
    row = Row("`tasks ls` with 1 task, whole command", "ms", bound=1.0)
    target = _name()
    for peer in peers:
        run(peer.detach_argv(target))
    works = {peer.name: partial(run, peer.list_argv()) for peer in peers}
    _timed(row, works, effort.commands)
    for peer in peers:
        peer.remove([target])
    return row


def output(peers: Sequence[Peer], effort: Effort) -> Row:
    row = Row(
        f"{effort.output_mib} MiB from a container's stdout through an attached client",
        "MiB/s",
        bound=1.5,
        smaller_is_better=False,
    )
    expected = effort.output_mib * _MIB
    for turn in range(effort.crowds):
        for peer in in_turn(peers, turn):
            argv = peer.run_argv(
                _name(), "dd", "if=/dev/zero", "bs=1M", f"count={effort.output_mib}"
            )
            row.add(peer.name, effort.output_mib / seconds(partial(_drain, argv, expected)))
    return row


def _drain(argv: Sequence[str], expected: int) -> None:
    came = drained_bytes(argv)
    if came != expected:
        raise CommandFailed(f"{argv[0]}: {came} bytes came, not {expected}")


def crowd(peers: Sequence[Peer], effort: Effort) -> list[Row]:
    """All rows that need many containers: they are started once per peer and turn."""
    size = effort.crowd
    start = Row(f"{size} detached containers started, four at a time", "s", bound=0.6)
    listing = Row(f"`tasks ls` with {size} tasks, whole command", "ms", bound=1.0)
    answer = Row(f"the same as one call of the API, {size} tasks", "ms", at_most=5)
    pss = Row(f"monitor memory per container at {size}: PSS", "MB", at_most=2.0)
    rss = Row(f"monitor memory per container at {size}: RSS", "MB")
    manager = Row(f"manager memory with {size} containers: RSS", "MiB", at_most=70)
    restart = Row(f"`kill -9` of the manager until all {size} {LISTED}", "s", bound=0.5)
    adopted = Row(f"the same, until all {size} shims are connected", "s")
    for turn in range(effort.crowds):
        for peer in in_turn(peers, turn):
            names = [_name() for _ in range(size)]
            start.add(peer.name, together(4, map(peer.detach_argv, names)))
            until(partial(_all_run, peer, size), _ALL_S, f"{peer.name}: all run")
            for _ in range(effort.commands // 3):
                listing.add(peer.name, seconds(partial(run, peer.list_argv())) * 1000)
            if isinstance(peer, Lighter):
                for taken in peer.seconds_of_lists(effort.commands):
                    answer.add(peer.name, taken * 1000)
            assert peer.manager is not None
            manager.add(peer.name, rss_kib(peer.manager.pid) / 1024)
            monitors = peer.monitors_of(size)
            pss.add(peer.name, sum(map(pss_kib, monitors)) / size * _KIB_IN_MB)
            rss.add(peer.name, sum(map(rss_kib, monitors)) / size * _KIB_IN_MB)
            restart.add(peer.name, seconds(partial(_restart, peer, size)))
            if isinstance(peer, Lighter):
                adopted.add(peer.name, seconds(partial(_adopt, peer, size)))
            peer.remove(names)
    return [start, listing, answer, pss, rss, manager, restart, adopted]


def _restart(peer: Peer, size: int) -> None:
    peer.kill9()
    peer.launch()
    until(partial(_all_run, peer, size), _ALL_S, f"{peer.name}: all are listed again")


def _adopt(peer: Lighter, size: int) -> None:
    """What is listed was recorded, and may be so before its shim is there: these are."""
    peer.kill9()
    peer.launch()
    until(lambda: peer.adopted() == size, _ALL_S, f"{peer.name}: all shims are connected again")


def _all_run(peer: Peer, size: int) -> bool:
    return peer.running() == size


def crun_rows(peers: Sequence[Peer], limit: Limit, effort: Effort) -> Iterator[Row]:
    """What the runtime is much of, with a runtime for which nothing is asked."""
    for row in (
        *life_rows(peers, limit, effort.commands),
        run_command(peers, limit, effort),
        exec_command(peers, limit, effort),
    ):
        row.bound = row.at_most = None
        yield row


def all_rows(peers: Sequence[Peer], limit: Limit, effort: Effort) -> Iterator[Row]:
    """Each as soon as it is measured."""
    yield version(peers, effort)
    yield from life_rows(peers, limit, effort.commands)
    yield run_command(peers, limit, effort)
    yield exec_command(peers, limit, effort)
    yield execs_at_once(peers, effort)
    yield list_one(peers, effort)
    yield output(peers, effort)
    yield from crowd(peers, effort)
