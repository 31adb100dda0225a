"""Published ports: which are free, on the host and among containers."""

import errno
import os
import socket
from collections.abc import Iterable, Sequence
from dataclasses import replace

from lighter.daemon.network.request import Port, PortTable
from lighter.proto.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    LighterError,
)

_KINDS = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}
_TRIES = 64


class NoSuchAddress(InvalidArgument):
    """A port is to be published at an address that the host does not have; at a boot, perhaps not
    yet.
    """


def choose(
    wanted: Sequence[Port], taken: Iterable[tuple[str, Port]], *, ipv6: bool
) -> tuple[Port, ...]:
    """The ports as they are published, each with a number of the host's.

    `taken` are those of other containers, with their names; `ipv6`: whether a port without an
    address is one of IPv6 too. Raises AlreadyExists, NoSuchAddress.
    """
    used = PortTable(taken)
    both = ipv6 and os.path.exists("/proc/net/if_inet6")
    chosen = []
    for port in wanted:
        number = replace(port, host_port=port.host_port or _free(port, used, both=both))
        if found := used.find(number):
            raise AlreadyExists(
                f"publish port {number.where}/{number.protocol}: container {found[0]} has it"
            )
        if port.host_port:
            for one in _of_each_family(number, both=both):
                _check_free(one)
        used.add("this one", number)
        chosen.append(number)
    return tuple(chosen)


def _of_each_family(port: Port, *, both: bool) -> list[Port]:
    return [port, replace(port, host_ip="::")] if both and not port.host_ip else [port]


def _free(port: Port, used: PortTable, *, both: bool) -> int:
    for _ in range(_TRIES):
        try:
            with _socket(port) as one:
                one.bind((port.host_ip, 0))
                number = int(one.getsockname()[1])
        except OSError as err:
            raise _refused(port, err) from err
        candidate = replace(port, host_port=number)
        if used.find(candidate) is None and _is_free(candidate, both=both):
            return number
    raise FailedPrecondition(f"publish port {port.container_port}: no port of the host is free")


def _is_free(port: Port, *, both: bool) -> bool:
    """Whether it is free by the other family, too."""
    try:
        for one in _of_each_family(port, both=both)[1:]:
            _check_free(one)
    except AlreadyExists:
        return False
    return True


def _check_free(port: Port) -> None:
    """A program of the host that listens there would hear nothing any more."""
    if port.protocol not in _KINDS:
        return
    try:
        with _socket(port) as one:
            one.bind((port.host_ip, port.host_port))
    except OSError as err:
        raise _refused(port, err) from err


def _refused(port: Port, error: OSError) -> LighterError:
    attempt = f"publish port {port.where}/{port.protocol}"
    if error.errno == errno.EADDRINUSE:
        return AlreadyExists(f"{attempt}: a process of the host has it")
    if error.errno == errno.EADDRNOTAVAIL:
        return NoSuchAddress(f"{attempt}: the host has no such address")
    return FailedPrecondition(f"{attempt}: {error.strerror}")


def _socket(port: Port) -> socket.socket:
    family = socket.AF_INET6 if ":" in port.host_ip else socket.AF_INET
    kind = _KINDS.get(port.protocol, socket.SOCK_STREAM)
    made = socket.socket(family, kind)
    if family == socket.AF_INET6:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    if kind == socket.SOCK_STREAM:
        # One that was closed a moment ago still holds its port against others, not against packets.
        # Of UDP it would let two have one port.
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    return made
