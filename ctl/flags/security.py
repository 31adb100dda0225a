"""Flags of what the container's processes may do."""

from collections.abc import Mapping
from typing import Any

import click

from lighter.ctl.cli import read_text
from lighter.proto.errors import InvalidArgument

OPTIONS = (
    click.option("--privileged", is_flag=True, help="All capabilities and devices."),
    click.option("--cap-add", multiple=True, help="Add a capability, CAP_… or ALL."),
    click.option("--cap-drop", multiple=True, help="Drop a capability, CAP_… or ALL."),
    click.option("--seccomp", is_flag=True, help="Use the default profile (which is on anyway)."),
    click.option("--seccomp-profile", help="A profile's file, or 'unconfined' for none."),
    click.option("--allow-new-privs", is_flag=True, help="Let setuid programs gain privileges."),
)


def fields(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Their part of the body of containers.create."""
    return {
        "privileged": flags["privileged"],
        "cap_add": list(flags["cap_add"]),
        "cap_drop": list(flags["cap_drop"]),
        "seccomp": seccomp(flags["seccomp_profile"]),
        "allow_new_privs": flags["allow_new_privs"],
    }


def seccomp(profile: str | None) -> str:
    """ "default", "unconfined", or the JSON text of the profile's file."""
    if profile in (None, "", "default"):
        return "default"
    if profile == "unconfined":
        return profile
    text = read_text(str(profile), "seccomp profile")
    if not text.lstrip().startswith("{"):
        raise InvalidArgument(f"read seccomp profile {profile}: it is no JSON object")
    return text
