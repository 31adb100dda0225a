"""Flags of how the container is kept running, and how it is stopped."""

from __future__ import annotations

from lighter.ctl import grammar

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

RESTART = grammar.option(
    "--restart",
    default="",
    metavar="no|on-failure[:N]|always|unless-stopped",
    help="When to start it again.  [default: no]",
)

OPTIONS = (
    RESTART,
    grammar.option(
        "--stop-timeout",
        type=int,
        metavar="SECONDS",
        help="From the stop signal to KILL; -1: no limit.  [default: 10]",
    ),
)


def fields(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Their part of the body of containers.create."""
    return {"restart": flags["restart"], "stop_timeout_s": flags["stop_timeout"]}
