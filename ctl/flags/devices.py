"""Flags of the host's devices that the container is given."""

from __future__ import annotations

from lighter.ctl import grammar
from lighter.ctl.cli import absolute

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

OPTIONS = (
    grammar.option(
        "--device",
        multiple=True,
        metavar="PATH[:INSIDE][:rwm]",
        help="A device, a directory of devices, or vendor/class=name (CDI).",
    ),
    grammar.option("--gpus", multiple=True, metavar="N,…|all", help="Graphic processors, by CDI."),
)


def fields(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Their part of the body of containers.create."""
    named = [word for word in flags["device"] if is_named(word)]
    return {
        "devices": [device(word) for word in flags["device"] if word not in named],
        "cdi": named,
        "gpus": [gpu for word in flags["gpus"] for gpu in gpus(word)],
    }


def is_named(text: str) -> bool:
    """Whether this is vendor/class=name rather than a path."""
    kind, sign, _name = text.partition("=")
    return bool(sign) and not text.startswith(("/", ".")) and kind.count("/") == 1


def gpus(text: str) -> list[str]:
    """`0`, `0,1`, `all`, and docker's `device=0,1`."""
    words = text.strip('"').removeprefix("device=").split(",")
    if "" in words or any("=" in word for word in words):
        raise grammar.UsageError(f"--gpus {text!r}: expected numbers, ids or all")
    return words


def device(text: str) -> dict[str, str]:
    """`path[:inside][:access]`, as docker reads it: a second word of r, w and m is the access."""
    path, *rest = text.split(":")
    inside = access = ""
    if len(rest) == 2:
        inside, access = rest
    elif len(rest) == 1 and set(rest[0]) <= set("rwm"):
        access = rest[0]
    elif len(rest) == 1:
        inside = rest[0]
    if not path or len(rest) > 2 or "" in rest:
        raise grammar.UsageError(f"--device {text!r}: expected PATH[:INSIDE][:rwm]")
    return {"path": absolute(path), "destination": inside, "access": access}
