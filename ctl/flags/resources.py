"""Flags of how much the container may use."""

from __future__ import annotations

from lighter.ctl import grammar
from lighter.ctl.cli import SIZE, Size, read_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

UNLIMITED = (1 << 64) - 1  # RLIM_INFINITY


class SizeOrNone(Size):
    """A size, or -1 for no limit."""

    def convert(self, text: str) -> int:
        return -1 if text == "-1" else super().convert(text)


OPTIONS = (
    grammar.option(
        "--memory-limit", "--memory", "-m", type=SIZE, default=0, help="512m, 2g, bytes."
    ),
    grammar.option(
        "--memory-swap", type=SizeOrNone(), default=0, help="Memory and swap; -1: free."
    ),
    grammar.option("--memory-reservation", type=SIZE, default=0, help="Goal when memory is short."),
    grammar.option("--cpus", type=float, default=0.0, help="How many processors' time, 1.5."),
    grammar.option("--cpu-shares", type=int, default=0, help="Weight among others; kernel: 1024."),
    grammar.option("--cpu-quota", type=int, default=-1, help="Microseconds in each period."),
    grammar.option("--cpu-period", type=int, default=0, help="Microseconds."),
    grammar.option("--cpuset-cpus", default="", help="Processors that may be used, 0-2,5."),
    grammar.option("--cpuset-mems", default="", help="Memory nodes that may be used, 0,1."),
    grammar.option("--pids-limit", type=int, default=0, help="Processes and threads; -1: free."),
    grammar.option("--blkio-weight", type=int, default=0, help="Share of disk time, 10 to 1000."),
    grammar.option("--blkio-weight-device", multiple=True, metavar="DEVICE:WEIGHT", help="Of one."),
    grammar.option("--device-read-bps", multiple=True, metavar="DEVICE:SIZE", help="Per second."),
    grammar.option("--device-write-bps", multiple=True, metavar="DEVICE:SIZE", help="Per second."),
    grammar.option("--device-read-iops", multiple=True, metavar="DEVICE:N", help="Per second."),
    grammar.option("--device-write-iops", multiple=True, metavar="DEVICE:N", help="Per second."),
    grammar.option("--blockio-config-file", metavar="FILE", help="Classes of disk use (YAML)."),
    grammar.option("--blockio-class", default="", help="One of that file's classes."),
    grammar.option(
        "--rdt-class", default="", help="Class of cache and memory bandwidth (resctrl)."
    ),
    grammar.option("--ulimit", multiple=True, metavar="NAME=SOFT[:HARD]", help="nofile=1024:2048"),
    grammar.option("--shm-size", type=SIZE, default=0, help="Of /dev/shm.  [default: 64m]"),
    grammar.option(
        "--oom-score-adj",
        type=grammar.Integer(-1000, 1000),
        help="-1000 to 1000: killed last, first.",
    ),
)


def fields(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Their part of the body of containers.create."""
    config = flags["blockio_config_file"]
    if bool(config) != bool(flags["blockio_class"]):
        raise grammar.UsageError("--blockio-config-file and --blockio-class are given together")
    return {
        "blockio_config": read_text(config, "block io classes") if config else "",
        "blockio_class": flags["blockio_class"],
        "rdt_class": flags["rdt_class"],
        "limits": limits(flags),
        "rlimits": [rlimit(text) for text in flags["ulimit"]],
        "shm_bytes": flags["shm_size"],
        "oom_score_adj": flags["oom_score_adj"],
    }


def limits(flags: Mapping[str, Any]) -> dict[str, Any]:
    """What was limited, by the names of the request's `limits`."""
    block = {
        "weight": flags["blkio_weight"],
        "device_weights": pairs(flags["blkio_weight_device"], "--blkio-weight-device"),
        "read_bps": pairs(flags["device_read_bps"], "--device-read-bps", SIZE),
        "write_bps": pairs(flags["device_write_bps"], "--device-write-bps", SIZE),
        "read_iops": pairs(flags["device_read_iops"], "--device-read-iops"),
        "write_iops": pairs(flags["device_write_iops"], "--device-write-iops"),
    }
    asked = {
        "cpus": flags["cpus"],
        "cpu_shares": flags["cpu_shares"],
        "cpu_quota": None if flags["cpu_quota"] == -1 else flags["cpu_quota"],
        "cpu_period": flags["cpu_period"],
        "cpuset_cpus": flags["cpuset_cpus"],
        "cpuset_mems": flags["cpuset_mems"],
        "memory": flags["memory_limit"],
        "memory_swap": flags["memory_swap"],
        "memory_reservation": flags["memory_reservation"],
        "pids": flags["pids_limit"],
        "block": {name: value for name, value in block.items() if value},
    }
    return {name: value for name, value in asked.items() if value not in (0, "", {}, None)}


def pairs(words: Sequence[str], flag: str, kind: Size | None = None) -> list[list[Any]]:
    """`device:number` words as pairs."""
    found = []
    for word in words:
        device, sign, number = word.rpartition(":")
        if not (sign and device and number):
            raise grammar.UsageError(f"{flag} {word!r}: expected DEVICE:NUMBER")
        try:
            found.append([device, kind.convert(number) if kind else int(number)])
        except (ValueError, grammar.BadValue) as err:
            raise grammar.UsageError(f"{flag} {word!r}: {number!r} is no number") from err
    return found


def rlimit(text: str) -> dict[str, Any]:
    """One --ulimit as an OCI rlimit. Raises grammar.UsageError."""
    name, sign, value = text.partition("=")
    soft, colon, hard = value.partition(":")
    if not (name and sign and soft) or (colon and not hard):
        raise grammar.UsageError(f"--ulimit {text!r}: expected NAME=SOFT[:HARD]")
    kind = "RLIMIT_" + name.upper().removeprefix("RLIMIT_")
    return {"type": kind, "soft": _number(soft, text), "hard": _number(hard or soft, text)}


def _number(word: str, text: str) -> int:
    if word in ("-1", "unlimited"):
        return UNLIMITED
    if not (word.isascii() and word.isdigit()):
        raise grammar.UsageError(f"--ulimit {text!r}: {word!r} is no number")
    return int(word)
