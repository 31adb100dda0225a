"""The environment of a container's process. Nothing is ever taken from the manager's own."""

from collections.abc import Iterable

from lighter.proto.errors import InvalidArgument

DEFAULT_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def merge(base: Iterable[str], changes: Iterable[str]) -> list[str]:
    """Return `base` ("NAME=value" entries) with `changes` applied.

    A change with the name of an entry takes its place, a new one goes to the end, and a bare NAME
    removes the entry: it is never looked up anywhere. Raises InvalidArgument for an entry without
    a name or with a NUL byte.
    """
    merged: dict[str, str] = {}
    for entry in base:
        merged[_name_of(entry)] = entry
    for entry in changes:
        name = _name_of(entry)
        if "=" in entry:
            merged[name] = entry
        else:
            merged.pop(name, None)
    return list(merged.values())


def container_environment(
    image: Iterable[str],
    caller: Iterable[str],
    *,
    terminal: bool = False,
    hostname: str | None = None,
) -> list[str]:
    """Return the environment of a container's init.

    The image's entries and a PATH where it has none; TERM where a terminal is asked for and the
    image has none; HOSTNAME when `hostname` is given (ctr does so with the host's network); then
    the caller's changes over all of them.
    """
    inherited = [entry for entry in image if "=" in entry]
    names = {_name_of(entry) for entry in inherited}
    if "PATH" not in names:
        inherited.insert(0, DEFAULT_PATH)
    if terminal and "TERM" not in names:
        inherited.append("TERM=xterm")
    if hostname is not None:
        inherited = merge(inherited, [f"HOSTNAME={hostname}"])
    return merge(inherited, caller)


def _name_of(entry: str) -> str:
    name = entry.partition("=")[0]
    if not name:
        raise InvalidArgument(f"set environment {entry[:40]!r}: it has no name")
    if "\0" in entry:
        raise InvalidArgument(f"set environment {name[:40]!r}: it holds a NUL byte")
    return name
