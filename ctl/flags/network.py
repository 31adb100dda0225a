"""Flags of the container's network."""

from __future__ import annotations

from lighter.ctl import grammar

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

HOST, NONE, CONTAINER = "host", "none", "container:"
MAX_PORTS = 4096

OPTIONS = (
    grammar.option("--hostname", "-h", help="Host name in the container."),
    grammar.option("--net-host", is_flag=True, help="Use the host's network."),
    grammar.option("--cni", is_flag=True, help="Attach it to the first network that CNI has here."),
    grammar.option(
        "--network",
        "--net",
        multiple=True,
        metavar="NAME",
        help="Attach it to a network; also: none, host, container:ID, default.",
    ),
    grammar.option(
        "--publish",
        "-p",
        multiple=True,
        metavar="[IP:][HOST:]PORT[/PROTO]",
        help="Publish ports of the container, 8080:80 or 8000-8010:80-90/udp.",
    ),
    grammar.option("--ip", metavar="ADDRESS", help="IPv4 address in its first network."),
    grammar.option("--ip6", metavar="ADDRESS", help="IPv6 address in its first network."),
    grammar.option("--mac-address", metavar="MAC", help="Hardware address in its first network."),
    grammar.option("--dns", multiple=True, metavar="ADDRESS", help="Name server."),
    grammar.option(
        "--dns-search", multiple=True, metavar="DOMAIN", help="Search domain; '.': none."
    ),
    grammar.option("--dns-option", "--dns-opt", multiple=True, help="Option of resolv.conf."),
    grammar.option(
        "--add-host",
        multiple=True,
        metavar="NAME:ADDRESS",
        help="Line of /etc/hosts; host-gateway.",
    ),
)


def fields(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Their part of the body of containers.create."""
    names = list(flags["network"])
    words = [name for name in names if name in (HOST, NONE) or name.startswith(CONTAINER)]
    if words and (len(names) > 1 or flags["cni"]):
        raise grammar.UsageError(f"--network {words[0]}: it goes with no other network")
    if flags["publish"] and (flags["net_host"] or words):
        raise grammar.UsageError(
            f"-p: with --network {words[0] if words else HOST} there is nothing to publish from"
        )
    network = {
        "networks": [name for name in names if name not in words],
        "cni": flags["cni"],
        "container": words[0].removeprefix(CONTAINER) if words else "",
        "ports": [port for text in flags["publish"] for port in ports(text)],
        "ip": flags["ip"] or "",
        "ip6": flags["ip6"] or "",
        "mac": flags["mac_address"] or "",
        "dns": list(flags["dns"]),
        "dns_search": list(flags["dns_search"]),
        "dns_options": list(flags["dns_option"]),
        "add_hosts": [added_host(text) for text in flags["add_host"]],
    }
    if network["container"] in (HOST, NONE):
        network["container"] = ""
    return {
        "hostname": flags["hostname"] or "",
        "net_host": flags["net_host"] or HOST in words,
        # What asks for nothing is not sent: an older manager does not know it.
        **({"network": network} if any(network.values()) else {}),
    }


def ports(text: str) -> Iterator[dict[str, Any]]:
    """Each port of one -p word, as docker writes them. Raises grammar.UsageError.

    A host address of IPv6 stands in brackets. Ranges have the same length on both sides.
    """
    rest, slash, protocol = text.partition("/")
    host_ip = ""
    if rest.startswith("["):
        host_ip, bracket, rest = rest[1:].partition("]:")
        if not bracket:
            raise _no_port(text)
    words = rest.split(":")
    if len(words) == 3 and not host_ip:
        host_ip = words.pop(0)
    if len(words) not in (1, 2) or (slash and not protocol):
        raise _no_port(text)
    inside = _range(text, words[-1])
    outside = _range(text, words[0]) if len(words) == 2 and words[0] else [0] * len(inside)
    if len(outside) != len(inside):
        raise grammar.UsageError(f"-p {text}: both ranges must have as many ports")
    for host, container in zip(outside, inside, strict=True):
        yield {
            "host_ip": host_ip,
            "host_port": host,
            "container_port": container,
            "protocol": protocol or "tcp",
        }


def _range(text: str, word: str) -> list[int]:
    first, dash, last = word.partition("-")
    if not (first.isdecimal() and (last.isdecimal() or not dash)):
        raise _no_port(text)
    numbers = range(int(first), int(last or first) + 1)
    if not numbers or not 1 <= numbers[0] <= numbers[-1] <= 65535 or len(numbers) > MAX_PORTS:
        raise _no_port(text)
    return list(numbers)


def _no_port(text: str) -> grammar.UsageError:
    return grammar.UsageError(f"-p {text}: expected [IP:][HOST:]PORT[/PROTO], ports up to 65535")


def added_host(text: str) -> list[str]:
    """[name, address] of NAME:ADDRESS or NAME=ADDRESS; an address of IPv6 may stand in brackets."""
    separator = "=" if "=" in text else ":"
    name, sign, address = text.partition(separator)
    if not (name and sign and address):
        raise grammar.UsageError(f"--add-host {text}: expected NAME:ADDRESS")
    return [name, address.removeprefix("[").removesuffix("]")]
