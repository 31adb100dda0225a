"""What the configuration says of programs beside the manager, in containerd's own tables.

    proxy_plugins.NAME       type, address: a snapshotter that another process serves
    stream_processors.ID     accepts, returns, path, args, env: a program that makes of a layer
                             of one media type a layer of another

NAME and ID are free.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from lighter.daemon.values import frozen
from lighter.proto.errors import InvalidArgument

log = logging.getLogger("lighter.config")

PROXY_PLUGINS = "proxy_plugins"
STREAM_PROCESSORS = "stream_processors"
SNAPSHOT = "snapshot"
OWN_SNAPSHOTTERS = ("btrfs", "erofs", "native", "overlayfs")
_KEYS = {
    PROXY_PLUGINS: {"type", "address", "platform", "exports", "capabilities"},
    STREAM_PROCESSORS: {"accepts", "returns", "path", "args", "env"},
}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,75}", re.ASCII)


@frozen
class ProxyPlugin:
    """A snapshotter behind a socket. `address`: the socket's absolute path."""

    name: str
    address: str


@frozen
class StreamProcessor:
    """`path`: absolute, or a word for PATH. `env`: NAME=VALUE each."""

    id: str
    accepts: tuple[str, ...]
    returns: str
    path: str
    args: tuple[str, ...] = ()
    env: tuple[str, ...] = ()


def parse_proxy_plugins(table: Mapping[str, Any], file: str) -> tuple[ProxyPlugin, ...]:
    """From the whole configuration. Raises InvalidArgument naming file and key.

    A plugin of another type than a snapshotter is named in a warning.
    """
    found = []
    for name, entry in _entries(table, PROXY_PLUGINS, file):
        place = f"{PROXY_PLUGINS}.{name}"
        kind = _text(entry, "type", place, file)
        if kind != SNAPSHOT:
            log.warning(
                "config %s: %s is of type %r, which has no effect: only %r is known",
                *(file, place, kind, SNAPSHOT),
            )
            continue
        if not _NAME.fullmatch(name):
            _refuse(file, place, "a name of letters, digits, '.', '_' and '-'", name)
        if name in OWN_SNAPSHOTTERS:
            _refuse(file, place, "another name: that is a snapshotter of the manager's own", name)
        given = _text(entry, "address", place, file)
        address = given.removeprefix("unix://")
        if not address.startswith("/"):
            _refuse(file, f"{place}.address", "the absolute path of a socket", given)
        found.append(ProxyPlugin(name, address))
    return tuple(found)


def parse_stream_processors(table: Mapping[str, Any], file: str) -> tuple[StreamProcessor, ...]:
    """From the whole configuration. Raises InvalidArgument naming file and key."""
    found = []
    for name, entry in _entries(table, STREAM_PROCESSORS, file):
        place = f"{STREAM_PROCESSORS}.{name}"
        path = _text(entry, "path", place, file)
        if not path or ("/" in path and not path.startswith("/")):
            _refuse(file, f"{place}.path", "an absolute path, or a word for PATH", path)
        env = _texts(entry, "env", place, file)
        for item in env:
            if not item.partition("=")[0] or "=" not in item:
                _refuse(file, f"{place}.env", "NAME=VALUE each", item.partition("=")[0])
        found.append(
            StreamProcessor(
                name,
                _texts(entry, "accepts", place, file),
                _text(entry, "returns", place, file),
                path,
                _texts(entry, "args", place, file),
                env,
            )
        )
    return tuple(found)


def dump(
    plugins: Sequence[ProxyPlugin], processors: Sequence[StreamProcessor]
) -> dict[str, dict[str, Any]]:
    """The tables from which the above read the same; {} for none."""
    tables: dict[str, dict[str, Any]] = {}
    if plugins:
        tables[PROXY_PLUGINS] = {
            one.name: {"type": SNAPSHOT, "address": one.address} for one in plugins
        }
    if processors:
        tables[STREAM_PROCESSORS] = {
            one.id: {
                "accepts": list(one.accepts),
                "returns": one.returns,
                "path": one.path,
                "args": list(one.args),
                "env": list(one.env),
            }
            for one in processors
        }
    return tables


def unknown(table: Mapping[str, Any]) -> list[str]:
    """Keys of these tables in the whole configuration that have no effect."""
    return [
        f"{top}.{name}.{key}"
        for top, known in _KEYS.items()
        for name, entry in _mapping(table.get(top)).items()
        for key in _mapping(entry)
        if key not in known
    ]


def _mapping(value: Any) -> Mapping[str, Any]:
    """Of one file's words, which count only with all others; none for what is no table."""
    return value if isinstance(value, Mapping) else {}


def _entries(table: Mapping[str, Any], top: str, file: str) -> list[tuple[str, Mapping[str, Any]]]:
    entries = table.get(top, {})
    if not isinstance(entries, Mapping):
        _refuse(file, top, "a table", entries)
    for name, entry in entries.items():
        if not isinstance(entry, Mapping):
            _refuse(file, f"{top}.{name}", "a table", entry)
    return list(entries.items())


def _text(entry: Mapping[str, Any], key: str, place: str, file: str) -> str:
    value = entry.get(key, "")
    if not isinstance(value, str):
        _refuse(file, f"{place}.{key}", "text", value)
    return value


def _texts(entry: Mapping[str, Any], key: str, place: str, file: str) -> tuple[str, ...]:
    value = entry.get(key, [])
    if not isinstance(value, list) or not all(
        isinstance(item, str) and "\0" not in item for item in value
    ):
        _refuse(file, f"{place}.{key}", "a list of texts", type(value).__name__)
    return tuple(value)


def _refuse(file: str, key: str, expected: str, value: object) -> NoReturn:
    raise InvalidArgument(f"read config {file}: {key} is {value!r}, expected {expected}")
