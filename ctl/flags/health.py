"""Flags of how the container's health is asked for: Docker's."""

from __future__ import annotations

from lighter.ctl import grammar
from lighter.ctl.cli import DURATION

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

_TIMES = {
    "health_interval": "interval_s",
    "health_timeout": "timeout_s",
    "health_start_period": "start_period_s",
    "health_start_interval": "start_interval_s",
}

OPTIONS = (
    grammar.option("--health-cmd", help="Shell command that tells: 0 is healthy."),
    grammar.option("--health-interval", type=DURATION, help="Between two.  [default: 30s]"),
    grammar.option("--health-timeout", type=DURATION, help="For each.  [default: 30s]"),
    grammar.option("--health-retries", type=grammar.Integer(1), help="Failures.  [default: 3]"),
    grammar.option("--health-start-period", type=DURATION, help="Failures do not count in it."),
    grammar.option("--health-start-interval", type=DURATION, help="Until then.  [default: 5s]"),
    grammar.option("--no-healthcheck", is_flag=True, help="None, also not the image's."),
)


def fields(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Their part of the body of containers.create. Raises grammar.UsageError."""
    times = {name: flags[flag] for flag, name in _TIMES.items() if flags[flag]}
    asked = {**times, "retries": flags["health_retries"]}
    if flags["health_cmd"]:
        asked["test"] = ["CMD-SHELL", flags["health_cmd"]]
    given = {name: value for name, value in asked.items() if value is not None}
    if flags["no_healthcheck"]:
        if given:
            raise grammar.UsageError("--no-healthcheck: it conflicts with --health-* flags")
        given = {"test": ["NONE"]}
    return {"health": given}
