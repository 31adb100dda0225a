"""Network configurations on disk: found, read and judged, anew for every use.

CNI's layout (https://www.cni.dev/docs/spec, sections 1, 2): `*.conflist` holds a list of plugins,
`*.conf` and `*.json` one plugin, which is a list of one. Files are taken in the order of their
names; the first is what `--cni` means. One that cannot be used stands beside the others with the
reason, so that a broken file takes away one network and not all of them.

Nothing is kept between two uses: a file that was changed counts from the next container on, and
an attachment is removed by the configuration that it was made with (records.py).
"""

import json
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lighter.proto.errors import FailedPrecondition, InvalidArgument, LighterError, NotFound

MAX_CONFIG_BYTES = 1 << 20
MAX_PLUGINS = 64
# The versions of CNI's specification whose configurations and results are understood.
VERSIONS = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
WITHOUT_VERSION = "0.1.0"
DEFAULT = "default"

_SUFFIXES = (".conf", ".conflist", ".json")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*", re.ASCII)
_TYPE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", re.ASCII)


@dataclass(frozen=True)
class Network:
    """One configuration. `plugins` are the objects of its list, in the order they are called."""

    name: str
    version: str
    plugins: tuple[Mapping[str, Any], ...]
    path: str = ""
    disable_check: bool = False
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def types(self) -> tuple[str, ...]:
        return tuple(str(plugin["type"]) for plugin in self.plugins)

    def has_capability(self, name: str) -> bool:
        """Whether a plugin takes such a part of the runtime's configuration."""
        return any((plugin.get("capabilities") or {}).get(name) is True for plugin in self.plugins)

    def at_least(self, version: str) -> bool:
        return _numbers(self.version) >= _numbers(version)

    @property
    def may_have_ipv6(self) -> bool:
        """False when all addresses come from ranges written down here, and none is of IPv6."""
        for plugin in self.plugins:
            ipam = plugin.get("ipam")
            if not isinstance(ipam, Mapping) or not ipam:
                continue
            if ipam.get("type") not in ("host-local", "static"):
                return True
            if _has_colon([ipam.get(key) for key in ("subnet", "ranges", "addresses")]):
                return True
        return not any(isinstance(plugin.get("ipam"), Mapping) for plugin in self.plugins)

    def as_json(self) -> dict[str, Any]:
        """What is written to a record, and read back by `from_json`."""
        return {
            "name": self.name,
            "cniVersion": self.version,
            "plugins": [dict(plugin) for plugin in self.plugins],
            "disableCheck": self.disable_check,
        }


@dataclass(frozen=True)
class Unusable:
    """A file that is no configuration, and why."""

    path: str
    reason: str


class Configs:
    """Reads the directories of configurations."""

    def __init__(self, directories: Sequence[str]) -> None:
        self.directories = tuple(directories)

    def read(self) -> tuple[list[Network], list[Unusable]]:
        """All networks by file name, and what could not be read. Of one name, the first counts."""
        networks: dict[str, Network] = {}
        unusable = []
        for path in self._paths():
            try:
                network = parse(_read(path), path)
            except LighterError as err:
                unusable.append(Unusable(path, err.message))
                continue
            if network.name in networks:
                first = networks[network.name].path
                unusable.append(Unusable(path, f"its name {network.name} is that of {first} too"))
            else:
                networks[network.name] = network
        return list(networks.values()), unusable

    def find(self, name: str, *, exact: bool = False) -> Network:
        """`default` is the network of that name, else the first one (not so when `exact`).

        Raises NotFound.
        """
        networks, unusable = self.read()
        for network in networks:
            if network.name == name:
                return network
        if name == DEFAULT and not exact:
            return self._first(networks, unusable)
        known = ", ".join(network.name for network in networks) or "none"
        broken = "".join(f"; {one.path}: {one.reason}" for one in unusable)
        raise NotFound(f"find network {name}: there are {known} in {self._where}{broken}")

    def first(self) -> Network:
        """What `--cni` means: the first file's, as ctr has it. Raises NotFound."""
        return self._first(*self.read())

    def _first(self, networks: list[Network], unusable: list[Unusable]) -> Network:
        if networks:
            return networks[0]
        broken = "".join(f"; {one.path}: {one.reason}" for one in unusable)
        raise NotFound(
            f"find default network: there is no configuration in {self._where}"
            f" (ctl network create {DEFAULT} makes one){broken}"
        )

    @property
    def _where(self) -> str:
        return ", ".join(self.directories)

    def _paths(self) -> Iterator[str]:
        for directory in self.directories:
            try:
                names = sorted(os.listdir(directory))
            except (FileNotFoundError, NotADirectoryError):
                continue
            yield from (f"{directory}/{name}" for name in names if name.endswith(_SUFFIXES))


def _read(path: str) -> bytes:
    try:
        # Without NONBLOCK a FIFO in the file's place would hold the manager for ever.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise InvalidArgument(f"read network configuration {path}: it is no regular file")
            data = os.read(fd, MAX_CONFIG_BYTES + 1)
        finally:
            os.close(fd)
    except OSError as err:
        raise FailedPrecondition(f"read network configuration {path}: {err.strerror}") from err
    if len(data) > MAX_CONFIG_BYTES:
        raise InvalidArgument(
            f"read network configuration {path}: it has more than {MAX_CONFIG_BYTES} bytes"
        )
    return data


def parse(data: bytes, path: str) -> Network:
    """A configuration from a file's bytes. Raises InvalidArgument naming what is wrong."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as err:
        raise _wrong(path, f"it is no JSON: {str(err)[:200]}") from err
    return from_json(document, path)


def from_json(document: object, path: str) -> Network:
    """A configuration from its parsed document. Raises InvalidArgument."""
    return _network(document, path, _version)


def recorded(document: object) -> Network:
    """The configuration that an attachment was made by, from its record, in whichever version that
    was. Raises InvalidArgument.
    """
    return _network(document, "of a record", lambda found, _: str(found.get("cniVersion")))


def _network(
    document: object, path: str, version_of: Callable[[Mapping[str, Any], str], str]
) -> Network:
    if not isinstance(document, dict):
        raise _wrong(path, "it is no object")
    plugins = document.get("plugins") if "plugins" in document else [document]
    if not isinstance(plugins, list) or not 1 <= len(plugins) <= MAX_PLUGINS:
        raise _wrong(path, f"plugins is no list of 1 to {MAX_PLUGINS} plugins")
    for plugin in plugins:
        _check_plugin(plugin, path)
    name = document.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise _wrong(path, f"its name is {name!r}, expected letters, digits, '_', '.' and '-'")
    disable = document.get("disableCheck", False)
    return Network(
        name=name,
        version=version_of(document, path),
        plugins=tuple(plugins),
        path=path,
        disable_check=disable is True or disable == "true",
    )


def _check_plugin(plugin: object, path: str) -> None:
    if not isinstance(plugin, dict):
        raise _wrong(path, "a plugin is no object")
    check_type(plugin.get("type"), path)
    if not isinstance(plugin.get("capabilities") or {}, dict):
        raise _wrong(path, "capabilities is no object")
    if not isinstance(plugin.get("runtimeConfig") or {}, dict):
        raise _wrong(path, "runtimeConfig is no object")
    ipam = plugin.get("ipam")
    if ipam is not None and not isinstance(ipam, dict):
        raise _wrong(path, "ipam is no object")
    if ipam and not isinstance(ipam.get("ranges") or [], list):
        raise _wrong(path, "ipam.ranges is no list")
    if ipam and ipam.get("type"):
        check_type(ipam["type"], path)


def check_type(kind: object, path: str) -> str:
    """A plugin's type is a file's name in the plugins' directories, never a path (CVE-2021-20206).

    Raises InvalidArgument.
    """
    if not isinstance(kind, str) or not _TYPE.fullmatch(kind):
        raise _wrong(path, f"type {str(kind)[:80]!r} is no plugin's name")
    return kind


def _has_colon(value: object) -> bool:
    """Whether a text in it has one, as each address of IPv6."""
    if isinstance(value, dict):
        return any(map(_has_colon, value.values()))
    if isinstance(value, list):
        return any(map(_has_colon, value))
    return isinstance(value, str) and ":" in value


def _version(document: Mapping[str, Any], path: str) -> str:
    """The highest of `cniVersions` (CNI 1.1) and `cniVersion` that is known here."""
    given = document.get("cniVersion") or WITHOUT_VERSION
    several = document.get("cniVersions") or []
    if not isinstance(several, list):
        raise _wrong(path, "cniVersions is no list")
    known = [version for version in VERSIONS if version in (given, *several)]
    if not known:
        raise _wrong(path, f"cniVersion is {str(given)[:40]!r}, known are {', '.join(VERSIONS)}")
    return known[-1]


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(word) for word in version.split(".") if word.isdecimal())


def _wrong(path: str, reason: str) -> InvalidArgument:
    return InvalidArgument(f"read network configuration {path}: {reason}")
