"""Names of the other containers in a network, in each one's /etc/hosts, as they come and go.

Only for networks that `ctl network create` has made, and within a namespace. The lines stand
between two marks in the file that a container has mounted; what else is in it, also what the
container has written itself, stays. It is written in place: another file would not be seen. No
name server is needed, which would be one more process to be kept alive under every container.
"""

import asyncio
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

from lighter.daemon.network.attachments import Attachments
from lighter.daemon.network.hostfiles import rewrite
from lighter.daemon.network.records import Attached, Record
from lighter.daemon.network.specs import default_hostname
from lighter.daemon.whole import whole

log = logging.getLogger("lighter.network")

BEGIN = b"# other containers of its networks; kept by lighterd\n"
END = b"# end of other containers\n"
MAX_NETWORK_BYTES = 64 << 10  # of the lines of one network; some 1500 containers

T = TypeVar("T")


class Names:
    """`addresses_dir` is where networks of ours keep what they have given out."""

    def __init__(self, attachments: Attachments, addresses_dir: str) -> None:
        self._attachments = attachments
        self._addresses_dir = addresses_dir
        self._writing = asyncio.Lock()

    def networks(self, record: Record) -> list[str]:
        """The networks of ours that it is attached to."""
        return [one.network.name for one in record.attached if self._is_ours(one)]

    async def alone(self, write: Callable[[], T]) -> T:
        """What `write` returns, which writes hosts files, in a thread while nobody else does."""
        return await whole(self._alone(write))

    async def _alone(self, write: Callable[[], T]) -> T:
        async with self._writing:
            return await asyncio.to_thread(write)

    async def renew(self, namespace: str, networks: Iterable[str]) -> None:
        """Write what the containers of these networks are to know of each other, as it is now.

        What cannot be written is told of in the manager's log: a name is no reason to fail.
        """
        if wanted := set(networks):
            await whole(self._renew(namespace, wanted))

    async def _renew(self, namespace: str, wanted: set[str]) -> None:
        async with self._writing:
            records = [one for one in self._attachments.staying() if one.namespace == namespace]
            await asyncio.to_thread(self._write_all, records, wanted)

    async def renew_all(self) -> None:
        """The same for every network, after a start: the manager before may have been cut off."""
        of: dict[str, set[str]] = {}
        for record in self._attachments.staying():
            of.setdefault(record.namespace, set()).update(self.networks(record))
        for namespace, networks in of.items():
            await self.renew(namespace, networks)

    def _is_ours(self, one: Attached) -> bool:
        # One that is being attached again has the addresses that it had.
        return (not one.pending or one.again) and any(
            isinstance(ipam, Mapping) and ipam.get("dataDir") == self._addresses_dir
            for ipam in (plugin.get("ipam") for plugin in one.network.plugins)
        )

    def _write_all(self, records: list[Record], wanted: set[str]) -> None:
        lines = self._lines(records)
        joined = {name: _bounded(of.values()) for name, of in lines.items()}
        for record in records:
            networks = self.networks(record)
            if not wanted.intersection(networks):
                continue
            others = b"".join(
                joined[name].replace(lines[name].get(record.key, b""), b"", 1)
                for name in networks
                if name in joined
            )
            try:
                path = f"{self._attachments.directory(record.key)}/hosts"
                _renew(path, BEGIN + others + END if others else b"")
            except FileNotFoundError:
                pass  # it has no files of ours, or not yet: who writes them comes here again
            except OSError as err:
                log.error("write names into the hosts file of %s: %s", record.id, err.strerror)

    def _lines(self, records: list[Record]) -> dict[str, dict[str, bytes]]:
        """Network → key of a record → its lines."""
        known: dict[str, dict[str, bytes]] = {}
        for record in records:
            called = " ".join(dict.fromkeys((record.id, default_hostname(record.id))))
            for one in record.attached:
                if self._is_ours(one):
                    lines = [f"{a.ip}\t{called}\n" for a in one.view().addresses]
                    known.setdefault(one.network.name, {})[record.key] = "".join(lines).encode()
        return known


def _bounded(lines: Iterable[bytes]) -> bytes:
    found = bytearray()
    for line in lines:
        if len(found) + len(line) > MAX_NETWORK_BYTES:
            break
        found += line
    return bytes(found)


def _renew(path: str, text: bytes) -> None:
    """Put `text` in the place of what stands between the marks, else at the end."""
    # A container owns it and may hold a lease on it, which an open without O_NONBLOCK waits for:
    # fcntl(2), F_SETLEASE.
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        rewrite(fd, lambda old: renewed(old, text))
    finally:
        os.close(fd)


def renewed(old: bytes, text: bytes) -> bytes:
    """`old` with `text` in place of what stood between the marks."""
    before, _mark, rest = old.partition(BEGIN)
    after = rest  # where somebody has taken the mark away: whose it is cannot be told
    if END in rest:
        # The last one: a manager cut off amid a write leaves one of the text before behind its own.
        after = rest.rpartition(END)[2]
    if before and not before.endswith(b"\n"):
        before += b"\n"
    return before + text + after
