"""Where a registry may send us: addresses taken apart strictly, and the rules about their hosts.

A registry names further hosts: token realms, redirects, upload sessions. It must not steer us to
what only this machine can reach (SEC-28), so private, loopback and link-local addresses are refused
unless the host is a configured one. A name is judged by the addresses that are then dialled, so a
second answer of the name server changes nothing.
"""

import ipaddress
import re
from collections.abc import Iterable
from typing import NamedTuple
from urllib.parse import urljoin, urlsplit

from lighter.daemon.registry import redact
from lighter.proto.errors import InvalidArgument, PermissionDenied

DEFAULT_PORTS = {"http": 80, "https": 443}
MAX_URL_CHARACTERS = 8190

_URL_TEXT = re.compile(r"[A-Za-z0-9\-._~:/?#\[\]@!$&'()*+,;=%]+", re.ASCII)
_NUMBER = re.compile(r"[0-9]+|0[xX][0-9A-Fa-f]*", re.ASCII)
_HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9.])?", re.ASCII)
# Prefixes under which IPv6 carries an IPv4 address (RFC 6052, 3056, 4291).
_NAT64 = ipaddress.ip_network("64:ff9b::/96")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class Origin(NamedTuple):
    """The owner of credentials: nothing of one origin is sent to another (SEC-25)."""

    scheme: str
    host: str  # lower case, IPv6 without brackets
    port: int

    @property
    def netloc(self) -> str:
        """As it stands in an address and in a Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.netloc}"


class Link(NamedTuple):
    """An address that may be asked: `url` as it was given, without fragment."""

    url: str
    origin: Origin

    def join(self, location: str, what: str) -> "Link":
        """Where a Location header leads from here. Raises InvalidArgument."""
        if not location.strip():
            raise InvalidArgument(f"{what}: the answer names no location")
        try:
            return link(urljoin(self.url, location.strip()), what)
        except ValueError as err:
            raise InvalidArgument(f"{what}: its location is no address") from err


def link(url: str, what: str) -> Link:
    """`url` taken apart; http and https alone, no user name in it. Raises InvalidArgument."""
    shown = redact.url(url[:200])
    if len(url) > MAX_URL_CHARACTERS or not _URL_TEXT.fullmatch(url):
        raise InvalidArgument(f"{what}: {shown!r} is no address")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
        if ":" in host:
            ipaddress.IPv6Address(host)
    except ValueError as err:
        raise InvalidArgument(f"{what}: {shown!r} is no address") from err
    if parts.scheme not in DEFAULT_PORTS:
        raise InvalidArgument(f"{what}: {shown!r} is neither http nor https")
    if "@" in parts.netloc:
        raise InvalidArgument(f"{what}: {shown!r} holds a user name, which an address must not")
    # 127.1, 0x7f.1 and the like: the resolver takes them for addresses, which nobody means well.
    if literal(host) is None and _NUMBER.fullmatch(host.rstrip(".").rpartition(".")[2]):
        raise InvalidArgument(f"{what}: the host of {shown!r} is an address in an odd form")
    if "%" in host or (":" not in host and not _HOST.fullmatch(host)) or port == 0:
        raise InvalidArgument(f"{what}: {shown!r} names no host")
    origin = Origin(parts.scheme, host.lower(), port or DEFAULT_PORTS[parts.scheme])
    return Link(url.partition("#")[0], origin)


def is_loopback_literal(host: str) -> bool:
    """Whether a host is written as this machine: `localhost`, 127.0.0.0/8 or ::1."""
    address = literal(host)
    return host.lower() == "localhost" if address is None else address.is_loopback


def literal(host: str) -> Address | None:
    """The address that `host` is, if it is one and no name."""
    try:
        return ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return None


def is_public(address: Address) -> bool:
    """Whether the whole internet means the same machine by it."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if address in _NAT64:
            inner = ipaddress.IPv4Address(address.packed[12:])
        if inner is not None:
            return is_public(inner)
    return address.is_global and not address.is_multicast


class Targets:
    """The rule for one registry. `own`: its hosts and the proxies, by name.

    `allowed`: what the configuration adds, each a host, host:port, address or network.
    """

    def __init__(self, own: Iterable[str], allowed: Iterable[str] = ()) -> None:
        self._own = {host.lower() for host in own}
        self._names: set[str] = set()
        self._networks: list[ipaddress.IPv4Network | ipaddress.IPv6Network] = []
        for entry in allowed:
            try:
                self._networks.append(ipaddress.ip_network(entry, strict=False))
            except ValueError:
                self._names.add(entry.lower())

    def check(self, origin: Origin, what: str) -> None:
        """Refuse a host that is written as a private address. Raises PermissionDenied."""
        address = literal(origin.host)
        if address is not None:
            self.usable(origin.host, origin.port, [address], what)
        elif origin.host == "localhost" or origin.host.endswith(".localhost"):
            self.usable(origin.host, origin.port, [ipaddress.IPv4Address("127.0.0.1")], what)

    def usable(
        self, host: str, port: int, addresses: Iterable[Address], what: str
    ) -> list[Address]:
        """The addresses of a host that may be dialled. Raises PermissionDenied for none."""
        found = list(addresses)
        if host == "localhost":
            found = [address for address in found if address.is_loopback]
        if {host, f"{host}:{port}"} & (self._own | self._names):
            return found
        public = [item for item in found if is_public(item) or self._in_networks(item)]
        if found and not public:
            raise PermissionDenied(
                f"{what}: {host} is a private, loopback or link-local address ({found[0]}), to "
                "which a registry may not send us; if it is right, add it to allowed_targets"
            )
        return public

    def _in_networks(self, address: Address) -> bool:
        return any(address in network for network in self._networks)
