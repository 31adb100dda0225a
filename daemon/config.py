"""The configuration: TOML in containerd's layout (version 3), our own keys in one plugin table.

`/etc/lighter/config.toml`, or the file named by -c. A file that does not exist is an error only
when it was named. Unknown keys warn; a wrong type refuses the start, with file and key.
"""

import logging
from dataclasses import dataclass, fields
from typing import Any

import toml

from lighter.daemon.files import read_capped
from lighter.proto.errors import InvalidArgument

log = logging.getLogger("lighter.config")

DEFAULT_PATH = "/etc/lighter/config.toml"
MAX_CONFIG_BYTES = 1 << 20
VERSION = 3
PLUGIN = "io.lighter.v1"
LEVELS = ("trace", "debug", "info", "warn", "error", "fatal", "panic")


@dataclass(frozen=True)
class Config:
    """Everything that can be set. Sizes in bytes."""

    root: str = "/var/lib/lighter"
    state: str = "/run/lighter"
    level: str = "info"
    address: str = ""
    group: str = ""
    default_runtime: str = "io.containerd.runc.v2"
    runc_path: str = "runc"
    snapshotter: str = "overlayfs"
    log_max_size: int = 10 * 1024 * 1024
    log_max_file: int = 5

    @property
    def client_socket_group(self) -> str:
        return self.group


# Where each setting stands in the file.
_PLACES: dict[str, tuple[str, ...]] = {
    "root": ("root",),
    "state": ("state",),
    "level": ("debug", "level"),
    "address": ("grpc", "address"),
    "group": ("plugins", PLUGIN, "group"),
    "default_runtime": ("plugins", PLUGIN, "default_runtime"),
    "runc_path": ("plugins", PLUGIN, "runtimes", "runc", "path"),
    "snapshotter": ("plugins", PLUGIN, "snapshotter"),
    "log_max_size": ("plugins", PLUGIN, "log", "max_size"),
    "log_max_file": ("plugins", PLUGIN, "log", "max_file"),
}


def load(path: str | None) -> Config:
    """Read the file. Raises InvalidArgument naming file, and line or key."""
    data = read_capped(path or DEFAULT_PATH, MAX_CONFIG_BYTES)
    if data is None:
        if path is None:
            return Config()
        raise InvalidArgument(
            f"read config {path}: it is missing, no regular file, or over {MAX_CONFIG_BYTES} bytes"
        )
    name = path or DEFAULT_PATH
    try:
        table = toml.loads(data.decode("utf-8"))
    except toml.TomlDecodeError as err:
        raise InvalidArgument(f"read config {name}:{err.lineno}: {err.msg}") from err
    except UnicodeDecodeError as err:
        raise InvalidArgument(f"read config {name}: byte {err.start} is not UTF-8") from err
    except (ValueError, TypeError, IndexError, KeyError) as err:
        # The parser lets some malformed input out under these names.
        raise InvalidArgument(f"read config {name}: not TOML: {err}") from err
    return parse(table, name)


def parse(table: dict[str, Any], name: str) -> Config:
    """Settings from a parsed file. Raises InvalidArgument for a wrong type or version."""
    version = table.get("version", VERSION)
    if version != VERSION:
        raise InvalidArgument(
            f"read config {name}: version is {version!r}, this manager reads version {VERSION}"
        )
    values: dict[str, Any] = {}
    kinds = {item.name: type(getattr(Config(), item.name)) for item in fields(Config)}
    for setting, place in _PLACES.items():
        value = _at(table, place, name)
        if value is None:
            continue
        if type(value) is not kinds[setting]:
            raise InvalidArgument(
                f"read config {name}: {'.'.join(place)} is {value!r}, "
                f"expected {_KIND_NAMES[kinds[setting]]}"
            )
        values[setting] = value
    for key in _unknown(table):
        log.warning("config %s: key %s is not known and has no effect", name, key)
    return _checked(Config(**values), name)


_KIND_NAMES = {str: "text", int: "a whole number"}


def _checked(config: Config, name: str) -> Config:
    if config.level not in LEVELS:
        raise InvalidArgument(
            f"read config {name}: debug.level is {config.level!r}, expected one of "
            + ", ".join(LEVELS)
        )
    for setting in ("root", "state"):
        if not str(getattr(config, setting)).startswith("/"):
            raise InvalidArgument(f"read config {name}: {setting} is not an absolute path")
    if config.log_max_size < 0 or config.log_max_file < 1:
        raise InvalidArgument(f"read config {name}: log.max_size or log.max_file is too small")
    return config


def _at(table: dict[str, Any], place: tuple[str, ...], name: str) -> Any:
    value: Any = table
    for depth, key in enumerate(place):
        if not isinstance(value, dict):
            raise InvalidArgument(
                f"read config {name}: {'.'.join(place[:depth])} is {value!r}, expected a table"
            )
        value = value.get(key)
        if value is None:
            return None
    return value


def _unknown(table: dict[str, Any], prefix: tuple[str, ...] = ()) -> list[str]:
    found = []
    for key, value in table.items():
        place = (*prefix, key)
        if place in _PLACES.values() or place == ("version",):
            continue
        if isinstance(value, dict) and any(p[: len(place)] == place for p in _PLACES.values()):
            found += _unknown(value, place)
        else:
            found.append(".".join(place))
    return found


def dump(config: Config) -> str:
    """The configuration as a file that `load` reads back to the same."""
    table: dict[str, Any] = {"version": VERSION}
    for setting, place in _PLACES.items():
        inner = table
        for key in place[:-1]:
            inner = inner.setdefault(key, {})
        inner[place[-1]] = getattr(config, setting)
    return toml.dumps(table)
