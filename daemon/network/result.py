"""What a chain of plugins answered, in whichever version, and the addresses in it.

The document itself is kept as it came, because a plugin gets it back (`prevResult`); this is what
the manager reads of it. Shapes: https://www.cni.dev/docs/spec, section 5, and for 0.1 and 0.2 the
`ip4` and `ip6` of the older one.
"""

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lighter.proto.errors import FailedPrecondition

MOST_ADDRESSES = 64


@dataclass(frozen=True)
class Address:
    """`address` with its prefix length, "10.1.0.2/24"; `gateway` or ""."""

    address: str
    gateway: str = ""

    @property
    def ip(self) -> str:
        return self.address.partition("/")[0]


@dataclass(frozen=True)
class Result:
    """The container's side of an attachment."""

    addresses: tuple[Address, ...] = ()
    mac: str = ""
    nameservers: tuple[str, ...] = ()
    search: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    domain: str = ""


def read(document: Mapping[str, Any], network: str) -> Result:
    """Raises FailedPrecondition for a document that is no result."""
    try:
        addresses = tuple(_addresses(document))[:MOST_ADDRESSES]
        dns = document.get("dns") or {}
        return Result(
            addresses=addresses,
            mac=_mac(document),
            nameservers=tuple(
                str(ipaddress.ip_address(str(text))) for text in dns.get("nameservers") or ()
            ),
            search=_words(dns.get("search")),
            options=_words(dns.get("options")),
            domain="".join(_words([dns.get("domain") or ""])),
        )
    except (ValueError, TypeError, AttributeError, KeyError) as err:
        raise FailedPrecondition(
            f"attach to network {network}: its plugins gave a result that is none: {err}"
        ) from err


def _addresses(document: Mapping[str, Any]) -> list[Address]:
    interfaces = document.get("interfaces") or []
    found = []
    for item in document.get("ips") or ():
        index = item.get("interface")
        # One without a sandbox is the host's own, a bridge's for one.
        known = type(index) is int and 0 <= index < len(interfaces)
        if known and not interfaces[index].get("sandbox"):
            continue
        found.append(_address(item["address"], item.get("gateway")))
    for key in ("ip4", "ip6"):
        item = document.get(key)
        if item:
            found.append(_address(item["ip"], item.get("gateway")))
    return found


def _address(address: object, gateway: object) -> Address:
    parsed = ipaddress.ip_interface(str(address))
    return Address(
        parsed.with_prefixlen, str(ipaddress.ip_address(str(gateway))) if gateway else ""
    )


def _mac(document: Mapping[str, Any]) -> str:
    for interface in document.get("interfaces") or ():
        mac = interface.get("mac")
        if interface.get("sandbox") and isinstance(mac, str):
            return mac[:64]
    return ""


def _words(values: object) -> tuple[str, ...]:
    """Texts of one line each: they are written to a file of the container."""
    return tuple(" ".join(str(value).split()) for value in values or ())  # type: ignore[attr-defined]
