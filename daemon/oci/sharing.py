"""The Linux namespaces of a container: its own, the host's, or another container's.

    kind      default   modes
    pid       own       own host container:ID
    ipc       own       own host container:ID
    network   own       own host container:ID      (with networks: daemon/network decides)
    uts       own       own host
    cgroup    host      own host                   (Docker's default on cgroup v2: own)
    user      host      own (with mapped ids) host

A container of whose namespaces one is joined is named by its id, and its process is looked up when
a task is made: a path would name whatever has the number after its next start.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lighter.daemon.oci.checks import check_namespace
from lighter.proto.errors import InvalidArgument
from lighter.proto.names import check_name

OWN, HOST, OTHER = "own", "host", "container:"
_DEFAULT = ("pid", "ipc", "uts", "mount", "network")
_MODES = {
    "pid": (OWN, HOST, OTHER),
    "ipc": (OWN, HOST, OTHER),
    "network": (OWN, HOST, OTHER),
    "uts": (OWN, HOST),
    "cgroup": (OWN, HOST),
    "user": (HOST,),
}
PROC_NAMES = {"network": "net", "pid": "pid", "ipc": "ipc"}


@dataclass(frozen=True)
class Sharing:
    """`paths` maps kinds, in any spelling, to namespaces to join; `modes` as in the table."""

    paths: Mapping[str, str] = field(default_factory=dict)
    modes: Mapping[str, str] = field(default_factory=dict)

    def namespaces(self, *, net_host: bool, user: bool, own_cgroup: bool = False) -> dict[str, str]:
        """Return kind → path, "" for a new one; a kind that is not there is the host's.

        `own_cgroup`: the cgroup namespace is a new one if nothing is asked.

        Raises InvalidArgument for a kind, a mode or a path that cannot be, and for two answers.
        """
        kinds = dict.fromkeys((*_DEFAULT, "cgroup") if own_cgroup else _DEFAULT, "")
        asked = self._checked_modes()
        if net_host:
            asked.setdefault("network", HOST)
        for kind, mode in asked.items():
            if mode == HOST:
                kinds.pop(kind, None)
            else:
                kinds[kind] = ""
        for name, path in self.paths.items():
            kind, joined = check_namespace(name, path)
            if kind == "network" and asked.get(kind) == HOST:
                raise InvalidArgument(
                    "join network namespace: the host's network was asked for too"
                )
            if kind in self.modes:
                raise InvalidArgument(f"join {kind} namespace: {self.modes[kind]} was asked too")
            kinds[kind] = joined
        if user:
            kinds.setdefault("user", "")
        return kinds

    def _checked_modes(self) -> dict[str, str]:
        for kind, mode in self.modes.items():
            allowed = _MODES.get(kind)
            if allowed is None:
                raise InvalidArgument(f"choose {kind[:20]} namespace: there is no such kind")
            if mode not in (OWN, HOST) or mode not in allowed:
                other = mode.removeprefix(OTHER)
                if OTHER not in allowed or other == mode:
                    names = ", ".join(f"{one}ID" if one == OTHER else one for one in allowed)
                    raise InvalidArgument(f"choose {kind} namespace {mode[:80]!r}: {names}")
                check_name(other, "container")
        return dict(self.modes)

    def joined(self) -> dict[str, str]:
        """Kind → the id of the container whose namespace it is."""
        return {
            kind: mode.removeprefix(OTHER)
            for kind, mode in self.modes.items()
            if mode.startswith(OTHER)
        }


def join(spec: dict[str, Any], pids: Mapping[str, int]) -> None:
    """Put into a spec the namespaces of running processes, by kind."""
    for entry in spec["linux"]["namespaces"]:
        if entry["type"] in pids:
            entry["path"] = f"/proc/{pids[entry['type']]}/ns/{PROC_NAMES[entry['type']]}"
