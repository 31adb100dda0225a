"""What is attached to which network, on disk: whoever tears it down needs nothing else.

<root>/network/<key>/   0700
    record.json         who, where, and each attachment with the configuration it was made by
    hosts hostname resolv.conf      what the container sees below /etc

The key is CNI's container id, made anew for each start of a container: so removing an old
attachment late cannot touch a new one. It begins with the instance, by which addresses and rules
on the host can be told to be ours. A record is durable before the first plugin runs, and goes
after the last one has undone its work.
"""

import contextlib
import errno
import json
import logging
import os
import shutil
from dataclasses import dataclass, field, fields, replace
from typing import Any

from lighter.daemon import files
from lighter.daemon.network import configs
from lighter.daemon.network.chain import Attachment
from lighter.daemon.network.configs import Network
from lighter.daemon.network.request import Port
from lighter.daemon.network.result import Result, read
from lighter.proto.codec import MAX_MESSAGE_BYTES
from lighter.proto.errors import (
    FailedPrecondition,
    LighterError,
    ResourceExhausted,
    Unavailable,
)
from lighter.proto.paths import Root, State

log = logging.getLogger("lighter.network")

MAX_RECORD_BYTES = 8 << 20


@dataclass(frozen=True)
class Attached:
    """One interface. `result` is {} until a plugin has answered; `pending` while plugins are at it,
    so whoever finds it after a crash undoes it. `again`: the container had it, so whoever finds it
    attaches it again; `result` is then what it had, until plugins have answered anew."""

    network: Network
    ifname: str
    result: dict[str, Any] = field(default_factory=dict)
    capabilities: dict[str, Any] = field(default_factory=dict)
    args: dict[str, str] = field(default_factory=dict)
    pending: bool = True
    again: bool = False

    def view(self) -> Result:
        return read(self.result, self.network.name)


@dataclass(frozen=True)
class Record:
    """The network of one task. `path` is "" where it has files alone.

    `made`: the namespace is ours, not only its path; else `incarnation` may name the task that it
    is of. `token` marks its plugins' processes (plugin.py). `late`: its task makes the
    namespace, and is not attached yet, nor to be started. `withdrawn` are ports that were published
    in a network which it has left, for the next one. `unreadable`: why nothing but its
    key, and whose it is, is known; it is never written, and keeps what the key stands for.
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
    late: bool = False
    withdrawn: tuple[Port, ...] = ()
    unreadable: str = ""

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

    @property
    def publishes(self) -> bool:
        """Whether a network of its has been asked to publish its ports."""
        return any("portMappings" in one.capabilities for one in self.attached)

    def next_ifname(self) -> str:
        taken = {one.ifname for one in self.attached}
        return next(name for n in range(len(taken) + 1) if (name := f"eth{n}") not in taken)


class Records:
    """Reads and writes them. All methods block for a moment: for a thread."""

    def __init__(self, root: Root, state: State) -> None:
        self._dir = root.networks
        self._state = state

    def directory(self, key: str) -> str:
        return f"{self._dir}/{key}"

    def save(self, record: Record, *, durable: bool = True) -> None:
        """Raises ResourceExhausted, or Unavailable, when the disk does not take it."""
        if record.unreadable:
            raise FailedPrecondition(f"record network of {record.id}: {record.unreadable}")
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
        """Load all records. One that cannot be read is kept under its key, for what that holds; a
        directory without a record is removed.
        """
        found = []
        for key in files.directories_in(self._dir):
            path = f"{self._dir}/{key}/record.json"
            try:
                data = files.read_capped(path, MAX_RECORD_BYTES)
            except OSError as err:
                found.append(self._unreadable(key, err.strerror or repr(err)))
                continue
            if data is None:
                if os.path.lexists(path):
                    found.append(self._unreadable(key, "it cannot be read"))
                else:
                    self.delete(key)
                continue
            try:
                found.append(_record(key, json.loads(data)))
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as err:
                found.append(self._unreadable(key, repr(err)))
            except LighterError as err:
                found.append(self._unreadable(key, err.message))
        return found

    def _unreadable(self, key: str, reason: str) -> Record:
        log.error("read network record %s/record.json: %s", self.directory(key), reason)
        namespace, container_id = self._owner(key)
        path = f"{self._state.netns}/{key}"
        why = f"its record {self.directory(key)}/record.json: {reason}"
        return Record(key, namespace, container_id, path, "", "", unreadable=why)

    def _owner(self, key: str) -> tuple[str, str]:
        """The namespace and id whose bundle names the key: a spec has the path of its network
        namespace, or of its files.
        """
        for namespace in files.directories_in(self._state.tasks):
            for id_ in files.directories_in(f"{self._state.tasks}/{namespace}"):
                spec = f"{self._state.task(namespace, id_)}/config.json"
                with contextlib.suppress(OSError):
                    if key.encode() in (files.read_capped(spec, MAX_MESSAGE_BYTES) or b""):
                        return namespace, id_
        return "", ""


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
        "late": record.late,
        "ports": [vars(port) for port in record.ports],
        "withdrawn": [vars(port) for port in record.withdrawn],
        "attached": [
            {
                "network": one.network.as_json(),
                "ifname": one.ifname,
                "result": one.result,
                "capabilities": one.capabilities,
                "args": one.args,
                "pending": one.pending,
                "again": one.again,
            }
            for one in record.attached
        ],
    }


def _record(key: str, document: dict[str, Any]) -> Record:
    """What this release knows of it; another may have written more, or less."""
    return Record(
        key=key,
        namespace=str(document["namespace"]),
        id=str(document["id"]),
        path=str(document["path"]),
        boot_id=str(document.get("boot_id", "")),
        token=str(document.get("token", "")),
        made=bool(document.get("made", True)),
        incarnation=str(document.get("incarnation", "")),
        late=bool(document.get("late")),
        ports=tuple(_port(port) for port in document.get("ports", ())),
        withdrawn=tuple(_port(port) for port in document.get("withdrawn", ())),
        attached=tuple(
            Attached(
                network=configs.recorded(one["network"]),
                ifname=str(one["ifname"]),
                result=dict(one.get("result", {})),
                capabilities=dict(one.get("capabilities", {})),
                args=dict(one.get("args", {})),
                pending=bool(one.get("pending")),
                again=bool(one.get("again")),
            )
            for one in document.get("attached", ())
        ),
    )


def _port(document: dict[str, Any]) -> Port:
    known = {one.name for one in fields(Port)}
    return Port(**{name: value for name, value in document.items() if name in known})
