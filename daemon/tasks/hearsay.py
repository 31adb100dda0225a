"""What a shim's hello says of its task, where the rows do not: of a database that was lost, or put
back from an older copy.

Only what nobody has acknowledged is told again. So a row that stands before what a later manager
acknowledged stays behind its shim, however long that is listened to, until its hello is believed.
"""

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Mapping
from typing import Any

from lighter.daemon.journal import Repeated
from lighter.daemon.procfs import stat_of
from lighter.daemon.tasks.entry import Entry
from lighter.daemon.tasks.reach import SIGNAL_S, has_told
from lighter.daemon.tasks.shims import Peer
from lighter.daemon.tasks.store import TaskStore
from lighter.daemon.tasks.supervisor import Supervisor, retries
from lighter.proto import shim_api, states
from lighter.proto.errors import InvalidArgument, Unimplemented
from lighter.proto.names import check_name

log = logging.getLogger("lighter.recovery")

_TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
_BEFORE_IT_RAN = (states.CREATING, states.CREATED)


def check_identity(identity: Mapping[str, Any]) -> None:
    """What becomes a row, the path of a bundle and a process to end. Raises InvalidArgument."""
    check_name(identity.get("namespace"), "namespace")
    check_name(identity.get("id"), "container")
    state = identity.get("state")
    if not isinstance(state, str) or state not in states.OF_TASK:
        raise InvalidArgument(f"check shim: its task is {state!r}")
    for name in ("start", "init_pid"):
        number = identity.get(name)
        if type(number) is not int or not 0 <= number < 1 << 63:
            raise InvalidArgument(f"check shim: its {name} is {number!r}")


def believe(entry: Entry, identity: Mapping[str, Any]) -> None:
    """Let the entry be what a checked identity says; the caller saves it."""
    entry.state, entry.pid = identity["state"], identity["init_pid"]
    entry.terminal = bool(identity.get("terminal"))
    if entry.state in _BEFORE_IT_RAN:
        entry.started_at = None
    else:
        entry.started_at = entry.started_at or _began_at(entry.pid) or entry.created_at


def _began_at(pid: int) -> int | None:
    """When a process began, in ns since the epoch: init is made a moment before its start."""
    try:
        ticks = int(stat_of(pid)[19])
    except (OSError, IndexError):
        return None
    return time.time_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME) + ticks * _TICK_NS


class Hearsay:
    """Brings rows that are behind their shims up to what these say."""

    def __init__(self, supervisor: Supervisor, store: TaskStore) -> None:
        self._supervisor = supervisor
        self._store = store

    def on_behind(self, entry: Entry, peer: Peer) -> None:
        """Its shim has said hello; what its row misses may come right behind that, or never."""
        self._supervisor.in_background(self._catch_up(entry, peer, peer.identity))

    async def _catch_up(self, entry: Entry, peer: Peer, said: Mapping[str, Any]) -> None:
        """Try until what was missed is known, or its shim has said hello again."""
        await self._supervisor.followed.wait()  # events are held until then
        failures = Repeated(log, f"ask shim of {entry.what} for what its row misses")
        for pause_s in retries():
            try:
                await _all_has_come(peer)
                if _is_current(entry, peer, said) and not peer.stalled:
                    self._take(entry, peer, said)
                failures.ended()
                return
            except Exception as err:
                failures.failed(err)
            await asyncio.sleep(pause_s)
            if not _is_current(entry, peer, said):
                return

    def _take(self, entry: Entry, peer: Peer, said: Mapping[str, Any]) -> None:
        if has_told(entry, peer) and not entry.is_behind:
            return
        sequence = int(said["sequence"])
        if entry.last_sequence > sequence:
            self._supervisor.router.ask_again(peer.incarnation)  # it is not what it was any more
            return
        check_identity(said)
        log.warning("the row of %s is behind its shim: it is %s", entry.what, said["state"])
        with self._supervisor.changes(entry) as tx:
            believe(entry, said)
            entry.last_sequence = sequence
            entry.options = {key: entry.options[key] for key in entry.options if key != "behind"}
            self._store.save(tx, entry)
        # How one has ended that is stopped comes with its exit, or is looked up when it is closed.


def _is_current(entry: Entry, peer: Peer, said: Mapping[str, Any]) -> bool:
    return entry.peer is peer and peer.identity is said


async def _all_has_come(peer: Peer) -> None:
    """Return when everything has that the shim had sent by now."""
    with contextlib.suppress(Unimplemented):
        await peer.call(shim_api.UNHEARD_OF, timeout_s=SIGNAL_S)
