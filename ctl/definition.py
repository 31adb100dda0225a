"""The options that define a container, for `run` and `containers create`, and the request of them.

Each module of ctl/flags has one group: its `OPTIONS`, and `fields`, its part of the request. Flags
follow ctr, with docker's names beside them where the two agree.
"""

from __future__ import annotations

from lighter.ctl import grammar
from lighter.ctl.cli import absolute
from lighter.ctl.flags import (
    devices,
    filesystem,
    health,
    log,
    namespaces,
    network,
    process,
    record,
    resources,
    restart,
    runtime,
    security,
    volume,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

# In the order that help shows.
_GROUPS = (
    *(process, filesystem, volume, network, namespaces, security, resources, devices),
    *(runtime, log, restart, health, record),
)


def definition_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """All options of `definition`."""
    for group in reversed(_GROUPS):
        for option in reversed(group.OPTIONS):
            command = option(command)
    return command


def definition(
    container_id: str | None,
    image: str,
    command: tuple[str, ...],
    flags: Mapping[str, Any],
    *,
    given: Mapping[str, str],
    auto_remove: bool = False,
    stdin_open: bool = True,
    as_docker: bool = False,
) -> dict[str, Any]:
    """The body of containers.create; `flags` are the values of `definition_options`, `given` how
    those were spelt that stand on the line; `as_docker`: the command is one for the image's
    entrypoint, and what is mounted by default is Docker's. Raises UsageError."""
    if flags["config"]:
        refuse_others_than_config(given)
    body: dict[str, Any] = {
        "id": container_id,
        "image": "" if flags["rootfs"] or flags["config"] else image,
        "rootfs": absolute(image) if flags["rootfs"] else "",
        "args": list(command),
        "keep_entrypoint": as_docker,
        "as_docker": as_docker,
        "auto_remove": auto_remove,
        "stdin_open": stdin_open,
    }
    for group in _GROUPS:
        body.update(group.fields(flags))
    return body


# Beside a whole specification only what is not a part of it has a meaning.
_BESIDE_CONFIG = frozenset(
    (
        *("config", "label", "runtime", "runtime_config_path", "runc_binary", "runc_root"),
        *("runc_systemd_cgroup", "no_pivot", "stop_signal", "log_driver", "log_max_size"),
        *("log_max_file", "log_uri", "log_opt", "rm", "detach", "interactive", "null_io"),
        *("pid_file", "restart", "stop_timeout", "image", "words", "container_id"),
        *("fifo_dir", "detach_keys"),
    )
)


def refuse_others_than_config(given: Mapping[str, str]) -> None:
    """Raises UsageError for a flag that --config would leave without effect."""
    for name, spelt in given.items():
        if name not in _BESIDE_CONFIG:
            raise grammar.UsageError(
                f"--config is the whole specification: {spelt} would not change it"
            )
