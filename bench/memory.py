"""What a shim takes: fresh, used, and when many managers have started the shims.

A page that several have is counted in parts (PSS), so shims that are born of one process take less
than shims that are not. And it is the interpreter's matter: from Python 3.12 on what is never freed
is not counted, and is not written to. So each version of it that was measured has a column.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import count

from accounting import QUIET_S, settled
from measure import CommandFailed, Row, pss_kib, together, until
from peers import Lighter

_KIB_IN_MB = 1024 / 1e6
_ALL_S = 300
_REST_S = 10
AT_MOST_MB = 2.0
SIZE = 100
MANAGERS = (5, 20)

_names = count(1)


def memory_rows(peer: Lighter, size: int = SIZE) -> Iterator[Row]:
    """Mean of `size` shims in MB, each time of other shims."""
    names = _new(size)
    together(4, map(peer.detach_argv, names))
    yield _row("each just started", peer, names)
    names = _new(size)
    together(4, map(peer.logging_argv, names))
    until(lambda: all(map(peer.has_turned_log, names)), _ALL_S, "logs are turned over", QUIET_S)
    _exec_in_each(peer, names)
    peer.restart(size)
    yield _row("after an exec in each, logs turned over and a restart of the manager", peer, names)
    for managers in MANAGERS:
        yield _of_several(peer, size, managers)


def _of_several(peer: Lighter, size: int, managers: int) -> Row:
    names = _new(size)
    share = size // managers
    for begin in range(0, size, share):
        if begin:
            peer.restart(begin)
        these = names[begin : begin + share]
        together(4, map(peer.detach_argv, these))
        _exec_in_each(peer, these)
    told = f"started by {managers} managers, each after a `kill -9` of the last, an exec in each"
    return _row(told, peer, names)


def _new(size: int) -> list[str]:
    return [f"m{next(_names)}" for _ in range(size)]


def _exec_in_each(peer: Lighter, names: Sequence[str]) -> None:
    together(4, (peer.exec_argv(name, f"x{next(_names)}") for name in names))


def _row(told: str, peer: Lighter, names: Sequence[str]) -> Row:
    """Measures them, and removes their containers."""
    size = len(names)
    row = Row(f"PSS of a shim, {size} of them {told}", "MB", at_most=AT_MOST_MB)
    assert peer.manager is not None
    with suppress(CommandFailed):  # one that never rests has its memory too
        settled(peer.manager.pid, peer.instance, _REST_S)
    row.add(peer.name, sum(map(pss_kib, peer.monitors_of(size))) / size * _KIB_IN_MB)
    peer.remove(names)
    return row
