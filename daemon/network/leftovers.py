"""What plugins left on the host of attachments that are over: addresses, and packet filter rules.

A plugin that was killed may have reserved an address and not yet written whose it is; one that is
asked to clean up after its namespace has vanished cannot see which addresses its rules were for.
Only what names an attachment of this instance is touched, or names nobody at all. Blocking, for a
thread.
"""

import contextlib
import fcntl
import ipaddress
import logging
import os
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from lighter.daemon import files
from lighter.daemon.network.configs import Network

log = logging.getLogger("lighter.network")

HOST_LOCAL = "/var/lib/cni/networks"
COMMAND_S = 20.0
LOCK_S = 5.0
_CHAIN = re.compile(r"CNI-[A-Za-z0-9-]{1,28}", re.ASCII)


def address_directories(networks: Iterable[Network]) -> set[str]:
    """Where host-local keeps what it has given out for these networks (its README, "Files")."""
    found = set()
    for network in networks:
        for plugin in network.plugins:
            ipam: Mapping[str, Any] = plugin.get("ipam") or {}
            if ipam.get("type") == "host-local":
                found.add(f"{ipam.get('dataDir') or HOST_LOCAL}/{network.name}")
    return found


def free_addresses(
    directories: Iterable[str], instance: str, is_known: Callable[[str], bool]
) -> list[str]:
    """Remove reservations of this instance whose owner is not known; returns their paths.

    A file without an owner is one that host-local was killed over, since it writes the name while
    it holds the directory's lock, which is taken here too.
    """
    freed: list[str] = []
    for directory in directories:
        with contextlib.suppress(OSError), _locked(directory):
            for name in sorted(os.listdir(directory)):
                if not _is_address(name):
                    continue
                path = f"{directory}/{name}"
                try:
                    data = files.read_capped(path, 4096) or b""
                except OSError as err:
                    log.error("read reservation %s: %s", path, err)
                    continue
                owner = data.decode("utf-8", "replace").split()
                stale = not owner or (
                    owner[0].startswith(f"{instance}-") and not is_known(owner[0])
                )
                if stale:
                    os.unlink(path)
                    freed.append(path)
    if freed:
        log.info("free addresses that nobody has: %s", ", ".join(freed))
    return freed


def _is_address(name: str) -> bool:
    try:
        # host-local writes ':' of IPv6 as '_' on file systems that need it.
        ipaddress.ip_address(name.replace("_", ":"))
    except ValueError:
        return False
    return True


@contextlib.contextmanager
def _locked(directory: str) -> Iterator[None]:
    """Hold host-local's own lock. Raises OSError when it cannot be taken."""
    fd = os.open(f"{directory}/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    end = time.monotonic() + LOCK_S
    try:
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.05)
        yield
    finally:
        os.close(fd)


def free_rules(instance: str, is_known: Callable[[str], bool]) -> int:
    """Remove nat rules and chains whose comment names a past attachment of this instance.

    Plugins write `id: "<container id>"` into the comment of a rule that jumps to a chain of its
    own. Returns how many rules went.
    """
    return sum(
        _free_rules(program, instance, is_known)
        for program in ("iptables", "ip6tables")
        if shutil.which(program)
    )


def _free_rules(program: str, instance: str, is_known: Callable[[str], bool]) -> int:
    listed = _run(program, "-S")
    if f"{instance}-" not in listed:
        return 0
    named = re.compile(rf'id: \\*"({re.escape(instance)}-[0-9a-f]+)\\*"', re.ASCII)
    removed, chains = 0, set()
    for line in listed.splitlines():
        found = named.search(line)
        if not line.startswith("-A ") or found is None or is_known(found[1]):
            continue
        words = shlex.split(line)
        target = words[words.index("-j") + 1] if "-j" in words[:-1] else ""
        if words[1] in ("POSTROUTING", "PREROUTING", "OUTPUT", "CNI-HOSTPORT-DNAT"):
            _run(program, "-D", *words[1:])
            removed += 1
        if _CHAIN.fullmatch(target) and not target.startswith("CNI-HOSTPORT"):
            chains.add(target)
    for chain in chains:
        _run(program, "-F", chain)
        _run(program, "-X", chain)
    if removed:
        log.info("remove %d rules of %s that past attachments left", removed, program)
    return removed


def _run(program: str, *args: str) -> str:
    """Of the table nat; "" when it fails."""
    try:
        done = subprocess.run(
            [program, "-w", "5", "-t", "nat", *args],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=COMMAND_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as err:
        log.warning("run %s: %s", program, err)
        return ""
    return done.stdout.decode("utf-8", "replace") if done.returncode == 0 else ""
