"""Flags of the container's network."""

from collections.abc import Mapping
from typing import Any

import click

OPTIONS = (
    click.option("--hostname", help="Host name in the container."),
    click.option("--net-host", is_flag=True, help="Use the host's network."),
)


def fields(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Their part of the body of containers.create."""
    return {"hostname": flags["hostname"] or "", "net_host": flags["net_host"]}
