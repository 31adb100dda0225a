"""The options that define a container, for `run` and `containers create`, and the request of them.

Each module of ctl/flags has one group: its `OPTIONS`, and `fields`, its part of the request. Flags
follow ctr, with docker's names beside them where the two agree.
"""

from collections.abc import Callable, Mapping
from typing import Any

from lighter.ctl.flags import (
    devices,
    filesystem,
    log,
    namespaces,
    network,
    process,
    record,
    resources,
    security,
    volume,
)

# In the order that help shows.
_GROUPS = (
    *(process, filesystem, volume, network, namespaces),
    *(security, resources, devices, log, record),
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
    auto_remove: bool = False,
    stdin_open: bool = True,
) -> dict[str, Any]:
    """The body of containers.create; `flags` are the values of `definition_options`."""
    body: dict[str, Any] = {
        "id": container_id,
        "image": image,
        "args": list(command),
        "auto_remove": auto_remove,
        "stdin_open": stdin_open,
    }
    for group in _GROUPS:
        body.update(group.fields(flags))
    return body
