"""WWW-Authenticate (RFC 9110, 11.6.1), of which registries use Basic and Bearer."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

MAX_CHALLENGES = 8
MAX_HEADER_CHARACTERS = 8190

_WORD = r"[A-Za-z0-9!#$%&'*+.^_`|~-]+"
_PARAMETER = re.compile(
    rf"\s*({_WORD})\s*=\s*+(?:\"((?:[^\"\\]|\\.)*)\"|([^\s,\"]*))\s*(?:,|$)", re.ASCII
)
_SCHEME = re.compile(rf"\s*({_WORD})(?:\s+|\s*,|\s*$)", re.ASCII)


@dataclass(frozen=True)
class Challenge:
    """`scheme` in small letters, with its parameters' names in small letters too."""

    scheme: str
    parameters: Mapping[str, str] = field(default_factory=dict)


def parse(values: Sequence[str]) -> list[Challenge]:
    """The challenges in all WWW-Authenticate headers of an answer; what is none is left out."""
    found: list[Challenge] = []
    for value in values[:MAX_CHALLENGES]:
        found += _parse_one(value[:MAX_HEADER_CHARACTERS])
    return found[:MAX_CHALLENGES]


def _parse_one(value: str) -> list[Challenge]:
    found: list[Challenge] = []
    position = 0
    while position < len(value) and len(found) < MAX_CHALLENGES:
        scheme = _SCHEME.match(value, position)
        if scheme is None:
            break
        position = scheme.end()
        parameters: dict[str, str] = {}
        while (parameter := _PARAMETER.match(value, position)) is not None:
            quoted, bare = parameter[2], parameter[3]
            text = re.sub(r"\\(.)", r"\1", quoted) if quoted is not None else bare
            parameters.setdefault(parameter[1].lower(), text)
            position = parameter.end()
        found.append(Challenge(scheme[1].lower(), parameters))
    return found
