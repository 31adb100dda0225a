"""hosts, hostname and resolv.conf of a container: texts, and the host's own to begin with.

Beside each file `<name>.own` keeps what was written last, so that what the container has changed
since stays when its networks change: other lines of hosts, and the other two files whole.
"""

import errno
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from lighter.daemon import files
from lighter.daemon.network.request import HOST_GATEWAY, NetworkRequest
from lighter.daemon.network.result import Result
from lighter.proto.errors import FailedPrecondition, Unavailable

MAX_FILE_BYTES = 256 << 10
RESOLV_CONF = "/etc/resolv.conf"
# What systemd's resolver asks itself; /etc/resolv.conf then names only a loopback address.
BEHIND_RESOLVED = "/run/systemd/resolve/resolv.conf"
_MODE = 0o644
_OWN = ".own"

# The file as it is, what was written to it last, what is to be in it now → the file.
Changed = Callable[[bytes, bytes | None, bytes], bytes]

HOSTS = (
    "127.0.0.1\tlocalhost\n"
    "::1\tlocalhost ip6-localhost ip6-loopback\n"
    "fe00::0\tip6-localnet\n"
    "ff00::0\tip6-mcastprefix\n"
    "ff02::1\tip6-allnodes\n"
    "ff02::2\tip6-allrouters\n"
)

# Place in the container → name of the file.
PLACES = {"/etc/hosts": "hosts", "/etc/hostname": "hostname", "/etc/resolv.conf": "resolv.conf"}


@dataclass(frozen=True)
class Resolver:
    """What resolv.conf(5) says."""

    nameservers: tuple[str, ...] = ()
    search: tuple[str, ...] = ()
    options: tuple[str, ...] = ()

    def text(self) -> str:
        lines = [f"nameserver {server}" for server in self.nameservers]
        if self.search:
            lines.append(f"search {' '.join(self.search)}")
        if self.options:
            lines.append(f"options {' '.join(self.options)}")
        return "".join(f"{line}\n" for line in lines)


def read_resolver(text: str) -> Resolver:
    """Of a resolv.conf; what is not understood is left out."""
    servers: list[str] = []
    search: tuple[str, ...] = ()
    options: list[str] = []
    for line in text.splitlines():
        words = line.split()
        if len(words) < 2 or line.startswith(("#", ";")):
            continue
        if words[0] == "nameserver":
            servers.append(words[1])
        elif words[0] in ("search", "domain"):
            search = tuple(words[1:])
        elif words[0] == "options":
            options += words[1:]
    return Resolver(tuple(servers), search, tuple(options))


def host_resolver(paths: Sequence[str] = (RESOLV_CONF, BEHIND_RESOLVED)) -> Resolver:
    """The host's, from the first file that names a server which a container can reach.

    Raises Unavailable for a file that is there and cannot be read.
    """
    first = Resolver()
    for number, path in enumerate(paths):
        try:
            data = files.read_capped(os.path.realpath(path), MAX_FILE_BYTES) or b""
        except OSError as err:
            raise Unavailable(f"read {path}: {err.strerror}") from err
        found = read_resolver(data.decode("utf-8", "replace"))
        reachable = tuple(
            server
            for server in found.nameservers
            if not server.startswith("127.") and server != "::1"
        )
        found = Resolver(reachable, found.search, found.options)
        if reachable:
            return found
        first = found if number == 0 else first
    return first


def resolver_of(request: NetworkRequest, results: Iterable[Result], host: Resolver) -> Resolver:
    """The caller's word, else the networks', else the host's; each of the three on its own."""
    results = list(results)
    search = [
        name
        for result in results
        for name in (*result.search, *([result.domain] if result.domain else []))
    ]
    return Resolver(
        request.dns or _merged(result.nameservers for result in results) or host.nameservers,
        # Docker's word for none at all.
        ()
        if request.dns_search == (".",)
        else request.dns_search or tuple(dict.fromkeys(search)) or host.search,
        request.dns_options or _merged(result.options for result in results) or host.options,
    )


def _merged(groups: Iterable[Sequence[str]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(item for group in groups for item in group))


def hosts_text(request: NetworkRequest, results: Sequence[Result], hostname: str) -> str:
    """Raises FailedPrecondition for a host-gateway where no network has one."""
    lines = [f"{address.ip}\t{hostname}" for r in results for address in r.addresses if hostname]
    for name, ip in request.add_hosts:
        lines.append(f"{_gateway(results) if ip == HOST_GATEWAY else ip}\t{name}")
    return HOSTS + "".join(f"{line}\n" for line in lines)


def _gateway(results: Sequence[Result]) -> str:
    for result in results:
        for address in result.addresses:
            if address.gateway:
                return address.gateway
    if results:
        raise FailedPrecondition(f"add host {HOST_GATEWAY}: no network of the container has one")
    return "127.0.0.1"  # on the host's own network


def write(
    directory: str,
    request: NetworkRequest,
    results: Sequence[Result],
    hostname: str,
    owner: tuple[int, int] = (0, 0),
    label: str = "",
) -> list[tuple[str, str]]:
    """Write the files; returns (place in the container, path). Blocking. Raises Unavailable.

    `label`: SELinux's, else they have what the policy says of the directory.
    They are written over, never replaced: a container has them mounted. What it has written stays.
    """
    texts = {
        "hosts": hosts_text(request, results, hostname),
        "hostname": f"{hostname}\n" if hostname else "",
        "resolv.conf": resolver_of(request, results, host_resolver()).text(),
    }
    made = []
    try:
        for place, name in PLACES.items():
            if texts[name] or name == "resolv.conf":
                path = f"{directory}/{name}"
                _write_over(path, texts[name].encode(), owner, _CHANGED[name], label)
                made.append((place, path))
    except OSError as err:
        raise Unavailable(f"write {err.filename or directory}: {err.strerror}") from err
    return made


def existing(directory: str) -> list[tuple[str, str]]:
    """(place in the container, path) of what `write` has written there."""
    paths = ((place, f"{directory}/{name}") for place, name in PLACES.items())
    return [(place, path) for place, path in paths if os.path.exists(path)]


def _write_over(
    path: str, text: bytes, owner: tuple[int, int], changed: Changed, label: str
) -> None:
    # A container that owns it may hold a lease on it: fcntl(2), F_SETLEASE.
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    fd = os.open(path, flags, _MODE)
    try:
        os.fchown(fd, *owner)
        os.fchmod(fd, _MODE)
        if label:
            _set_label(fd, label)
        own = files.read_capped(path + _OWN, MAX_FILE_BYTES)
        rewrite(fd, lambda old: changed(old, own, text))
    finally:
        os.close(fd)
    files.write_whole(path + _OWN, text)


def _set_label(fd: int, label: str) -> None:
    try:
        os.setxattr(fd, "security.selinux", label.encode())
    except OSError as err:
        if err.errno != errno.ENOTSUP:  # a file system without labels
            raise


def rewrite(fd: int, change: Callable[[bytes], bytes]) -> None:
    """Put what `change` makes of an open file in its place. One that was made large is left."""
    # A container can write to it: one that has made it large has done so to itself.
    old = os.pread(fd, MAX_FILE_BYTES + 1, 0)
    if len(old) > MAX_FILE_BYTES:
        return
    new = change(old)
    if new != old:
        # First the bytes, then the end: who reads meanwhile never finds an empty file.
        written = 0
        while written < len(new):
            written += os.pwrite(fd, new[written:], written)
        os.ftruncate(fd, len(new))


def hosts_changed(old: bytes, own: bytes | None, text: bytes) -> bytes:
    """`old` with `text` in the place of `own`, all other lines as they are."""
    if own and own in old:
        return old.replace(own, text, 1)
    ours = {*(own or b"").splitlines(), *text.splitlines()}
    return text + b"".join(
        line for line in old.splitlines(keepends=True) if line.rstrip(b"\r\n") not in ours
    )


def whole_changed(old: bytes, own: bytes | None, text: bytes) -> bytes:
    """The file's new content: `text`, unless somebody else has written to the file. `own` is what
    we wrote, None if that is not known.
    """
    return text if own is None or old in (b"", own) else old


_CHANGED = {"hosts": hosts_changed, "hostname": whole_changed, "resolv.conf": whole_changed}
