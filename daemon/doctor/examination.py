"""All checks in the order in which they are shown: the host first, then what is ours on it."""

from collections.abc import Sequence

from lighter.daemon.config.schema import Config
from lighter.daemon.doctor import host, leftovers, places, programs
from lighter.daemon.doctor.findings import Check, Finding, run

CHECKS: tuple[tuple[str, Check], ...] = (
    ("kernel", host.kernel),
    ("cgroups", host.cgroups),
    ("namespaces", host.namespaces),
    ("seccomp", host.filters),
    ("security modules", host.security_modules),
    ("privileges", host.powers),
    ("runtime", programs.runtime),
    ("network", programs.networks),
    ("directories", places.directories),
    ("snapshotter", places.overlay),
    ("space", places.space),
    ("database", places.database),
    ("socket", places.sockets),
    ("registry", places.registries),
    ("leftovers", leftovers.leftovers),
)


def examine(config: Config, checks: Sequence[tuple[str, Check]] = CHECKS) -> list[Finding]:
    """Everything that was found, problems and the rest. Takes a second; blocks meanwhile."""
    return list(run(checks, config))
