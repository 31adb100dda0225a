"""Flags of the namespaces that the container has for itself or shares."""

from __future__ import annotations

from lighter.ctl import grammar
from lighter.ctl.cli import key_values

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

_ALL_IDS = 65536
_DIGITS = 10  # an id has at most as many
_MODES = {
    "private": "own",
    "shareable": "own",  # docker's word; here every namespace can be joined
    "host": "host",
}

OPTIONS = (
    grammar.option("--with-ns", multiple=True, help="Join: pid:/proc/PID/ns/pid, net:, ipc:, …"),
    grammar.option("--pid", metavar="MODE", help="private, host or container:ID."),
    grammar.option("--ipc", metavar="MODE", help="private, host or container:ID."),
    grammar.option("--uts", metavar="MODE", help="private or host."),
    grammar.option("--cgroupns", metavar="MODE", help="private or host."),
    grammar.option("--userns", metavar="MODE", help="auto[:size=N]: free ids; host: none."),
    grammar.option("--uidmap", multiple=True, metavar="INSIDE:HOST:SIZE", help="Mapped user ids."),
    grammar.option("--gidmap", multiple=True, metavar="INSIDE:HOST:SIZE", help="Mapped group ids."),
    grammar.option("--remap-labels", is_flag=True, help="Tell the snapshotter of the mapping."),
    grammar.option("--sysctl", multiple=True, metavar="NAME=VALUE", help="Of its own namespaces."),
)


def fields(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Their part of the body of containers.create."""
    asked = {"pid": "pid", "ipc": "ipc", "uts": "uts", "cgroupns": "cgroup"}
    if flags["userns"] and (flags["uidmap"] or flags["gidmap"]):
        raise grammar.UsageError("--userns: ids are mapped by --uidmap already")
    if bool(flags["uidmap"]) != bool(flags["gidmap"]):
        raise grammar.UsageError("--uidmap and --gidmap are given together")
    return {
        "with_ns": joined_namespaces(flags["with_ns"]),
        "namespaces": {
            kind: mode(flags[name], name) for name, kind in asked.items() if flags[name]
        },
        "uid_maps": [id_range(text, "--uidmap") for text in flags["uidmap"]],
        "gid_maps": [id_range(text, "--gidmap") for text in flags["gidmap"]],
        "free_ids": free_ids(flags["userns"] or "host"),
        "remap_labels": flags["remap_labels"],
        "sysctls": key_values(flags["sysctl"], "sysctl"),
    }


def free_ids(word: str) -> int:
    """How many ids `host`, `auto` or podman's `auto:size=N` asks for."""
    if word == "host":
        return 0
    if word == "auto":
        return _ALL_IDS
    size = word.removeprefix("auto:size=")
    is_number = size.isascii() and size.isdigit() and len(size) <= _DIGITS
    if size == word or not (is_number and int(size)):
        raise grammar.UsageError(
            f"--userns {word!r}: expected host, auto or auto:size=N; --uidmap and --gidmap map ids"
        )
    return int(size)


def id_range(text: str, flag: str) -> list[int]:
    """`inside:host:size` as numbers."""
    words = text.split(":")
    if len(words) != 3 or not all(
        word.isascii() and word.isdigit() and len(word) <= _DIGITS for word in words
    ):
        raise grammar.UsageError(f"{flag} {text!r}: expected INSIDE:HOST:SIZE")
    return [int(word) for word in words]


def mode(word: str, flag: str) -> str:
    """A flag's word as the request has it: own, host or container:ID."""
    if word.startswith("container:") and flag in ("pid", "ipc"):
        return word
    if word not in _MODES:
        raise grammar.UsageError(f"--{flag} {word!r}: expected private, host or container:ID")
    return _MODES[word]


def joined_namespaces(words: tuple[str, ...]) -> dict[str, str]:
    """`kind:path` words as a map."""
    joined = {}
    for word in words:
        kind, sign, path = word.partition(":")
        if not (kind and sign and path):
            raise grammar.UsageError(f"--with-ns {word!r}: expected kind:path")
        joined[kind] = path
    return joined
