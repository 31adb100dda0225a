"""The networks of tasks: what a start is given, before there is a task.

    record (durable) → namespace → for each network: record, ADD … ADD, record → files

The record names all that can have been done, since it is written before; so whoever finds it, this
manager after a failure or the next one after a crash, undoes it (ending.py) without the container,
its bundle or its namespace.
"""

import asyncio
import json
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from lighter.daemon.network import hostfiles, ports
from lighter.daemon.network.attachments import Attachments, Wanted
from lighter.daemon.network.configs import Configs, Network
from lighter.daemon.network.ending import Endings
from lighter.daemon.network.names import Names
from lighter.daemon.network.records import Record
from lighter.daemon.network.request import NetworkRequest, Port, from_option
from lighter.daemon.network.specs import Prepared, default_hostname
from lighter.daemon.oci.selinux import mount_label, shared_label
from lighter.daemon.tasks.entry import Entry
from lighter.daemon.turns import Turns
from lighter.daemon.types import Container
from lighter.proto import states
from lighter.proto.errors import FailedPrecondition
from lighter.proto.faults import hit

# Attachments under way to one network: plugins wait for each other's locks anyway.
AT_ONCE = 8

FindTask = Callable[[str, str], Entry]


class NetworkService:
    """Gives a task its networks. `live.py` changes those of running ones."""

    def __init__(
        self,
        attachments: Attachments,
        endings: Endings,
        configs: Configs,
        find_task: FindTask,
        find_container: Callable[[str, str], Container],
        names: Names,
    ) -> None:
        self.names = names
        self._attachments = attachments
        self._endings = endings
        self._configs = configs
        self._find_task = find_task
        self._find_container = find_container
        self._turns: dict[str, Turns] = {}

    async def check(self, request: NetworkRequest) -> None:
        """Whether such a container could start now. Raises NotFound, FailedPrecondition."""
        networks = await asyncio.to_thread(self._networks, request)
        for network in networks:
            self._attachments.chain.check_plugins(network)
        able = any(network.has_capability("portMappings") for network in networks)
        if request.ports and not able and not request.container:
            names = ", ".join(network.name for network in networks)
            raise FailedPrecondition(
                f"publish ports: no plugin of network {names} does that (capability portMappings)"
            )

    def _networks(self, request: NetworkRequest) -> list[Network]:
        first = [self._configs.first()] if request.cni else []
        named = [self._configs.find(name) for name in request.networks]
        return list({network.name: network for network in (*first, *named)}.values())

    async def prepare(self, container: Container, request: NetworkRequest) -> Prepared:
        """All that the request asks for. Raises what is wrong with it, and then has undone it.

        A container with mapped ids must own its network to mount /sys (user_namespaces(7)): its
        runtime makes one, and `attach_created` attaches that.
        """
        namespace, id_ = container.namespace, container.id
        await self._endings.earlier_released(namespace, id_)
        networks = await asyncio.to_thread(self._networks, request)
        late = bool(networks) and "id_root" in container.options
        fields: dict[str, Any] = {"made": not (request.container or late), "late": late}
        if networks:
            ipv6 = _may_have_ipv6(request, networks)
            fields["ports"] = ports.choose(request.ports, self.taken_ports(), ipv6=ipv6)
        elif not request.container:
            fields["path"] = ""
        record = self._attachments.new(namespace, id_, **fields)
        key = record.key
        self._attachments.making.add(key)
        try:
            async with self._attachments.lock(key):  # whoever finds it waits for its interfaces
                await self._attachments.save(record)
                hit("network.recorded")
                places = await self._make(record, request, [] if late else networks, container)
        except BaseException:
            # Shielded: a caller that gives up does not leave half a network behind.
            await asyncio.shield(self.released(key))
            raise
        finally:
            self._attachments.making.discard(key)
        hostname = default_hostname(id_) if networks else ""
        if late:
            return Prepared(key, "", tuple(places), hostname, request)
        return Prepared(key, record.path, tuple(places), hostname)

    async def attach_created(self, prepared: Prepared, container: Container) -> None:
        """Attach a task that has been made and was not started. Raises what plugins say."""
        if prepared.request is not None:
            await self._attach_late(prepared.key, prepared.request, container)

    async def before_start(self, entry: Entry) -> None:
        """Attach a created task whose manager died before doing so. Raises what plugins say."""
        for key in self._attachments.keys_of(entry):
            if self._attachments.get(key).late:
                container = self._find_container(entry.namespace, entry.id)
                request = from_option(container.options.get("network"))
                await self._endings.strays_ended()
                await self._attach_late(key, request, container)

    async def _attach_late(self, key: str, request: NetworkRequest, container: Container) -> None:
        entry = self._find_task(container.namespace, container.id)
        attachments = self._attachments
        async with attachments.lock(key):
            if not attachments.get(key).late:
                return  # who asked at the same time has done it
            for one in reversed(attachments.get(key).attached):
                await attachments.remove(key, one)
            await attachments.netns.remove(key)
            await attachments.netns.keep(key, entry.pid, attachments.cgroup_of(entry))
            networks = await asyncio.to_thread(self._networks, request)
            if not _may_have_ipv6(request, networks):
                await attachments.netns.without_ipv6(key)
            await self._add_all(key, request, networks)
            await self.write_files(key, request, container)
            await attachments.attached_late(key)

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
            await self._attachments.netns.make(key, ipv6=_may_have_ipv6(request, networks))
            hit("network.netns-made")
        await self._add_all(key, request, networks)
        return await self.write_files(key, request, container)

    async def _add_all(self, key: str, request: NetworkRequest, networks: list[Network]) -> None:
        unpublished = self._attachments.get(key).ports
        for number, network in enumerate(networks):
            here = unpublished if network.has_capability("portMappings") else ()
            unpublished = () if here else unpublished
            ips = tuple(ip for ip in (request.ip, request.ip6) if ip) if number == 0 else ()
            mac = request.mac if number == 0 else ""
            async with self._turns.setdefault(network.name, Turns(AT_ONCE)).take():
                await self._attachments.add(key, network, Wanted(ips, mac, here, request.dns))

    async def write_files(
        self, key: str, request: NetworkRequest, container: Container
    ) -> list[tuple[str, str]]:
        """hosts, hostname and resolv.conf, as its networks are now."""
        owner = container.options.get("id_root") or (0, 0)
        hostname = _hostname(container.spec)
        # Who shares its network has the same files mounted, and a level of its own.
        label = shared_label(label) if (label := mount_label(container)) else ""
        if request.attaches and not hostname:
            hostname = default_hostname(container.id)
        places = await self.names.alone(
            partial(
                hostfiles.write,
                self._attachments.directory(key),
                request,
                [one.view() for one in self._attachments.get(key).attached],
                hostname,
                (int(owner[0]), int(owner[1])),
                label,
            )
        )
        hit("network.files-written")
        record = self._attachments.get(key)
        await self.names.renew(record.namespace, self.names.networks(record))
        return places

    async def _share(self, record: Record, other: str) -> list[tuple[str, str]]:
        """The network of another container, kept by a path of our own, and its files."""
        task = self._find_task(record.namespace, other)
        if task.state not in (states.CREATED, states.RUNNING, states.PAUSED):
            raise FailedPrecondition(f"share the network of {other}: it is {task.state}")
        await self._attachments.netns.keep(record.key, task.pid, self._attachments.cgroup_of(task))
        hit("network.netns-made")
        theirs = self._attachments.of(record.namespace, other)
        return self.files_of(theirs.key) if theirs else []

    def files_of(self, key: str) -> list[tuple[str, str]]:
        """(place in the container, path) of the files that were written for it."""
        return hostfiles.existing(self._attachments.directory(key))

    def taken_ports(self, but_of: str = "") -> Iterator[tuple[str, Port]]:
        """(container, port) of all records but the one with this key."""
        for record in self._attachments.all():
            if record.key != but_of:
                for port in record.ports:
                    yield record.id, port

    async def released(self, key: str) -> None:
        """What was prepared is not needed; returns after a first try of undoing it."""
        await self._endings.released(key)

    async def keep(self, entry: Entry) -> Record:
        """A record for a task that was started without one: its namespace, kept by a path.

        Raises FailedPrecondition when it has ended.
        """
        attachments = self._attachments
        record = attachments.new(
            entry.namespace, entry.id, made=False, incarnation=entry.incarnation
        )
        try:
            async with attachments.lock(record.key):  # whoever finds it waits for its namespace
                await attachments.save(record)
                await attachments.netns.keep(record.key, entry.pid, attachments.cgroup_of(entry))
        except BaseException:
            await asyncio.shield(self.released(record.key))
            raise
        return record


def _may_have_ipv6(request: NetworkRequest, networks: list[Network]) -> bool:
    return bool(request.ip6) or any(network.may_have_ipv6 for network in networks)


def _hostname(spec: bytes) -> str:
    return str(json.loads(spec).get("hostname") or "")
