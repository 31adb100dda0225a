"""Seccomp profiles: our default one for a set of capabilities, and the one a caller hands in.

Every rule has at most one condition: runc joins conditions on the same argument by OR instead of
AND, so that a second one would widen the rule it was meant to narrow.
"""

import errno
import json
from collections.abc import Mapping, Set
from typing import Any

from lighter.daemon.oci import seccomp_table as table
from lighter.proto.errors import InvalidArgument, Unimplemented

MAX_PROFILE_BYTES = 1 << 20

_RULE_KEYS = ("names", "action", "errnoRet", "args")

# Docker's profile files name architectures as Go does.
_GO_ARCH = {"aarch64": "arm64", "x86_64": "amd64"}


def profile(capabilities: Set[str], arch: str) -> dict[str, Any]:
    """Return the default profile as a fresh OCI `linux.seccomp`.

    `capabilities` is the container's bounding set; `arch` is uname(2)'s machine name.
    Raises Unimplemented for an architecture without rules.
    """
    if arch not in table.ARCHITECTURES:
        raise Unimplemented(f"make seccomp profile: no default rules for architecture {arch!r}")
    allowed = [*table.ALWAYS, *table.BY_ARCH[arch]]
    for capability, names in table.BY_CAPABILITY.items():
        if capability in capabilities:
            allowed += names
    rules = [
        {"names": sorted(set(allowed)), "action": "SCMP_ACT_ALLOW"},
        _allow_if("socket", table.SOCKET_FAMILIES_BELOW, "SCMP_CMP_LT"),
        *(_allow_if("socket", family) for family in table.SOCKET_FAMILIES),
        *(_allow_if("personality", persona) for persona in table.PERSONALITIES),
    ]
    if "CAP_SYS_ADMIN" not in capabilities:
        # MASKED_EQ with a zero second value: none of the flags is set.
        rules.append(_allow_if("clone", table.CLONE_NAMESPACE_FLAGS, "SCMP_CMP_MASKED_EQ"))
        # clone3 hides its flags behind a pointer; on ENOSYS the C library falls back to clone.
        rules.append(
            {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": errno.ENOSYS},
        )
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": errno.EPERM,
        "architectures": list(table.ARCHITECTURES[arch]),
        "syscalls": rules,
    }


def read_profile(text: str, capabilities: Set[str], arch: str) -> dict[str, Any]:
    """Return OCI `linux.seccomp` for a caller's profile, in the OCI's form or in Docker's.

    Docker's form adds `archMap`, and `includes` and `excludes` on rules; they are decided here, as
    a runtime ignores them and would apply every rule. `minKernel` is taken as met: the oldest
    kernel that any known profile names is 4.8.

    Raises InvalidArgument.
    """
    if len(text) > MAX_PROFILE_BYTES:
        raise InvalidArgument(f"read seccomp profile: over {MAX_PROFILE_BYTES} bytes")
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as err:
        raise InvalidArgument(f"read seccomp profile: not JSON: {err}") from err
    if not isinstance(document, dict) or not isinstance(document.get("defaultAction"), str):
        raise InvalidArgument("read seccomp profile: an object with a defaultAction is expected")
    rules = document.get("syscalls")
    if rules is None:
        rules = []
    if not isinstance(rules, list) or not all(isinstance(rule, dict) for rule in rules):
        raise InvalidArgument("read seccomp profile: syscalls is not a list of objects")

    result = {key: value for key, value in document.items() if key not in ("archMap", "syscalls")}
    if "archMap" in document:
        result["architectures"] = _architectures(document["archMap"], arch)
    result["syscalls"] = [
        {key: value for key, value in rule.items() if key in _RULE_KEYS}
        for rule in map(_plural, rules)
        if _applies(rule, capabilities, arch)
    ]
    return result


def _allow_if(name: str, value: int, op: str = "SCMP_CMP_EQ") -> dict[str, Any]:
    """Allow `name` when its first argument compares so with `value`."""
    return {
        "names": [name],
        "action": "SCMP_ACT_ALLOW",
        "args": [{"index": 0, "value": value, "op": op}],
    }


def _plural(rule: dict[str, Any]) -> dict[str, Any]:
    """Docker's oldest profiles have `name` for one system call."""
    if "names" not in rule and isinstance(rule.get("name"), str):
        return {**rule, "names": [rule["name"]]}
    if not isinstance(rule.get("names"), list) or not isinstance(rule.get("action"), str):
        raise InvalidArgument("read seccomp profile: a rule without names and action")
    return rule


_CONDITIONS = ("arches", "caps")


def _applies(rule: Mapping[str, Any], capabilities: Set[str], arch: str) -> bool:
    includes, excludes = rule.get("includes") or {}, rule.get("excludes") or {}
    if not isinstance(includes, dict) or not isinstance(excludes, dict):
        raise InvalidArgument("read seccomp profile: includes and excludes are not objects")
    for words in (part.get(name) or [] for part in (includes, excludes) for name in _CONDITIONS):
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise InvalidArgument("read seccomp profile: arches and caps are not lists of texts")
    go_arch = _GO_ARCH.get(arch, arch)
    if includes.get("arches") and go_arch not in includes["arches"]:
        return False
    if go_arch in (excludes.get("arches") or ()):
        return False
    if not set(includes.get("caps") or ()) <= capabilities:
        return False
    return not set(excludes.get("caps") or ()) & capabilities


def _architectures(arch_map: Any, arch: str) -> list[str]:
    """Return the entry of Docker's `archMap` whose main architecture is this machine's."""
    main = table.ARCHITECTURES.get(arch, [f"SCMP_ARCH_{arch.upper()}"])[0]
    if not isinstance(arch_map, list) or not all(isinstance(entry, dict) for entry in arch_map):
        raise InvalidArgument("read seccomp profile: archMap is not a list of objects")
    for entry in arch_map:
        if entry.get("architecture") == main:
            return [main, *(entry.get("subArchitectures") or ())]
    return [main]
