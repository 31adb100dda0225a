"""What is attached now: the records in memory and on disk, and each single change of one.

A change of an attachment is ADD or DEL of one interface, with its record written before and after.
What a start or an end is made of stands in service.py and ending.py.
"""

import asyncio
import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from lighter.daemon.network import isolation
from lighter.daemon.network.chain import Chain
from lighter.daemon.network.configs import Network
from lighter.daemon.network.netns import NetworkNamespaces
from lighter.daemon.network.records import Attached, Record, Records
from lighter.daemon.network.request import Port
from lighter.daemon.tasks.bundle import Bundle
from lighter.daemon.tasks.entry import Entry
from lighter.proto.errors import FailedPrecondition, NotFound
from lighter.proto.faults import hit
from lighter.proto.paths import cgroup_path


@dataclass(frozen=True)
class Wanted:
    """What one attachment is asked to have; "" leaves it to the plugins."""

    ips: tuple[str, ...] = ()
    mac: str = ""
    ports: tuple[Port, ...] = ()
    dns: tuple[str, ...] = ()


class Attachments:
    """Owns the records. Who changes one holds its lock, or is the only one who knows its key."""

    def __init__(
        self,
        *,
        instance: str,
        boot_id: str,
        chain: Chain,
        store: Records,
        netns: NetworkNamespaces,
        bundle_of: Callable[[str, str], Bundle],
    ) -> None:
        self.instance = instance
        self._boot_id = boot_id
        self.chain = chain
        self._store = store
        self.netns = netns
        self.bundle_of = bundle_of
        self._records: dict[str, Record] = {}
        self._by_owner: dict[tuple[str, str], str] = {}
        self._of_task: dict[str, str] = {}  # incarnation → key, of connected tasks
        self._locks: dict[str, asyncio.Lock] = {}
        self._leaving: set[str] = set()
        self.making: set[str] = set()  # keys of starts under way

    # looking

    def of(self, namespace: str, container_id: str) -> Record | None:
        """The network of the container's task, None when it has none of ours."""
        key = self._by_owner.get((namespace, container_id))
        return self._records.get(key) if key else None

    def view(self, namespace: str, container_id: str) -> dict[str, Any]:
        """What lists and inspections show of a container's networks."""
        record = self.of(namespace, container_id)
        if record is None:
            return {"networks": [], "ports": []}
        return {
            "networks": [
                {
                    "network": one.network.name,
                    "ifname": one.ifname,
                    "addresses": [address.address for address in result.addresses],
                    "gateways": [a.gateway for a in result.addresses if a.gateway],
                    "mac": result.mac,
                }
                for one in record.attached
                if not one.pending
                for result in (one.view(),)
            ],
            "ports": [
                {
                    "host_ip": host_ip,
                    "host_port": port.host_port,
                    "container_port": port.container_port,
                    "protocol": port.protocol,
                }
                for port in record.ports
                for host_ip in _host_ips(port, record)
            ],
        }

    def all(self) -> list[Record]:
        """All records, including those that are being removed."""
        return list(self._records.values())

    def staying(self) -> list[Record]:
        """All records but those that are being removed."""
        return [record for key, record in self._records.items() if key not in self._leaving]

    def get(self, key: str) -> Record:
        return self._records[key]

    def knows(self, key: str) -> bool:
        """Whether there is such a record; any thread may ask."""
        return key in self._records

    def directory(self, key: str) -> str:
        """Where the container's files are."""
        return self._store.directory(key)

    def lock(self, key: str) -> asyncio.Lock:
        """Orders what changes one task's network."""
        return self._locks.setdefault(key, asyncio.Lock())

    def keys_of(self, entry: Entry) -> list[str]:
        """What the task has, by its row, or by its incarnation when it was connected later."""
        keys = [entry.options.get("network"), self._of_task.get(entry.incarnation)]
        if entry.from_hello:  # its row, and what stood there, were lost
            owned = self._by_owner.get((entry.namespace, entry.id))
            keys.append(None if owned in self.making else owned)
        return [key for key in dict.fromkeys(keys) if key in self._records]

    def cgroup_of(self, entry: Entry) -> str:
        """The cgroup of a task, which tells its processes from others."""
        called = self.bundle_of(entry.namespace, entry.id).runtime()
        default = cgroup_path(self.instance, entry.namespace, entry.id)
        return str(called.get("cgroup") or entry.options.get("cgroup") or default)

    # records come and go

    def new(self, namespace: str, container_id: str, **fields: Any) -> Record:
        """A record of a new key, in memory; `save` makes it last."""
        key = f"{self.instance}-{secrets.token_hex(8)}"
        record = Record(
            key=key,
            namespace=namespace,
            id=container_id,
            boot_id=self._boot_id,
            token=secrets.token_hex(16),
            **{"path": self.netns.path(key), **fields},
        )
        self.own(record)
        return record

    def own(self, record: Record) -> None:
        """Make this the record that its container has now."""
        self._records[record.key] = record
        self._by_owner[record.namespace, record.id] = record.key
        if record.incarnation:
            self._of_task[record.incarnation] = record.key

    def disown(self, record: Record) -> None:
        """Show this record to nobody any more, since it is being removed; a start meanwhile gets
        another.
        """
        self._leaving.add(record.key)
        owner = (record.namespace, record.id)
        if self._by_owner.get(owner) != record.key:
            return
        del self._by_owner[owner]
        for other in self._records.values():  # of two starts at once, the one that came first
            if (other.namespace, other.id) == owner and other.key not in self._leaving:
                self._by_owner[owner] = other.key

    async def forget(self, record: Record) -> None:
        """Drop the record, all of which has been undone."""
        await asyncio.to_thread(self._store.delete, record.key)
        hit("network.record-gone")
        self._records.pop(record.key, None)
        self._leaving.discard(record.key)
        self._locks.pop(record.key, None)
        self._of_task.pop(record.incarnation, None)

    def load(self) -> None:
        """Read what the manager before has left. Blocking; once, before anything is served."""
        for record in self._store.load():
            self.own(record)

    async def save(self, record: Record, *, durable: bool = True) -> None:
        await asyncio.to_thread(self._store.save, record, durable=durable)

    # one network of a task

    async def add(self, key: str, network: Network, wanted: Wanted) -> Attached:
        """Attach to one more network. After a failure, what was begun is pending in the record."""
        one = Attached(network, self._records[key].next_ifname(), **_given(network, wanted))
        return await self.attach(key, one, wanted)

    async def reattach(self, key: str, one: Attached) -> Attached:
        """DEL and ADD of the same interface, with the same addresses and ports.

        Its container runs: until that has worked it is pending `again`, for the next who tries,
        or the next manager. Raises what plugins say.
        """
        wanted = wish_of(one, self._records[key].ports)
        again = replace(one, **_given(one.network, wanted), pending=True, again=True)
        await self._change(key, lambda record: record.with_attached(again))
        attachment = self._records[key].attachment(one)
        await self.chain.delete(one.network, attachment, one.result, was_added=not one.pending)
        hit("network.reloading")
        return await self.attach(key, again, wanted)

    async def attach(self, key: str, one: Attached, wanted: Wanted) -> Attached:
        """Run ADD for an interface that the record may have already. Raises what plugins say."""
        await self._change(key, lambda record: record.with_attached(one))

        async def note(result: dict[str, Any]) -> None:
            part = replace(one, result=result)
            await self._change(key, lambda record: record.with_attached(part), durable=False)

        attachment = self._records[key].attachment(one)
        result = await self.chain.add(one.network, attachment, note)
        await asyncio.to_thread(isolation.keep, one.network)
        done = replace(one, result=result, pending=False, again=False)
        check_wanted(done, wanted)
        await self._change(key, lambda record: record.with_attached(done))
        hit("network.added")
        return done

    async def publish(self, key: str, ports: tuple[Port, ...]) -> None:
        """The ports are its from now on: who is to attach it tells a plugin next."""
        await self._change(key, lambda record: replace(record, ports=ports, withdrawn=()))

    async def withdraw(self, key: str) -> None:
        """Give its ports back once it has left the network that published them."""
        record = self._records[key]
        if record.ports and not record.publishes and not record.late:
            await self._change(
                key, lambda record: replace(record, ports=(), withdrawn=record.ports)
            )

    async def attached_late(self, key: str) -> None:
        """The task may be started now."""
        await self._change(key, lambda record: replace(record, late=False))

    async def rekeep(self, record: Record, entry: Entry) -> bool:
        """Keep its namespace by the path again, where that was taken off by hand; whether it was.

        Raises FailedPrecondition when the task has ended.
        """
        if not record.path or self.netns.is_there(record.path):
            return False
        await self.netns.remove(record.key)
        await self.netns.keep(record.key, entry.pid, self.cgroup_of(entry))
        return True

    async def remove(self, key: str, one: Attached) -> None:
        """Detach from one network. Raises what a plugin says; the record keeps it then."""
        await self.detach(key, one)
        await self.save(self._records[key])

    async def detach(self, key: str, one: Attached) -> None:
        """As `remove`, but without a change of the record on disk: DEL may be called twice."""
        record = self._records[key]
        gone = not self.netns.is_there(record.path)
        attachment = record.attachment(one, gone=gone)
        await self.chain.delete(one.network, attachment, one.result, was_added=not one.pending)
        self._records[key] = self._records[key].without(one.ifname)
        hit("network.removed")

    async def _change(
        self, key: str, change: Callable[[Record], Record], *, durable: bool = True
    ) -> None:
        record = self._records[key] = change(self._records[key])
        await self.save(record, durable=durable)


def _host_ips(port: Port, record: Record) -> tuple[str, ...]:
    """Where it is published: "" stands for every address of IPv4, "::" for every one of IPv6."""
    publishers = [one for one in record.attached if "portMappings" in one.capabilities]
    ips = [address.ip for one in publishers for address in one.view().addresses]
    if port.host_ip or not any(":" in ip for ip in ips):
        return (port.host_ip,)
    return ("::",) if all(":" in ip for ip in ips) else ("", "::")


def wish_of(one: Attached, ports: tuple[Port, ...]) -> Wanted:
    """What it has, or was asked to have when plugins have not answered."""
    view = one.view()
    ips = tuple(address.ip for address in view.addresses)
    asked = one.capabilities.get("ips") or filter(None, one.args.get("IP", "").split(","))
    dns = one.capabilities.get("dns") or {}
    return Wanted(
        ips=ips or tuple(str(ip) for ip in asked),
        mac=view.mac.lower() or str(one.capabilities.get("mac") or one.args.get("MAC", "")),
        ports=ports if "portMappings" in one.capabilities else (),
        dns=tuple(str(ip) for ip in dns.get("servers") or ()),
    )


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


def check_wanted(one: Attached, wanted: Wanted) -> None:
    """Whether it got the addresses that it was to have. Raises FailedPrecondition."""
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


def not_attached(network: str, container_id: str) -> NotFound:
    return NotFound(f"find network {network} of container {container_id}: it is not attached to it")
