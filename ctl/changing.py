"""Changing containers that are there: `ctl update`, `ctl rename`."""

from typing import Any

from lighter.ctl import grammar
from lighter.ctl.cli import SIZE, Session, force_option
from lighter.ctl.flags.resources import SizeOrNone
from lighter.ctl.flags.restart import RESTART
from lighter.ctl.resolve import resolved
from lighter.ctl.short import each

# The flags of ctl/flags/resources.py that a running container takes.
_LIMITS = {
    "cpus": ("--cpus", float, "How many processors' time, 1.5."),
    "cpu_shares": ("--cpu-shares", int, "Weight among others."),
    "cpu_quota": ("--cpu-quota", int, "Microseconds in each period; -1: free."),
    "cpu_period": ("--cpu-period", int, "Microseconds."),
    "cpuset_cpus": ("--cpuset-cpus", str, "Processors that may be used, 0-2,5."),
    "cpuset_mems": ("--cpuset-mems", str, "Memory nodes that may be used, 0,1."),
    "memory": ("--memory", SIZE, "512m, 2g, bytes."),
    "memory_swap": ("--memory-swap", SizeOrNone(), "Memory and swap; -1: free."),
    "memory_reservation": ("--memory-reservation", SIZE, "Goal when memory is short."),
    "pids": ("--pids-limit", int, "Processes and threads; -1: free."),
}
_FREED_BY_1 = ("cpu_quota", "memory_swap", "pids")
_SHORT = {"memory": ("-m", "--memory-limit")}


def _limit_options(command: Any) -> Any:
    for name, (flag, kind, text) in reversed(_LIMITS.items()):
        names = (flag, *_SHORT.get(name, ()), name)
        command = grammar.option(*names, type=kind, help=text)(command)
    return command


@grammar.command("update")
@force_option
@_limit_options
@RESTART
@grammar.argument("refs", nargs=-1, required=True, metavar="CONTAINER...")
def update(session: Session, /, refs: tuple[str, ...], restart: str, **flags: Any) -> int:
    """Change the limits of containers, at once and for later, and their restart policy.

    \b
      ctl update -m 512m --memory-swap 1g --cpus 1.5 web
      ctl update --restart on-failure:3 web db
    """
    limits = {name: value for name, value in flags.items() if value is not None}
    if not limits and not restart:
        raise grammar.UsageError("update: at least one flag must say what to change")
    for name, value in limits.items():
        if value in (0, ""):
            freed = "; -1 takes the limit away" if name in _FREED_BY_1 else ""
            raise grammar.UsageError(f"update: {_LIMITS[name][0]} {value} changes nothing{freed}")
    return each(
        session,
        refs,
        lambda id_: session.call("containers.update", id=id_, limits=limits, restart=restart),
    )


@grammar.command("rename")
@force_option
@grammar.argument("ref", metavar="CONTAINER")
@grammar.argument("name", metavar="NEW-NAME")
def rename(session: Session, ref: str, name: str) -> None:
    """Give a container that does not run another name, which is its id too.

    Snapshot and log follow. An ended task of it is forgotten: `ctl events` still has its exit code.

    \b
      ctl rename web front
    """
    resolved(session, ref, lambda id_: session.call("containers.rename", id=id_, name=name))
