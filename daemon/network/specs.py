"""A container's recorded spec, with the network that its task has this time."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lighter.daemon.network.request import NetworkRequest

MAX_HOSTNAME = 63


@dataclass(frozen=True)
class Prepared:
    """What a start has been given: `key` of its record, the namespace's path or "", and the files
    as (place in the container, path).

    `request` is what is attached only when the runtime has made the namespace, else None.
    """

    key: str
    path: str = ""
    files: tuple[tuple[str, str], ...] = ()
    hostname: str = ""
    request: NetworkRequest | None = None


def default_hostname(container_id: str) -> str:
    """What a container with a network is called when nobody says: its id, as far as that goes."""
    return container_id.replace("_", "-")[:MAX_HOSTNAME].strip("-.")


def with_network(spec: bytes, prepared: Prepared) -> bytes:
    """The spec that the runtime gets. A mount of the caller's own stays what it is."""
    document: dict[str, Any] = json.loads(spec)
    namespaces = document["linux"]["namespaces"]
    if prepared.path:
        kept = [one for one in namespaces if one["type"] != "network"]
        document["linux"]["namespaces"] = [*kept, {"type": "network", "path": prepared.path}]
    if prepared.hostname and not document.get("hostname") and _has_own_uts(namespaces):
        document["hostname"] = prepared.hostname
    document["mounts"] = [
        *(m for m in document["mounts"] if not _is_replaced(m, prepared.files)),
        *(
            {"destination": place, "type": "bind", "source": path, "options": ["rbind", "rw"]}
            for place, path in prepared.files
            if not any(
                m["destination"] == place and not _is_replaced(m, prepared.files)
                for m in document["mounts"]
            )
        ),
    ]
    return json.dumps(document).encode()


def _has_own_uts(namespaces: Sequence[Mapping[str, Any]]) -> bool:
    return any(one["type"] == "uts" and not one.get("path") for one in namespaces)


def _is_replaced(mount: Mapping[str, Any], files: Sequence[tuple[str, str]]) -> bool:
    """Whether it is the host's own file at the same place, which a host network brings."""
    place = mount["destination"]
    return any(place == other for other, _ in files) and mount.get("source") == place
