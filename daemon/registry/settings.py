"""What the configuration says of registries, at the places where containerd's has it too.

    plugins."io.lighter.v1".registry                       config_path, mirrors, configs, auths,
                                                           allowed_targets, allowed_realms, proxy
    plugins."io.containerd.cri.v1.images".registry         containerd 2: config_path, mirrors, …
    plugins."io.containerd.grpc.v1.cri".registry           containerd 1.3 to 1.7
    plugins.cri.registry                                   before that
    plugins."io.containerd.transfer.v1.local"              config_path

`config_path` names directories of hosts.toml (hosts.py reads them, at each request); the tables are
the older way.
"""

from collections.abc import Mapping
from dataclasses import field
from typing import Any, NoReturn

from lighter.daemon.registry.access import NO_CREDENTIAL, Credential
from lighter.daemon.registry.endpoints import Tls
from lighter.daemon.registry.proxies import Proxies
from lighter.daemon.values import frozen
from lighter.proto.errors import InvalidArgument

DEFAULT_CONFIG_PATH = "/etc/lighter/certs.d:/etc/containerd/certs.d:/etc/docker/certs.d"

# The first that has a key decides over it.
OUR_PLACE = ("plugins", "io.lighter.v1", "registry")
TABLE_PLACES = (
    OUR_PLACE,
    ("plugins", "io.containerd.cri.v1.images", "registry"),
    ("plugins", "io.containerd.grpc.v1.cri", "registry"),
    ("plugins", "cri", "registry"),
)
PATH_PLACE = ("plugins", "io.containerd.transfer.v1.local", "config_path")
PLACES = (*TABLE_PLACES, PATH_PLACE)

_THEIR_KEYS = {"config_path", "mirrors", "configs", "auths", "headers"}
_OUR_KEYS = _THEIR_KEYS | {"allowed_targets", "allowed_realms", "proxy"}


@frozen
class HostConfig:
    """`registry.configs."host"`: for one host, which may have a port."""

    tls: Tls | None = None
    credential: Credential = NO_CREDENTIAL


@frozen
class RegistrySettings:
    """`mirrors`: addresses in order, by registry or "*". `file` is where all this is from.

    `headers` go to every registry host. `auths` are by host too.
    """

    config_path: tuple[str, ...] = tuple(DEFAULT_CONFIG_PATH.split(":"))
    mirrors: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    configs: Mapping[str, HostConfig] = field(default_factory=dict)
    headers: Mapping[str, tuple[str, ...]] = field(default_factory=dict, repr=False)
    allowed_targets: tuple[str, ...] = ()
    allowed_realms: tuple[str, ...] = ()
    proxies: Proxies | None = None
    file: str = field(default="", compare=False)


def parse(table: Mapping[str, Any], file: str) -> RegistrySettings:
    """From the whole configuration. Raises InvalidArgument naming file and key."""
    found: dict[str, Any] = {}
    for place in TABLE_PLACES:
        at: Any = table
        for key in place:
            at = at.get(key, {}) if isinstance(at, Mapping) else {}
        if not isinstance(at, Mapping):
            _refuse(file, ".".join(place), "a table", at)
        for key, value in at.items():
            if key in (_OUR_KEYS if place == OUR_PLACE else _THEIR_KEYS):
                found.setdefault(key, (value, ".".join((*place, key))))
    path: Any = table
    for key in PATH_PLACE:
        path = path.get(key) if isinstance(path, Mapping) else None
    if path:
        found.setdefault("config_path", (path, ".".join(PATH_PLACE)))
    return _Reader(found, file).settings()


class _Reader:
    """`found`: (value, where it stands) by key."""

    def __init__(self, found: Mapping[str, tuple[Any, str]], file: str) -> None:
        self._found = found
        self._file = file

    def settings(self) -> RegistrySettings:
        configs = dict(self._configs())
        for host, credential in self._auths():
            known = configs.get(host, HostConfig())
            if not known.credential:
                configs[host] = HostConfig(known.tls, credential)
        return RegistrySettings(
            config_path=self._config_path(),
            mirrors=self._mirrors(),
            configs=configs,
            headers=self._headers(),
            allowed_targets=self._texts_at("allowed_targets"),
            allowed_realms=self._texts_at("allowed_realms"),
            proxies=self._proxies(),
            file=self._file,
        )

    def _get(self, key: str, default: Any) -> tuple[Any, str]:
        return self._found.get(key, (default, key))

    def _config_path(self) -> tuple[str, ...]:
        value, key = self._get("config_path", "")
        text = self._text(value, key) or DEFAULT_CONFIG_PATH
        directories = tuple(part for part in text.split(":") if part)
        for directory in directories:
            if not directory.startswith("/"):
                _refuse(self._file, key, "absolute paths", text)
        return directories

    def _mirrors(self) -> dict[str, tuple[str, ...]]:
        from lighter.daemon.registry.addresses import link

        value, key = self._get("mirrors", {})
        mirrors = {}
        for host, entry in self._table(value, key).items():
            place = f'{key}."{host}"'
            endpoints = self._texts(
                self._table(entry, place).get("endpoint", []), f"{place}.endpoint"
            )
            for endpoint in endpoints:
                link(endpoint if "://" in endpoint else f"https://{endpoint}", self._what(place))
            mirrors[host.lower()] = endpoints
        return mirrors

    def _configs(self) -> list[tuple[str, HostConfig]]:
        value, key = self._get("configs", {})
        found = []
        for host, entry in self._table(value, key).items():
            place = f'{key}."{host}"'
            parts = self._table(entry, place)
            tls = parts.get("tls")
            config = HostConfig(
                None if tls is None else self._tls(tls, f"{place}.tls"),
                self._credential(parts.get("auth", {}), f"{place}.auth"),
            )
            found.append((_host_of(host), config))
        return found

    def _auths(self) -> list[tuple[str, Credential]]:
        value, key = self._get("auths", {})
        return [
            (_host_of(host), self._credential(entry, f'{key}."{host}"'))
            for host, entry in self._table(value, key).items()
        ]

    def _tls(self, value: Any, key: str) -> Tls:
        parts = self._table(value, key)
        skip = parts.get("insecure_skip_verify", False)
        if not isinstance(skip, bool):
            _refuse(self._file, f"{key}.insecure_skip_verify", "true or false", skip)
        paths = {
            name: self._text(parts.get(name, ""), f"{key}.{name}")
            for name in ("ca_file", "cert_file", "key_file")
        }
        ca, cert, key_file = paths["ca_file"], paths["cert_file"], paths["key_file"]
        return Tls(skip, (ca,) if ca else (), ((cert, key_file),) if cert else ())

    def _credential(self, value: Any, key: str) -> Credential:
        parts = self._table(value, key)
        texts = {
            name: self._text(parts.get(name, ""), f"{key}.{name}")
            for name in ("username", "password", "auth", "identitytoken")
        }
        username, password = texts["username"], texts["password"]
        if texts["auth"] and not password:
            username, password = self._decoded(texts["auth"], f"{key}.auth")
        if texts["identitytoken"]:
            return Credential(username, identity_token=texts["identitytoken"])
        return Credential(username, password)

    def _decoded(self, text: str, key: str) -> tuple[str, str]:
        """A pair in base64, as in Docker's file."""
        import base64

        try:
            pair = base64.b64decode(text, validate=True).decode("utf-8").strip("\0")
        except ValueError:
            pair = ""
        username, colon, password = pair.partition(":")
        if not colon:
            raise InvalidArgument(
                f"read config {self._file}: {key} is not a user name and password in base64"
            )
        return username, password

    def _headers(self) -> dict[str, tuple[str, ...]]:
        value, key = self._get("headers", {})
        return {
            name: self._texts(entry, f"{key}.{name}")
            for name, entry in self._table(value, key).items()
        }

    def _proxies(self) -> Proxies | None:
        value, key = self._get("proxy", None)
        if value is None:
            return None
        parts = self._table(value, key)
        texts = {
            name: self._text(parts.get(name, ""), f"{key}.{name}")
            for name in ("http", "https", "no_proxy")
        }
        return Proxies(**texts)

    def _texts_at(self, name: str) -> tuple[str, ...]:
        value, key = self._get(name, [])
        return self._texts(value, key)

    def _table(self, value: Any, key: str) -> Mapping[str, Any]:
        if not isinstance(value, Mapping):
            _refuse(self._file, key, "a table", value)
        return value

    def _text(self, value: Any, key: str) -> str:
        if not isinstance(value, str):
            _refuse(self._file, key, "text", type(value).__name__)
        return value

    def _texts(self, value: Any, key: str) -> tuple[str, ...]:
        if isinstance(value, str):
            value = [value]
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            _refuse(self._file, key, "a list of texts", type(value).__name__)
        return tuple(value)

    def _what(self, key: str) -> str:
        return f"read config {self._file}: {key}"


def dump(settings: RegistrySettings) -> dict[str, Any]:
    """The table at OUR_PLACE from which `parse` reads the same; {} for what is built in."""
    table: dict[str, Any] = {}
    if settings.config_path != RegistrySettings.config_path:
        table["config_path"] = ":".join(settings.config_path)
    if settings.mirrors:
        table["mirrors"] = {
            host: {"endpoint": list(endpoints)} for host, endpoints in settings.mirrors.items()
        }
    if settings.configs:
        table["configs"] = {host: _dumped(config) for host, config in settings.configs.items()}
    for name in ("headers", "allowed_targets", "allowed_realms"):
        value = getattr(settings, name)
        if value:
            is_table = isinstance(value, Mapping)
            table[name] = {k: list(v) for k, v in value.items()} if is_table else list(value)
    if settings.proxies is not None:
        proxies = settings.proxies
        table["proxy"] = {
            "http": proxies.http,
            "https": proxies.https,
            "no_proxy": proxies.no_proxy,
        }
    return table


def _dumped(config: HostConfig) -> dict[str, Any]:
    table: dict[str, Any] = {}
    if config.tls is not None:
        certificate, key = config.tls.client[0] if config.tls.client else ("", "")
        table["tls"] = {
            "insecure_skip_verify": config.tls.skip_verify,
            "ca_file": config.tls.ca[0] if config.tls.ca else "",
            "cert_file": certificate,
            "key_file": key,
        }
    if config.credential:
        table["auth"] = {
            "username": config.credential.username,
            "password": config.credential.secret,
            "identitytoken": config.credential.identity_token,
        }
    return table


def unknown(table: Mapping[str, Any], place: tuple[str, ...]) -> list[str]:
    """Keys of a table at one of TABLE_PLACES that have no effect."""
    known = _OUR_KEYS if place == OUR_PLACE else _THEIR_KEYS
    return [".".join((*place, key)) for key in table if key not in known]


def _host_of(text: str) -> str:
    """ "https://host:port/v1/" or "host:port": the host, small."""
    return text.partition("://")[2].partition("/")[0].lower() if "://" in text else text.lower()


def _refuse(file: str, key: str, expected: str, value: object) -> NoReturn:
    raise InvalidArgument(f"read config {file}: {key} is {value!r}, expected {expected}")
