"""lighterd's command line as click has it: help, completion, mistakes, the rarer ways to start."""

import click

from lighter.daemon.entry.options import LEVELS, Given, load
from lighter.daemon.entry.program import start
from lighter.daemon.version import REVISION
from lighter.proto.version import VERSION


@click.group(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("-c", "--config", "config_path", metavar="FILE", help="Configuration file.")
@click.option("-l", "--log-level", type=click.Choice(LEVELS), help="How much is logged.")
@click.option("-a", "--address", metavar="SOCKET", help="Where containerd's API is served.")
@click.option("--root", metavar="DIR", help="What survives a reboot.")
@click.option("--state", metavar="DIR", help="What a reboot may clear; holds the socket for ctl.")
@click.option("--daemon", is_flag=True, help="Detach; writes <state>/lighterd.pid.")
@click.option(
    *("-v", "--version"),
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=lambda ctx, _option, asked: _tell_version(ctx) if asked else None,
    help="Show the version and exit.",
)
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
    lighterd doctor                            what this host lacks, without a manager
    """
    given = Given(ctx.obj, config_path, log_level, address, root, state)
    ctx.obj = given
    if ctx.invoked_subcommand is None:
        start(given, daemon)


def _tell_version(ctx: click.Context) -> None:
    """As who it was called: scripts take the third word of containerd's for its version."""
    if ctx.find_root().info_name == "containerd":
        click.echo(f"containerd lighter {VERSION} {REVISION}")
    else:
        click.echo(f"lighterd {VERSION}")
    ctx.exit()


@cli.group("config")
def config_group() -> None:
    """Show or check the configuration."""


@config_group.command("default")
def config_default() -> None:
    """Print the built-in configuration."""
    from lighter.daemon.config.schema import Config, dump

    click.echo(dump(Config()), nl=False)


@config_group.command("dump")
@click.pass_obj
def config_dump(given: Given) -> None:
    """Print the configuration that is in force: file and flags together."""
    from lighter.daemon.config.schema import dump

    click.echo(dump(load(given)), nl=False)


@config_group.command("check")
@click.pass_obj
def config_check(given: Given) -> None:
    """Read the configuration and say whether a manager would start with it."""
    load(given)
    click.echo("configuration is valid")


@cli.command("doctor")
@click.option("--format", "format_", type=click.Choice(("table", "json")), default="table")
@click.pass_obj
def doctor(given: Given, format_: str) -> None:
    """Look at the host and at this instance, whether a manager runs or not.

    Exit status 1 when there is a problem. `ctl doctor` asks a running manager for the same.
    """
    import json
    from dataclasses import asdict

    from lighter.daemon.doctor.examination import examine
    from lighter.daemon.doctor.findings import PROBLEM

    found = examine(load(given))
    if format_ == "json":
        click.echo(json.dumps([asdict(finding) for finding in found], indent=2))
    else:
        for one in found:
            advice = f" ({one.advice})" if one.advice and one.status != "ok" else ""
            click.echo(f"{one.status:<9}{one.check}: {one.found}{advice}")
    raise SystemExit(any(finding.status == PROBLEM for finding in found))


@cli.command("migrate")
@click.option(
    "--from",
    "source",
    default="/var/lib/containerd",
    show_default=True,
    metavar="DIR",
    help="containerd's root.",
)
@click.option("--namespace", "-n", "namespaces", multiple=True, help="Only this one; repeatable.")
@click.option("--dry-run", is_flag=True, help="Only tell what would be taken.")
@click.pass_obj
def migrate(given: Given, source: str, namespaces: tuple[str, ...], dry_run: bool) -> None:
    """Take over the images of a containerd on this host.

    Content is linked where both roots are on one file system, else copied; every byte is hashed.
    Nothing of containerd's is changed. No manager may run meanwhile; containers may.

    \b
    systemctl stop lighterd
    lighterd migrate --from /var/lib/containerd
    systemctl start lighterd
    """
    from lighter.daemon.migrate.command import migrate
    from lighter.daemon.migrate.migration import FAILED, TAKEN

    failed = False
    for one in migrate(load(given), source, namespaces, dry_run=dry_run):
        failed = failed or one.outcome == FAILED
        what = f"{one.outcome:<8}{one.namespace} {one.name}"
        if one.outcome == TAKEN:
            pieces = one.linked + one.copied
            how = "would be linked" if dry_run else f"linked, {one.copied} copied"
            count = pieces if dry_run else one.linked
            click.echo(f"{what}: {count} blobs {how}, {one.size_bytes} bytes")
        else:
            click.echo(f"{what}: {one.reason}" if one.reason else what, err=one.outcome == FAILED)
    raise SystemExit(int(failed))
