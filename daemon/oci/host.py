"""The facts about a host that a spec depends on, read once at the manager's start.

The only module here that reads anything: the rest are functions of their arguments.
"""

import os
import re
import resource
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lighter.daemon.oci.capabilities import ALL, from_mask
from lighter.proto.errors import InvalidArgument

NETWORK_FILES = ("/etc/hosts", "/etc/resolv.conf")

UNLIMITED = (1 << 64) - 1  # RLIM_INFINITY in the runtime spec's unsigned numbers
RLIMITS = {
    name: number for name, number in vars(resource).items() if name.startswith("RLIMIT_")
} | {"RLIMIT_LOCKS": 10}  # which Python does not name: asm-generic/resource.h
del RLIMITS["RLIMIT_OFILE"]  # BSD's name of RLIMIT_NOFILE

# /dev has these of its own in each container: containerd's list for privileged ones.
_SKIPPED_DIRS = frozenset((".lxc", ".lxd-mounts", ".udev", "fd", "mqueue", "pts", "shm"))


@dataclass(frozen=True)
class Host:
    """`arch` is uname(2)'s machine, `capabilities` the manager's own, `network_files` those of
    NETWORK_FILES that exist; `hard_limits`, by the OCI's names, are what a process of the manager
    starts with, above which only CAP_SYS_RESOURCE can go; `unified`: its cgroups are v2's.
    """

    hostname: str = "localhost"
    arch: str = "x86_64"
    capabilities: tuple[str, ...] = ALL
    network_files: tuple[str, ...] = ()
    thermal_throttle_dirs: tuple[str, ...] = ()
    hard_limits: Mapping[str, int] = field(default_factory=dict)
    unified: bool = False


def read_host() -> Host:
    """Read this machine's facts. Raises OSError when /proc or /sys is not there."""
    name = os.uname()
    throttle = Path("/sys/devices/system/cpu").glob("cpu[0-9]*/thermal_throttle")
    return Host(
        hostname=name.nodename,
        arch=name.machine,
        capabilities=_own_capabilities(),
        network_files=tuple(path for path in NETWORK_FILES if os.path.exists(path)),
        thermal_throttle_dirs=tuple(sorted(map(str, throttle))),
        hard_limits={name: _hard_limit(number) for name, number in RLIMITS.items()},
        unified=os.path.exists("/sys/fs/cgroup/cgroup.controllers"),
    )


def _hard_limit(number: int) -> int:
    hard = resource.getrlimit(number)[1]
    return UNLIMITED if hard == resource.RLIM_INFINITY else hard


def _own_capabilities() -> tuple[str, ...]:
    status = Path("/proc/self/status").read_text()
    line = re.search(r"^CapEff:\s*([0-9a-f]+)$", status, re.MULTILINE)
    return from_mask(int(line[1], 16)) if line else ()


def check_oom_score(score: int) -> None:
    """Raises InvalidArgument when the kernel does not let a child of this process have the score.

    How far it may be lowered without CAP_SYS_RESOURCE is nowhere to be read (proc(5)): so this
    process takes the score, and its own again, which it always may.
    """
    path = Path("/proc/self/oom_score_adj")
    own = path.read_text()
    try:
        path.write_text(str(score))
    except OSError as err:
        raise InvalidArgument(
            f"set oom score {score}: {err.strerror}; the manager's own is {own.strip()}, and only "
            "with CAP_SYS_RESOURCE can it be lowered"
        ) from err
    path.write_text(own)


def read_device(path: str) -> dict[str, Any]:
    """Return the OCI device of a node on the host. Raises OSError; ValueError when it is none."""
    info = os.stat(path)
    if not stat.S_ISCHR(info.st_mode) and not stat.S_ISBLK(info.st_mode):
        raise ValueError(f"read device {path}: it is neither a character nor a block device")
    return {
        "path": path,
        "type": "c" if stat.S_ISCHR(info.st_mode) else "b",
        "major": os.major(info.st_rdev),
        "minor": os.minor(info.st_rdev),
        "fileMode": stat.S_IMODE(info.st_mode),
        "uid": info.st_uid,
        "gid": info.st_gid,
    }


def read_devices(root: str = "/dev") -> tuple[dict[str, Any], ...]:
    """Return every device node of the host, for a privileged container, in the order of names.

    /dev/console is left out: a container's is its own. Nodes that vanish meanwhile are skipped.
    """
    return tuple(
        device for device in walk_devices(root) if device["path"] != os.path.join(root, "console")
    )


def walk_devices(directory: str) -> Iterator[dict[str, Any]]:
    """Every device node below a directory, in the order of names; links are not followed."""
    try:
        entries = sorted(os.scandir(directory), key=lambda entry: entry.name)
    except FileNotFoundError:
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            if entry.name not in _SKIPPED_DIRS:
                yield from walk_devices(entry.path)
        elif not entry.is_symlink():
            try:
                yield read_device(entry.path)
            except (FileNotFoundError, ValueError):
                continue
