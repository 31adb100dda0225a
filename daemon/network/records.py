"""What is attached to which network, on disk: whoever tears it down needs nothing else.

<root>/network/<key>/   0700
    record.json         who, where, and each attachment with the configuration it was made by
    hosts hostname resolv.conf      what the container sees below /etc

The key is CNI's container id, made anew for each start of a container: so removing an old
attachment late cannot touch a new one. It begins with the instance, by which addresses and rules
on the host can be told to be ours. A record is durable before the first plugin runs, and goes
after the last one has undone its work.
"""

import errno
import json
import logging
import os
import shutil
from dataclasses import dataclass, field, replace
from typing import Any

from lighter.daemon import files
from lighter.daemon.network import configs
from lighter.daemon.network.chain import Attachment
from lighter.daemon.network.configs import Network
from lighter.daemon.network.request import Port
from lighter.daemon.network.result import Result, read
from lighter.proto.errors import LighterError, ResourceExhausted, Unavailable
from lighter.proto.paths import Root

log = logging.getLogger("lighter.network")

MAX_RECORD_BYTES = 8 << 20


@dataclass(frozen=True)
class Attached:
    """One interface. `result` is {} until a plugin has answered; `pending` while plugins are at it,
    so whoever finds it after a crash undoes it."""

    network: Network
    ifname: str
    result: dict[str, Any] = field(default_factory=dict)
    capabilities: dict[str, Any] = field(default_factory=dict)
    args: dict[str, str] = field(default_factory=dict)
    pending: bool = True

    def view(self) -> Result:
        return read(self.result, self.network.name)


@dataclass(frozen=True)
class Record:
    """The network of one task. `path` is "" where it has files alone.

    `made`: the namespace is ours, not only its path; else `incarnation` may name the task that it
    is of. `token` marks its plugins' processes (plugin.py).
    """

    key: str
    namespace: str
    id: str
    path: str
    boot_id: str
    token: str
    made: bool = True
    incarnation: str = ""
    attached: tuple[Attached, ...] = ()
    ports: tuple[Port, ...] = ()

    def attachment(self, one: Attached, *, gone: bool = False) -> Attachment:
        """How plugins are told of it; `gone`: the namespace is not there any more."""
        return Attachment(
            sandbox=self.key,
            ifname=one.ifname,
            netns="" if gone else self.path,
            token=self.token,
            capabilities=one.capabilities,
            args=one.args,
        )

    def with_attached(self, one: Attached) -> "Record":
        """With this interface added, or as it is now."""
        others = [other for other in self.attached if other.ifname != one.ifname]
        kept = sorted((*others, one), key=lambda other: (len(other.ifname), other.ifname))
        return replace(self, attached=tuple(kept))

    def without(self, ifname: str) -> "Record":
        kept = tuple(other for other in self.attached if other.ifname != ifname)
        return replace(self, attached=kept)

    def next_ifname(self) -> str:
        taken = {one.ifname for one in self.attached}
        return next(name for n in range(len(taken) + 1) if (name := f"eth{n}") not in taken)


class Records:
    """Reads and writes them. All methods block for a moment: for a thread."""

    def __init__(self, root: Root) -> None:
        self._dir = root.networks

    def directory(self, key: str) -> str:
        return f"{self._dir}/{key}"

    def save(self, record: Record, *, durable: bool = True) -> None:
        """Raises ResourceExhausted, or Unavailable, when the disk does not take it."""
        directory = self.directory(record.key)
        try:
            if not os.path.isdir(directory):
                files.make_directory(self._dir, 0o700)
                files.make_directory(directory, 0o700)
                files.sync_directory(self._dir)
            data = json.dumps(_document(record)).encode()
            files.write_whole(f"{directory}/record.json", data, durable=durable)
        except OSError as err:
            full = err.errno in (errno.ENOSPC, errno.EDQUOT)
            kind = ResourceExhausted if full else Unavailable
            raise kind(f"record network of {record.id} in {directory}: {err.strerror}") from err

    def delete(self, key: str) -> None:
        """The record first: a directory without one is nobody's."""
        directory = self.directory(key)
        files.remove(f"{directory}/record.json")
        shutil.rmtree(directory, ignore_errors=True)

    def load(self) -> list[Record]:
        """All of them. A damaged one is kept on disk and logged; one that is empty goes."""
        found = []
        for key in _names(self._dir):
            path = f"{self._dir}/{key}/record.json"
            data = files.read_capped(path, MAX_RECORD_BYTES)
            if data is None:
                if not os.path.lexists(path):
                    self.delete(key)
                continue
            try:
                found.append(_record(json.loads(data)))
            except (ValueError, KeyError, TypeError, AttributeError, LighterError) as err:
                log.error("read network record %s: %s", path, err)
        return found


def _names(directory: str) -> list[str]:
    try:
        return sorted(entry.name for entry in os.scandir(directory) if entry.is_dir())
    except FileNotFoundError:
        return []


def _document(record: Record) -> dict[str, Any]:
    return {
        "key": record.key,
        "namespace": record.namespace,
        "id": record.id,
        "path": record.path,
        "boot_id": record.boot_id,
        "token": record.token,
        "made": record.made,
        "incarnation": record.incarnation,
        "ports": [vars(port) for port in record.ports],
        "attached": [
            {
                "network": one.network.as_json(),
                "ifname": one.ifname,
                "result": one.result,
                "capabilities": one.capabilities,
                "args": one.args,
                "pending": one.pending,
            }
            for one in record.attached
        ],
    }


def _record(document: dict[str, Any]) -> Record:
    return Record(
        key=str(document["key"]),
        namespace=str(document["namespace"]),
        id=str(document["id"]),
        path=str(document["path"]),
        boot_id=str(document["boot_id"]),
        token=str(document["token"]),
        made=bool(document["made"]),
        incarnation=str(document["incarnation"]),
        ports=tuple(Port(**port) for port in document["ports"]),
        attached=tuple(
            Attached(
                network=configs.from_json(one["network"], "of a record"),
                ifname=str(one["ifname"]),
                result=dict(one["result"]),
                capabilities=dict(one["capabilities"]),
                args=dict(one["args"]),
                pending=bool(one["pending"]),
            )
            for one in document["attached"]
        ),
    )
