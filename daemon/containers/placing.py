"""Where among the cgroups a container is, and how its runtime is called: from request to record."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lighter.daemon.tasks.calling import systemd_cgroup, to_record
from lighter.daemon.tasks.runtimes import Runtimes
from lighter.daemon.types import RuntimeOptions
from lighter.proto.errors import FailedPrecondition, InvalidArgument


@dataclass(frozen=True)
class Placing:
    """`cgroup` None is this manager's own place for it, "" leaves it open as ctr does."""

    cgroup: str | None = None
    parent: str = ""
    options: RuntimeOptions = field(default_factory=RuntimeOptions)


def cgroups_path(
    placing: Placing, namespace: str, container_id: str, own: str, *, systemd: str = "/run/systemd"
) -> str:
    """What the spec says of the cgroup. Raises InvalidArgument, FailedPrecondition."""
    if placing.cgroup is not None and placing.parent:
        raise InvalidArgument("choose cgroup: both it and its parent were given")
    if placing.options.systemd_cgroup:
        if not os.path.isdir(f"{systemd}/system"):
            raise FailedPrecondition("choose cgroup: systemd does not run on this host")
        if placing.parent:
            given = f"{placing.parent}:lighter-{namespace}:{container_id}"
        elif placing.cgroup:
            given = placing.cgroup
        else:
            raise InvalidArgument(
                "choose cgroup: with systemd one must be named, slice:prefix:name"
            )
        systemd_cgroup(given, container_id)
        return given
    if placing.parent:
        if not placing.parent.startswith("/") or placing.parent.endswith(".slice"):
            raise InvalidArgument(
                f"choose cgroup parent {placing.parent!r}: expected an absolute path "
                "(a slice needs systemd's cgroups)"
            )
        return f"{placing.parent.rstrip('/')}/{container_id}"
    return own if placing.cgroup is None else placing.cgroup


def record(placing: Placing, path: str, own: str) -> dict[str, Any]:
    """The entries of the container's options that tell of it; none where all is the default."""
    changed: dict[str, Any] = {"cgroup": path} if path != own else {}
    if options := to_record(placing.options):
        changed["runc"] = options
    return changed


def check_programs(runtime: str, options: RuntimeOptions, runtimes: Runtimes) -> None:
    """Raises InvalidArgument, NotFound, FailedPrecondition for a runtime that is not here."""
    if options.binary_name:
        runtimes.find_program(options.binary_name)
    else:
        runtimes.find(runtime)


def read_options(body: Mapping[str, Any]) -> RuntimeOptions:
    """Read them from a request's map with the fields' names. Raises InvalidArgument."""
    plain = RuntimeOptions()
    for name, value in body.items():
        default = getattr(plain, str(name), None)
        if default is None or type(value) is not type(default):
            raise InvalidArgument(f"read runtime options: {str(name)[:40]!r} cannot be {value!r}")
        if isinstance(value, str) and "\0" in value:
            raise InvalidArgument(f"read runtime options: {name} holds a NUL byte")
        if type(value) is int and not 0 <= value < (1 << 32) - 1:
            raise InvalidArgument(f"read runtime options: {name} {value} is no user or group")
    return RuntimeOptions(**body)
