"""Devices by the Container Device Interface: files of vendors, and what they change in a spec.

    /etc/cdi/*.json, *.yaml         written by an administrator or a package
    /var/run/cdi/*.json, *.yaml     written while the host runs; stands above the other

A file has a kind, vendor/class, and devices with names: `vendor/class=name` is asked for. Hooks in
it run as root on the host, so a file that others than root may write is not read.
"""

import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lighter.daemon.oci import plainyaml
from lighter.proto.errors import FailedPrecondition, InvalidArgument, NotFound

DIRECTORIES = ("/etc/cdi", "/var/run/cdi")
MAX_FILE_BYTES = 1 << 20
MAX_VERSION = (1, 0)

_WORD = r"[A-Za-z]([A-Za-z0-9_{}-]*[A-Za-z0-9])?"
_KIND = re.compile(rf"{_WORD.format('.')}/{_WORD.format('')}", re.ASCII)
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.:-]*[A-Za-z0-9])?", re.ASCII)
_VERSION = re.compile(r"(\d{1,9})\.(\d{1,9})\.\d{1,9}", re.ASCII)


@dataclass(frozen=True)
class Specification:
    """One file: `edits` go with any of its devices, once."""

    path: str
    rank: int
    kind: str
    edits: Mapping[str, Any]
    devices: Mapping[str, Mapping[str, Any]]


def find(names: Sequence[str], directories: Sequence[str] = DIRECTORIES) -> list[Mapping[str, Any]]:
    """The edits of these devices, in the order in which they apply.

    Raises InvalidArgument (a name), NotFound (with the files that could not be read),
    FailedPrecondition when two files of one directory have the device.
    """
    specifications, broken = load(directories)
    edits: list[Mapping[str, Any]] = []
    used: set[str] = set()
    for name in names:
        kind, _, device = name.partition("=")
        if not _KIND.fullmatch(kind) or not _NAME.fullmatch(device):
            raise InvalidArgument(f"use device {name[:80]!r}: expected vendor/class=name")
        found = [s for s in specifications if s.kind == kind and device in s.devices]
        if not found:
            raise NotFound(f"use device {name}: {_missing(kind, specifications, broken)}")
        top = max(one.rank for one in found)
        chosen = [one for one in found if one.rank == top]
        if len(chosen) > 1:
            paths = " and ".join(one.path for one in chosen)
            raise FailedPrecondition(f"use device {name}: both {paths} have it")
        if chosen[0].path not in used:
            used.add(chosen[0].path)
            edits.append(chosen[0].edits)
        edits.append(chosen[0].devices[device])
    return edits


def gpu_devices(words: Iterable[str], directories: Sequence[str] = DIRECTORIES) -> tuple[str, ...]:
    """The names of graphic processors: "all", numbers or ids. Raises NotFound."""
    asked = tuple(words)
    if not asked:
        return ()
    specifications, broken = load(directories)
    kinds = sorted({one.kind for one in specifications if one.kind.endswith("/gpu")})
    if not kinds:
        raise NotFound(
            f"use gpus: {_missing('nvidia.com/gpu', specifications, broken)} "
            "(nvidia-ctk cdi generate writes one)"
        )
    kind = "nvidia.com/gpu" if "nvidia.com/gpu" in kinds else kinds[0]
    return tuple(f"{kind}={word}" for word in asked)


def _missing(kind: str, known: Sequence[Specification], broken: Sequence[str]) -> str:
    names = sorted(f"{one.kind}={device}" for one in known for device in one.devices)
    said = f"no file in {' or '.join(DIRECTORIES)} has it"
    if any(one.kind == kind for one in known):
        said += f"; there are {', '.join(n for n in names if n.startswith(kind + '='))[:400]}"
    return said + "".join(f"; {cause}" for cause in broken)


def load(directories: Sequence[str]) -> tuple[list[Specification], list[str]]:
    """All files that can be read, and why the others cannot."""
    found: list[Specification] = []
    broken: list[str] = []
    for rank, directory in enumerate(directories):
        for path in _files(directory):
            try:
                found.append(_specification(path, rank))
            except InvalidArgument as err:
                broken.append(err.message)
    return found, broken


def _files(directory: str) -> Iterator[str]:
    try:
        names = sorted(os.listdir(directory))
    except OSError:
        return
    yield from (f"{directory}/{n}" for n in names if n.endswith((".json", ".yaml", ".yml")))


def _read(path: str) -> str:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            info = os.fstat(fd)
            if not stat.S_ISREG(info.st_mode):
                raise InvalidArgument(f"read {path}: it is no regular file")
            if info.st_uid != 0 or info.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                raise InvalidArgument(f"read {path}: others than root may write to it")
            if info.st_size > MAX_FILE_BYTES:
                raise InvalidArgument(f"read {path}: over {MAX_FILE_BYTES} bytes")
            return os.read(fd, MAX_FILE_BYTES).decode()
        finally:
            os.close(fd)
    except OSError as err:
        raise InvalidArgument(f"read {path}: {err.strerror}") from err
    except UnicodeDecodeError as err:
        raise InvalidArgument(f"read {path}: it is not UTF-8 text") from err


def _specification(path: str, rank: int) -> Specification:
    document = plainyaml.parse(_read(path), path)
    if not isinstance(document, dict):
        raise InvalidArgument(f"read {path}: it is no map")
    version = _VERSION.fullmatch(str(document.get("cdiVersion")))
    if version is None or (int(version[1]), int(version[2])) > MAX_VERSION:
        raise InvalidArgument(
            f"read {path}: cdiVersion {str(document.get('cdiVersion'))[:20]} is not known here"
        )
    kind = document.get("kind")
    if not isinstance(kind, str) or not _KIND.fullmatch(kind):
        raise InvalidArgument(f"read {path}: kind is no vendor/class")
    devices: dict[str, Mapping[str, Any]] = {}
    listed = document.get("devices")
    if not isinstance(listed, list):
        raise InvalidArgument(f"read {path}: devices is no list")
    for entry in listed:
        # Versions before 0.5 write names that are numbers without quotes.
        name = str(entry.get("name")) if isinstance(entry, dict) else ""
        if not _NAME.fullmatch(name) or name in devices:
            raise InvalidArgument(f"read {path}: device {name[:40]!r} cannot be named so")
        devices[name] = _edits(entry, path)
    return Specification(path, rank, kind, _edits(document, path), devices)


def _edits(holder: Mapping[str, Any], path: str) -> Mapping[str, Any]:
    edits = holder.get("containerEdits")
    edits = {} if edits is None else edits
    if not isinstance(edits, dict):
        raise InvalidArgument(f"read {path}: containerEdits is no map")
    if edits.get("netDevices"):
        raise InvalidArgument(f"read {path}: netDevices are not known here")
    return edits
