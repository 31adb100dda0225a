"""The end of a task's network, and what a manager finds of ends that never came.

    for each network in reverse: DEL … DEL → namespace → record

A failing end is tried again until it works, and its record is kept till then. It needs neither the
container nor its namespace, and no room on the disk. What is not known to have come about, and
whose plugins have refused to undo it, is undone without the namespace at the next try: some
(host-device) fail where they find one without what they would have brought there.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable

from lighter.daemon import files
from lighter.daemon.journal import Repeated
from lighter.daemon.network import leftovers
from lighter.daemon.network.attachments import Attachments
from lighter.daemon.network.configs import Configs, Network
from lighter.daemon.network.names import Names
from lighter.daemon.network.records import Record
from lighter.daemon.tasks.entry import Entry
from lighter.daemon.tasks.supervisor import retries
from lighter.proto.codec import MAX_MESSAGE_BYTES
from lighter.proto.errors import FailedPrecondition, LighterError
from lighter.proto.faults import hit

log = logging.getLogger("lighter.network")

RELEASED_S = 60.0
DOUBT_S = 5.0
_MOST_S = 60.0  # between two tries

FindEntry = Callable[[str, str], Entry | None]


class Endings:
    """Releases what records say, each in the background and one try after the other."""

    def __init__(self, attachments: Attachments, configs: Configs, names: Names) -> None:
        self._attachments = attachments
        self._names = names
        self._configs = configs
        self._releases: dict[str, asyncio.Task[None]] = {}
        self._tried: dict[str, asyncio.Event] = {}
        self._strays_ended = asyncio.Event()
        self._decided = asyncio.Event()
        # Of the manager before, until `recover` has decided about them.
        self._undecided = {record.key for record in attachments.all()}

    def on_over(self, entry: Entry) -> None:
        """Told by the supervisor of each task that is cleaned up or forgotten."""
        for key in self._attachments.keys_of(entry):
            self.release(key)

    async def task_released(self, entry: Entry) -> None:
        """Wait until the task's addresses and ports are free, or a first try has failed."""
        for key in self._attachments.keys_of(entry):
            await self.released(key)

    def release(self, key: str) -> None:
        """Begin to undo all that the record says; tried until it works."""
        if self._attachments.knows(key) and key not in self._releases:
            self._attachments.disown(self._attachments.get(key))
            self._tried[key] = asyncio.Event()
            task = asyncio.get_running_loop().create_task(self._release_until_done(key))
            self._releases[key] = task

    async def released(self, key: str) -> None:
        """`release`, and wait for the end of its first try."""
        self.release(key)
        tried = self._tried.get(key)
        if tried is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(RELEASED_S):
                    await tried.wait()

    async def all_released(self) -> None:
        """Wait until everything that no task has is released, or a first try of it has failed."""
        await self._decided.wait()
        for key in list(self._releases):
            await self.released(key)

    async def _release_until_done(self, key: str) -> None:
        try:
            await self._strays_ended.wait()
            refused = False
            failures = Repeated(log, f"remove network of {self._attachments.get(key).id}")
            for pause_s in retries(_MOST_S):
                try:
                    await self._release(key, without_namespace=refused)
                    failures.ended()
                    return
                except Exception as err:
                    if isinstance(err, LighterError):
                        # Not one that is away for a while, or does not answer.
                        refused = isinstance(err, FailedPrecondition)
                    failures.failed(err)
                self._tried[key].set()
                await asyncio.sleep(pause_s)
        finally:
            if tried := self._tried.pop(key, None):
                tried.set()
            self._releases.pop(key, None)

    async def _release(self, key: str, *, without_namespace: bool) -> None:
        async with self._attachments.lock(key):
            record = self._attachments.get(key)
            there = bool(record.path) and self._attachments.netns.is_there(record.path)
            had = bool(record.attached)
            cut_short = [one.network for one in record.attached if one.pending]
            hit("network.releasing")
            if without_namespace and there and not any(one.result for one in record.attached):
                await self._attachments.netns.remove(key)
                there = False
            failure: LighterError | None = None
            for one in reversed(record.attached):
                try:
                    # Not written down each time: an end must not need a disk with room.
                    await self._attachments.detach(key, one)
                except LighterError as err:
                    failure = failure or err
            if failure is not None:
                raise failure
            await self._attachments.netns.remove(key)
            hit("network.netns-gone")
            if cut_short:
                await self._free_addresses(cut_short)
            if record.unreadable:
                networks, _ = await asyncio.to_thread(self._configs.read)
                await self._free_addresses(networks, but=key)
            if record.unreadable or (had and not there):
                # Plugins that find no namespace cannot tell which rules were theirs.
                await asyncio.to_thread(self._free_rules, key)
            await self._attachments.forget(record)
            await self._names.renew(record.namespace, self._names.networks(record))

    def _free_rules(self, key: str) -> None:
        attachments = self._attachments
        leftovers.free_rules(
            attachments.instance, lambda other: other != key and attachments.knows(other)
        )

    async def strays_ended(self) -> None:
        """Wait until no plugin runs any more that the last manager has called."""
        await self._strays_ended.wait()

    async def earlier_released(self, namespace: str, container_id: str) -> None:
        """A container that starts again may want its address and its ports again.

        It has no task: what a start left that the manager before has not ended is nobody's either.
        """
        for record in self._attachments.all():
            if (record.namespace, record.id) != (namespace, container_id):
                continue
            is_left = record.key in self._undecided and not self._bundle_names(record)
            if is_left or record.key in self._releases:
                await self.released(record.key)

    # a manager starts

    async def recover(self, find_entry: FindEntry) -> None:
        """Undo what no task has, once after a start.

        Running containers are not touched, only what was begun on their networks and not ended.
        """
        try:
            doubtful = await self._decide(find_entry)
        finally:
            self._decided.set()
        await self._sweep()
        await self._names.renew_all()
        if doubtful:
            await self._wait_for(doubtful, find_entry)

    async def _decide(self, find_entry: FindEntry) -> list[Record]:
        """What becomes of each of the manager before; those that it is too early to tell of."""
        old = [record for record in self._attachments.all() if record.key in self._undecided]
        try:
            strays = await self._attachments.chain.strays.end({record.token for record in old})
            if strays:
                log.warning("ended plugins of the manager before: %s", strays)
        finally:
            self._strays_ended.set()
        doubtful = []
        releases = []
        for record in old:
            if not self._attachments.knows(record.key):
                continue  # its task was found to be over meanwhile
            entry = find_entry(record.namespace, record.id)
            if entry is not None and self._is_of(record, entry):
                # Others of the same name may be left, whose removal has failed.
                self._attachments.own(self._attachments.get(record.key))
                await self._finish_pending(record.key)
            elif entry is None and self._bundle_names(record):
                self._attachments.own(self._attachments.get(record.key))
                doubtful.append(record)
            else:
                releases.append(record.key)
        hit("network.recovering")
        for key in releases:
            self.release(key)
        self._undecided.clear()
        return doubtful

    def _is_of(self, record: Record, entry: Entry) -> bool:
        if entry.closed or entry.is_abandoned:
            return False
        return record.key in self._attachments.keys_of(entry)

    async def _finish_pending(self, key: str) -> None:
        """Attach again what was being attached again, undo what was new, with the ports it had."""
        async with self._attachments.lock(key):
            if not self._attachments.knows(key):
                return
            record = self._attachments.get(key)
            for one in [one for one in record.attached if one.pending]:
                try:
                    if one.again:
                        await self._attachments.reattach(key, one)
                    else:
                        await self._attachments.remove(key, one)
                except LighterError as err:
                    what = "repair" if one.again else "undo"
                    log.error("%s network %s of %s: %s", what, one.network.name, record.id, err)
            try:
                await self._attachments.withdraw(key)
            except LighterError as err:
                log.error("give back ports of %s: %s", record.id, err)

    async def _sweep(self) -> None:
        """What has no record at all: namespaces' files, and addresses that were being given."""
        for key in [
            key for key in self._attachments.netns.kept() if not self._attachments.knows(key)
        ]:
            try:
                await self._attachments.netns.remove(key)
            except LighterError as err:
                log.warning("remove network namespace %s: %s", key, err)
        networks, _ = await asyncio.to_thread(self._configs.read)
        recorded = [one.network for record in self._attachments.all() for one in record.attached]
        await self._free_addresses([*networks, *recorded])

    async def _free_addresses(self, networks: Iterable[Network], *, but: str = "") -> None:
        """Free the addresses of keys that nobody knows, and of this key."""
        attachments = self._attachments
        directories = leftovers.address_directories(networks)
        await asyncio.to_thread(
            leftovers.free_addresses,
            directories,
            attachments.instance,
            lambda key: key != but and attachments.knows(key),
        )

    async def _wait_for(
        self,
        doubtful: list[Record],
        find_entry: FindEntry,
    ) -> None:
        """The database was lost: shims come back and are tasks again, or their bundles go."""
        while doubtful:
            await asyncio.sleep(DOUBT_S)
            doubtful = [r for r in doubtful if find_entry(r.namespace, r.id) is None]
            for record in doubtful:
                if not self._bundle_names(record):
                    self.release(record.key)
            doubtful = [r for r in doubtful if r.key not in self._releases]

    def _bundle_names(self, record: Record) -> bool:
        """Whether a task's directory is there whose spec has this network or cannot be read."""
        bundle = self._attachments.bundle_of(record.namespace, record.id)
        try:
            spec = files.read_capped(bundle.dir + "/config.json", MAX_MESSAGE_BYTES) or b""
        except OSError as err:
            log.error("read spec of %s: %s", record.id, err)
            return True
        return record.key.encode() in spec
