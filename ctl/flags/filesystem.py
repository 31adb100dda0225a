"""Flags of what the container sees as its files."""

from collections.abc import Mapping
from typing import Any

import click

from lighter.ctl.cli import absolute

_MOUNT_KEYS = {
    "type": "type",
    "src": "source",
    "source": "source",
    "dst": "destination",
    "destination": "destination",
    "target": "destination",
    "options": "options",
}

OPTIONS = (
    click.option(
        "--mount",
        multiple=True,
        help="type=bind,src=/tmp,dst=/hostdir,options=rbind:rw",
    ),
    click.option("--read-only", is_flag=True, help="Root filesystem cannot be written."),
    click.option(
        "--snapshotter",
        envvar=["LIGHTER_SNAPSHOTTER", "CONTAINERD_SNAPSHOTTER"],
        help="Keeper of the root filesystem.",
    ),
)


def fields(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Their part of the body of containers.create."""
    return {
        "mounts": [mount(text) for text in flags["mount"]],
        "read_only": flags["read_only"],
        "snapshotter": flags["snapshotter"] or "",
    }


def mount(text: str) -> dict[str, Any]:
    """One --mount as {type, source, destination, options}. Raises click.UsageError.

    Fields are separated by commas, a field with a comma is quoted as in CSV; options are separated
    by colons. A relative source of a bind mount is seen from ctl's working directory.
    """
    import csv

    found: dict[str, Any] = {"type": "", "source": "", "destination": "", "options": []}
    for field in next(csv.reader([text]), []):
        key, sign, value = field.partition("=")
        if key in ("ro", "readonly") and value in ("", "true"):
            found["options"].append("ro")
            continue
        name = _MOUNT_KEYS.get(key)
        if name is None or not sign:
            raise click.UsageError(f"--mount {text!r}: {field!r} is not known here")
        if name == "options":
            found["options"] += [option for option in value.split(":") if option]
        else:
            found[name] = value
    if not found["destination"]:
        raise click.UsageError(f"--mount {text!r}: dst is missing")
    found["type"] = found["type"] or "bind"
    if found["type"] == "bind":
        if not found["source"]:
            raise click.UsageError(f"--mount {text!r}: src is missing")
        found["source"] = absolute(found["source"])
        if not {"bind", "rbind"} & set(found["options"]):
            found["options"].append("rbind")
    return found
