"""Flags of what is kept of the container's output."""

from collections.abc import Mapping
from typing import Any

import click

from lighter.ctl.cli import SIZE

LOG_DRIVERS = ("file", "none")
LOG_MAX_SIZE = 10 * 1024 * 1024
LOG_MAX_FILE = 5

OPTIONS = (
    click.option("--log-driver", type=click.Choice(LOG_DRIVERS), default="file", help="Log kept?"),
    click.option("--log-max-size", type=SIZE, default="10m", help="Per file; 0: no limit."),
    click.option("--log-max-file", type=click.IntRange(0), default=5, help="Files; 0: no limit."),
)


def fields(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Their part of the body of containers.create."""
    return {
        "log": {
            "driver": flags["log_driver"],
            "max_size": flags["log_max_size"],
            "max_file": flags["log_max_file"],
        }
    }
