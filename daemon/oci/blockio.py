"""Classes of disk use, by the names that an administrator's file gives to sets of limits.

The file is the one that containerd, CRI-O and ctr read (goresctrl's blockio): `Classes` maps a name
to a list of {Devices: [glob], Weight, ThrottleReadBps, ThrottleWriteBps, ThrottleReadIOPS,
ThrottleWriteIOPS}; numbers may have k, M, G (powers of 1000) or Ki, Mi, Gi. A weight without
devices is the one of all others.
"""

import glob
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lighter.daemon.oci import plainyaml
from lighter.daemon.oci.limits import BlockLimits
from lighter.proto.errors import InvalidArgument, NotFound

MAX_CONFIG_BYTES = 1 << 20
_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30}
_NUMBER = re.compile(r"(\d+)(k|M|G|Ki|Mi|Gi)?", re.ASCII)
_THROTTLES = {
    "ThrottleReadBps": "read_bps",
    "ThrottleWriteBps": "write_bps",
    "ThrottleReadIOPS": "read_iops",
    "ThrottleWriteIOPS": "write_iops",
}


def class_limits(config: str, name: str) -> BlockLimits:
    """The limits of one class. Raises InvalidArgument, NotFound naming the classes there are."""
    if len(config.encode(errors="surrogatepass")) > MAX_CONFIG_BYTES:
        raise InvalidArgument(f"read block io classes: over {MAX_CONFIG_BYTES} bytes")
    document = plainyaml.parse(config, "block io classes")
    classes = document.get("Classes") if isinstance(document, dict) else None
    if not isinstance(classes, dict):
        raise InvalidArgument("read block io classes: Classes is no map")
    if name not in classes:
        raise NotFound(f"use block io class {name[:80]!r}: there are {', '.join(classes)}")
    rules = classes[name] or []
    if not isinstance(rules, list) or not all(isinstance(rule, dict) for rule in rules):
        raise InvalidArgument(f"read block io class {name}: it is no list of maps")
    limits = BlockLimits()
    for rule in rules:
        limits = _with_rule(limits, rule, name)
    return limits


def _with_rule(limits: BlockLimits, rule: Mapping[str, Any], name: str) -> BlockLimits:
    unknown = set(rule) - {"Devices", "Weight", *_THROTTLES}
    if unknown:
        raise InvalidArgument(f"read block io class {name}: {min(unknown)} is not known")
    devices = [path for pattern in rule.get("Devices") or () for path in _devices(str(pattern))]
    if "Devices" in rule and not devices:
        raise NotFound(f"use block io class {name}: {rule['Devices']} are no disks of this host")
    weight = _number(rule.get("Weight", 0), name)
    if weight and not devices:
        limits = replace(limits, weight=weight)
    elif weight:
        pairs = tuple((path, weight) for path in devices)
        limits = replace(limits, device_weights=(*limits.device_weights, *pairs))
    for key, field in _THROTTLES.items():
        rate = _number(rule.get(key, 0), name)
        if rate and not devices:
            raise InvalidArgument(f"read block io class {name}: {key} without Devices")
        if rate:
            pairs = tuple((path, rate) for path in devices)
            throttles: dict[str, Any] = {field: (*getattr(limits, field), *pairs)}
            limits = replace(limits, **throttles)
    return limits


def _devices(pattern: str) -> list[str]:
    """The whole disks that a glob matches: the kernel throttles no partitions."""
    found = []
    for path in sorted(glob.glob(pattern)):
        info = os.stat(path)
        number = f"{os.major(info.st_rdev)}:{os.minor(info.st_rdev)}"
        if stat.S_ISBLK(info.st_mode) and not os.path.exists(f"/sys/dev/block/{number}/partition"):
            found.append(path)
    return found


def _number(value: object, name: str) -> int:
    found = _NUMBER.fullmatch(str(value))
    if found is None or isinstance(value, bool):
        raise InvalidArgument(f"read block io class {name}: {str(value)[:40]!r} is no number")
    return int(found[1]) * _UNITS[found[2] or ""]
