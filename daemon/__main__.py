"""lighterd: the command line of the manager.

    lighterd [--config FILE] [--root DIR] [--state DIR] [--address SOCKET] [--log-level LEVEL]
    lighterd config default|dump|check

Errors are one line on standard error and exit status 1, wrong usage is status 2. With --daemon the
process detaches before anything that costs time or holds a descriptor is loaded.
"""

import gc
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import click

from lighter.proto.errors import InvalidArgument, LighterError
from lighter.proto.version import VERSION

if TYPE_CHECKING:
    from lighter.daemon.config import Config
    from lighter.daemon.notify import Notifier
    from lighter.daemon.spawn import Inherited

LOG_NAME = "lighterd.log"  # in the state directory, of a manager that detached

# Of a manager that no installed launcher has started.
SPAWNER = (sys.executable, "-I", "-m", "lighter.shim")

_LEVELS = ("trace", "debug", "info", "warn", "error", "fatal", "panic")


@dataclass(frozen=True)
class Installed:
    """What a launcher says: how its version's spawner is started, and where versions are kept.

    `cores` is "" for a version that was chosen by hand: it does not look for a better one.
    """

    spawner: tuple[str, ...] = SPAWNER
    cores: str = ""


@dataclass(frozen=True)
class Given:
    """The options of one command line, and what its launcher has said."""

    installed: Installed
    path: str | None
    level: str | None
    address: str | None
    root: str | None
    state: str | None


@click.group(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("-c", "--config", "config_path", metavar="FILE", help="Configuration file.")
@click.option("-l", "--log-level", type=click.Choice(_LEVELS), help="How much is logged.")
@click.option("-a", "--address", metavar="SOCKET", help="Where containerd's API is served.")
@click.option("--root", metavar="DIR", help="What survives a reboot.")
@click.option("--state", metavar="DIR", help="What a reboot may clear; holds the socket for ctl.")
@click.option("--daemon", is_flag=True, help="Detach; writes <state>/lighterd.pid.")
@click.version_option(VERSION, "-v", "--version", message="lighterd %(version)s")
@click.pass_context
def cli(
    ctx: click.Context,
    config_path: str | None,
    log_level: str | None,
    address: str | None,
    root: str | None,
    state: str | None,
    daemon: bool,
) -> None:
    """The container manager: keeps containers, and lets them go on without it.

    \b
    lighterd                                   the instance in /var/lib/lighter
    lighterd --root /srv/a --state /run/a      one of its own, beside others
    lighterd config default > config.toml
    """
    given = Given(ctx.obj, config_path, log_level, address, root, state)
    ctx.obj = given
    if ctx.invoked_subcommand is None:
        _start(given, daemon)


@cli.group("config")
def config_group() -> None:
    """Show or check the configuration."""


@config_group.command("default")
def config_default() -> None:
    """Print the built-in configuration."""
    from lighter.daemon.config import Config, dump

    click.echo(dump(Config()), nl=False)


@config_group.command("dump")
@click.pass_obj
def config_dump(given: Given) -> None:
    """Print the configuration that is in force: file and flags together."""
    from lighter.daemon.config import dump

    click.echo(dump(_load(given)), nl=False)


@config_group.command("check")
@click.pass_obj
def config_check(given: Given) -> None:
    """Read the configuration and say whether a manager would start with it."""
    _load(given)
    click.echo("configuration is valid")


def _load(given: Given) -> "Config":
    """The file's settings with the flags over them; relative paths are made absolute here."""
    from lighter.daemon.config import load

    changes: dict[str, Any] = {
        "level": given.level,
        "address": given.address,
        "root": _directory("--root", given.root),
        "state": _directory("--state", given.state),
    }
    config = load(given.path)
    return replace(config, **{name: value for name, value in changes.items() if value is not None})


def _directory(option: str, value: str | None) -> str | None:
    """The absolute path; "" is what a script's unset variable gives, and never meant."""
    if value == "":
        raise InvalidArgument(f"use {option}: it is empty")
    return value and os.path.abspath(value)


def _start(given: Given, daemon: bool) -> None:
    from lighter.daemon.notify import Notifier, fork_and_wait
    from lighter.daemon.spawn import Inherited

    inherited = Inherited.of_this_process()
    config = _load(given)
    stands_in = _choose_version(given, config)
    if not daemon:
        _serve(given, config, inherited, Notifier.from_environment(), stands_in)
        return
    shell = fork_and_wait()
    notifier = Notifier.from_environment(shell)
    try:
        _detach(config, shell)
        _serve(given, config, inherited, notifier, stands_in)
    except (LighterError, OSError) as err:
        notifier.failed(_reason(err))
        raise


def _choose_version(given: Given, config: "Config") -> str:
    """Return why this version serves, "" when it was meant to; or become another version."""
    from lighter.daemon import launch
    from lighter.proto.paths import Root, State

    if given.installed.cores:
        launch.hand_over(
            given.installed.cores, Root(config.root), State(config.state), sys.argv[1:]
        )
    return launch.told()


def _detach(config: "Config", shell: int) -> None:
    """Become a daemon: python-daemon's double fork, its own session, no terminal."""
    from daemon import DaemonContext

    os.umask(0o022)
    os.makedirs(config.state, mode=0o711, exist_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    log_fd = os.open(os.path.join(config.state, LOG_NAME), flags, 0o600)
    os.fchmod(log_fd, 0o600)
    log_file = open(log_fd, "ab", buffering=0)  # noqa: SIM115 (it stays open)
    # Containers inherit these: by default there would be a core limit of 0 and a umask of 0.
    DaemonContext(
        prevent_core=False,
        umask=0o022,
        working_directory="/",
        stdout=log_file,
        stderr=log_file,
        files_preserve=[log_file, shell],
    ).open()


def _serve(
    given: Given,
    config: "Config",
    inherited: "Inherited",
    notifier: "Notifier",
    stands_in: str,
) -> None:
    import asyncio
    import faulthandler

    from lighter.daemon.journal import configure
    from lighter.daemon.manager import Manager

    configure(config.level)
    if notifier.watchdog_s:
        # A watchdog sends SIGABRT: the log says where the event loop was.
        faulthandler.enable()
    manager = Manager(
        config, inherited, notifier, given.installed.spawner, lambda: _load(given), stands_in
    )
    asyncio.run(manager.run())


def _reason(error: LighterError | OSError) -> str:
    """One line "verb object: cause"."""
    if isinstance(error, LighterError):
        return error.message
    # Of a rename the second is the name that was wanted, the first a temporary one.
    place = error.filename2 or error.filename or "system"
    return f"use {place}: {error.strerror or error}"


def main(spawner: Sequence[str] = SPAWNER, cores: str = "") -> None:
    """Entry of `lighterd`. `spawner`: the command line that starts this version's spawner.

    `cores`: the directory of the installed versions, for a launcher that may choose another.
    """
    # A start makes much and drops little. The collector is turned on when all is there.
    gc.disable()
    try:
        cli(prog_name="lighterd", obj=Installed(tuple(spawner), cores))
    except (LighterError, OSError) as err:
        sys.stderr.write(f"lighterd: {_reason(err)}\n")
        sys.exit(1)


if __name__ == "__main__":
    main()
