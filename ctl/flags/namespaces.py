"""Flags of the namespaces that the container has for itself or shares."""

from collections.abc import Mapping
from typing import Any

import click

OPTIONS = (
    click.option("--with-ns", multiple=True, help="Join: pid:/proc/PID/ns/pid, net:, ipc:, …"),
)


def fields(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Their part of the body of containers.create."""
    return {"with_ns": joined_namespaces(flags["with_ns"])}


def joined_namespaces(words: tuple[str, ...]) -> dict[str, str]:
    """`kind:path` words as a map."""
    joined = {}
    for word in words:
        kind, sign, path = word.partition(":")
        if not (kind and sign and path):
            raise click.UsageError(f"--with-ns {word!r}: expected kind:path")
        joined[kind] = path
    return joined
