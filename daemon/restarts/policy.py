"""Restart policies: what they are called, and what they want after an end. No I/O.

The names, the limit and the pauses are Docker's: no, on-failure[:n], always, unless-stopped; 100 ms
doubling to a minute, from the beginning again after a run of ten seconds. A limit counts the
restarts since the container was last started by hand.
"""

from collections.abc import Mapping
from typing import Any

from lighter.daemon.values import frozen
from lighter.proto.errors import InvalidArgument

NO = "no"
ON_FAILURE = "on-failure"
ALWAYS = "always"
UNLESS_STOPPED = "unless-stopped"
NAMES = (NO, ON_FAILURE, ALWAYS, UNLESS_STOPPED)

FIRST_DELAY_MS = 100
LONGEST_DELAY_MS = 60_000
STEADY_S = 10.0  # who ran so long is not failing over and over
MOST_RETRIES = (1 << 31) - 1


@frozen
class RestartPolicy:
    """`max_retries` 0: no limit; it has a meaning for on-failure alone."""

    name: str = NO
    max_retries: int = 0

    def wants(self, exit_status: int, count: int, stopped: bool) -> bool:
        """Whether a container that ended so is to be started again.

        `count`: how often it was already; `stopped`: whether somebody had stopped it by hand.
        """
        if stopped or self.name == NO:
            return False
        if self.name == ON_FAILURE:
            return exit_status != 0 and not (self.max_retries and count >= self.max_retries)
        return True

    def wants_at_start(self, stopped: bool) -> bool:
        """Whether a container that was started once, and does not run, is to be when a manager
        starts: this is where always and unless-stopped differ.
        """
        return self.name == ALWAYS or (self.name == UNLESS_STOPPED and not stopped)

    def __str__(self) -> str:
        return f"{self.name}:{self.max_retries}" if self.max_retries else self.name


def parse(text: str) -> RestartPolicy:
    """Read Docker's notation; "" is no policy. Raises InvalidArgument."""
    name, colon, retries = text.partition(":")
    if not text:
        return RestartPolicy()
    if name not in NAMES:
        raise InvalidArgument(f"choose restart policy {text!r}: there are {', '.join(NAMES)}")
    if not colon:
        return RestartPolicy(name)
    if name != ON_FAILURE:
        raise InvalidArgument(f"choose restart policy {text!r}: only on-failure takes a number")
    number = retries_of(retries)
    if number is None:
        raise InvalidArgument(
            f"choose restart policy {text[:40]!r}: {retries[:40]!r} is no number of retries"
        )
    return RestartPolicy(name, number)


def retries_of(text: str) -> int | None:
    """A number up to MOST_RETRIES; None for anything else."""
    if not (text.isascii() and text.isdigit() and len(text) <= len(str(MOST_RETRIES))):
        return None
    number = int(text)
    return number if number <= MOST_RETRIES else None


def to_record(policy: RestartPolicy) -> dict[str, Any]:
    """Its form in a container's `options`, under "restart"."""
    return {"policy": policy.name, "max_retries": policy.max_retries}


def from_record(record: Any) -> RestartPolicy:
    """Read it from a container's `options`. One that cannot be read, or that only a later release
    knows, counts as none.
    """
    if not isinstance(record, Mapping):
        return RestartPolicy()
    name, retries = record.get("policy"), record.get("max_retries", 0)
    if name not in NAMES or type(retries) is not int:
        return RestartPolicy()
    return RestartPolicy(name, retries)


def next_delay_ms(last_ms: int, ran_s: float) -> int:
    """How long to wait before the next start; `last_ms`: the pause before this run, 0 for none."""
    if ran_s >= STEADY_S or not last_ms:
        return FIRST_DELAY_MS
    return min(2 * last_ms, LONGEST_DELAY_MS)
