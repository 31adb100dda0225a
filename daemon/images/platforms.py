"""Which of an index's manifests is for this host (containerd's platforms package, `Only`)."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lighter.proto.errors import InvalidArgument

# uname(2)'s machine, and other spellings, to Go's names, which images use.
_ARCHITECTURES = {
    "x86_64": "amd64",
    "x86-64": "amd64",
    "aarch64": "arm64",
    "i386": "386",
    "i486": "386",
    "i586": "386",
    "i686": "386",
    "armhf": "arm",
    "armv7l": "arm",
    "armv6l": "arm",
    "armel": "arm",
}


@dataclass(frozen=True)
class Platform:
    """`variant` is "" where the architecture has none."""

    os: str
    architecture: str
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(filter(None, (self.os, self.architecture, self.variant)))


def normalise(os_name: str, architecture: str, variant: str = "") -> Platform:
    """The one spelling of a platform; a variant that every such machine has is left out."""
    architecture = _ARCHITECTURES.get(architecture.lower(), architecture.lower())
    variant = variant.lower()
    if architecture == "arm64" and variant in ("8", "v8"):
        variant = ""
    elif architecture == "arm":
        variant = {"": "v7", "5": "v5", "6": "v6", "7": "v7", "8": "v8"}.get(variant, variant)
    elif architecture == "amd64" and variant == "v1":
        variant = ""
    return Platform(os_name.lower(), architecture, variant)


def host() -> Platform:
    """Where this process runs."""
    machine = os.uname().machine
    return normalise("linux", machine, "v6" if machine == "armv6l" else "")


def wanted(named: tuple[Platform, ...], every: bool) -> tuple[Platform | None, ...]:
    """The platforms that a request means, each for a walk of its own; None stands for whatever an
    index has. Without a name it is this host's.
    """
    return (None,) if every else named or (host(),)


def parse(text: str) -> Platform:
    """ "os/architecture[/variant]" as users write it. Raises InvalidArgument."""
    parts = text.split("/")
    if len(parts) not in (2, 3) or not all(parts):
        raise InvalidArgument(f"parse platform {text!r}: expected os/architecture[/variant]")
    return normalise(*parts)


def of(fields: Mapping[str, Any]) -> Platform:
    """From a descriptor's `platform`, or from a config; what is missing is ""."""
    texts = (fields.get(key, "") for key in ("os", "architecture", "variant"))
    return normalise(*(text if isinstance(text, str) else "" for text in texts))


def rank(found: Platform, wanted: Platform) -> int | None:
    """How well an image for `found` serves `wanted`: 0 is best, None not at all.

    An older variant runs on a newer machine (arm v6 on v7, plain amd64 on v3), never the reverse;
    386 runs on amd64 and 32-bit arm on arm64, after all else.
    """
    if found.os != wanted.os:
        return None
    if found.architecture == wanted.architecture:
        have, want = _level(found), _level(wanted)
        return want - have if have <= want else None
    if (found.architecture, wanted.architecture) in (("386", "amd64"), ("arm", "arm64")):
        return 100 - _level(found)
    return None


def _level(platform: Platform) -> int:
    digits = platform.variant.removeprefix("v").partition(".")[0]
    if digits.isascii() and digits.isdigit():
        return min(int(digits[:3]), 50)
    return {"arm64": 8, "arm": 7}.get(platform.architecture, 1)
