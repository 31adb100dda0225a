"""What a version of Lighter, installed or still in a package, can take over.

A version says so in two modules of literals, `version.py` and `compat.py`. They are read as text:
nothing of another version is ever run to judge it.
"""

import ast
import os
import re
from collections.abc import Collection
from typing import Any, NamedTuple

from lighter.proto.compat import PROTOCOLS, SCHEMA, SCHEMA_NEWEST
from lighter.proto.errors import InvalidArgument, words_of
from lighter.proto.version import VERSION

MAX_TEXT = 64 * 1024
# A shim's record or hello that does not say what it speaks is of the first release.
FIRST_PROTOCOLS = (1,)


class Release(NamedTuple):
    """One version: the wire versions it speaks, and the database schemas it works with."""

    version: str
    protocols: tuple[int, ...]
    schema: int  # what it makes of an older one
    schema_newest: int

    def speaks_with(self, protocols: Collection[int]) -> bool:
        """Whether it shares a version of the wire with a peer that speaks `protocols`."""
        return not set(self.protocols).isdisjoint(protocols)


OWN = Release(VERSION, PROTOCOLS, SCHEMA, SCHEMA_NEWEST)


def release_at(core_dir: str) -> Release:
    """The version whose modules are in `core_dir`/site. Raises InvalidArgument."""
    proto = f"{core_dir}/site/lighter/proto"
    said: dict[str, Any] = {}
    for name in ("version.py", "compat.py"):
        said |= _literals(f"{proto}/{name}", core_dir)
    try:
        return checked(
            said["VERSION"], said["PROTOCOLS"], said["SCHEMA"], said["SCHEMA_NEWEST"], core_dir
        )
    except KeyError as err:
        raise InvalidArgument(f"read version at {core_dir}: it has no {err.args[0]}") from err


def checked(version: Any, protocols: Any, schema: Any, schema_newest: Any, where: str) -> Release:
    """A Release of values that somebody else has said. Raises InvalidArgument."""
    fine = (
        isinstance(version, str)
        and re.fullmatch(r"[0-9A-Za-z.~^+_-]{1,64}", version)
        and protocols_of({"protocols": protocols}, ())
        and isinstance(schema, int)
        and isinstance(schema_newest, int)
        and 0 < schema <= schema_newest
    )
    if not fine:
        said = (version, protocols, schema, schema_newest)
        raise InvalidArgument(f"read version of {where}: it says {said!r}")
    return Release(version, tuple(protocols), schema, schema_newest)


def protocols_of(
    said: "dict[str, Any]", otherwise: tuple[int, ...] = FIRST_PROTOCOLS
) -> tuple[int, ...]:
    """The wire versions that a shim's record or hello names; `otherwise` when it names none."""
    value = said.get("protocols")
    if not isinstance(value, list | tuple) or not value or len(value) > 64:
        return otherwise
    if not all(isinstance(number, int) and 0 < number < 256 for number in value):
        return otherwise
    return tuple(value)


def order(version: str) -> list[tuple[int, str]]:
    """A key that sorts versions: 0.10.0 after 0.9.1."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in version.split(".")]


def _literals(path: str, core_dir: str) -> dict[str, Any]:
    """The literals that a module assigns to names, without running it."""
    try:
        with open(path, "rb") as file:
            text = file.read(MAX_TEXT)
        body = ast.parse(text).body
    except FileNotFoundError as err:
        problem = "it is no version of Lighter, or one older than 0.2.0"
        missing = os.path.basename(path)
        raise InvalidArgument(f"read version at {core_dir}: no {missing}; {problem}") from err
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError) as err:
        raise InvalidArgument(f"read version at {core_dir}: {words_of(err)}") from err
    found = {}
    for statement in body:
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            try:
                found[statement.targets[0].id] = _literal(statement.value)
            except ValueError:
                pass  # no literal, so nothing of what is looked for
    return found


def _literal(node: "ast.expr") -> Any:
    """A constant, or a tuple of constants. Raises ValueError for all else."""
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Tuple) and all(isinstance(one, ast.Constant) for one in node.elts):
        return tuple(one.value for one in node.elts if isinstance(one, ast.Constant))
    raise ValueError("it is no literal")
