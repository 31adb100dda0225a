"""Flags of the container's record."""

from __future__ import annotations

from lighter.ctl import grammar
from lighter.ctl.cli import key_values

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

OPTIONS = (
    grammar.option("--label", multiple=True, metavar="KEY=VALUE", help="Label of the container."),
    grammar.option("--annotation", multiple=True, metavar="KEY=VALUE", help="Of the OCI spec."),
)


def fields(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Their part of the body of containers.create."""
    return {
        "labels": key_values(flags["label"], "label", bare=True),
        "annotations": key_values(flags["annotation"], "annotation"),
    }
