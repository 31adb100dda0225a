"""What a manager does about the tasks it finds at its start: the adoption table, carried out.

Nothing is waited for: entries are listed from their rows at once, shims that live say hello in
their own time, those that do not are shown as unknown with the reason. Shims of an earlier boot
are settled without looking at any process, because their pids mean nothing any more.
"""

import asyncio
import contextlib
import errno
import logging
import os
import socket
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from lighter.daemon import files
from lighter.daemon.foreign import OWNERS
from lighter.daemon.journal import Repeated
from lighter.daemon.metadata.db import Database
from lighter.daemon.spawning.spawner import Child
from lighter.daemon.tasks.bundle import Bundle
from lighter.daemon.tasks.entry import Entry
from lighter.daemon.tasks.hearsay import believe, check_identity
from lighter.daemon.tasks.reach import (
    RETURN_S,
    find_process,
    is_alive,
    kill_process,
    kill_shim,
    living_shims,
)
from lighter.daemon.tasks.shims import Peer
from lighter.daemon.tasks.store import TaskStore
from lighter.daemon.tasks.supervisor import LOST_UNKNOWN, Supervisor, retries
from lighter.daemon.tasks.types import Exit
from lighter.proto import states
from lighter.proto.errors import InvalidArgument, LighterError, unforeseen
from lighter.proto.faults import hit
from lighter.proto.paths import State

log = logging.getLogger("lighter.recovery")

# Of a row's options, what they are whichever start it is of: how to end what runs, and what then.
_KEPT = ("runtime", "cgroup", "auto_remove", "stdio")


class Recovery:
    """Runs once, before the API is bound, and then answers for shims that nobody expected."""

    def __init__(
        self,
        *,
        db: Database,
        store: TaskStore,
        supervisor: Supervisor,
        bundle_of: Callable[[str, str], Bundle],
        instance: str,
        state: State,
        boot_id: str,
    ) -> None:
        self._db = db
        self._store = store
        self._supervisor = supervisor
        self._bundle_of = bundle_of
        self._instance = instance
        self._state = state
        self._boot_id = boot_id
        self._tombstones: set[str] = set()

    def run(self) -> int:
        """Load all entries and take each one's step; returns how many tasks there are.

        No start fails for one task: what cannot be done for it now is tried again later.
        """
        since_boot_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        with _left_to_the_next_start("drop tombstones of before the boot"):
            self._store.prune_tombstones(time.time_ns() - since_boot_ns)
        self._tombstones = self._store.tombstones()
        known: set[str] = set()
        for entry in self._store.load():
            self._supervisor.add(entry)
            bundle = self._bundle_of(entry.namespace, entry.id)
            known.add(bundle.dir)
            self._recover(entry, bundle)
        self._recover_unrecorded(known)
        with _left_to_the_next_start("drop tombstones"):
            self._drop_tombstones()
        with _left_to_the_next_start("remove dead sockets"):
            remove_dead_sockets(self._state.short_sockets)
        return len(self._supervisor.entries)

    def _recover(self, entry: Entry, bundle: Bundle) -> None:
        entry.orphan = entry.state == states.CREATING or entry.is_abandoned
        entry.hearsay = entry.from_hello and not entry.last_sequence
        failures = Repeated(log, f"recover {entry.what}")
        try:
            hit("recover.entry")
            self._take_up(entry, bundle)
        except Exception as err:
            # Who took it for dead would end its container; who gave up, serve no other.
            left = self._failed(entry, err, failures, time.monotonic())
            if left is not None:
                self._supervisor.in_background(self._recover_later(left, bundle, failures))

    def _take_up(self, entry: Entry, bundle: Bundle) -> None:
        entry, shim, process = self._find_shim(entry, bundle)
        if shim == states.REBOOT and _is_of_an_owner(entry) and self._forsaken(entry):
            return
        self._take_step(entry, bundle, shim, process)

    def _failed(
        self, entry: Entry, error: Exception, failures: Repeated, since: float
    ) -> Entry | None:
        """Show it as unknown, and return it: the one that has its name by now, None for none."""
        failures.failed(error)
        left = self._supervisor.entry(*entry.key)
        if left is not None:
            left.unknown_from = since
            left.unknown_reason = f"it cannot be recovered: {error}"
        return left

    def _forsaken(self, entry: Entry) -> bool:
        """Forget it as a create that is undone, now: nothing of it has outlived the reboot.

        containerd keeps no task over a reboot. Docker, when it finds one, opens its FIFOs, which
        went with the reboot, and takes the container for one that runs and does not answer.
        """
        entry.options = {**entry.options, "abandoned": True}
        entry.orphan, entry.closed = True, False
        entry.state, entry.exit = states.CREATING, None
        entry.execs.clear()
        try:
            self._supervisor.forget(entry)
        except (LighterError, OSError) as err:
            log.error("forget %s of before a reboot: %s; trying on", entry.what, err)
            return False
        return True

    def _take_step(self, entry: Entry, bundle: Bundle, shim: str, process: Child | None) -> None:
        if process is not None:
            self._supervisor.watch_shim(entry, process.pid, process.start, process.pidfd)
        entry.unknown_from, entry.unknown_reason = None, ""
        has_record = _has_exit(entry, bundle)
        step = states.adoption_step(entry.state, shim, has_record)
        log.log(
            logging.DEBUG if step == "wait" else logging.INFO,
            "recover task namespace=%s id=%s state=%s shim=%s record=%s step=%s",
            *(entry.namespace, entry.id, entry.state, shim, has_record, step),
        )
        if process is not None and step == "wait" and entry.is_abandoned:
            kill_shim(entry)
        if step == "wait":
            entry.unknown_from = time.monotonic() + RETURN_S
            entry.unknown_reason = "its shim has not connected"
        elif step == "settle-reboot":
            lost = Exit(LOST_UNKNOWN, time.time_ns(), "reboot")
            self._supervisor.record_exit(entry, lost, lost)
            self._supervisor.in_background(self._supervisor.settle(entry))
        elif step in ("forget", "settle-lost", "settle-record") or not entry.closed:
            self._supervisor.in_background(self._supervisor.settle(entry))
        if entry.closed:
            # Its shim may still wait to hear that this is known; what follows does not.
            self._supervisor.on_known_closed(entry)

    async def _recover_later(self, entry: Entry, bundle: Bundle, failures: Repeated) -> None:
        """Try again until it is done, or its shim has said hello by itself."""
        since = time.monotonic()
        for pause_s in retries():
            await asyncio.sleep(pause_s)
            if self._supervisor.entry(*entry.key) is not entry:
                return
            try:
                if entry.peer is None:
                    self._take_up(entry, bundle)
                else:
                    if entry.is_abandoned:
                        kill_shim(entry)
                    if entry.closed:
                        self._supervisor.on_known_closed(entry)
                failures.ended()
                return
            except Exception as err:
                left = self._failed(entry, err, failures, since)
                if left is None:
                    return
                entry = left

    def _find_shim(self, entry: Entry, bundle: Bundle) -> tuple[Entry, str, Child | None]:
        """What is known of it, and its process when that lives.

        Whoever puts an older copy of the database back brings rows back that are of earlier starts:
        in place of one whose container was started again since stands an entry of that start.
        """
        shim, process = self._find_its_own(entry, bundle)
        if process is None:
            record = bundle.shim_record() or {}
            if self._is_of_later(entry, record) and (process := find_process(record)):
                try:
                    return self._replace(entry, bundle, record), states.SILENT, process
                except BaseException:
                    os.close(process.pidfd)
                    raise
        return entry, shim, process

    def _find_its_own(self, entry: Entry, bundle: Bundle) -> tuple[str, Child | None]:
        if entry.boot_id != self._boot_id:
            return states.REBOOT, None
        record: Mapping[str, Any] = {"pid": entry.shim_pid, "start": entry.shim_start}
        # One that has told something has claimed its task, and its row knows its process: nothing
        # has to be read, of hundreds of them.
        if not (entry.last_sequence and entry.shim_pid):
            # The claim goes first: after this no order of a dead manager can make a shim.
            if bundle.withdraw(entry.incarnation):
                return states.NEVER, None
            record = bundle.shim_record() or record
        process = find_process(record)
        return (states.SILENT if process is not None else states.DEAD), process

    def _is_of_later(self, entry: Entry, record: Mapping[str, Any]) -> bool:
        """Whether a shim's record is of another start, whose removal nobody has asked for."""
        incarnation = record.get("incarnation", entry.incarnation)
        return (
            incarnation != entry.incarnation
            and record.get("boot_id") == self._boot_id
            and incarnation not in self._tombstones
        )

    def _replace(self, entry: Entry, bundle: Bundle, record: dict[str, Any]) -> Entry:
        """The entry of a later start, which runs until its shim says what it does."""
        log.warning(
            "the row of %s is of an earlier start; shim %s lives", entry.what, record["pid"]
        )
        later = self._entry(bundle, record, states.RUNNING)
        kept = {name: entry.options[name] for name in _KEPT if name in entry.options}
        later.options = {**kept, "from_hello": True}
        later.hearsay, later.started_at = True, later.created_at
        with self._db.durable_transaction() as tx:
            self._store.delete_execs(tx, entry)
            self._store.save(tx, later)
        self._supervisor.remove(entry)
        self._supervisor.add(later)
        return later

    def _recover_unrecorded(self, known: set[str]) -> None:
        """Bundles without a row: a delete or create was cut short, or the database lost."""
        for namespace in files.directories_in(self._state.tasks):
            for id_ in files.directories_in(f"{self._state.tasks}/{namespace}"):
                bundle = self._bundle_of(namespace, id_)
                if bundle.dir in known:
                    continue
                with _left_to_the_next_start(f"recover bundle {bundle.dir}"):
                    self._recover_bundle(bundle)

    def _recover_bundle(self, bundle: Bundle) -> None:
        record = bundle.shim_record() or {}
        alive = record.get("boot_id") == self._boot_id and is_alive(record)
        row = states.TOMBSTONE if record.get("incarnation") in self._tombstones else states.NONE
        shim = states.SILENT if alive else states.DEAD
        step = states.adoption_step(row, shim, os.path.exists(bundle.exit_record))
        log.info("recover bundle %s: shim=%s row=%s step=%s", bundle.dir, shim, row, step)
        if step == "kill":
            kill_process(record)
        if step != "wait":
            self._supervisor.in_background(self._remove_bundle(bundle, record))

    def _drop_tombstones(self) -> None:
        """Of shims that ended while no manager was there. One that lives and has no task may be of
        any of them, and says which when it connects.
        """
        if not self._tombstones:
            return
        entries = self._supervisor.entries.values()
        with_task = {entry.shim_pid for entry in entries if entry.pidfd >= 0}
        if living_shims(self._instance) <= with_task:
            self._store.prune_tombstones()
            self._tombstones.clear()

    async def _remove_bundle(self, bundle: Bundle, record: dict[str, Any]) -> None:
        entry = self._entry(bundle, record, states.STOPPED)
        for pause_s in retries():
            try:
                await self._supervisor.free(entry, bundle)
                bundle.remove()
                break
            except (LighterError, OSError) as err:
                log.error("remove bundle %s: %s", bundle.dir, err)
                await asyncio.sleep(pause_s)
        bundle.remove_exit_record()

    def _entry(self, bundle: Bundle, record: dict[str, Any], state: str) -> Entry:
        return Entry(
            namespace=bundle.namespace,
            id=bundle.id,
            incarnation=str(record.get("incarnation", "")),
            state=state,
            image="",
            boot_id=self._boot_id,
            created_at=time.time_ns(),
            pid=int(record.get("init_pid", 0)),
            terminal=bool(record.get("terminal", False)),
        )

    def on_stranger(self, peer: Peer) -> None:
        """A shim said hello that has no row: ended when its delete was accepted, else adopted."""
        identity = peer.identity
        row = states.TOMBSTONE if peer.incarnation in self._tombstones else states.NONE
        step = states.adoption_step(row, states.HELLO, False)
        log.warning("shim without a task: id=%s step=%s", identity.get("id"), step)
        if step == "kill":
            kill_process(identity)
            return
        try:
            check_identity(identity)
        except InvalidArgument as err:
            log.error("shim %s is left alone: %s", peer.incarnation, err)
            self._supervisor.router.forget(peer.incarnation, "call shim: it is not adopted")
            return
        bundle = self._bundle_of(identity["namespace"], identity["id"])
        entry = self._supervisor.entries.get((bundle.namespace, bundle.id))
        if entry is None:
            entry = self._entry(bundle, identity, identity["state"])
            entry.options = {"from_hello": True}
        elif entry.incarnation != peer.incarnation:
            log.error("shim %s is left alone: %s has another shim", peer.incarnation, entry.what)
            return
        entry.started_at, entry.hearsay = None, False
        believe(entry, identity)
        with self._db.durable_transaction() as tx:
            self._store.save(tx, entry)
        self._supervisor.add(entry)
        self._supervisor.on_hello(peer)


def bound_sockets() -> set[bytes]:
    """The paths of Unix sockets that some process has bound."""
    with open("/proc/net/unix", "rb") as file:
        return {line.split()[-1] for line in file}


def remove_dead_sockets(
    directory: str, bound: Callable[[], Collection[bytes]] = bound_sockets
) -> None:
    """Sockets for runtimes whose shim died over them.

    Living shims make and remove theirs meanwhile: what has come since the directory was listed is
    not looked at.
    """
    paths = [f"{directory}/{name}" for name in os.listdir(directory)]
    living = bound() if paths else ()
    for path in paths:
        # The kernel's list may skip one while others go.
        if os.fsencode(path) not in living and not _listens(path):
            files.remove(path)


def _listens(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        return probe.connect_ex(path) != errno.ECONNREFUSED


@contextlib.contextmanager
def _left_to_the_next_start(attempt: str) -> Iterator[None]:
    try:
        yield
    except Exception as err:
        why = unforeseen(err)
        log.error("%s: %s; left to the next start", attempt, err, exc_info=why)


def _has_exit(entry: Entry, bundle: Bundle) -> bool:
    """Whether its shim has recorded the exit; true of what cannot be read now: who settles it waits
    until it can.
    """
    try:
        record = bundle.read_exit()
    except LighterError:
        return True
    return record is not None and record.get("incarnation") == entry.incarnation


def _is_of_an_owner(entry: Entry) -> bool:
    """Whether Docker or Kubernetes has made it: what ctl makes there has no word of a cgroup."""
    return entry.namespace in OWNERS and "cgroup" in entry.options
