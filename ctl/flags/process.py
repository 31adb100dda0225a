"""Flags of the container's own process."""

from __future__ import annotations

from lighter.ctl import grammar
from lighter.ctl.cli import read_text
from lighter.proto.errors import InvalidArgument

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

OPTIONS = (
    grammar.option("--tty", "-t", is_flag=True, help="Give the container a terminal."),
    grammar.option("--env", "-e", multiple=True, help="KEY=value; KEY alone takes ctl's own."),
    grammar.option("--env-file", multiple=True, type=grammar.PATH, help="File of KEY=value lines."),
    grammar.option("--cwd", "--workdir", "-w", help="Working directory."),
    grammar.option("--user", "-u", help="User or uid[:group or gid]."),
    grammar.option("--group-add", multiple=True, help="Further group, a name or a number."),
    grammar.option(
        "--entrypoint", help='Instead of the image\'s entrypoint and command; "": none.'
    ),
    grammar.option("--init", is_flag=True, help="A small init as process 1, which reaps (tini)."),
    grammar.option("--stop-signal", help="What `stop` sends.  [default: the image's]"),
)


def fields(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Their part of the body of containers.create."""
    return {
        "entrypoint": entrypoint(flags["entrypoint"]),
        "env": environment(flags["env"], flags["env_file"]),
        "cwd": flags["cwd"] or "",
        "user": flags["user"] or "",
        "groups": list(flags["group_add"]),
        "init": flags["init"],
        "terminal": flags["tty"],
        "stop_signal": flags["stop_signal"] or "",
    }


def entrypoint(program: str | None) -> list[str] | None:
    """What takes the place of the image's entrypoint: null leaves it, an empty list drops it."""
    if program is None:
        return None
    return [program] if program else []


def _variables(path: str) -> list[str]:
    """The lines of a file of variables, as Docker reads it. Raises InvalidArgument.

    A value may hold what else ends a line for Unicode.
    """
    text = read_text(path, "env file").removeprefix("\ufeff")  # a byte order mark
    lines = [line.removesuffix("\r").lstrip() for line in text.split("\n")]
    found = [line for line in lines if line and not line.startswith("#")]
    for line in found:
        key = line.partition("=")[0]
        if " " in key or "\t" in key:
            raise InvalidArgument(f"read env file {path}: the name {key!r} has a space in it")
    return found


def environment(words: tuple[str, ...], files: tuple[str, ...]) -> list[str]:
    """`KEY=value` for each word and each line of the files; the words win, being last.

    A word KEY that ctl's own environment has not stays as it is, and takes the image's away.
    """
    given = [line for path in files for line in _variables(path)]
    env = []
    for number, item in enumerate((*given, *words)):
        key, sign, _value = item.partition("=")
        if not key:
            raise grammar.UsageError(f"--env {item!r}: the name is empty")
        if sign:
            env.append(item)
            continue
        import os  # which short commands do without

        if key in os.environ:
            env.append(f"{key}={os.environ[key]}")
        elif number >= len(given):
            env.append(key)
    return env
