"""`ctl network create`: a configuration for those who have none, written as a file like any other.

<first configuration directory>/lighter-<name>.conflist

Plugins are Debian's and CentOS's containernetworking-plugins: a bridge (or a parent's macvlan or
ipvlan), addresses by host-local, published ports by portmap, a way through the host's filter by
firewall. Only files with the prefix are removed again; others belong to whoever wrote them.
"""

import hashlib
import ipaddress
import json
import os
import re
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from lighter.daemon import files
from lighter.daemon.network import isolation
from lighter.daemon.network.configs import Network, from_json
from lighter.proto.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    ResourceExhausted,
    Unavailable,
)

PREFIX = "lighter-"
VERSION = "1.0.0"  # the newest that Debian 12's plugins speak
DRIVERS = ("bridge", "macvlan", "ipvlan", "ptp")
_IFNAME_BYTES = 15
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,75}", re.ASCII)
_PARENT = re.compile(r"[A-Za-z0-9_.@-]{1,15}", re.ASCII)
_RESERVED = ("host", "none")

IpNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True)
class NewNetwork:
    """What is asked of `networks.create`; "" leaves the choice to the manager."""

    name: str
    driver: str = "bridge"
    subnets: tuple[str, ...] = ()
    gateways: tuple[str, ...] = ()
    ip_range: str = ""
    ipv6: bool = False
    internal: bool = False
    parent: str = ""
    mtu: int = 0


def bridge_name(name: str, *, internal: bool = False) -> str:
    """An interface's name has 15 bytes at most: a longer network's is made of its hash."""
    prefix = isolation.INTERNAL_PREFIX if internal else isolation.OPEN_PREFIX
    plain = f"{prefix}{name}"
    if len(plain) <= _IFNAME_BYTES:
        return plain
    return f"{prefix}{hashlib.sha256(name.encode()).hexdigest()[:10]}"


def configuration(
    new: NewNetwork, pool: str, taken: Iterable[IpNetwork], data_dir: str
) -> dict[str, Any]:
    """The conflist. Raises InvalidArgument, ResourceExhausted when the pool has no room."""
    if not _NAME.fullmatch(new.name) or new.name in _RESERVED:
        raise InvalidArgument(f"create network {new.name[:80]!r}: it cannot have this name")
    if new.driver not in DRIVERS:
        raise InvalidArgument(
            f"create network {new.name}: driver {new.driver!r} is none of {', '.join(DRIVERS)}"
        )
    if (new.driver in ("macvlan", "ipvlan")) != bool(new.parent):
        raise InvalidArgument(
            f"create network {new.name}: macvlan and ipvlan have a parent interface, others none"
        )
    if new.parent and not _PARENT.fullmatch(new.parent):
        raise InvalidArgument(f"create network {new.name}: {new.parent!r} is no interface's name")
    if new.mtu and not 68 <= new.mtu <= 65535:
        raise InvalidArgument(f"create network {new.name}: an MTU of {new.mtu} cannot be")
    subnets = _subnets(new, pool, list(taken))
    main = {**_main(new), "ipam": _ipam(new, subnets, data_dir)}
    if new.mtu:
        main["mtu"] = new.mtu
    main["capabilities"] = {"ips": True, **({"mac": True} if new.driver != "ptp" else {})}
    plugins: list[dict[str, Any]] = [main]
    if new.driver in ("bridge", "ptp"):
        if not new.internal:
            plugins.append({"type": "portmap", "capabilities": {"portMappings": True}})
        # Of ptp each container has an interface of its own on the host: there is no bridge to keep.
        apart = {"ingressPolicy": isolation.SAME_BRIDGE} if new.driver == "bridge" else {}
        plugins.append({"type": "firewall", **apart})
    return {"cniVersion": VERSION, "name": new.name, "plugins": plugins}


def _main(new: NewNetwork) -> dict[str, Any]:
    if new.driver == "bridge":
        return {
            "type": "bridge",
            "bridge": bridge_name(new.name, internal=new.internal),
            "isGateway": True,
            "ipMasq": not new.internal,
            "hairpinMode": True,
        }
    if new.driver == "ptp":
        return {"type": "ptp", "ipMasq": not new.internal}
    if new.driver == "macvlan":
        return {"type": "macvlan", "master": new.parent, "mode": "bridge"}
    return {"type": "ipvlan", "master": new.parent, "mode": "l2"}


def _subnets(new: NewNetwork, pool: str, taken: Sequence[IpNetwork]) -> list[IpNetwork]:
    try:
        subnets = [ipaddress.ip_network(text) for text in new.subnets]
    except ValueError as err:
        raise InvalidArgument(f"create network {new.name}: {err}") from err
    for subnet in subnets:
        for other in taken:
            if subnet.version == other.version and subnet.overlaps(other):
                raise InvalidArgument(
                    f"create network {new.name}: subnet {subnet} overlaps {other}, which is in use"
                )
    versions = [subnet.version for subnet in subnets]
    if sorted(set(versions)) != sorted(versions):
        raise InvalidArgument(f"create network {new.name}: one subnet of IPv4 and one of IPv6")
    if 4 not in versions and not (new.ipv6 and subnets):
        subnets.insert(0, _free_subnet(pool, taken))
    if new.ipv6 and 6 not in versions:
        # RFC 4193: a random network of one's own.
        prefix = (0xFD << 120) | (secrets.randbits(56) << 64)
        subnets.append(ipaddress.IPv6Network((prefix, 64)))
    return subnets


def _free_subnet(pool: str, taken: Sequence[IpNetwork]) -> ipaddress.IPv4Network:
    all_of_it = ipaddress.IPv4Network(pool)
    of_four = [other for other in taken if isinstance(other, ipaddress.IPv4Network)]
    for subnet in all_of_it.subnets(new_prefix=max(24, all_of_it.prefixlen)):
        if not any(subnet.overlaps(other) for other in of_four):
            return subnet
    raise ResourceExhausted(f"choose subnet: all of {pool} is in use; name one with --subnet")


def _ipam(new: NewNetwork, subnets: Sequence[IpNetwork], data_dir: str) -> dict[str, Any]:
    gateways = [_address(new, text) for text in new.gateways]
    ranges = []
    for subnet in subnets:
        one: dict[str, Any] = {"subnet": str(subnet)}
        gateway = [address for address in gateways if address in subnet]
        if gateway:
            one["gateway"] = str(gateway[0])
        ranges.append([one])
    if any(not any(address in subnet for subnet in subnets) for address in gateways):
        raise InvalidArgument(f"create network {new.name}: a gateway is in none of its subnets")
    if new.ip_range:
        _narrow(new, ranges, subnets)
    ipam: dict[str, Any] = {"type": "host-local", "ranges": ranges, "dataDir": data_dir}
    if not new.internal:
        ipam["routes"] = [
            {"dst": "0.0.0.0/0" if subnet.version == 4 else "::/0"} for subnet in subnets
        ]
    return ipam


def _narrow(
    new: NewNetwork, ranges: list[list[dict[str, Any]]], subnets: Sequence[IpNetwork]
) -> None:
    try:
        within = ipaddress.ip_network(new.ip_range)
    except ValueError as err:
        raise InvalidArgument(f"create network {new.name}: {err}") from err
    for one, subnet in zip(ranges, subnets, strict=True):
        if within.version == subnet.version and within.subnet_of(subnet):  # type: ignore[arg-type]
            if within != subnet:
                try:
                    first, last = _hosts(within, subnet)
                except ValueError as err:
                    raise InvalidArgument(f"create network {new.name}: {err}") from err
                one[0] |= {"rangeStart": first, "rangeEnd": last}
            return
    raise InvalidArgument(f"create network {new.name}: {within} is in none of its subnets")


def _hosts(within: IpNetwork, subnet: IpNetwork) -> tuple[str, str]:
    """The first and last address of it but those that stand for the subnet or for all in it.

    Without a range host-local leaves these out itself. Raises ValueError when it has no other.
    """
    of_all = 1 if subnet.version == 4 else 0
    first = max(int(within[0]), int(subnet[0]) + 1)
    last = min(int(within[-1]), int(subnet[-1]) - of_all)
    if first > last:
        raise ValueError(f"{within} has no address for a container")
    kind = type(subnet[0])
    return str(kind(first)), str(kind(last))


def _address(new: NewNetwork, text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    try:
        return ipaddress.ip_address(text)
    except ValueError as err:
        raise InvalidArgument(f"create network {new.name}: {err}") from err


def taken_subnets(networks: Iterable[Network]) -> list[IpNetwork]:
    """What configurations give out, and what the host has IPv4 routes to. Blocking."""
    found: list[IpNetwork] = []
    for network in networks:
        for plugin in network.plugins:
            ipam = plugin.get("ipam") or {}
            sets = [*(ipam.get("ranges") or []), [ipam]]
            for one in (one for group in sets if isinstance(group, list) for one in group):
                try:
                    found.append(ipaddress.ip_network(one["subnet"], strict=False))
                except (KeyError, ValueError, TypeError):
                    continue
    return [*found, *_routes()]


def _routes() -> list[IpNetwork]:
    """/proc/net/route: address and mask as hexadecimal numbers in the byte order of the host."""
    found: list[IpNetwork] = []
    with open("/proc/net/route", encoding="ascii") as file:
        for line in file.readlines()[1:]:
            words = line.split()
            address, mask = (bytes.fromhex(words[n])[::-1] for n in (1, 7))
            if any(mask):
                network = (int.from_bytes(address, "big"), int.from_bytes(mask, "big").bit_count())
                found.append(ipaddress.IPv4Network(network, strict=False))
    return found


def write(directory: str, document: dict[str, Any]) -> Network:
    """Write the file; returns its path. Raises AlreadyExists, Unavailable."""
    path = f"{directory}/{PREFIX}{document['name']}.conflist"
    network = from_json(document, path)
    try:
        os.makedirs(directory, 0o755, exist_ok=True)
        if os.path.lexists(path):
            raise AlreadyExists(f"create network {network.name}: {path} exists")
        files.write_whole(path, json.dumps(document, indent=2).encode() + b"\n", 0o644, True)
    except OSError as err:
        raise Unavailable(f"write {path}: {err.strerror}") from err
    return network


def remove(network: Network) -> None:
    """Delete its file. Raises FailedPrecondition for one that somebody else wrote."""
    if not is_ours(network):
        raise FailedPrecondition(
            f"remove network {network.name}: ctl did not create it; delete {network.path}"
        )
    files.remove(network.path)
    directory, name = os.path.split(network.path)
    files.sweep(directory, name)  # of a manager that was killed over an earlier create of it
    files.sync_directory(directory)


def is_ours(network: Network) -> bool:
    return os.path.basename(network.path).startswith(PREFIX)


def is_open(network: Network) -> bool:
    """Whether an earlier release has made it, which did not keep networks of bridges apart."""
    if not is_ours(network) or "bridge" not in network.types:
        return False
    main = network.plugins[0]
    # Of an internal one the bridge's name counts too: the manager's rules know it by that.
    is_internal = main.get("ipMasq") is False and "portmap" not in network.types
    if is_internal and not str(main.get("bridge")).startswith(isolation.INTERNAL_PREFIX):
        return True
    return not any("ingressPolicy" in one for one in network.plugins)


def remove_bridge(network: Network) -> None:
    """Take away the bridge that its plugin made, when no interface is left in it. Blocking."""
    names = [str(p["bridge"]) for p in network.plugins if p["type"] == "bridge" and "bridge" in p]
    if not names:
        return
    from pyroute2 import IPRoute  # 80 ms, and of no other use to a manager

    with IPRoute() as netlink:
        for name in names:
            indexes = netlink.link_lookup(ifname=name, kind="bridge")
            if any(netlink.link_lookup(master=index) for index in indexes):
                continue
            for index in indexes:
                netlink.link("del", index=index)
            isolation.forget(name)
