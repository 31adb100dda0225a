"""What a container's health is asked by, and what an answer makes of it. No I/O.

Fields, defaults and rules are those of Docker's HEALTHCHECK: a container is starting until the
first probe that succeeds; `retries` failures on end make it unhealthy; failures in the start period
of one that never succeeded are not counted.
"""

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from lighter.daemon.values import frozen
from lighter.proto.errors import InvalidArgument

NONE, STARTING, HEALTHY, UNHEALTHY = "none", "starting", "healthy", "unhealthy"

CMD, CMD_SHELL = "CMD", "CMD-SHELL"
DEFAULT_SHELL = ("/bin/sh", "-c")
MAX_OUTPUT_BYTES = 4096
KEPT_PROBES = 5
SHORTEST_S = 0.001
LONGEST_S = 10 * 365 * 86400.0
MOST_RETRIES = (1 << 31) - 1
TIMES = ("interval_s", "timeout_s", "start_period_s", "start_interval_s")
ABORTED = -1  # the exit code of a probe that did not end by itself


@frozen
class HealthCheck:
    """`argv` is what is run in the container. Times in seconds."""

    argv: tuple[str, ...]
    interval_s: float = 30.0
    timeout_s: float = 30.0
    start_period_s: float = 0.0
    start_interval_s: float = 5.0
    retries: int = 3


@frozen
class Probe:
    """One answer. Times in ns since the epoch; 0 is healthy, any other exit code is not."""

    start: int
    end: int
    exit_code: int
    output: str


@frozen
class Health:
    """The health of one task, named by its incarnation; `log` holds the last probes, the newest
    last.
    """

    incarnation: str
    status: str = STARTING
    failing_streak: int = 0
    log: tuple[Probe, ...] = ()

    def after(self, probe: Probe, check: HealthCheck, since_start_s: float) -> "Health":
        """What it is once the probe has answered, which began so long after the container."""
        log = (*self.log, probe)[-KEPT_PROBES:]
        if probe.exit_code == 0:
            return replace(self, status=HEALTHY, failing_streak=0, log=log)
        if self.status == STARTING and since_start_s < check.start_period_s:
            return replace(self, log=log)
        streak = self.failing_streak + 1
        status = UNHEALTHY if streak >= check.retries else self.status
        return replace(self, status=status, failing_streak=streak, log=log)

    def pause_s(self, check: HealthCheck, since_start_s: float) -> float:
        """How long to wait before the next probe."""
        if self.status == STARTING and since_start_s < check.start_period_s:
            return min(check.start_interval_s, check.interval_s)
        return check.interval_s


def chosen(
    given: Mapping[str, Any], of_image: Mapping[str, Any], shell: tuple[str, ...]
) -> dict[str, Any] | None:
    """The record of a container's check, for its `options` under "health"; None for no check.

    `given` is what the caller asks for, over what the image says; both have `test`, Docker's list
    (["CMD", word…], ["CMD-SHELL", line], ["NONE"], [] for the other's), and the fields of
    HealthCheck, a missing one or 0 meaning the other's or the default. Raises InvalidArgument.
    """
    test = list(given.get("test") or of_image.get("test") or [])
    if not test or test == ["NONE"]:
        return None
    kind, *words = test
    if kind not in (CMD, CMD_SHELL) or not words or (kind == CMD_SHELL and len(words) != 1):
        raise InvalidArgument(
            f"choose health check {test!r}: expected CMD and words, CMD-SHELL and a line, or NONE"
        )
    argv = words if kind == CMD else [*(shell or DEFAULT_SHELL), *words]
    if any("\0" in word for word in argv) or not argv[0]:
        raise InvalidArgument("choose health check: its command is no command line")
    record: dict[str, Any] = {"test": test, "argv": argv}
    for field in fields(HealthCheck):
        if field.name != "argv":
            value = given.get(field.name) or of_image.get(field.name) or field.default
            record[field.name] = _checked(field.name, value)
    return record


def _checked(name: str, value: object) -> float | int:
    if name == "retries":
        if type(value) is not int or not 0 < value <= MOST_RETRIES:
            raise InvalidArgument(f"choose health {name} {value!r}: expected a whole number")
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidArgument(f"choose health {name} {value!r}: expected seconds")
    if value and not SHORTEST_S <= value <= LONGEST_S:
        raise InvalidArgument(f"choose health {name} {value!r}: at least 1 ms, and not for ever")
    return float(value)


def from_record(record: Mapping[str, Any]) -> HealthCheck | None:
    """Read it from a container's `options`. Keys of a later release are ignored."""
    if not record.get("argv"):
        return None
    known = {field.name for field in fields(HealthCheck)}
    values = {name: value for name, value in record.items() if name in known}
    return HealthCheck(**{**values, "argv": tuple(record["argv"])})
