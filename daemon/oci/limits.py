"""What a container may use at most: from a caller's words to OCI `linux.resources`.

The words are ctr's and docker's; the result is runtime-spec config-linux.md, "Control groups". A
limit that this host's kernel has no control for is refused here, since a runtime would either name
a file of the kernel's or leave it out without a word.
"""

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from lighter.daemon.oci.controls import Controls, numbers
from lighter.proto.errors import InvalidArgument

CPU_PERIOD_US = 100_000
MIN_QUOTA_US = 1000  # kernel/sched/core.c, min_cfs_quota_period
MAX_SHARES = 1 << 18  # kernel/sched/sched.h, MAX_SHARES
WEIGHTS = range(10, 1001)  # config-linux.md, "Block IO"


@dataclass(frozen=True)
class BlockLimits:
    """Pairs are (path of a block device on the host, value): weights, bytes or calls a second."""

    weight: int = 0
    device_weights: tuple[tuple[str, int], ...] = ()
    read_bps: tuple[tuple[str, int], ...] = ()
    write_bps: tuple[tuple[str, int], ...] = ()
    read_iops: tuple[tuple[str, int], ...] = ()
    write_iops: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class Limits:
    """0, "" and None are not limited. `cpus` is a number of whole processors; quota and period are
    microseconds, `cpu_quota` -1 no limit; sizes are bytes, `memory_swap` that of memory and swap
    together, -1 no limit; `pids` -1 no limit.
    """

    cpus: float = 0.0
    cpu_shares: int = 0
    cpu_quota: int | None = None
    cpu_period: int = 0
    cpuset_cpus: str = ""
    cpuset_mems: str = ""
    memory: int = 0
    memory_swap: int = 0
    memory_reservation: int = 0
    pids: int = 0
    block: BlockLimits = field(default_factory=BlockLimits)


NONE = Limits()


def resources(
    limits: Limits, controls: Controls, known: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return what belongs into `linux.resources`, {} for NONE. Raises InvalidArgument.

    `known`: the resources that these are a change of.
    """
    parts = {
        "cpu": _cpu(limits, controls),
        "memory": _memory(limits, controls, (known or {}).get("memory") or {}),
        "pids": _pids(limits, controls),
        "blockIO": _block(limits.block, controls),
    }
    return {name: part for name, part in parts.items() if part}


def _needs(control: str, flag: str, controls: Controls) -> None:
    if control not in controls.known:
        raise InvalidArgument(f"limit container: {flag}: this host's kernel has no control for it")


def _cpu(limits: Limits, controls: Controls) -> dict[str, Any]:
    cpu: dict[str, Any] = {}
    quota, period = limits.cpu_quota, limits.cpu_period
    if limits.cpu_shares:
        _needs("cpu shares", "cpu shares", controls)
        if not 2 <= limits.cpu_shares <= MAX_SHARES:
            raise InvalidArgument(f"limit container: cpu shares: 2 to {MAX_SHARES} are possible")
        cpu["shares"] = limits.cpu_shares
    if limits.cpus:
        if quota not in (None, -1) or period:
            raise InvalidArgument("limit container: cpus is quota and period: choose one of them")
        quota, period = int(limits.cpus * CPU_PERIOD_US), CPU_PERIOD_US
    if quota is not None:
        if quota != -1 and quota < MIN_QUOTA_US:
            raise InvalidArgument(
                f"limit container: cpu quota: {MIN_QUOTA_US} us (0.01 cpus) is the least"
            )
        cpu["quota"] = quota
    if period:
        if not MIN_QUOTA_US <= period <= 1_000_000:
            raise InvalidArgument("limit container: cpu period: 1000 to 1000000 us are possible")
        cpu["period"] = period
    if "quota" in cpu or "period" in cpu:
        _needs("cpu quota", "cpus, cpu quota", controls)
    for key, text, online, what in (
        ("cpus", limits.cpuset_cpus, controls.cpus, "processor"),
        ("mems", limits.cpuset_mems, controls.nodes, "memory node"),
    ):
        if text:
            _needs("cpuset", f"cpuset {key}", controls)
            cpu[key] = _chosen(text, online, what)
    return cpu


def _chosen(text: str, online: frozenset[int], what: str) -> str:
    try:
        chosen = numbers(text)
    except ValueError as err:
        raise InvalidArgument(f"limit container: {what}s {text!r}: expected 0-2,5") from err
    missing = sorted(set(chosen) - online)
    if missing or not chosen:
        raise InvalidArgument(
            f"limit container: {what} {missing[0] if missing else text}: "
            f"this host has {', '.join(map(str, sorted(online)))}"
        )
    return text


def _memory(limits: Limits, controls: Controls, known: Mapping[str, Any]) -> dict[str, Any]:
    """Memory and swap limits are always passed together, since runtimes set both."""
    memory: dict[str, Any] = {}
    if limits.memory_swap == -1 and not (limits.memory or known.get("limit") or known.get("swap")):
        limits = replace(limits, memory_swap=0)  # nothing limits it
    if limits.memory or limits.memory_reservation:
        _needs("memory", "memory", controls)
    limit = limits.memory or known.get("limit") or 0
    swap = limits.memory_swap or known.get("swap") or 0
    reservation = limits.memory_reservation or known.get("reservation") or 0
    if limits.memory or limits.memory_swap:
        memory |= {"limit": limit} if limit else {}
        memory |= {"swap": swap} if swap else {}
    if limits.memory_reservation:
        memory["reservation"] = reservation
    if memory and limit and reservation > limit:
        raise InvalidArgument("limit container: memory reservation is above the memory limit")
    if "swap" in memory:
        _needs("swap", "memory and swap", controls)
        if swap != -1 and swap < (limit or 1):
            raise InvalidArgument(
                "limit container: memory and swap together are below the memory limit"
            )
        if not limit:
            raise InvalidArgument("limit container: swap: a memory limit must be set too")
    if any(size < 0 for key, size in memory.items() if key != "swap"):
        raise InvalidArgument("limit container: a size is negative")
    return memory


def _pids(limits: Limits, controls: Controls) -> dict[str, Any]:
    if not limits.pids:
        return {}
    _needs("pids", "pids", controls)
    if limits.pids < -1:
        raise InvalidArgument("limit container: pids: a number, or -1 for no limit")
    return {"limit": limits.pids}


_THROTTLES = {
    "read_bps": "throttleReadBpsDevice",
    "write_bps": "throttleWriteBpsDevice",
    "read_iops": "throttleReadIOPSDevice",
    "write_iops": "throttleWriteIOPSDevice",
}


def _block(block: BlockLimits, controls: Controls) -> dict[str, Any]:
    result: dict[str, Any] = {}
    if block.weight or block.device_weights:
        _needs("block weight", "block weight", controls)
    for weight in (
        *((block.weight,) if block.weight else ()),
        *dict(block.device_weights).values(),
    ):
        if weight not in WEIGHTS:
            raise InvalidArgument("limit container: block weight: 10 to 1000 are possible")
    if block.weight:
        result["weight"] = block.weight
    if block.device_weights:
        result["weightDevice"] = [
            {**_block_device(path), "weight": weight} for path, weight in block.device_weights
        ]
    for name, key in _THROTTLES.items():
        pairs = getattr(block, name)
        if pairs:
            _needs("block throttle", name.replace("_", " "), controls)
            result[key] = [{**_block_device(path), "rate": _rate(rate)} for path, rate in pairs]
    return result


def _rate(rate: int) -> int:
    if rate < 0:
        raise InvalidArgument("limit container: a rate is negative")
    return rate


def _block_device(path: str) -> dict[str, int]:
    try:
        info = os.stat(path)
    except OSError as err:
        raise InvalidArgument(f"limit container: device {path}: {err.strerror}") from err
    if not stat.S_ISBLK(info.st_mode):
        raise InvalidArgument(f"limit container: device {path}: it is no block device")
    return {"major": os.major(info.st_rdev), "minor": os.minor(info.st_rdev)}


def read_limits(body: Mapping[str, Any]) -> Limits:
    """Read them from a request's map with the fields' names. Raises InvalidArgument naming the
    field.
    """
    values = dict(body)
    block = values.pop("block", None)
    if block is not None:
        values["block"] = BlockLimits(**_typed(BlockLimits, block, _block_value))
    return Limits(**_typed(Limits, values, _value))


def _typed(kind: Any, body: object, check: Any) -> dict[str, Any]:
    known = {item.name for item in fields(kind)}
    if not isinstance(body, Mapping):
        raise InvalidArgument("read limits: a map is expected")
    for name in body:
        if name not in known:
            raise InvalidArgument(f"read limits: {str(name)[:40]!r} is not known")
    return {name: check(name, value) for name, value in body.items() if value is not None}


def _value(name: str, value: object) -> object:
    if name == "block":
        return value
    kind: tuple[type, ...] = (int,)
    if name == "cpus":
        kind = (int, float)
    elif name.startswith("cpuset"):
        kind = (str,)
    if isinstance(value, bool) or not isinstance(value, kind):
        raise InvalidArgument(f"read limits: {name} is a {type(value).__name__}")
    if name == "cpus" and not 0 <= float(value) < 1 << 16:  # type: ignore[arg-type]
        raise InvalidArgument(f"read limits: cpus {value} is no number of processors")
    if isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
        raise InvalidArgument(f"read limits: {name} has more than 64 bits")
    return value


def _block_value(name: str, value: object) -> object:
    if name == "weight":
        return _value(name, value)
    if not isinstance(value, list | tuple):
        raise InvalidArgument(f"read limits: {name} is a {type(value).__name__}, not a list")
    pairs = []
    for pair in value:
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not isinstance(pair[0], str):
            raise InvalidArgument(f"read limits: {name}: expected pairs of path and number")
        pairs.append((pair[0], _value(name, pair[1])))
    return tuple(pairs)
