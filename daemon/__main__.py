"""lighterd: the command line of the manager.

    lighterd [--config FILE] [--root DIR] [--state DIR] [--address SOCKET] [--log-level LEVEL]
    lighterd config default|dump|check

Errors are one line on standard error and exit status 1, wrong usage is status 2. With --daemon the
process detaches before anything that costs time or holds a descriptor is loaded.
"""

import os
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from lighter.daemon.version import VERSION
from lighter.proto.errors import LighterError

if TYPE_CHECKING:
    from lighter.daemon.config import Config
    from lighter.daemon.spawn import Inherited

_LEVELS = ("trace", "debug", "info", "warn", "error", "fatal", "panic")


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
    ctx.obj = {
        "path": config_path,
        "changes": {"level": log_level, "address": address, "root": root, "state": state},
    }
    if ctx.invoked_subcommand is None:
        inherited = _inherited()
        if daemon:
            config = _load(ctx.obj)
            _detach(config)
        _serve(_load(ctx.obj), inherited)


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
def config_dump(obj: "dict[str, dict[str, str | None]]") -> None:
    """Print the configuration that is in force: file and flags together."""
    from lighter.daemon.config import dump

    click.echo(dump(_load(obj)), nl=False)


@config_group.command("check")
@click.pass_obj
def config_check(obj: "dict[str, dict[str, str | None]]") -> None:
    """Read the configuration and say whether a manager would start with it."""
    _load(obj)
    click.echo("configuration is valid")


def _load(obj: "dict[str, dict[str, str | None]]") -> "Config":
    from lighter.daemon.config import load

    path = obj["path"]
    config = load(path if isinstance(path, str) else None)
    changes = {name: value for name, value in obj["changes"].items() if value is not None}
    for name in ("root", "state"):
        if name in changes:
            changes[name] = os.path.abspath(str(changes[name]))
    return replace(config, **changes)  # type: ignore[arg-type]


def _inherited() -> "Inherited":
    from lighter.daemon.spawn import Inherited

    return Inherited.of_this_process()


def _detach(config: "Config") -> None:
    """Become a daemon: python-daemon's double fork, its own session, no terminal, a pid file."""
    # The repository's own folder has this name as well; run from elsewhere (see docs).
    from daemon import DaemonContext

    os.makedirs(config.state, mode=0o711, exist_ok=True)
    log_path = os.path.join(config.state, "lighterd.log")
    log_file = open(log_path, "ab", buffering=0)  # noqa: SIM115 (it stays open)
    # Containers inherit these: DaemonContext would set a core limit of 0 and a umask of 0.
    DaemonContext(
        prevent_core=False,
        umask=0o022,
        working_directory="/",
        stdout=log_file,
        stderr=log_file,
        files_preserve=[log_file],
    ).open()


def _serve(config: "Config", inherited: "Inherited") -> None:
    import asyncio
    import gc

    from lighter.daemon.app import Manager
    from lighter.daemon.journal import configure
    from lighter.daemon.notify import Notifier

    configure(config.level)
    gc.collect()
    gc.freeze()
    manager = Manager(config, inherited, Notifier.from_environment())
    asyncio.run(manager.run())


def main() -> None:
    """Entry of `lighterd`."""
    try:
        cli(prog_name="lighterd")
    except LighterError as err:
        sys.stderr.write(f"lighterd: {err}\n")
        sys.exit(1)


if __name__ == "__main__":
    main()
