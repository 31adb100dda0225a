"""The networks of tasks: made before a task is, gone after it, through any crash in between.

    start:  record (durable) → namespace → for each network: record, ADD … ADD, record → files
    end:    for each network in reverse: DEL … DEL, record → namespace → record gone

The record names all that can have been done, since it is written before; so whoever finds it, this
manager after a failure or the next one after a crash, undoes it without the container, its bundle
or its namespace. A failing end is tried again until it works, and its record is kept till then.
"""

import asyncio
import contextlib
import json
import logging
import secrets
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from lighter.daemon import files
from lighter.daemon.network import hostfiles, leftovers, plugin, ports
from lighter.daemon.network.chain import Chain
from lighter.daemon.network.configs import Configs, Network
from lighter.daemon.network.netns import NetworkNamespaces
from lighter.daemon.network.records import Attached, Record, Records
from lighter.daemon.network.request import NetworkRequest, Port
from lighter.daemon.network.result import Result
from lighter.daemon.network.specs import Prepared, default_hostname
from lighter.daemon.tasks.bundle import Bundle
from lighter.daemon.tasks.entry import Entry
from lighter.daemon.types import Container
from lighter.proto import states
from lighter.proto.codec import MAX_MESSAGE_BYTES
from lighter.proto.errors import FailedPrecondition, LighterError, NotFound
from lighter.proto.faults import hit
from lighter.proto.paths import cgroup_path

log = logging.getLogger("lighter.network")

AT_ONCE = 8  # attachments under way: plugins wait for each other's locks anyway
RELEASED_S = 60.0
DOUBT_S = 5.0

FindTask = Callable[[str, str], Entry]


@dataclass(frozen=True)
class Wanted:
    """What one attachment is asked to have; "" leaves it to the plugins."""

    ips: tuple[str, ...] = ()
    mac: str = ""
    ports: tuple[Port, ...] = ()
    dns: tuple[str, ...] = ()


class NetworkService:
    """Owns the records. `live.py` changes those of running containers by its `add` and `remove`."""

    def __init__(
        self,
        *,
        instance: str,
        boot_id: str,
        configs: Configs,
        chain: Chain,
        records: Records,
        netns: NetworkNamespaces,
        find_task: FindTask,
        bundle_of: Callable[[str, str], Bundle],
    ) -> None:
        self._instance = instance
        self._boot_id = boot_id
        self.configs = configs
        self.chain = chain
        self._store = records
        self.netns = netns
        self._find_task = find_task
        self._bundle_of = bundle_of
        self._records: dict[str, Record] = {}
        self._by_owner: dict[tuple[str, str], str] = {}
        self._of_task: dict[str, str] = {}  # incarnation → key, of connected tasks
        self._making: set[str] = set()
        self._locks: dict[str, asyncio.Lock] = {}
        self._releases: dict[str, asyncio.Task[None]] = {}
        self._tried: dict[str, asyncio.Event] = {}
        self._at_once = asyncio.Semaphore(AT_ONCE)
        self._strays_ended = asyncio.Event()

    # looking

    def record_of(self, namespace: str, container_id: str) -> Record | None:
        """The network of the container's task, None when it has none of ours."""
        key = self._by_owner.get((namespace, container_id))
        return self._records.get(key) if key else None

    def records(self) -> list[Record]:
        """All of them, those that are being removed too."""
        return list(self._records.values())

    async def check(self, request: NetworkRequest) -> None:
        """Whether such a container could start now. Raises NotFound, FailedPrecondition."""
        networks = await asyncio.to_thread(self._networks, request)
        for network in networks:
            self.chain.check_plugins(network)
        able = any(network.has_capability("portMappings") for network in networks)
        if request.ports and not able and not request.container:
            names = ", ".join(network.name for network in networks)
            raise FailedPrecondition(
                f"publish ports: no plugin of network {names} does that (capability portMappings)"
            )

    def _networks(self, request: NetworkRequest) -> list[Network]:
        first = [self.configs.first()] if request.cni else []
        named = [self.configs.find(name) for name in request.networks]
        return list({network.name: network for network in (*first, *named)}.values())

    # a task begins

    async def prepare(self, container: Container, request: NetworkRequest) -> Prepared:
        """All that the request asks for. Raises what is wrong with it, and then has undone it.

        A container with mapped ids must own its network to mount /sys (user_namespaces(7)): its
        runtime makes one, and `attach_created` attaches that.
        """
        namespace, id_ = container.namespace, container.id
        await self._earlier_gone(namespace, id_)
        networks = await asyncio.to_thread(self._networks, request)
        key = f"{self._instance}-{secrets.token_hex(8)}"
        late = bool(networks) and "id_root" in container.options
        has_netns = bool(networks or request.container)
        record = Record(
            key=key,
            namespace=namespace,
            id=id_,
            path=self.netns.path(key) if has_netns else "",
            boot_id=self._boot_id,
            token=secrets.token_hex(16),
            made=not (request.container or late),
            ports=ports.choose(request.ports, self._taken_ports()) if networks else (),
        )
        self._making.add(key)
        self._records[key] = record
        self._by_owner[namespace, id_] = key
        try:
            async with self._at_once:
                await self._save(record)
                hit("network.recorded")
                places = await self._make(record, request, [] if late else networks, container)
        except BaseException:
            # Shielded: a caller that gives up does not leave half a network behind.
            await asyncio.shield(self.released(key))
            raise
        finally:
            self._making.discard(key)
        hostname = default_hostname(id_) if networks else ""
        if late:
            return Prepared(key, "", tuple(places), hostname, request)
        return Prepared(key, record.path, tuple(places), hostname)

    async def attach_created(self, prepared: Prepared, container: Container) -> None:
        """Attach a task that has been made and was not started. Raises what plugins say."""
        key, request = prepared.key, prepared.request
        if request is None:
            return
        entry = self._find_task(container.namespace, container.id)
        async with self._at_once, self.lock(key):
            await self.netns.keep(key, entry.pid, self._cgroup_of(entry))
            networks = await asyncio.to_thread(self._networks, request)
            await self._add_all(key, request, networks)
            await self.write_files(key, request, container)

    async def _make(
        self,
        record: Record,
        request: NetworkRequest,
        networks: list[Network],
        container: Container,
    ) -> list[tuple[str, str]]:
        key = record.key
        if request.container:
            return await self._share(record, request.container)
        if networks:
            ipv6 = bool(request.ip6) or any(network.may_have_ipv6 for network in networks)
            await self.netns.make(key, ipv6=ipv6)
            hit("network.netns-made")
        await self._add_all(key, request, networks)
        return await self.write_files(key, request, container)

    async def _add_all(self, key: str, request: NetworkRequest, networks: list[Network]) -> None:
        unpublished = self._records[key].ports
        for number, network in enumerate(networks):
            here = unpublished if network.has_capability("portMappings") else ()
            unpublished = () if here else unpublished
            ips = tuple(ip for ip in (request.ip, request.ip6) if ip) if number == 0 else ()
            mac = request.mac if number == 0 else ""
            await self.add(key, network, Wanted(ips, mac, here, request.dns))

    async def write_files(
        self, key: str, request: NetworkRequest, container: Container
    ) -> list[tuple[str, str]]:
        """hosts, hostname and resolv.conf, as its networks are now."""
        owner = container.options.get("id_root") or (0, 0)
        hostname = _hostname(container.spec)
        if request.attaches and not hostname:
            hostname = default_hostname(container.id)
        places = await asyncio.to_thread(
            hostfiles.write,
            self._store.directory(key),
            request,
            self.results(key),
            hostname,
            (int(owner[0]), int(owner[1])),
        )
        hit("network.files-written")
        return places

    async def _share(self, record: Record, other: str) -> list[tuple[str, str]]:
        """The network of another container, kept by a path of our own, and its files."""
        task = self._find_task(record.namespace, other)
        if task.state not in (states.CREATED, states.RUNNING, states.PAUSED):
            raise FailedPrecondition(f"share the network of {other}: it is {task.state}")
        await self.netns.keep(record.key, task.pid, self._cgroup_of(task))
        hit("network.netns-made")
        theirs = self.record_of(record.namespace, other)
        return self.files_of(theirs.key) if theirs else []

    def files_of(self, key: str) -> list[tuple[str, str]]:
        """(place in the container, path) of the files that were written for it."""
        return hostfiles.existing(self._store.directory(key))

    def results(self, key: str) -> list[Result]:
        return [one.view() for one in self._records[key].attached]

    def _taken_ports(self) -> Iterator[tuple[str, Port]]:
        for record in self._records.values():
            for port in record.ports:
                yield record.id, port

    async def _earlier_gone(self, namespace: str, container_id: str) -> None:
        """A container that starts again may want its address again."""
        for record in self.records():
            same = (record.namespace, record.id) == (namespace, container_id)
            if same and record.key in self._releases:
                await self.released(record.key)

    # one network of a task

    async def add(self, key: str, network: Network, wanted: Wanted) -> Attached:
        """Attach to one network more. What a failure leaves is pending in the record."""
        one = Attached(network, self._records[key].next_ifname(), **_given(network, wanted))
        return await self.attach(key, one, wanted)

    def anew(self, one: Attached, wanted: Wanted) -> Attached:
        """The same interface, to be attached again."""
        return Attached(one.network, one.ifname, **_given(one.network, wanted))

    async def attach(self, key: str, one: Attached, wanted: Wanted) -> Attached:
        """Run ADD for an interface that the record may have already. Raises what plugins say."""
        await self._change(key, lambda record: record.with_attached(one))

        async def note(result: dict[str, Any]) -> None:
            part = replace(one, result=result)
            await self._change(key, lambda record: record.with_attached(part), durable=False)

        attachment = self._records[key].attachment(one)
        result = await self.chain.add(one.network, attachment, note)
        done = replace(one, result=result, pending=False)
        _check_wanted(done, wanted)
        await self._change(key, lambda record: record.with_attached(done))
        hit("network.added")
        return done

    async def remove(self, key: str, one: Attached) -> None:
        """Detach from one network. Raises what a plugin says; the record keeps it then."""
        await self._detach(key, one)
        await self._save(self._records[key])

    async def _detach(self, key: str, one: Attached) -> None:
        """As `remove`, but on disk the record is what it was: DEL may be asked twice."""
        record = self._records[key]
        gone = not self.netns.is_there(record.path)
        attachment = record.attachment(one, gone=gone)
        await self.chain.delete(one.network, attachment, one.result, was_added=not one.pending)
        self._records[key] = self._records[key].without(one.ifname)
        hit("network.removed")

    def lock(self, key: str) -> asyncio.Lock:
        """Orders what changes one task's network."""
        return self._locks.setdefault(key, asyncio.Lock())

    async def _change(
        self, key: str, change: Callable[[Record], Record], *, durable: bool = True
    ) -> None:
        record = self._records[key] = change(self._records[key])
        await self._save(record, durable=durable)

    async def _save(self, record: Record, *, durable: bool = True) -> None:
        await asyncio.to_thread(self._store.save, record, durable=durable)

    async def keep(self, entry: Entry) -> Record:
        """A record for a task that was started without one: its namespace, kept by a path.

        Raises FailedPrecondition when it has ended.
        """
        key = f"{self._instance}-{secrets.token_hex(8)}"
        record = Record(
            key=key,
            namespace=entry.namespace,
            id=entry.id,
            path=self.netns.path(key),
            boot_id=self._boot_id,
            token=secrets.token_hex(16),
            made=False,
            incarnation=entry.incarnation,
        )
        self._records[key] = record
        self._by_owner[entry.namespace, entry.id] = key
        self._of_task[entry.incarnation] = key
        try:
            await self._save(record)
            await self.netns.keep(key, entry.pid, self._cgroup_of(entry))
        except BaseException:
            await asyncio.shield(self.released(key))
            raise
        return record

    # a task is over

    def keys_of(self, entry: Entry) -> list[str]:
        """What the task has, by its row, or by its incarnation when it was connected later."""
        keys = [entry.options.get("network"), self._of_task.get(entry.incarnation)]
        if entry.from_hello:  # its row, and what stood there, were lost
            owned = self._by_owner.get((entry.namespace, entry.id))
            keys.append(None if owned in self._making else owned)
        return [key for key in dict.fromkeys(keys) if key in self._records]

    def on_over(self, entry: Entry) -> None:
        """Told by the supervisor of each task that is cleaned up or forgotten."""
        for key in self.keys_of(entry):
            self.release(key)

    async def task_released(self, entry: Entry) -> None:
        """Until its addresses and ports are free, or a first try has failed."""
        for key in self.keys_of(entry):
            await self.released(key)

    def release(self, key: str) -> None:
        """Begin to undo all that the record says; tried until it works."""
        if key in self._records and key not in self._releases:
            self._disown(self._records[key])
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

    async def _release_until_done(self, key: str) -> None:
        try:
            await self._strays_ended.wait()
            for pause_s in _pauses():
                try:
                    await self._release(key)
                    return
                except LighterError as err:
                    log.error("remove network of %s: %s", self._records[key].id, err)
                except Exception:
                    log.exception("remove network of %s", self._records[key].id)
                self._tried[key].set()
                await asyncio.sleep(pause_s)
        finally:
            if tried := self._tried.pop(key, None):
                tried.set()
            self._releases.pop(key, None)

    async def _release(self, key: str) -> None:
        async with self.lock(key):
            record = self._records[key]
            there = bool(record.path) and self.netns.is_there(record.path)
            had = bool(record.attached)
            cut_short = [one.network for one in record.attached if one.pending]
            hit("network.releasing")
            failure: LighterError | None = None
            for one in reversed(record.attached):
                try:
                    # Not written down each time: an end must not need a disk with room.
                    await self._detach(key, one)
                except LighterError as err:
                    failure = failure or err
            if failure is not None:
                raise failure
            await self.netns.remove(key)
            hit("network.netns-gone")
            if cut_short:
                await self._free_addresses(cut_short)
            if had and not there:
                # Plugins that find no namespace cannot tell which rules were theirs.
                await asyncio.to_thread(self._free_rules, key)
            await asyncio.to_thread(self._store.delete, key)
            hit("network.record-gone")
            self._forget(record)

    def _free_rules(self, key: str) -> None:
        leftovers.free_rules(self._instance, lambda other: other != key and other in self._records)

    def _forget(self, record: Record) -> None:
        self._records.pop(record.key, None)
        self._locks.pop(record.key, None)
        self._of_task.pop(record.incarnation, None)

    def _disown(self, record: Record) -> None:
        """Nobody is shown what is being removed; who starts meanwhile has another."""
        if self._by_owner.get((record.namespace, record.id)) == record.key:
            del self._by_owner[record.namespace, record.id]

    # a manager starts

    def load(self) -> None:
        """Read what the manager before has left. Blocking; once, before anything is served."""
        for record in self._store.load():
            self._records[record.key] = record
            self._by_owner[record.namespace, record.id] = record.key
            if record.incarnation:
                self._of_task[record.incarnation] = record.key

    async def recover(self, find_entry: Callable[[str, str], Entry | None]) -> None:
        """Undo what no task has, once after a start.

        Running containers are not touched, only what was begun on their networks and not ended.
        """
        old = self.records()
        if old:
            strays = await asyncio.to_thread(plugin.end_strays, {record.token for record in old})
            if strays:
                log.warning("ended plugins of the manager before: %s", strays)
        self._strays_ended.set()
        doubtful = []
        releases = []
        for record in old:
            entry = find_entry(record.namespace, record.id)
            if entry is not None and self._is_of(record, entry):
                # Others of the same name may be left, whose removal has failed.
                self._by_owner[record.namespace, record.id] = record.key
                await self._undo_pending(record)
            elif entry is None and self._bundle_names(record):
                self._by_owner[record.namespace, record.id] = record.key
                doubtful.append(record)
            elif record.key not in self._making:
                releases.append(record.key)
        hit("network.recovering")
        for key in releases:
            self.release(key)
        await self._sweep()
        if doubtful:
            await self._wait_for(doubtful, find_entry)

    def _is_of(self, record: Record, entry: Entry) -> bool:
        if entry.closed or entry.is_abandoned:
            return False
        return record.key in self.keys_of(entry)

    async def _undo_pending(self, record: Record) -> None:
        async with self.lock(record.key):
            for one in record.attached:
                if one.pending:
                    try:
                        await self.remove(record.key, one)
                    except LighterError as err:
                        log.error("undo attachment of %s: %s", record.id, err)

    async def _sweep(self) -> None:
        """What has no record at all: namespaces' files, and addresses that were being given."""
        for key in [key for key in self.netns.kept() if key not in self._records]:
            try:
                await self.netns.remove(key)
            except LighterError as err:
                log.warning("remove network namespace %s: %s", key, err)
        networks, _ = await asyncio.to_thread(self.configs.read)
        recorded = [one.network for record in self.records() for one in record.attached]
        await self._free_addresses([*networks, *recorded])

    async def _free_addresses(self, networks: Iterable[Network]) -> None:
        directories = leftovers.address_directories(networks)
        await asyncio.to_thread(
            leftovers.free_addresses, directories, self._instance, self._records.__contains__
        )

    async def _wait_for(
        self,
        doubtful: list[Record],
        find_entry: Callable[[str, str], Entry | None],
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
        """Whether a task's directory is there whose spec has this network."""
        bundle = self._bundle_of(record.namespace, record.id)
        spec = files.read_capped(bundle.dir + "/config.json", MAX_MESSAGE_BYTES) or b""
        return record.key.encode() in spec

    def _cgroup_of(self, entry: Entry) -> str:
        called = self._bundle_of(entry.namespace, entry.id).runtime()
        default = cgroup_path(self._instance, entry.namespace, entry.id)
        return str(called.get("cgroup") or entry.options.get("cgroup") or default)


def _given(network: Network, wanted: Wanted) -> dict[str, Any]:
    """What plugins are told, by the capabilities they have declared, else by CNI_ARGS."""
    capabilities: dict[str, Any] = {}
    args: dict[str, str] = {}
    if wanted.ports:
        capabilities["portMappings"] = [port.as_cni() for port in wanted.ports]
    if wanted.dns and network.has_capability("dns"):
        capabilities["dns"] = {"servers": list(wanted.dns)}
    if wanted.ips and network.has_capability("ips"):
        capabilities["ips"] = list(wanted.ips)
    elif wanted.ips:
        args["IP"] = ",".join(wanted.ips)
    if wanted.mac and network.has_capability("mac"):
        capabilities["mac"] = wanted.mac
    elif wanted.mac:
        args["MAC"] = wanted.mac
    return {"capabilities": capabilities, "args": args}


def _check_wanted(one: Attached, wanted: Wanted) -> None:
    view = one.view()
    got = {address.ip for address in view.addresses}
    for ip in wanted.ips:
        if ip not in got:
            raise FailedPrecondition(
                f"attach to network {one.network.name}: its plugins gave "
                f"{', '.join(sorted(got)) or 'no address'}, not {ip}"
            )
    if wanted.mac and view.mac.lower() not in ("", wanted.mac):
        raise FailedPrecondition(
            f"attach to network {one.network.name}: its plugins gave {view.mac}, not {wanted.mac}"
        )


def _hostname(spec: bytes) -> str:
    return str(json.loads(spec).get("hostname") or "")


def _pauses() -> Iterator[float]:
    """Between one try and the next, in seconds, without an end."""
    yield from (1.0, 2.0, 4.0, 8.0, 15.0, 30.0)
    while True:
        yield 60.0


def not_attached(network: str, container_id: str) -> NotFound:
    return NotFound(f"find network {network} of container {container_id}: it is not attached to it")
