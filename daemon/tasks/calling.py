"""How a task's runtime is called, and where its container is among the cgroups."""

import json
import os
import posixpath
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from lighter.daemon.tasks import processes
from lighter.daemon.tasks.entry import Entry
from lighter.daemon.types import Container, RuntimeOptions
from lighter.proto.errors import AlreadyExists, FailedPrecondition, InvalidArgument
from lighter.proto.paths import Root, State, cgroup_path, shims_cgroup

PLAIN = RuntimeOptions()
_NO_NAME = re.compile("[\0\ud800-\udfff]")  # none of a file's has a zero byte or half a character
REFUSED = "refused"  # in the record of options that were not understood: why


@dataclass(frozen=True)
class Calling:
    """What the order of a create says of the runtime; `cgroup` is below each hierarchy's root.

    `is_hosts_runc`: it is what the host calls runc. A program that somebody has named may be one
    around it, which wants to be run for each step.
    """

    runtime: str
    root: str
    cgroup: str
    options: RuntimeOptions
    is_hosts_runc: bool = False

    @property
    def flags(self) -> list[str]:
        """Words before every verb."""
        return ["--systemd-cgroup"] if self.options.systemd_cgroup else []

    @property
    def create_flags(self) -> list[str]:
        chosen = {
            "--no-pivot": self.options.no_pivot_root,
            "--no-new-keyring": self.options.no_new_keyring,
        }
        return [flag for flag, wanted in chosen.items() if wanted]


def to_record(options: RuntimeOptions) -> dict[str, Any]:
    """As it stands in a container's `options`: what is not as ever."""
    return {name: value for name, value in asdict(options).items() if value}


def from_record(record: Mapping[str, Any]) -> RuntimeOptions:
    """Read it from a container's `options`; keys of a later release are ignored. Raises
    InvalidArgument when the options were not understood.
    """
    if REFUSED in record:
        raise InvalidArgument(str(record[REFUSED]))
    known = {field.name for field in fields(RuntimeOptions)}
    return RuntimeOptions(**{name: value for name, value in record.items() if name in known})


def runtime_root(state: State, namespace: str, options: RuntimeOptions) -> str:
    """Where the runtime keeps the state of a namespace's containers."""
    return f"{options.root}/{namespace}" if options.root else state.runc_root(namespace)


def place(root: Root, container: Container, systemd: bool) -> tuple[str, bytes]:
    """(its cgroup, its spec): a spec that leaves the place open gets one that can be found.

    Without a path, or with a relative one, the runtime would put the container beside its shim,
    where nobody finds its processes once both are gone. Raises InvalidArgument.
    """
    own = cgroup_path(root.instance, container.namespace, container.id)
    try:
        spec = json.loads(container.spec)
        linux = spec.setdefault("linux", {})
        given = str(linux.get("cgroupsPath") or "")
    except (ValueError, AttributeError, TypeError, RecursionError) as err:
        raise InvalidArgument(f"create task {container.id}: its spec is no OCI spec") from err
    if _NO_NAME.search(given):
        raise InvalidArgument(f"create task {container.id}: cgroup {given!r} is no name of a place")
    for of, name in ((spec, "linux"), (linux, "cgroupsPath")):
        # Go reads names without regard to case, and the last of them: runc would see another.
        if any(other != name and other.casefold() == name.casefold() for other in of):
            raise InvalidArgument(f"create task {container.id}: its spec says {name} twice")
    if systemd:
        return systemd_cgroup(given, container.id), container.spec
    if given.startswith("/"):
        path = posixpath.normpath("/" + given.lstrip("/"))
        if path == "/" or ".." in given.split("/"):
            raise InvalidArgument(
                f"create task {container.id}: cgroup {given} is no place of its own"
            )
        return path, container.spec
    above = posixpath.dirname(own)
    path = posixpath.normpath(f"{above}/{given}") if given else own
    if not path.startswith(f"{above}/"):
        raise InvalidArgument(f"create task {container.id}: cgroup {given} leads elsewhere")
    linux["cgroupsPath"] = path
    return path, json.dumps(spec).encode()


def systemd_cgroup(given: str, container_id: str) -> str:
    """The cgroup of `slice:prefix:name`, as runc's systemd driver reads it (its docs/systemd.md).

    Raises InvalidArgument.
    """
    parts = given.split(":") if given else ["system.slice", "runc", container_id]
    if len(parts) != 3 or not parts[2]:
        raise InvalidArgument(
            f"create task {container_id}: cgroup {given!r} is not slice:prefix:name, "
            "which systemd_cgroup asks for"
        )
    slice_, prefix, name = parts
    slice_ = slice_ or "system.slice"
    unit = name if name.endswith(".slice") else f"{prefix}-{name}.scope"
    if not slice_.endswith(".slice") or "/" in slice_ + unit or name in (".", ".."):
        raise InvalidArgument(f"create task {container_id}: {slice_!r} is no slice of systemd's")
    stem = slice_.removesuffix(".slice")
    names = stem.split("-") if stem != "-" else []
    above = "".join(f"/{'-'.join(names[: n + 1])}.slice" for n in range(len(names)))
    return f"{above}/{unit}"


def check_apart(root: Root, container: Container, others: Iterable[Entry]) -> str:
    """The cgroup of a container whose spec is ours, which no client's container has chosen.

    Raises FailedPrecondition.
    """
    path = cgroup_path(root.instance, container.namespace, container.id)
    # Among our own each has another place by its name.
    chosen = [entry for entry in others if entry.options.get("cgroup")]
    _check_entries(root, path, container.id, chosen)
    return path


def check_alone(root: Root, path: str, container_id: str, others: Iterable[Entry]) -> None:
    """Raises FailedPrecondition if anything but this container is in its cgroup: whatever is there
    is ended with it.
    """
    for ours in (f"/lighter/{root.instance}", shims_cgroup(root.instance)):
        if f"{ours}/".startswith(f"{path}/"):
            raise FailedPrecondition(
                f"create task {container_id}: cgroup {path} is above this manager's own"
            )
    _check_entries(root, path, container_id, others)
    if processes.in_cgroup(path):
        raise FailedPrecondition(
            f"create task {container_id}: cgroup {path} holds processes of others, "
            "which would be ended with it"
        )


def _check_entries(root: Root, path: str, container_id: str, others: Iterable[Entry]) -> None:
    for entry in others:
        taken = str(entry.options.get("cgroup") or "")
        taken = taken or cgroup_path(root.instance, entry.namespace, entry.id)
        if f"{path}/".startswith(f"{taken}/") or f"{taken}/".startswith(f"{path}/"):
            raise FailedPrecondition(
                f"create task {container_id}: cgroup {path} is shared with {entry.what} ({taken})"
            )


# Those that every runtime knows; a hierarchy of another kind may be there, and is left alone.
_LIMITING = frozenset(
    ("blkio", "cpu", "cpuacct", "cpuset", "devices", "freezer", "memory", "pids"),
)


def check_placed(pid: int, path: str, container_id: str) -> None:
    """Make sure that a created container's init is in the cgroup that has its limits
    (CVE-2025-47291 and others). Below the place of an outer container the kernel's paths begin with
    that. Raises FailedPrecondition.
    """
    try:
        with open(f"/proc/{pid}/cgroup", encoding="utf-8", errors="surrogateescape") as file:
            rows = [line.rstrip("\n").split(":", 2) for line in file]
    except (FileNotFoundError, ProcessLookupError):
        return  # it is dead, which its shim tells
    limited = [row for row in rows if not _LIMITING.isdisjoint(row[1].split(","))]
    for _, names, place in limited or [row for row in rows if not row[1]]:
        if not place.endswith(path):
            raise FailedPrecondition(
                f"create task {container_id}: the runtime has put it into cgroup {place} "
                f"of {names or 'the one hierarchy'}, not into {path}"
            )


def make_root(path: str, container_id: str) -> None:
    """The runtime's own directory, when a client chose one.

    Raises InvalidArgument; AlreadyExists when something of this id is in it, which another
    manager has there, and which undoing a create would remove.
    """
    if not path.startswith("/") or ".." in path.split("/") or _NO_NAME.search(path):
        raise InvalidArgument(f"use runtime root {path!r}: expected an absolute path")
    try:
        os.makedirs(path, 0o700, exist_ok=True)
    except OSError as err:
        raise InvalidArgument(f"use runtime root {path}: {err.strerror}") from err
    if os.path.lexists(f"{path}/{container_id}"):
        raise AlreadyExists(
            f"create task {container_id}: runtime root {path} has a container of this id"
        )
