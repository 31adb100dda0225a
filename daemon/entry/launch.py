"""Which of the installed versions serves: the one that was started, unless only another can.

    /usr/lib64/lighter/<version>/{lighterd, site/…}        one directory for each version installed

An installed lighterd looks at the records of the shims that run and at the database before it opens
anything. When it could not adopt all, it becomes the newest kept version that can, in the same
process and with the same arguments. That one goes on saying why until it is started again.
"""

import logging
import os
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from lighter.daemon.upgrade import judge, running_shims, schema_of
from lighter.proto.errors import InvalidArgument
from lighter.proto.paths import Root, State
from lighter.proto.release import OWN, Release, order, release_at

log = logging.getLogger("lighter.launch")

# From the version that was started to the one that serves instead: which it is, and why.
STANDS_IN = "LIGHTER_STANDS_IN"
_SHOWN = 1000  # characters of the reason


class StandIn(NamedTuple):
    """Another version that serves in place of this one."""

    program: str
    release: Release
    reason: str


def stand_ins(cores: str, root: Root, state: State, own: Release = OWN) -> Iterator[StandIn]:
    """The versions to become, the best first; none when this one is the right one."""
    schema = schema_of(root.database)
    if judge(own, running_shims(state.tasks, but=own), schema).can_take_over:
        return  # nearly always: so nothing more than that was looked at
    shims = running_shims(state.tasks)
    verdict = judge(own, shims, schema)
    others = [kept for kept in kept_cores(cores) if kept[1].version != own.version]
    # Who started the shims has served them; a newer one that is kept was left on purpose.
    served = {shim.version for shim in shims}
    others.sort(key=lambda kept: kept[1].version in served)
    for program, release in reversed(others):
        if judge(release, shims, schema).can_take_over:
            more = len(verdict.problems) - 1
            reason = verdict.problems[0] + (f" (and {more} more)" if more else "")
            yield StandIn(program, release, reason)


def kept_cores(cores: str) -> list[tuple[str, Release]]:
    """(lighterd, version) of each version installed, the oldest first."""
    found = []
    for name in os.listdir(cores) if os.path.isdir(cores) else ():
        program = f"{cores}/{name}/lighterd"
        try:
            if os.access(program, os.X_OK):
                found.append((program, release_at(f"{cores}/{name}")))
        except InvalidArgument as err:
            log.warning("%s", err.message)
    return sorted(found, key=lambda kept: order(kept[1].version))


def hand_over(cores: str, root: Root, state: State, arguments: Sequence[str]) -> None:
    """Become another version's lighterd when only that one can go on; return when this one can.

    Or when none of the others can be started: then tasks of shims that this one does not understand
    read `unknown`, and are left alone.
    """
    for other in stand_ins(cores, root, state):
        sys.stderr.write(
            f"lighterd: version {OWN.version} cannot take over: {other.reason}; "
            f"version {other.release.version} goes on serving\n"
        )
        sys.stderr.flush()
        told = f"{OWN.version}: {other.reason}"[:_SHOWN]
        environment = {**os.environ, STANDS_IN: told}
        try:
            os.execve(other.program, [other.program, *arguments], environment)  # noqa: S606
        except OSError as err:
            log.warning("start %s: %s; it does not stand in", other.program, err.strerror)


def told() -> str:
    """For whom this manager stands in and why, "" when it was meant; no child inherits it."""
    return os.environ.pop(STANDS_IN, "")
