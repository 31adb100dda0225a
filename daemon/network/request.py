"""What a container asks of the network, as it stands in its definition (`options["network"]`)."""

import ipaddress
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from lighter.daemon.network.configs import DEFAULT
from lighter.proto.errors import InvalidArgument

PROTOCOLS = ("tcp", "udp", "sctp")
MAX_PORTS = 4096
MAX_NETWORKS = 32
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}", re.ASCII)
_HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?", re.ASCII)
_LINE = re.compile(r"[\x20-\x7e]{1,256}", re.ASCII)
# Docker's word for the address that the host's gateway has for a container.
HOST_GATEWAY = "host-gateway"


@dataclass(frozen=True)
class Port:
    """One published port. `host_port` 0: one that is free is chosen at each start."""

    container_port: int
    host_port: int = 0
    protocol: str = "tcp"
    host_ip: str = ""

    def as_cni(self) -> dict[str, Any]:
        """An entry of the capability `portMappings` (CNI's CONVENTIONS.md)."""
        return {
            "hostPort": self.host_port,
            "containerPort": self.container_port,
            "protocol": self.protocol,
            **({"hostIP": self.host_ip} if self.host_ip else {}),
        }

    @property
    def where(self) -> str:
        ip = f"[{self.host_ip}]" if ":" in self.host_ip else self.host_ip or "0.0.0.0"  # noqa: S104
        return f"{ip}:{self.host_port}"

    def clashes(self, other: "Port") -> bool:
        """Whether both cannot be published at a time."""
        if (self.host_port, self.protocol) != (other.host_port, other.protocol):
            return False
        mine, theirs = self.host_ip, other.host_ip
        if mine and theirs and (":" in mine) != (":" in theirs):
            return False  # of IPv4 and of IPv6; without an address it is of both
        return mine == theirs or not {mine, theirs}.isdisjoint({"", "0.0.0.0", "::"})  # noqa: S104


class PortTable:
    """Who has which ports, found by their numbers: thousands may be published at once."""

    def __init__(self, taken: Iterable[tuple[str, Port]] = ()) -> None:
        self._owners: dict[tuple[int, str], list[tuple[str, Port]]] = {}
        for owner, port in taken:
            self.add(owner, port)

    def add(self, owner: str, port: Port) -> None:
        self._owners.setdefault((port.host_port, port.protocol), []).append((owner, port))

    def find(self, port: Port) -> tuple[str, Port] | None:
        """The first with whose port this one clashes."""
        same = self._owners.get((port.host_port, port.protocol), ())
        return next((found for found in same if port.clashes(found[1])), None)


@dataclass(frozen=True)
class NetworkRequest:
    """Which networks, and how.

    `networks` are names; `cni` asks for the first configuration; `container` is the one whose
    network is shared. `ip`, `ip6`, `mac` are for the first network. `hostname` is that of the
    container. `aliases` of a network are kept for `connect`, which may give an address of its own.
    """

    networks: tuple[str, ...] = ()
    cni: bool = False
    container: str = ""
    ports: tuple[Port, ...] = ()
    dns: tuple[str, ...] = ()
    dns_search: tuple[str, ...] = ()
    dns_options: tuple[str, ...] = ()
    add_hosts: tuple[tuple[str, str], ...] = ()
    ip: str = ""
    ip6: str = ""
    mac: str = ""

    @property
    def attaches(self) -> bool:
        """Whether there is something to do with CNI."""
        return bool(self.networks or self.cni)

    @property
    def writes_files(self) -> bool:
        """Whether the container gets hosts, hostname and resolv.conf of its own."""
        return self.attaches or bool(
            self.dns or self.dns_search or self.dns_options or self.add_hosts
        )

    @property
    def is_empty(self) -> bool:
        return not (self.writes_files or self.container)

    def as_option(self) -> dict[str, Any]:
        """What the container's definition keeps, for `from_option`."""
        return asdict(self)

    def with_networks(self, names: Sequence[str]) -> "NetworkRequest":
        return replace(self, networks=tuple(names))


def from_option(option: object) -> NetworkRequest:
    """The request that a definition keeps; an empty one for none. Raises InvalidArgument."""
    return parse(option) if isinstance(option, Mapping) else NetworkRequest()


def parse(fields: Mapping[str, Any]) -> NetworkRequest:
    """The request in the field `network` of `containers.create`. Raises InvalidArgument."""
    request = NetworkRequest(
        networks=_texts(fields, "networks"),
        cni=bool(fields.get("cni")),
        container=str(fields.get("container") or ""),
        ports=tuple(_ports(fields.get("ports") or ())),
        dns=tuple(str(_ip(text, "name server")) for text in _texts(fields, "dns")),
        dns_search=tuple(_line(text, "dns search") for text in _texts(fields, "dns_search")),
        dns_options=tuple(_line(text, "dns option") for text in _texts(fields, "dns_options")),
        add_hosts=tuple(_hosts(fields.get("add_hosts") or ())),
        ip=_ip_of(fields, "ip", 4),
        ip6=_ip_of(fields, "ip6", 6),
        mac=_mac(str(fields.get("mac") or "")),
    )
    if request.ports and not request.attaches and not request.container:
        request = replace(request, networks=(DEFAULT,))
    _check(request)
    return request


def _check(request: NetworkRequest) -> None:
    names = request.networks
    if len(names) > MAX_NETWORKS or len(set(names)) != len(names):
        raise InvalidArgument(
            f"choose networks {', '.join(names)[:200]}: each once, at most {MAX_NETWORKS}"
        )
    if request.container and (
        request.attaches or request.ports or request.writes_files or request.mac
    ):
        raise InvalidArgument(
            f"share the network of container {request.container}: it has its own networks, ports, "
            "name servers and hosts, which this one sees"
        )
    if (request.ip or request.ip6 or request.mac) and not request.attaches:
        raise InvalidArgument("choose an address: there is no network (--network) to have it in")
    seen = PortTable()
    for port in request.ports:
        if port.host_port and seen.find(port):
            raise InvalidArgument(f"publish port {port.where}/{port.protocol}: it stands twice")
        seen.add("", port)


def _texts(fields: Mapping[str, Any], name: str) -> tuple[str, ...]:
    values = fields.get(name) or ()
    if not isinstance(values, list | tuple) or not all(isinstance(v, str) and v for v in values):
        raise InvalidArgument(f"read network: {name} is no list of texts")
    return tuple(values)


def _ports(values: Sequence[Any]) -> Iterator[Port]:
    if not isinstance(values, list | tuple) or len(values) > MAX_PORTS:
        raise InvalidArgument(f"publish ports: expected a list of at most {MAX_PORTS}")
    for value in values:
        if not isinstance(value, Mapping):
            raise InvalidArgument("publish ports: one of them is no map")
        port = Port(
            container_port=_number(value.get("container_port"), 1),
            host_port=_number(value.get("host_port") or 0, 0),
            protocol=str(value.get("protocol") or "tcp"),
            host_ip=str(value.get("host_ip") or ""),
        )
        if port.protocol not in PROTOCOLS:
            raise InvalidArgument(
                f"publish port {port.container_port}: {port.protocol!r} is none of "
                + ", ".join(PROTOCOLS)
            )
        yield replace(port, host_ip=str(_ip(port.host_ip, "address")) if port.host_ip else "")


def _number(value: object, least: int) -> int:
    if type(value) is not int or not least <= value <= 65535:
        raise InvalidArgument(f"publish port {value!r}: expected a number up to 65535")
    return value


def _hosts(values: Sequence[Any]) -> Iterator[tuple[str, str]]:
    for value in values:
        if not isinstance(value, list | tuple) or len(value) != 2:
            raise InvalidArgument(f"add host {value!r}: expected a name and an address")
        name, ip = str(value[0]), str(value[1])
        if len(name) > 255 or not _HOST.fullmatch(name):
            raise InvalidArgument(f"add host {name[:80]!r}: it is no host name")
        yield name, ip if ip == HOST_GATEWAY else str(_ip(ip, f"address of host {name}"))


def _ip(text: str, what: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    try:
        return ipaddress.ip_address(text)
    except ValueError as err:
        raise InvalidArgument(f"read {what} {text[:80]!r}: it is no IP address") from err


def _ip_of(fields: Mapping[str, Any], name: str, version: int) -> str:
    text = str(fields.get(name) or "")
    if not text:
        return ""
    ip = _ip(text, "address")
    if ip.version != version:
        raise InvalidArgument(f"choose address {text}: it is of IPv{ip.version}, not IPv{version}")
    return str(ip)


def _mac(text: str) -> str:
    mac = text.lower().replace("-", ":")
    if not mac:
        return ""
    # The lowest bit of the first byte marks a group of receivers, which no interface is.
    if not _MAC.fullmatch(mac) or int(mac[:2], 16) & 1:
        raise InvalidArgument(f"choose MAC address {text[:80]!r}: it is none of one interface")
    return mac


def _line(text: str, what: str) -> str:
    if not _LINE.fullmatch(text):
        raise InvalidArgument(f"read {what} {text[:80]!r}: it is no single line")
    return text
