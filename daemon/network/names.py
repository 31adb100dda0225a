"""Names of the other containers in a network, in each one's /etc/hosts, as they come and go.

Only for networks that `ctl network create` has made, and within a namespace. The lines stand
between two marks in the file that a container has mounted; what else is in it, also what the
container has written itself, stays. It is written in place: another file would not be seen. No
name server is needed, which would be one more process to be kept alive under every container.
"""

import asyncio
import logging
import os
from collections.abc import Iterable, Mapping

from lighter.daemon.network.attachments import Attachments
from lighter.daemon.network.hostfiles import MAX_FILE_BYTES
from lighter.daemon.network.records import Attached, Record
from lighter.daemon.network.specs import default_hostname

log = logging.getLogger("lighter.network")

BEGIN = b"# other containers of its networks; kept by lighterd\n"
END = b"# end of other containers\n"
MAX_LINES = 2000  # of one container


class Names:
    """`addresses_dir` is where networks of ours keep what they have given out."""

    def __init__(self, attachments: Attachments, addresses_dir: str) -> None:
        self._attachments = attachments
        self._addresses_dir = addresses_dir
        self._writing = asyncio.Lock()

    def networks(self, record: Record) -> list[str]:
        """Those of ours that it is in."""
        return [one.network.name for one in record.attached if self._is_ours(one)]

    async def renew(self, namespace: str, networks: Iterable[str]) -> None:
        """Write what the containers of these networks are to know of each other, as it is now.

        What cannot be written is told of in the manager's log: a name is no reason to fail.
        """
        wanted = set(networks)
        if not wanted:
            return
        async with self._writing:
            members = [
                record
                for record in self._attachments.staying()
                if record.namespace == namespace and wanted.intersection(self.networks(record))
            ]
            known = self._lines(namespace)
            texts = {record.key: self._text(record, known) for record in members}
            await asyncio.to_thread(self._write_all, texts)

    def _is_ours(self, one: Attached) -> bool:
        ipams = [plugin.get("ipam") for plugin in one.network.plugins]
        return not one.pending and any(
            isinstance(ipam, Mapping) and ipam.get("dataDir") == self._addresses_dir
            for ipam in ipams
        )

    def _lines(self, namespace: str) -> dict[str, dict[str, bytes]]:
        """Network → key of a record → its lines."""
        known: dict[str, dict[str, bytes]] = {}
        for record in self._attachments.staying():
            if record.namespace != namespace:
                continue
            called = " ".join(dict.fromkeys((record.id, default_hostname(record.id))))
            for one in record.attached:
                if self._is_ours(one):
                    lines = [f"{a.ip}\t{called}\n" for a in one.view().addresses]
                    known.setdefault(one.network.name, {})[record.key] = "".join(lines).encode()
        return known

    def _text(self, record: Record, known: Mapping[str, Mapping[str, bytes]]) -> bytes:
        lines = [
            line
            for network in self.networks(record)
            for key, line in known.get(network, {}).items()
            if key != record.key
        ]
        return BEGIN + b"".join(lines[:MAX_LINES]) + END if lines else b""

    def _write_all(self, texts: Mapping[str, bytes]) -> None:
        for key, text in texts.items():
            try:
                _renew(f"{self._attachments.directory(key)}/hosts", text)
            except FileNotFoundError:
                pass  # it has no files of ours, or not yet: who writes them comes here again
            except OSError as err:
                log.error("write names into the hosts file of %s: %s", key, err.strerror)


def _renew(path: str, text: bytes) -> None:
    """Put `text` in the place of what stands between the marks, else at the end."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        # A container can write to it: one that has made it large has done so to itself.
        old = os.pread(fd, MAX_FILE_BYTES + 1, 0)
        if len(old) > MAX_FILE_BYTES:
            return
        before, mark, rest = old.partition(BEGIN)
        after = rest.partition(END)[2] if mark else b""
        if before and not before.endswith(b"\n"):
            before += b"\n"
        new = before + text + after
        if new != old:
            # First the bytes, then the end: who reads meanwhile never finds an empty file.
            written = 0
            while written < len(new):
                written += os.pwrite(fd, new[written:], written)
            os.ftruncate(fd, len(new))
    finally:
        os.close(fd)
