"""Keeps entries true: what shims say, and what it means when one is gone.

Events change an entry and its row in one transaction, together with the event that clients see,
and are acknowledged after its commit. A shim whose process ends before it said `closed` is lost,
and the end of its task our own word (lost.py).
"""

import asyncio
import logging
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from lighter.daemon.events.log import Event, EventLog
from lighter.daemon.metadata.db import Database
from lighter.daemon.tasks.bundle import Bundle
from lighter.daemon.tasks.entry import Entry, Exec, is_probe
from lighter.daemon.tasks.reach import call_shim, has_told, kill_shim
from lighter.daemon.tasks.shims import Peer, ShimRouter
from lighter.daemon.tasks.store import TaskStore
from lighter.daemon.tasks.types import Exit
from lighter.proto import codec, events, states
from lighter.proto.errors import LighterError, NotFound, Unavailable, unforeseen
from lighter.proto.faults import hit
from lighter.proto.release import protocols_of

if TYPE_CHECKING:
    from lighter.daemon.tasks.followers import Followers, Settler, Telling

log = logging.getLogger("lighter.tasks")

LOST_UNKNOWN = 255
# A power cut ends every task, so only how one ended has to survive it.
_DURABLE = {events.EXIT}
# What a client may not see: these go between shim and manager only.
_INTERNAL = {events.CLOSED}


class Supervisor:
    """Owns the entries. Only modules of daemon/tasks change them; all others read them, and count
    themselves in `Entry.readers` while they need one to stay as it is.
    """

    def __init__(
        self,
        db: Database,
        store: TaskStore,
        log_: EventLog,
        bundle_of: Callable[[str, str], Bundle],
    ) -> None:
        self._db = db
        self._store = store
        self._events = log_
        self._bundle_of = bundle_of
        self.entries: dict[tuple[str, str], Entry] = {}
        self.by_incarnation: dict[str, Entry] = {}
        self.router: ShimRouter
        self.on_stranger: Callable[[Peer], None] = _unexpected
        self.on_behind: Callable[[Entry, Peer], None] = _ignored
        self._settler: Settler
        self._followers: Followers | None = None
        self._early: list[tuple[Entry, Telling]] = []  # what there was to tell before `follow`
        self.followed = asyncio.Event()
        self._background: set[asyncio.Task[None]] = set()

    # who follows

    def follow(self, followers: "Followers", settler: "Settler") -> None:
        """All services are there: they hear of what the start has found, and from now on at once.

        Until then no dead shim's task is settled, since that takes them.
        """
        self._followers, self._settler = followers, settler
        early, self._early = self._early, []
        for entry, telling in early:
            try:
                telling(followers)
            except Exception as err:  # no start fails for one task
                why = unforeseen(err)
                log.error("remove %s: %s; trying on", entry.what, err, exc_info=why)
                self.in_background(self.settle(entry))
        self.followed.set()

    def _tell(self, entry: Entry, telling: "Telling") -> None:
        if self._followers is None:
            self._early.append((entry, telling))
        else:
            telling(self._followers)

    # entries

    def find(self, namespace: str, container_id: str) -> Entry:
        """Raises NotFound; a create that is under way is no task yet."""
        entry = self.entries.get((namespace, container_id))
        if entry is None or not entry.is_task:
            same = [other for other in self.entries.values() if other.id == container_id]
            hint = "".join(
                f"; namespace {other.namespace} has one (ctl -n {other.namespace} …)"
                for other in same
                if other.is_task
            )
            raise NotFound(f"find task {container_id}: no such task in namespace {namespace}{hint}")
        return entry

    def entry(self, namespace: str, container_id: str) -> Entry | None:
        """The entry of this id, also of a create that is no task yet."""
        return self.entries.get((namespace, container_id))

    def add(self, entry: Entry) -> None:
        self.entries[entry.namespace, entry.id] = entry
        self.by_incarnation[entry.incarnation] = entry

    def remove(self, entry: Entry) -> None:
        self.entries.pop((entry.namespace, entry.id), None)
        if entry.pidfd < 0:
            self.by_incarnation.pop(entry.incarnation, None)

    def watch_shim(self, entry: Entry, pid: int, start: int, pidfd: int) -> None:
        """From now on the entry owns `pidfd` and learns at once when the shim's process ends."""
        if entry.pidfd >= 0:
            os.close(pidfd)
            return
        entry.shim_pid, entry.shim_start, entry.pidfd = pid, start, pidfd
        asyncio.get_running_loop().add_reader(pidfd, self._on_shim_end, entry)

    def call_shims(self) -> None:
        """Let the shims that live connect, now that their socket is there."""
        for entry in self.by_incarnation.values():
            call_shim(entry)

    def in_background(self, work: Any) -> None:
        """Run a coroutine that nobody awaits; its errors are logged."""
        task = asyncio.get_running_loop().create_task(_logged(work))
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    def close(self) -> None:
        loop = asyncio.get_running_loop()
        for task in self._background:
            task.cancel()
        for entry in self.by_incarnation.values():
            if entry.pidfd >= 0:
                loop.remove_reader(entry.pidfd)
                os.close(entry.pidfd)
                entry.pidfd = -1

    # what shims say

    def on_event(self, peer: Peer, message: codec.Event) -> bool:
        """Apply one event; True when it is committed (now or before)."""
        entry = self.by_incarnation.get(peer.incarnation)
        if entry is None:
            return True  # deleted: nobody wants to know any more
        if message.sequence <= entry.last_sequence:
            return True
        hit(f"event.{message.topic.rpartition('/')[2]}")
        recorded = self._apply(entry, message)
        try:
            if message.topic == events.EXIT and not message.body.get("exec_id"):
                hit("event.exit-committed")
        finally:  # told again it is known, and nobody would wake who waits for it
            self._events.announce(*recorded)
            self._wake(entry, message)
        return True

    @contextmanager
    def changes(
        self, entry: Entry, *execs: Exec, durable: bool = True
    ) -> Iterator[sqlite3.Connection]:
        """A transaction that changes these objects too: what is not committed has not happened."""
        before = [(thing, dict(vars(thing))) for thing in (entry, *execs)]
        try:
            with self._db.durable_transaction() if durable else self._db.fast_transaction() as tx:
                yield tx
        except BaseException:
            for thing, values in before:
                vars(thing).update(values)
            raise

    def _apply(self, entry: Entry, message: codec.Event) -> list[Event]:
        exec_id = str(message.body.get("exec_id") or "")
        known = entry.execs.get(exec_id)
        execs = (known,) if known else ()
        quiet = message.topic in _INTERNAL or is_probe(exec_id)
        # What a power cut ends with the machine is not flushed: no exec is there after it.
        durable = message.topic in _DURABLE and not exec_id
        with self.changes(entry, *execs, durable=durable) as tx:
            exec_ = entry.change(message)
            if message.sequence > entry.last_sequence + 1:
                entry.note_behind()
            entry.last_sequence = message.sequence
            self._store.save(tx, entry)
            if exec_ is not None:
                self._store.save_exec(tx, entry, exec_)
            if quiet:
                return []
            return [
                self._events.append(
                    tx, entry.namespace, message.topic, message.body, message.timestamp
                )
            ]

    def _wake(self, entry: Entry, message: codec.Event) -> None:
        if message.topic == events.EXIT:
            exec_id = message.body.get("exec_id")
            (entry.execs[exec_id].ended if exec_id else entry.ended).set()
            if not exec_id:
                self._tell(entry, lambda followers: followers.on_exit(entry))
        elif message.topic == events.CLOSED:
            self.on_known_closed(entry)
        elif message.topic == events.START:
            self._tell(entry, lambda followers: followers.on_started(entry))

    def on_hello(self, peer: Peer) -> None:
        """A shim of ours is there, new or found again."""
        entry = self.by_incarnation.get(peer.incarnation)
        if entry is None or entry.hearsay:
            self.on_stranger(peer)
            return
        entry.peer = peer
        if peer.version:
            entry.unknown_from = None
        else:
            entry.unknown_from = time.monotonic()
            entry.unknown_reason = _no_common_version(peer)
            log.warning("leave shim of %s alone: %s", entry.what, entry.unknown_reason)
        if entry.pidfd < 0:
            try:
                pidfd = os.pidfd_open(int(peer.identity["pid"]))
            except ProcessLookupError:
                self._on_gone(entry)
                return
            self.watch_shim(entry, int(peer.identity["pid"]), int(peer.identity["start"]), pidfd)
        if entry.is_behind or not has_told(entry, peer):
            is_awaited = entry.state == states.CREATING and not entry.orphan
            if peer.version and not (is_awaited or entry.is_abandoned):
                self.on_behind(entry, peer)

    def _on_gone(self, entry: Entry) -> None:
        """It has ended since its hello. If it was not adopted, its end is heard of by its pidfd."""
        entry.peer = None
        self.router.forget(entry.incarnation, f"call shim of {entry.what}: it ended")
        if entry.from_hello:
            self.in_background(self.settle(entry))

    # what happens without them

    def _on_shim_end(self, entry: Entry) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(entry.pidfd)
        os.close(entry.pidfd)
        entry.pidfd = -1
        entry.peer = None
        is_over = entry.closed or self.entries.get(entry.key) is not entry
        kind = NotFound if is_over else Unavailable
        self.router.forget(entry.incarnation, f"call shim of {entry.what}: it ended", kind)
        if self.entries.get(entry.key) is not entry:
            self.by_incarnation.pop(entry.incarnation, None)
            try:
                with self._db.fast_transaction() as tx:
                    self._store.drop_tombstone(tx, entry.incarnation)
            except LighterError as err:  # the next start drops those whose shims are gone
                log.warning("drop tombstone of %s: %s", entry.what, err.message)
            return
        if not entry.closed:
            self.in_background(self.settle(entry))

    async def settle(self, entry: Entry) -> None:
        """A shim ended without having cleaned up: see to that, once all services are there."""
        await self.followed.wait()
        await self._settler.settle(entry)

    async def free(self, entry: Entry, bundle: Bundle) -> bool:
        """Give back what a dead shim held; True when processes had to be ended for it."""
        await self.followed.wait()
        return await self._settler.free(entry, bundle)

    def on_known_closed(self, entry: Entry) -> None:
        """Its row says by now that it is cleaned up: no event and no start tells it once more, so
        what follows is tried until it is done.
        """
        try:
            self._closed(entry)
        except Exception as err:
            log.error("remove %s: %s; trying on", entry.what, err, exc_info=unforeseen(err))
            self.in_background(self.settle(entry))

    def record_exit(self, entry: Entry, exit_: Exit, of_execs: Exit) -> None:
        """Record ends that no shim can tell of: those of execs first, then init's."""
        execs = [exec_ for exec_ in entry.execs.values() if exec_.state == states.RUNNING]
        at = of_execs.exited_at
        recorded = []
        with self.changes(entry, *execs) as tx:
            for exec_ in execs:
                is_told, exec_.started_at = exec_.started_at is not None, exec_.started_at or at
                exec_.exit, exec_.state = of_execs, states.STOPPED
                self._store.save_exec(tx, entry, exec_)
                if is_probe(exec_.exec_id):
                    continue
                if not is_told:  # it could not be recorded, and who waits for the end goes by that
                    recorded.append(self._append_started(tx, entry, exec_, at))
                recorded.append(self._append_exit(tx, entry, exec_.exec_id, exec_.pid, of_execs))
            if entry.exit is None:
                entry.exit, entry.state, entry.unknown_from = exit_, states.STOPPED, None
                self._store.save(tx, entry)
                recorded.append(self._append_exit(tx, entry, "", entry.pid, exit_))
        self._events.announce(*recorded)
        for exec_ in execs:
            exec_.ended.set()
        entry.ended.set()
        self._tell(entry, lambda followers: followers.on_exit(entry))

    def record_unheard(self, entry: Entry) -> None:
        """An exit that was acknowledged by a manager whose rows were lost since."""
        unknown = Exit(LOST_UNKNOWN, time.time_ns(), "unknown")
        bundle = self._bundle_of(entry.namespace, entry.id)
        self.record_exit(entry, bundle.exit_of(entry.incarnation) or unknown, unknown)

    def _append_started(self, tx: sqlite3.Connection, entry: Entry, exec_: Exec, at: int) -> Event:
        body = {"container_id": entry.id, "exec_id": exec_.exec_id, "pid": exec_.pid}
        return self._events.append(tx, entry.namespace, events.EXEC_STARTED, body, at)

    def _append_exit(
        self, tx: sqlite3.Connection, entry: Entry, exec_id: str, pid: int, exit_: Exit
    ) -> Event:
        body = {
            "container_id": entry.id,
            "exec_id": exec_id,
            "pid": pid,
            "exit_status": exit_.exit_status,
            "exited_at": exit_.exited_at,
            "cause": exit_.cause,
        }
        return self._events.append(tx, entry.namespace, events.EXIT, body, exit_.exited_at)

    def record_closed(self, entry: Entry) -> None:
        with self.changes(entry, durable=False) as tx:
            entry.closed = True
            self._store.save(tx, entry)
        self._closed(entry)

    def _closed(self, entry: Entry) -> None:
        """Nothing of the task is left on the host: tell those who follow, or forget a create that
        was undone.
        """
        if entry.exit is None and entry.state != states.CREATING and not entry.is_abandoned:
            self.record_unheard(entry)
        entry.cleaned.set()
        if entry.orphan and not entry.is_task:
            self.forget(entry)
        else:
            self._tell(entry, lambda followers: followers.on_closed(entry))

    def forget(self, entry: Entry) -> None:
        """Remove a task that is cleaned up: its files, then its rows.

        Its delete is an event if its exit was one: a create that was undone is not heard of.
        Raises Unavailable while its root is mounted.
        """
        bundle = self._bundle_of(entry.namespace, entry.id)
        bundle.remove()
        # A shim that was killed before it could remove the record leaves that to us.
        bundle.remove_exit_record()
        hit("delete.bundle-gone")
        recorded = []
        # A power cut ends every task: at worst one is listed as ended again after it.
        with self._db.fast_transaction() as tx:
            if self._followers is not None:
                self._followers.on_forgetting(tx, entry)
            self._store.delete(tx, entry)
            if entry.pidfd < 0:
                self._store.drop_tombstone(tx, entry.incarnation)
            if entry.exit is not None:
                body = {
                    "container_id": entry.id,
                    "pid": entry.pid,
                    "exit_status": entry.exit.exit_status,
                    "exited_at": entry.exit.exited_at,
                }
                recorded.append(self._events.append(tx, entry.namespace, events.DELETE, body))
        self.remove(entry)
        for exec_ in entry.execs.values():
            exec_.ended.set()  # of one that was added and never started
        entry.ended.set()  # of one whose create was undone
        self._events.announce(*recorded)
        self._tell(entry, lambda followers: followers.on_forgotten(entry))
        # It is done, or has not begun; one that is stopped would stay for ever, seen by nobody.
        kill_shim(entry)


def _no_common_version(peer: Peer) -> str:
    theirs = ", ".join(map(str, protocols_of(peer.identity)))
    ours = ", ".join(map(str, codec.SUPPORTED))
    version = peer.identity.get("version")
    return f"its shim (version {version}) speaks protocol {theirs}, this manager {ours}"


def retries(most_s: float = 15.0) -> Iterator[float]:
    """Pauses in seconds between one try and the next: from one second up, without an end."""
    pause_s = 1.0
    while True:
        yield pause_s
        pause_s = min(2 * pause_s, most_s)


def _ignored(_entry: Entry, _peer: Peer) -> None:
    pass


def _unexpected(peer: Peer) -> None:
    log.warning("shim %s has no task here", peer.incarnation)


async def _logged(work: Any) -> None:
    try:
        await work
    except asyncio.CancelledError:
        raise
    except LighterError as err:
        log.error("background work: %s", err)
    except Exception:
        log.exception("background work")
