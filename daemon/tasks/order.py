"""The order by which a shim makes its container; it travels with the fork."""

from collections.abc import Mapping, Sequence
from typing import Any

from lighter.daemon.tasks.bundle import Bundle
from lighter.daemon.tasks.calling import Calling
from lighter.daemon.types import Container, Mount
from lighter.proto.paths import State


def create_order(
    bundle: Bundle,
    state: State,
    container: Container,
    mounts: Sequence[Mount],
    *,
    instance: str,
    incarnation: str,
    generation: int,
    ident: int,
    terminal: bool,
    calling: Calling,
    runtime_s: float,
    log: Mapping[str, Any] | None,
    stdio: Mapping[str, Any],
) -> dict[str, Any]:
    """Its fields are those of proto/shim_api."""
    return {
        "incarnation": incarnation,
        "generation": generation,
        "ident": ident,
        "namespace": bundle.namespace,
        "id": bundle.id,
        "instance": instance,
        "claim": bundle.claim(incarnation),
        "record": bundle.record,
        "bundle": bundle.dir,
        "socket": state.shims_socket,
        "console": bundle.console() if terminal else "",
        "exit_record": bundle.exit_record,
        "runc": calling.runtime,
        "runc_root": calling.root,
        "shim_starts": calling.is_hosts_runc,
        # systemd has a unit for it, of which the runtime knows.
        "runtime_deletes": calling.options.systemd_cgroup,
        "runtime_flags": calling.flags,
        "create_flags": calling.create_flags,
        "cgroup": calling.cgroup,
        "io_uid": calling.options.io_uid,
        "io_gid": calling.options.io_gid,
        "mounts": [[m.type, m.source, list(m.options)] for m in mounts],
        "terminal": terminal,
        "stdin_open": bool(container.options.get("stdin_open")),
        "log": dict(log) if log else None,
        "io_policy": stdio.get("io_policy", "drop"),
        "logger": list(stdio.get("logger", ())),
        "logger_for": [bundle.namespace, bundle.id],
        "timeout_ns": int(runtime_s * 1e9),
        "stdin": stdio.get("stdin", ""),
        "restore": stdio.get("restore", ""),
        "stdout": stdio.get("stdout", ""),
        "stderr": stdio.get("stderr", ""),
        "rows": stdio.get("rows", 0),
        "cols": stdio.get("cols", 0),
    }
