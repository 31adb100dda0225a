"""The OCI process that `runc exec --process` starts in a running container."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lighter.daemon.oci.checks import check_cwd
from lighter.daemon.oci.environ import merge
from lighter.daemon.oci.spec import oci_user
from lighter.daemon.oci.users import Identity
from lighter.proto.errors import InvalidArgument

# Taken from the container's own process as they are: an exec must not have more than it has.
_INHERITED = ("apparmorProfile", "noNewPrivileges", "oomScoreAdj", "rlimits", "selinuxLabel")


@dataclass(frozen=True)
class ExecRequest:
    """What is to run. None for `cwd` and `identity` means the container's own.

    `env` is applied over the container's environment (environ.merge); `console_size` is (rows,
    columns) in characters and has a meaning with a terminal only.
    """

    args: tuple[str, ...]
    env: tuple[str, ...] = ()
    cwd: str | None = None
    identity: Identity | None = None
    terminal: bool = False
    console_size: tuple[int, int] | None = None


def exec_process(spec: Mapping[str, Any], request: ExecRequest) -> dict[str, Any]:
    """Return the OCI process (runtime-spec config.md, "Process") for an exec in a container.

    `spec` is the container's. Capabilities, limits, labels and noNewPrivileges are the container's,
    with the inheritable and ambient sets emptied whatever its spec says: a user who is not root
    then loses the others in execve (capabilities(7)).

    Raises InvalidArgument.
    """
    own = spec.get("process") or {}
    if not request.args or not request.args[0]:
        raise InvalidArgument("exec: no command was given")
    if any("\0" in word for word in request.args):
        raise InvalidArgument("exec: a word of the command holds a NUL byte")
    env = [entry for entry in own.get("env") or () if "=" in entry]
    if request.terminal and not any(entry.startswith("TERM=") for entry in env):
        env.append("TERM=xterm")
    process: dict[str, Any] = {
        "terminal": request.terminal,
        "user": _user(own, request.identity),
        "args": list(request.args),
        "env": merge(env, request.env),
        "cwd": check_cwd(request.cwd or own.get("cwd") or "/"),
    }
    capabilities = own.get("capabilities")
    if capabilities is not None:
        process["capabilities"] = {
            name: list(capabilities.get(name) or ())
            for name in ("bounding", "effective", "permitted")
        }
    for key in _INHERITED:
        if key in own:
            process[key] = copy.deepcopy(own[key])
    if request.terminal and request.console_size is not None:
        height, width = request.console_size
        process["consoleSize"] = {"height": height, "width": width}
    return process


def _user(own: Mapping[str, Any], identity: Identity | None) -> dict[str, Any]:
    if identity is not None:
        return oci_user(identity)
    user: dict[str, Any] = copy.deepcopy(own.get("user") or {"uid": 0, "gid": 0})
    return user
