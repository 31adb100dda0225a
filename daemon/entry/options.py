"""The options of lighterd: as they are given, and read without click where that is plain to do.

A manager is started with nothing, or with some options and their values. Loading click for that
would be a tenth of what its clients wait at a restart; all else, mistakes too, is click's
(clicked.py).
"""

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from lighter.proto.errors import InvalidArgument

if TYPE_CHECKING:
    from lighter.daemon.config.schema import Config

# Of a manager that no installed launcher has started.
SPAWNER = (sys.executable, "-I", "-m", "lighter.shim")

LEVELS = ("trace", "debug", "info", "warn", "error", "fatal", "panic")

# How each is written, and which field of Given it is.
_WRITTEN = {
    "-c": "path",
    "--config": "path",
    "-l": "level",
    "--log-level": "level",
    "-a": "address",
    "--address": "address",
    "--root": "root",
    "--state": "state",
}


class Installed(NamedTuple):
    """What a launcher says: how its version's spawner is started, and where versions are kept.

    `cores` is "" for a version that was chosen by hand: it does not look for a better one. `ctl` is
    the command line of this version alone, "" for one that was not installed by a package.
    """

    spawner: tuple[str, ...] = SPAWNER
    cores: str = ""
    ctl: str = ""


class Given(NamedTuple):
    """The options of one command line, and what its launcher has said."""

    installed: Installed
    path: str | None = None
    level: str | None = None
    address: str | None = None
    root: str | None = None
    state: str | None = None


def plain(words: Sequence[str], installed: Installed) -> Given | None:
    """Options that each have their value in a word behind them; None for any other command line."""
    fields: dict[str, str] = {}
    for option, value in zip(words[::2], words[1::2], strict=False):
        field = _WRITTEN.get(option)
        if field is None or value.startswith("-") or (field == "level" and value not in LEVELS):
            return None
        fields[field] = value
    return None if len(words) % 2 else Given(installed, **fields)


def load(given: Given) -> "Config":
    """The file's settings with the flags over them; relative paths are made absolute here."""
    from dataclasses import replace

    from lighter.daemon.config.schema import load

    changes: dict[str, Any] = {
        "level": given.level,
        "address": given.address,
        "root": _directory("--root", given.root),
        "state": _directory("--state", given.state),
    }
    config = load(given.path)
    return replace(config, **{name: value for name, value in changes.items() if value is not None})


def _directory(option: str, value: str | None) -> str | None:
    """The absolute path; "" is what a script's unset variable gives, and never meant."""
    if value == "":
        raise InvalidArgument(f"use {option}: it is empty")
    return value and os.path.abspath(value)
