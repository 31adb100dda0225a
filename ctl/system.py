"""`ctl version` and `ctl system`: what the client and the manager are, and how they are."""

import click

from lighter.ctl.cli import HELP_OPTIONS, Commands, Session, format_option
from lighter.ctl.output import listing, print_json, rfc3339, size_text
from lighter.proto.version import VERSION


@click.command("version", context_settings=HELP_OPTIONS)
@format_option
@click.pass_obj
def version(session: Session) -> None:
    """Print the client and server versions.

    \b
      ctl version
      ctl version --format json
    """
    server = session.call("version.get")
    if session.json:
        print_json({"client": {"version": VERSION}, "server": server})
        return
    print(f"Client:\n  Version:  {VERSION}\n")
    print("Server:")
    for name in ("version", "revision"):
        print(f"  {name.capitalize() + ':':<9} {server[name]}")
    print(f"  {'UUID:':<9} {server['uuid']}")


@click.group("system", cls=Commands)
def system() -> None:
    """Look at the manager itself."""


@system.verb("info")
@format_option
@click.pass_obj
def info(session: Session) -> None:
    """show the manager's identity, directories and health"""
    facts = {**session.call("version.get"), **session.call("system.health")}
    if session.json:
        print_json(facts)
        return
    for name, value in facts.items():
        shown = rfc3339(value) if name.endswith("_at") else value
        print(f"{name.replace('_', ' ')}: {shown}")


@system.verb("shims")
@format_option
@click.pass_obj
def shims(session: Session) -> None:
    """list the shims: one process per container"""
    listing(
        session.json,
        session.call("system.shims")["shims"],
        ("NAMESPACE", "CONTAINER", "PID", "STATE", "VERSION", "PSS"),
        lambda shim: (
            shim["namespace"],
            shim["id"],
            shim["pid"],
            shim["state"],
            shim["version"],
            "-" if shim["pss_bytes"] is None else size_text(shim["pss_bytes"]),
        ),
    )
