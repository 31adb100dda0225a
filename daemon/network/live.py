"""Networks of containers that run already: connect, disconnect, look, repair.

What is changed here is written into the container's definition too, so that its next start has it:
right after the plugins' work, before all that may fail or be given up. What a dead manager has left
between the two is completed by who asks for the same again.
"""

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from lighter.daemon.metadata.containers import ContainerStore
from lighter.daemon.network import isolation, ports
from lighter.daemon.network.attachments import Attachments, Wanted, check_wanted, not_attached
from lighter.daemon.network.configs import DEFAULT, Configs, Network
from lighter.daemon.network.netns import is_own_network
from lighter.daemon.network.records import Attached, Record
from lighter.daemon.network.request import NetworkRequest, from_option
from lighter.daemon.network.service import NetworkService
from lighter.daemon.tasks.entry import Entry
from lighter.daemon.types import Container
from lighter.daemon.whole import whole
from lighter.proto import states
from lighter.proto.errors import (
    AlreadyExists,
    FailedPrecondition,
    LighterError,
    NotFound,
    Unimplemented,
)
from lighter.proto.faults import hit

_ALIVE = (states.CREATED, states.RUNNING, states.PAUSED)


@dataclass(frozen=True)
class Checked:
    """What CHECK said of one attachment. `status`: ok, failed or unknown; `repaired` by reload."""

    namespace: str
    id: str
    network: str
    ifname: str
    status: str
    reason: str = ""
    repaired: bool = False


class LiveNetworks:
    """Every method takes the namespace and the container first."""

    def __init__(
        self,
        service: NetworkService,
        attachments: Attachments,
        configs: Configs,
        store: ContainerStore,
        find_entry: Callable[[str, str], Entry | None],
    ) -> None:
        self._service = service
        self._attachments = attachments
        self._configs = configs
        self._store = store
        self._find_entry = find_entry

    async def connect(
        self, namespace: str, container_id: str, network_name: str, wanted: Wanted
    ) -> Attached | None:
        """Attach now, if it runs, and from the next start on. Undone when it fails.

        Raises AlreadyExists when it is attached, FailedPrecondition for a container that uses the
        network of the host or of another.
        """
        container = self._store.get(namespace, container_id)
        request = from_option(container.options.get("network"))
        network = await asyncio.to_thread(self._configs.find, network_name)
        self._attachments.chain.check_plugins(network)
        if request.container:
            raise FailedPrecondition(
                f"connect {container_id}: it shares the network of {request.container}"
            )
        _check_own_network(container)
        known = await self._known()
        entry = self._alive(namespace, container_id)
        if entry is not None:
            return await self._connect(container, entry, network, wanted, known)
        if known.has(request, network.name):
            raise AlreadyExists(f"connect {container_id}: it is in network {network.name} already")
        self._redefine(
            namespace, container_id, lambda request: known.with_network(request, network.name)
        )
        return None

    def _alive(self, namespace: str, container_id: str) -> Entry | None:
        entry = self._find_entry(namespace, container_id)
        return entry if entry is not None and entry.state in _ALIVE else None

    async def _connect(
        self,
        container: Container,
        entry: Entry,
        network: Network,
        wanted: Wanted,
        known: "_Known",
    ) -> Attached:
        record = self._attachments.of(entry.namespace, entry.id)
        if record is None or not record.path:
            # Files alone are no namespace; they stay mounted in the container as they are.
            if not is_own_network(entry.pid):
                raise FailedPrecondition(f"connect {entry.id}: it uses the host's network")
            record = await self._service.keep(entry)
        async with self._attachments.lock(record.key):
            attached = self._find(self._now(record), network.name)
            if attached is None:
                await self._attachments.rekeep(self._now(record), entry)
                attached = await self._attach(record, network, wanted, known)
            elif attached.pending or self._is_defined(entry, network.name, known):
                raise AlreadyExists(f"connect {entry.id}: it is in network {network.name} already")
            else:
                check_wanted(attached, wanted)
                self._define(record, attached, known)
        request = from_option(container.options.get("network"))
        await self._rewrite(record.key, container, request)
        return attached

    async def _attach(
        self, record: Record, network: Network, wanted: Wanted, known: "_Known"
    ) -> Attached:
        """Attach and define it; after a failure, neither."""
        before = {one.ifname for one in self._now(record).attached}
        try:
            wanted = await self._with_ports(wanted, self._now(record), network)
            if not (network.may_have_ipv6 or any(":" in ip for ip in wanted.ips)):
                await self._attachments.netns.without_ipv6(record.key)
            attached = await self._attachments.add(record.key, network, wanted)
            hit("network.connected")
            self._define(record, attached, known)
        except BaseException:
            await asyncio.shield(self._undo(record, before))
            raise
        return attached

    def _is_defined(self, entry: Entry, name: str, known: "_Known") -> bool:
        container = self._store.get(entry.namespace, entry.id)
        request = from_option(container.options.get("network"))
        return _is_recorded(container) or known.has(request, name)

    def _define(self, record: Record, attached: Attached, known: "_Known") -> None:
        now = self._attachments.of(record.namespace, record.id)
        published = now.ports if now and "portMappings" in attached.capabilities else ()

        def change(request: NetworkRequest) -> NetworkRequest:
            changed = known.with_network(request, attached.network.name)
            return changed if changed.ports else replace(changed, ports=published)

        self._redefine(record.namespace, record.id, change)

    async def _undo(self, record: Record, before: set[str]) -> None:
        for one in self._now(record).attached:
            if one.ifname not in before:
                await self._attachments.remove(record.key, one)
        await self._attachments.withdraw(record.key)

    async def _with_ports(self, wanted: Wanted, record: Record, network: Network) -> Wanted:
        """What is wanted, with the ports that the container has published, if no other network
        publishes them now. Raises AlreadyExists when somebody else has taken one of them.
        """
        had = record.withdrawn or record.ports
        able = network.has_capability("portMappings")
        if not had or wanted.ports or record.publishes or not able:
            return wanted
        taken = self._service.taken_ports(but_of=record.key)
        here = ports.choose(had, taken, ipv6=network.may_have_ipv6)
        await self._attachments.publish(record.key, here)
        return replace(wanted, ports=here)

    def _now(self, record: Record) -> Record:
        now = self._attachments.of(record.namespace, record.id)
        if now is None or now.key != record.key:
            raise NotFound(f"change network of {record.id}: it has ended")
        if now.unreadable:
            raise FailedPrecondition(f"change network of {record.id}: {now.unreadable}")
        return now

    async def disconnect(self, namespace: str, container_id: str, network_name: str) -> None:
        """Detach now, if it runs, and from the next start on. Raises NotFound."""
        container = self._store.get(namespace, container_id)
        request = from_option(container.options.get("network"))
        known = await self._known()
        record = self._attachments.of(namespace, container_id)
        found = record and (
            self._find(record, network_name) or self._find(record, known.meant(network_name))
        )
        name = found.network.name if found else known.meant(network_name)
        if record is not None and found is not None:
            entry = self._alive(namespace, container_id)
            async with self._attachments.lock(record.key):
                if entry is not None:
                    await self._attachments.rekeep(self._now(record), entry)
                now = self._find(self._now(record), name)
                if now is not None:
                    hit("network.disconnecting")
                    await self._attachments.detach(record.key, now)
                await whole(self._detached(record, name, known))
            await self._rewrite(record.key, container, request)
            await self._service.names.renew(namespace, [name])
        elif known.has(request, name):
            self._redefine(namespace, container_id, lambda request: known.without(request, name))
        else:
            raise not_attached(network_name, container_id)

    async def _detached(self, record: Record, name: str, known: "_Known") -> None:
        await self._attachments.save(self._attachments.get(record.key))
        await self._attachments.withdraw(record.key)
        self._redefine(record.namespace, record.id, lambda request: known.without(request, name))

    async def _known(self) -> "_Known":
        networks, _unusable = await asyncio.to_thread(self._configs.read)
        return _Known(tuple(network.name for network in networks))

    def _find(self, record: Record, name: str) -> Attached | None:
        return next((one for one in record.attached if one.network.name == name), None)

    def _redefine(
        self, namespace: str, container_id: str, change: Callable[[NetworkRequest], NetworkRequest]
    ) -> None:
        """Change it as it is now: plugins took their time, and somebody may have changed the rest.

        Not for what a client recorded itself: it says at each start what there is to be.
        """
        container = self._store.get(namespace, container_id)
        if not _is_recorded(container):
            request = change(from_option(container.options.get("network")))
            options = {**container.options, "network": request.as_option()}
            self._store.update(namespace, container_id, options=options)

    async def _rewrite(self, key: str, container: Container, request: NetworkRequest) -> None:
        """hosts and resolv.conf follow, where the container has them from us."""
        if not self._service.files_of(key):
            return
        await self._service.write_files(key, request, container)

    async def check(self, namespace: str, container_id: str) -> list[Checked]:
        """What every plugin says of every attachment; nothing is changed."""
        record = self._attachments.of(namespace, container_id)
        if record is None:
            return []
        if record.unreadable:
            return [Checked(namespace, container_id, "", "", "failed", record.unreadable)]
        async with self._attachments.lock(record.key):
            return [await self._check(record, one) for one in self._now(record).attached]

    async def _check(self, record: Record, one: Attached) -> Checked:
        said = Checked(record.namespace, record.id, one.network.name, one.ifname, "ok")
        if one.pending:
            return replace(said, status="failed", reason="it could not be attached again")
        if not self._attachments.netns.is_there(record.path):
            return replace(said, status="failed", reason=f"{record.path} is no namespace any more")
        try:
            await self._attachments.chain.check(one.network, record.attachment(one), one.result)
        except Unimplemented as err:
            return replace(said, status="unknown", reason=err.message)
        except LighterError as err:
            return replace(said, status="failed", reason=err.message)
        return said

    async def reload(self, namespace: str, container_id: str, force: bool) -> list[Checked]:
        """Attach anew, with the same addresses, what CHECK finds broken; `force`: all of it.

        Rules of the host that somebody has flushed come back; the interface is made anew, and
        connections go on once it is there.
        """
        record = self._attachments.of(namespace, container_id)
        if record is None:
            raise NotFound(f"reload networks of {container_id}: it has none")
        done = []
        entry = self._alive(namespace, container_id)
        async with self._attachments.lock(record.key):
            kept = entry is not None and await self._attachments.rekeep(self._now(record), entry)
            for one in self._now(record).attached:
                said = await self._check(record, one)
                if force or said.status == "failed":
                    said = await self._attach_anew(record, one, said)
                else:
                    said = await _keep_apart(one, said)
                done.append(replace(said, repaired=said.repaired or (kept and said.status == "ok")))
        names, now = self._service.names, self._attachments.of(namespace, container_id)
        await names.renew(namespace, names.networks(now) if now else ())
        return done

    async def _attach_anew(self, record: Record, one: Attached, said: Checked) -> Checked:
        try:
            await self._attachments.reattach(record.key, one)
        except LighterError as err:
            return replace(said, status="failed", reason=err.message)
        return replace(said, status="ok", repaired=True)


async def _keep_apart(one: Attached, said: Checked) -> Checked:
    """Have the manager's own rules for it again, of which its plugins know nothing at CHECK."""
    try:
        missed = await asyncio.to_thread(isolation.keep, one.network)
    except LighterError as err:
        return replace(said, status="failed", reason=err.message)
    return replace(said, repaired=missed)


def _is_recorded(container: Container) -> bool:
    """Whether a client of containerd's API has made it, whose own the specification is."""
    return "spec_type" in container.options


def _check_own_network(container: Container) -> None:
    """Whether it has its own, running or not. What a client recorded is judged when it runs."""
    if _is_recorded(container):
        return
    namespaces = (json.loads(container.spec).get("linux") or {}).get("namespaces") or ()
    own = [one for one in namespaces if one.get("type") == "network"]
    if not own:
        raise FailedPrecondition(f"connect {container.id}: it uses the host's network")
    if own[0].get("path"):
        raise FailedPrecondition(f"connect {container.id}: it uses the network {own[0]['path']}")


@dataclass(frozen=True)
class _Known:
    """The names of all networks, in their order: what the words of a definition stand for now."""

    names: Sequence[str]

    def meant(self, word: str) -> str:
        if word == DEFAULT and word not in self.names and self.names:
            return self.names[0]
        return word

    def _all(self, request: NetworkRequest) -> list[str]:
        return [*self.names[: int(request.cni)], *map(self.meant, request.networks)]

    def has(self, request: NetworkRequest, name: str) -> bool:
        return name in self._all(request)

    def with_network(self, request: NetworkRequest, name: str) -> NetworkRequest:
        """The request with this network added, once."""
        if self.has(request, name):
            return request
        return request.with_networks((*request.networks, name))

    def without(self, request: NetworkRequest, name: str) -> NetworkRequest:
        """The request without this network, by whatever word it was named; an address that was
        asked for it is not kept for the next one.
        """
        first = self._all(request)[:1]
        changed = replace(
            request,
            cni=request.cni and list(self.names[:1]) != [name],
            networks=tuple(
                word for word in request.networks if name not in (word, self.meant(word))
            ),
        )
        if not changed.attaches:
            return replace(changed, ports=(), ip="", ip6="", mac="")
        return replace(changed, ip="", ip6="", mac="") if first == [name] else changed
