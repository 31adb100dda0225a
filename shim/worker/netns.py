"""Jobs `netns`, `netns-remove`, `netns-no-ipv6`: a network namespace that a path on the host keeps.

    {job: "netns", path, ipv6: bool} + [] → {}              a new one, with its loopback up
    {job: "netns", path} + [network namespace] → {}         one that is there already
    {job: "netns-remove", path} → {mounted: bool}
    {job: "netns-no-ipv6", path} → {}       interfaces to come have no IPv6 unless given one

A worker does it, since unshare(2) moves the thread that calls it: the manager never leaves its own
namespace. What keeps the new one alive after this process is the mount.
"""

import errno
import fcntl
import os
import socket
import struct
from typing import Any

from lighter.proto.errors import InvalidArgument
from lighter.shim import linux
from lighter.shim.worker.channel import Channel
from lighter.shim.worker.failure import typed

_SIOCGIFFLAGS = 0x8913
_SIOCSIFFLAGS = 0x8914
_IFF_UP = 1
_IFREQ = "16sH22x"


def make(job: dict[str, Any], fds: list[int], _channel: Channel) -> dict[str, Any]:
    """Raises AlreadyExists, NotFound and what else open(2), unshare(2), mount(2) say."""
    path = str(job["path"])
    if len(fds) > 1:
        raise InvalidArgument(f"keep network namespace: {len(fds)} descriptors, at most 1")
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except OSError as err:
        raise typed(err, f"make network namespace {path}") from err
    try:
        source = "/proc/self/ns/net"
        if fds:
            source = f"/proc/self/fd/{fds[0]}"
        else:
            linux.unshare(linux.CLONE_NEWNET)
            _loopback_up()
            _of_interfaces_to_come("accept_ra", b"0")
            if not job["ipv6"]:
                _no_ipv6()
        linux.mount(source, path, "", linux.MS_BIND)
    except OSError as err:
        os.unlink(path)
        raise typed(err, f"make network namespace {path}") from err
    return {}


def _loopback_up() -> None:
    """netdevice(7). A runtime does this only in a namespace of its own making."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as any_socket:
        answer = fcntl.ioctl(any_socket, _SIOCGIFFLAGS, struct.pack(_IFREQ, b"lo", 0))
        flags = struct.unpack(_IFREQ, answer)[1] | _IFF_UP
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack(_IFREQ, b"lo", flags))


def _no_ipv6() -> None:
    """Interfaces to come get no link-local address: no IPv6 that nobody asked for.

    A plugin that gives an interface an IPv6 address turns it on for that interface.
    """
    _of_interfaces_to_come("disable_ipv6", b"1")


def _of_interfaces_to_come(setting: str, value: bytes) -> None:
    """ip-sysctl, /proc/sys/net/ipv6/conf/default.

    `accept_ra` 0: addresses and routes are what plugins give. Any neighbour could send a container
    others, and plugins that find an address they have not given leave rules behind on the host.
    """
    try:
        fd = os.open(f"/proc/sys/net/ipv6/conf/default/{setting}", os.O_WRONLY | os.O_CLOEXEC)
    except FileNotFoundError:  # a kernel without IPv6
        return
    try:
        os.write(fd, value)
    finally:
        os.close(fd)


def no_ipv6(job: dict[str, Any], _fds: list[int], _channel: Channel) -> dict[str, Any]:
    """Raises NotFound and what else open(2), setns(2) say."""
    path = str(job["path"])
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            linux.setns(fd, linux.CLONE_NEWNET)
        finally:
            os.close(fd)
        _no_ipv6()
    except OSError as err:
        raise typed(err, f"set up network namespace {path}") from err
    return {}


def remove(job: dict[str, Any], _fds: list[int], _channel: Channel) -> dict[str, Any]:
    """Take off every mount at the path, and the file. What is gone already is no error."""
    path = str(job["path"])
    mounted = False
    try:
        while True:
            try:
                # Detached: whoever has it open, a plugin for one, must not keep the path busy.
                linux.umount(path, linux.MNT_DETACH | linux.UMOUNT_NOFOLLOW)
                mounted = True
            except OSError as err:
                if err.errno not in (errno.EINVAL, errno.ENOENT):
                    raise
                break
        os.unlink(path)
    except FileNotFoundError:
        pass
    except OSError as err:
        raise typed(err, f"remove network namespace {path}") from err
    return {"mounted": mounted}
