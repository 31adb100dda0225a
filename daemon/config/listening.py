"""Addresses of TCP that a configuration may name: one of this host's, and its port."""

import ipaddress
from collections.abc import Iterator
from contextlib import contextmanager

from lighter.daemon.values import frozen
from lighter.proto.errors import InvalidArgument

MAX_PORT = 65535


@frozen
class TcpAddress:
    host: "ipaddress.IPv4Address | ipaddress.IPv6Address"
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if self.host.version == 6 else str(self.host)
        return f"{host}:{self.port}"


def tcp_address(text: str) -> TcpAddress:
    """ "127.0.0.1:1338" or "[::1]:1338". Raises InvalidArgument; also for "all addresses"."""
    host, colon, port = text.rpartition(":")
    try:
        address = ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
        if not colon or not port.isascii() or not port.isdigit() or not 0 < int(port) <= MAX_PORT:
            raise ValueError(port)
    except ValueError as err:
        raise InvalidArgument(f"{text!r} is no address and port, such as 127.0.0.1:1338") from err
    if address.is_unspecified or (getattr(address, "ipv4_mapped", None) or address).is_unspecified:
        raise InvalidArgument(f"{text} is every address of this host: say which one is meant")
    return TcpAddress(address, int(port))


def check_tcp(key: str, text: str, *, only_here: bool = False) -> None:
    """Whether a setting is "" or such an address; with `only_here`, of loopback (SEC-71)."""
    if text:
        with prefixed(key):
            if not tcp_address(text).host.is_loopback and only_here:
                raise InvalidArgument(f"{text} is no address of this host alone")


def check_pem(key: str, path: str, *, needed: bool) -> None:
    if not path.startswith("/") and (path or needed):
        raise InvalidArgument(
            f"{key} is {path!r}, expected the absolute path of a PEM file: over TCP, server and "
            "clients prove who they are"
        )


@contextmanager
def prefixed(what: str) -> Iterator[None]:
    """Errors of the block say what they are about."""
    try:
        yield
    except InvalidArgument as err:
        raise InvalidArgument(f"{what}: {err.message}") from err
