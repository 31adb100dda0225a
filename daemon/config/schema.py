"""The configuration: TOML in containerd's layout (version 3), our own keys in one plugin table.

`/etc/lighter/config.toml`, or the file named by -c. A file that does not exist is an error only
when it was named. Unknown keys warn; a wrong type refuses the start, with file, line and key.
Files of containerd's versions 1 and 2 are read too: what we take from them stands at the same
place.

What it imports is read with it (files.py). The standard library's parser reads, and `tomli_w`
writes (text.py).
"""

import ipaddress
import logging
import re
from collections.abc import Sequence
from dataclasses import field, fields, replace
from typing import Any

from lighter.daemon import extensions
from lighter.daemon.config.files import VERSION, Source, gather, merged, place_of
from lighter.daemon.config.listening import check_pem, check_tcp, prefixed
from lighter.daemon.content.scheduler import MAX_PAUSE_THRESHOLD, Schedule
from lighter.daemon.extensions import ProxyPlugin, StreamProcessor
from lighter.daemon.oci.idspan import parse_span
from lighter.daemon.registry import settings as registry_settings
from lighter.daemon.registry.settings import RegistrySettings
from lighter.daemon.values import frozen
from lighter.proto.errors import InvalidArgument

log = logging.getLogger("lighter.config")

DEFAULT_PATH = "/etc/lighter/config.toml"
READABLE_VERSIONS = (1, 2, 3)
PLUGIN = "io.lighter.v1"
MAX_LAYERS_AT_ONCE = 64
MAX_TIMEOUT_S = 24 * 3600
LEVELS = ("trace", "debug", "info", "warn", "error", "fatal", "panic")


@frozen
class Config:
    """Everything that can be set. Sizes in bytes."""

    root: str = "/var/lib/lighter"
    state: str = "/run/lighter"
    level: str = "info"
    address: str = ""
    tcp_address: str = ""
    tcp_tls_cert: str = ""
    tcp_tls_key: str = ""
    tcp_tls_ca: str = ""
    metrics_address: str = ""
    grpc_uid: int = 0
    grpc_gid: int = 0
    max_recv_message_size: int = 16 << 20
    max_send_message_size: int = 16 << 20
    group: str = ""
    default_runtime: str = "io.containerd.runc.v2"
    runc_path: str = "runc"
    crun_path: str = "crun"
    runc_timeout_s: int = 120
    snapshotter: str = "overlayfs"
    log_max_size: int = 10 * 1024 * 1024
    log_max_file: int = 5
    max_layer_bytes: int = 0
    max_layer_entries: int = 0
    layers_at_once: int = 3
    content_sharing: str = "isolated"
    tracing_endpoint: str = ""
    tracing_protocol: str = ""
    tracing_service: str = "lighterd"
    tracing_ratio: float = 1.0
    network_conf_dir: str = "/etc/cni/net.d"
    network_bin_dir: str = ""
    network_subnet: str = "10.77.0.0/16"
    network_timeout_s: int = 60
    userns_ids: str = ""
    selinux: bool = False
    gc_pause_threshold: float = 0.02
    gc_deletion_threshold: int = 0
    gc_mutation_threshold: int = 100
    gc_schedule_delay: str = "0s"
    gc_startup_delay: str = "100ms"
    registry: RegistrySettings = field(default_factory=RegistrySettings)
    proxy_plugins: tuple[ProxyPlugin, ...] = ()
    stream_processors: tuple[StreamProcessor, ...] = ()

    @property
    def layer_limits(self) -> dict[str, int | None]:
        """What one layer may make; None is what the disk and the unpacker's own limit allow."""
        return {
            "max_bytes": self.max_layer_bytes or None,
            "max_entries": self.max_layer_entries or None,
        }

    @property
    def gc(self) -> Schedule:
        """When garbage is collected."""
        return Schedule(
            self.gc_pause_threshold,
            self.gc_deletion_threshold,
            self.gc_mutation_threshold,
            _seconds(self.gc_schedule_delay),
            _seconds(self.gc_startup_delay),
        )


# Where each setting stands in the file.
_PLACES: dict[str, tuple[str, ...]] = {
    "root": ("root",),
    "state": ("state",),
    "level": ("debug", "level"),
    "address": ("grpc", "address"),
    "tcp_address": ("grpc", "tcp_address"),
    "tcp_tls_cert": ("grpc", "tcp_tls_cert"),
    "tcp_tls_key": ("grpc", "tcp_tls_key"),
    "tcp_tls_ca": ("grpc", "tcp_tls_ca"),
    "metrics_address": ("metrics", "address"),
    "grpc_uid": ("grpc", "uid"),
    "grpc_gid": ("grpc", "gid"),
    "max_recv_message_size": ("grpc", "max_recv_message_size"),
    "max_send_message_size": ("grpc", "max_send_message_size"),
    "group": ("plugins", PLUGIN, "group"),
    "default_runtime": ("plugins", PLUGIN, "default_runtime"),
    "runc_path": ("plugins", PLUGIN, "runtimes", "runc", "path"),
    "crun_path": ("plugins", PLUGIN, "runtimes", "crun", "path"),
    "runc_timeout_s": ("plugins", PLUGIN, "runtimes", "runc", "timeout_s"),
    "snapshotter": ("plugins", PLUGIN, "snapshotter"),
    "log_max_size": ("plugins", PLUGIN, "log", "max_size"),
    "log_max_file": ("plugins", PLUGIN, "log", "max_file"),
    "max_layer_bytes": ("plugins", PLUGIN, "images", "max_layer_bytes"),
    "max_layer_entries": ("plugins", PLUGIN, "images", "max_layer_entries"),
    "layers_at_once": ("plugins", PLUGIN, "images", "layers_at_once"),
    "network_conf_dir": ("plugins", PLUGIN, "network", "conf_dir"),
    "network_bin_dir": ("plugins", PLUGIN, "network", "bin_dir"),
    "network_subnet": ("plugins", PLUGIN, "network", "subnet"),
    "network_timeout_s": ("plugins", PLUGIN, "network", "timeout_s"),
    "selinux": ("plugins", PLUGIN, "selinux"),
    "userns_ids": ("plugins", PLUGIN, "userns", "ids"),
    "content_sharing": ("plugins", "io.containerd.metadata.v1.bolt", "content_sharing_policy"),
    "tracing_endpoint": ("plugins", "io.containerd.tracing.processor.v1.otlp", "endpoint"),
    "tracing_protocol": ("plugins", "io.containerd.tracing.processor.v1.otlp", "protocol"),
    "tracing_service": ("plugins", "io.containerd.internal.v1.tracing", "service_name"),
    "tracing_ratio": ("plugins", "io.containerd.internal.v1.tracing", "sampling_ratio"),
    **{
        f"gc_{name}": ("plugins", "io.containerd.gc.v1.scheduler", name)
        for name in (
            "pause_threshold",
            "deletion_threshold",
            "mutation_threshold",
            "schedule_delay",
            "startup_delay",
        )
    },
}

# Tables that are read elsewhere, with keys that are free.
_TABLES: dict[str, tuple[str, ...]] = {
    "registry": registry_settings.OUR_PLACE,
    "proxy_plugins": (extensions.PROXY_PLUGINS,),
    "stream_processors": (extensions.STREAM_PROCESSORS,),
}


def key_of(setting: str) -> str:
    """How the file names a setting."""
    return ".".join(_PLACES.get(setting) or _TABLES[setting])


def load(path: str | None) -> Config:
    """Read the file; without `path` the one at DEFAULT_PATH, if there is one.

    Raises InvalidArgument naming file, line and key.
    """
    name = path or DEFAULT_PATH
    try:
        sources = gather(name)
    except FileNotFoundError as err:
        if path is None:
            return Config()
        raise InvalidArgument(f"read config {name}: {err.strerror}") from err
    try:
        return parse(merged(sources), name, sources)
    except InvalidArgument as err:
        complaint = err.message.removeprefix(f"read config {name}: ")
        at = place_of(sources, complaint)
        if at is None:
            raise
        raise InvalidArgument(f"read config {at}: {complaint}") from err


def parse(table: dict[str, Any], name: str, sources: Sequence[Source] = ()) -> Config:
    """Settings from a parsed file, or from what was merged of its `sources`.

    Raises InvalidArgument for a wrong type or version.
    """
    version = table.get("version", VERSION)
    if type(version) is not int or version not in READABLE_VERSIONS:
        raise InvalidArgument(
            f"read config {name}: version is {version!r}, this manager reads "
            + ", ".join(map(str, READABLE_VERSIONS))
        )
    values: dict[str, Any] = {}
    kinds = {item.name: type(getattr(Config(), item.name)) for item in fields(Config)}
    for setting, place in _PLACES.items():
        value = _at(table, place, name)
        if value is None:
            continue
        if type(value) is int and kinds[setting] is float:
            value = float(value)
        if type(value) is not kinds[setting]:
            raise InvalidArgument(
                f"read config {name}: {'.'.join(place)} is {value!r}, "
                f"expected {_KIND_NAMES[kinds[setting]]}"
            )
        values[setting] = value
    values["registry"] = registry_settings.parse(table, name)
    values["proxy_plugins"] = extensions.parse_proxy_plugins(table, name)
    values["stream_processors"] = extensions.parse_stream_processors(table, name)
    for file, its_own in [(one.name, one.table) for one in sources] or [(name, table)]:
        for key in (*_unknown(its_own), *extensions.unknown(its_own)):
            log.warning("config %s: key %s is not known and has no effect", file, key)
    return _checked(Config(**values), name)


_KIND_NAMES = {bool: "true or false", str: "text", int: "a whole number", float: "a number"}
SHARING = ("isolated", "shared")
# Go's notation, as containerd's files have it.
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?(?:ns|us|µs|ms|s|m|h))+|0", re.ASCII)
_UNITS_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


def _seconds(text: str) -> float:
    """A duration that `_DURATION` matches."""
    parts = re.findall(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)", text, re.ASCII)
    return sum(float(number) * _UNITS_S[unit] for number, unit in parts)


def _checked(config: Config, name: str) -> Config:
    if not config.level:  # containerd's own files say "" for the default
        config = replace(config, level=Config.level)
    if config.level not in LEVELS:
        raise InvalidArgument(
            f"read config {name}: debug.level is {config.level!r}, expected one of "
            + ", ".join(LEVELS)
        )
    for setting in ("root", "state"):
        if not str(getattr(config, setting)).startswith("/"):
            raise InvalidArgument(f"read config {name}: {setting} is not an absolute path")
    for setting in ("log_max_size", "log_max_file", "max_layer_bytes", "max_layer_entries"):
        if getattr(config, setting) < 0:
            raise InvalidArgument(
                f"read config {name}: {key_of(setting)} is {getattr(config, setting)}, "
                "expected 0 or more"
            )
    for setting in ("grpc_uid", "grpc_gid"):
        if not 0 <= getattr(config, setting) < 1 << 32:
            raise InvalidArgument(
                f"read config {name}: {key_of(setting)} is {getattr(config, setting)}, "
                "expected a number that a user or group can have"
            )
    for setting in ("max_recv_message_size", "max_send_message_size"):
        if not 0 <= getattr(config, setting) < 1 << 31:
            raise InvalidArgument(
                f"read config {name}: {key_of(setting)} is {getattr(config, setting)}, "
                "expected a number of bytes, 0 for 16 MiB"
            )
    if config.address and not config.address.startswith("/"):
        raise InvalidArgument(
            f"read config {name}: {key_of('address')} is {config.address!r}, "
            "expected the absolute path of a socket"
        )
    if config.userns_ids:
        try:
            parse_span(config.userns_ids)
        except InvalidArgument as err:
            raise InvalidArgument(f"read config {name}: userns.ids: {err.message}") from err
    if not 1 <= config.layers_at_once <= MAX_LAYERS_AT_ONCE:
        raise InvalidArgument(
            f"read config {name}: {key_of('layers_at_once')} is {config.layers_at_once}, "
            f"expected 1 to {MAX_LAYERS_AT_ONCE}"
        )
    if config.content_sharing not in SHARING:
        raise InvalidArgument(
            f"read config {name}: {key_of('content_sharing')} is {config.content_sharing!r}, "
            f"expected {' or '.join(SHARING)}"
        )
    for setting in ("gc_schedule_delay", "gc_startup_delay"):
        if not _DURATION.fullmatch(getattr(config, setting)):
            raise InvalidArgument(
                f"read config {name}: {key_of(setting)} is {getattr(config, setting)!r}, "
                "expected a duration such as 100ms"
            )
    for setting in ("gc_deletion_threshold", "gc_mutation_threshold"):
        if getattr(config, setting) < 0:
            raise InvalidArgument(
                f"read config {name}: {key_of(setting)} is {getattr(config, setting)}, "
                "expected 0 or more"
            )
    if not 0 <= config.gc_pause_threshold <= MAX_PAUSE_THRESHOLD:
        raise InvalidArgument(
            f"read config {name}: {key_of('gc_pause_threshold')} is {config.gc_pause_threshold}, "
            f"expected 0 to {MAX_PAUSE_THRESHOLD}"
        )
    with prefixed(f"read config {name}"):
        check_tcp(key_of("tcp_address"), config.tcp_address)
        check_tcp(key_of("metrics_address"), config.metrics_address, only_here=True)
        for setting in ("tcp_tls_cert", "tcp_tls_key", "tcp_tls_ca"):
            check_pem(key_of(setting), getattr(config, setting), needed=bool(config.tcp_address))
    _check_network(config, name)
    if not 1 <= config.runc_timeout_s <= MAX_TIMEOUT_S:
        raise InvalidArgument(
            f"read config {name}: runtimes.runc.timeout_s is {config.runc_timeout_s}, "
            f"expected 1 to {MAX_TIMEOUT_S}"
        )
    return config


def _check_network(config: Config, name: str) -> None:
    for setting in ("network_conf_dir", "network_bin_dir"):
        path = str(getattr(config, setting))
        if not path.startswith("/") and (path or setting == "network_conf_dir"):
            raise InvalidArgument(
                f"read config {name}: {key_of(setting)} is {path!r}, expected an absolute path"
            )
    try:
        ipaddress.IPv4Network(config.network_subnet)
    except ValueError as err:
        raise InvalidArgument(f"read config {name}: {key_of('network_subnet')}: {err}") from err
    if not 1 <= config.network_timeout_s <= MAX_TIMEOUT_S:
        raise InvalidArgument(
            f"read config {name}: {key_of('network_timeout_s')} is {config.network_timeout_s}, "
            f"expected 1 to {MAX_TIMEOUT_S}"
        )


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


_READ_ELSEWHERE = (
    ("version",),
    ("imports",),
    registry_settings.PATH_PLACE,
    (extensions.PROXY_PLUGINS,),
    (extensions.STREAM_PROCESSORS,),
)


def _unknown(table: dict[str, Any], prefix: tuple[str, ...] = ()) -> list[str]:
    found = []
    for key, value in table.items():
        place = (*prefix, key)
        if place in (*_PLACES.values(), *_READ_ELSEWHERE):
            continue
        if place in registry_settings.TABLE_PLACES:
            found += registry_settings.unknown(value, place)
        elif isinstance(value, dict) and any(
            known[: len(place)] == place for known in (*_PLACES.values(), *registry_settings.PLACES)
        ):
            found += _unknown(value, place)
        else:
            found.append(".".join(place))
    return found


def dump(config: Config) -> str:
    """The configuration as a file that `load` reads back to the same."""
    from lighter.daemon.config.text import text_of  # no manager that serves writes a configuration

    return text_of(document(config))


def document(config: Config) -> dict[str, Any]:
    """The configuration as a document of TOML: `{"version": 3, "root": …, "plugins": {…}}`."""
    whole: dict[str, Any] = {"version": VERSION}
    for setting, place in _PLACES.items():
        inner = whole
        for key in place[:-1]:
            inner = inner.setdefault(key, {})
        inner[place[-1]] = getattr(config, setting)
    registry = registry_settings.dump(config.registry)
    if registry:
        whole["plugins"][PLUGIN]["registry"] = registry
    whole.update(extensions.dump(config.proxy_plugins, config.stream_processors))
    return whole
