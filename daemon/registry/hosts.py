"""Which hosts serve a registry, in which order, and how each is spoken to.

The first of these that says anything about the registry decides:

1. a directory for it below the request's `hosts_dir` or one of `config_path`: `<host>_<port>_`,
   `<host>:<port>` or `_default` (containerd's docs/hosts.md), with a hosts.toml, or as Docker has
   it with `*.crt`, `*.cert` and `*.key` alone;
2. `registry.mirrors` of the configuration, by name, else for "*";
3. the registry itself: https, or plain http when it is written as this machine.

`registry.configs` adds TLS settings and credentials by host wherever they are not said. Files are
read at each request, so a change needs no reload.
"""

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NoReturn

from lighter.daemon import tomltext
from lighter.daemon.registry.access import NO_CREDENTIAL, Access
from lighter.daemon.registry.addresses import Link, is_loopback_literal, link
from lighter.daemon.registry.endpoints import CAPABILITIES, CONNECT_S, PULL, RESOLVE, Endpoint, Tls
from lighter.daemon.registry.settings import RegistrySettings
from lighter.proto.errors import InvalidArgument

HOSTS_FILE = "hosts.toml"
MAX_FILE_BYTES = 1 << 20
MAX_HOSTS = 32

DOCKER_DOMAIN = "docker.io"
DOCKER_HOST = "registry-1.docker.io"
DOCKER_REALM = "https://auth.docker.io"


def endpoints(
    domain: str, access: Access, settings: RegistrySettings
) -> tuple[list[Endpoint], tuple[str, ...]]:
    """(the hosts to ask for `domain` in order, further targets that a file allows).

    The registry itself, or the `server` that a file puts in its place, is last.
    Raises InvalidArgument naming the file and key.
    """
    directories = (*((access.hosts_dir,) if access.hosts_dir else ()), *settings.config_path)
    targets: tuple[str, ...] = settings.allowed_targets
    for root in directories:
        directory = _directory_for(root, domain)
        if directory is not None:
            found, further = _read_directory(directory, domain, access)
            targets += further
            break
    else:
        found = _from_mirrors(domain, access, settings)
    if len(found) > MAX_HOSTS:
        raise InvalidArgument(f"find hosts of {domain}: {found[0].source} has over {MAX_HOSTS}")
    return [_complete(item, domain, access, settings) for item in found], targets


def origin_host(domain: str) -> str:
    """The host that is a registry's own."""
    return DOCKER_HOST if domain == DOCKER_DOMAIN else domain


def _default_base(domain: str, access: Access) -> Link:
    """The registry's own address. Plain http is said, or it is this machine (SEC-29)."""
    host = origin_host(domain)
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
    speaks_tls = access.skip_verify or access.ca or access.cert
    is_plain = access.plain_http or (is_loopback_literal(name.strip("[]")) and not speaks_tls)
    return link(f"{'http' if is_plain else 'https'}://{host}/v2", f"find hosts of {domain}")


def _directory_for(root: str, domain: str) -> str | None:
    host, colon, port = domain.rpartition(":")
    names = [f"{host}_{port}_"] if colon and port.isdigit() else []
    for name in (*names, domain, "_default"):
        path = os.path.join(root, name)
        if os.path.isdir(path):
            return path
    return None


def _read_directory(
    directory: str, domain: str, access: Access
) -> tuple[list[Endpoint], tuple[str, ...]]:
    path = os.path.join(directory, HOSTS_FILE)
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            raise InvalidArgument(f"read {path}: it has more than {MAX_FILE_BYTES} bytes")
        table = tomltext.loads(data.decode("utf-8"))
    except FileNotFoundError:
        return [_from_certificates(directory, domain, access)], ()
    except OSError as err:
        raise InvalidArgument(f"read {path}: {err.strerror}") from err
    except (ValueError, RecursionError) as err:  # TOML, and text that is not UTF-8
        raise InvalidArgument(f"read {path}: {err}") from err
    return _HostsFile(path, directory, domain, access).read(table)


def _from_certificates(directory: str, domain: str, access: Access) -> Endpoint:
    """Docker's way: CA certificates and client pairs lie in the directory."""
    names = sorted(os.listdir(directory))
    ca = tuple(os.path.join(directory, name) for name in names if name.endswith(".crt"))
    pairs = []
    for name in names:
        if name.endswith(".cert"):
            key = name.removesuffix(".cert") + ".key"
            if key not in names:
                raise InvalidArgument(f"read {directory}: {name} is there without {key}")
            pairs.append((os.path.join(directory, name), os.path.join(directory, key)))
    base = _default_base(domain, access)
    if (ca or pairs) and not access.plain_http:
        base = link(f"https://{base.origin.netloc}/v2", f"read {directory}")
    return Endpoint(base, tls=Tls(ca=ca, client=tuple(pairs)), source=directory)


class _HostsFile:
    """One hosts.toml."""

    def __init__(self, path: str, directory: str, domain: str, access: Access) -> None:
        self._path = path
        self._directory = directory
        self._domain = domain
        self._access = access

    def read(self, table: Mapping[str, Any]) -> tuple[list[Endpoint], tuple[str, ...]]:
        listed = table.get("host", {})
        if not isinstance(listed, dict):
            self._refuse("host", "a table", listed)
        found = []
        targets = self._texts(table, "allowed_targets", "")
        for address, part in listed.items():
            place = f'host."{address}".'
            if not isinstance(part, dict):
                self._refuse(place[:-1], "a table", part)
            found.append(self._endpoint(address, part, place))
            targets += self._texts(part, "allowed_targets", place)
        server = table.get("server", "")
        if not isinstance(server, str):
            self._refuse("server", "text", server)
        own = replace(self._endpoint(server, table, ""), is_server=True)
        if all(own.base != other.base for other in found):
            found.append(own)
        return found, targets

    def _endpoint(self, address: str, part: Mapping[str, Any], place: str) -> Endpoint:
        override = self._flag(part, "override_path", place)
        capabilities = self._texts(part, "capabilities", place)
        wrong = set(capabilities) - CAPABILITIES
        if wrong:
            self._refuse(f"{place}capabilities", "pull, resolve, push", sorted(wrong))
        tls = Tls(
            self._flag(part, "skip_verify", place),
            tuple(map(self._absolute, self._texts(part, "ca", place))),
            self._client(part.get("client"), f"{place}client"),
        )
        return Endpoint(
            self._base(address, override, place),
            frozenset(capabilities) or CAPABILITIES,
            tls,
            self._headers(part.get("header", {}), f"{place}header"),
            realms=self._texts(part, "allowed_realms", place),
            connect_s=self._seconds(part.get("dial_timeout"), f"{place}dial_timeout"),
            source=self._path,
            tls_source=self._path if tls != Tls() else "",
        )

    def _base(self, address: str, override: bool, place: str) -> Link:
        what = f"read {self._path}: {place or 'server'}"
        if not address:
            return _default_base(self._domain, self._access)
        if "://" not in address:
            address = f"https://{address}"
        if "?" in address or "#" in address:
            raise InvalidArgument(f"{what}: {address!r} has a query")
        address = address.rstrip("/")
        if not override and not address.endswith("/v2"):
            address += "/v2"
        return link(address, what)

    def _client(self, value: Any, key: str) -> tuple[tuple[str, str], ...]:
        """A file, a list of files, or a list of pairs; a file alone holds its key too."""
        if value is None:
            return ()
        pairs = []
        for item in value if isinstance(value, list) else [value]:
            files = [item] if isinstance(item, str) else item
            if (
                not isinstance(files, list)
                or not all(isinstance(name, str) for name in files)
                or len(files) not in (1, 2)
                or not files[0]
            ):
                self._refuse(key, "a file, or a list of pairs of files", value)
            paths = [self._absolute(name) for name in files if name]
            pairs.append((paths[0], paths[1] if len(paths) > 1 else ""))
        return tuple(pairs)

    def _headers(self, value: Any, key: str) -> dict[str, tuple[str, ...]]:
        if not isinstance(value, dict):
            self._refuse(key, "a table", value)
        found = {}
        for name, entry in value.items():
            texts = [entry] if isinstance(entry, str) else entry
            if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
                self._refuse(f"{key}.{name}", "text, or a list of texts", "something else")
            if any(sign in text for text in (name, *texts) for sign in "\r\n\0"):
                self._refuse(f"{key}.{name}", "one line", "several")
            found[name] = tuple(texts)
        return found

    def _seconds(self, value: Any, key: str) -> float:
        """Go's notation, of which timeouts use h, m, s and ms."""
        import re

        if value is None:
            return CONNECT_S
        units = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
        part = r"(\d+(?:\.\d+)?)(ms|s|m|h)"
        if not isinstance(value, str) or not re.fullmatch(f"({part})+", value, re.ASCII):
            self._refuse(key, 'a time such as "3s"', value)
        return sum(float(n) * units[unit] for n, unit in re.findall(part, value, re.ASCII))

    def _flag(self, part: Mapping[str, Any], key: str, place: str) -> bool:
        value = part.get(key, False)
        if not isinstance(value, bool):
            self._refuse(place + key, "true or false", value)
        return value

    def _texts(self, part: Mapping[str, Any], key: str, place: str) -> tuple[str, ...]:
        value = part.get(key, [])
        if isinstance(value, str):
            value = [value]
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            self._refuse(place + key, "a list of texts", value)
        return tuple(value)

    def _absolute(self, path: str) -> str:
        return os.path.join(self._directory, path)

    def _refuse(self, key: str, expected: str, value: object) -> NoReturn:
        raise InvalidArgument(f"read {self._path}: {key} is {value!r}, expected {expected}")


def _from_mirrors(domain: str, access: Access, settings: RegistrySettings) -> list[Endpoint]:
    own = Endpoint(_default_base(domain, access))
    name = domain.lower() if domain.lower() in settings.mirrors else "*"
    found = []
    for address in settings.mirrors.get(name, ()):
        key = f'registry.mirrors."{name}" of {settings.file}'
        base = link(address if "://" in address else f"https://{address}", f"read {key}")
        path = base.url.partition("://")[2].partition("/")[2].rstrip("/")
        url = f"{base.origin}/{path}" if path else f"{base.origin}/v2"
        endpoint = Endpoint(link(url, f"read {key}"), source=key)
        if endpoint.origin != own.origin:
            endpoint = replace(endpoint, capabilities=frozenset({PULL, RESOLVE}))
        found.append(endpoint)
    if all(item.origin != own.origin for item in found):
        found.append(own)
    return found


def _complete(found: Endpoint, domain: str, access: Access, settings: RegistrySettings) -> Endpoint:
    """What the configuration and the request add to a host."""
    is_own = _is_own(found, domain)
    config = settings.configs.get(found.host.lower()) or settings.configs.get(
        f"{found.origin.host}:{found.origin.port}"
    )
    if config is None and is_own:
        config = settings.configs.get(domain)
    base, tls, tls_source = found.base, found.tls, found.tls_source
    if config is not None and config.tls is not None and tls == Tls():
        tls, tls_source = config.tls, f"registry.configs of {settings.file}"
        if found.source == "default" and not access.plain_http:
            base = link(f"https://{base.origin.netloc}/v2", f"find hosts of {domain}")
    credential, credential_source = NO_CREDENTIAL, ""
    if config is not None and config.credential:
        credential = config.credential
        credential_source = f"registry.configs of {settings.file}"
    realms = found.realms + settings.allowed_realms
    headers = {**settings.headers, **found.headers}
    if is_own:
        headers |= access.headers
        if access.ask is not None:
            credential_source = "the client's answer"
        elif access.credential:
            credential, credential_source = access.credential, "the request"
        realms += access.realms
        tls, tls_source = _with_access(tls, tls_source, access)
        if access.plain_http and base.origin.scheme == "https":
            base = link(base.url.replace("https://", "http://", 1), f"find hosts of {domain}")
    if found.origin.host == DOCKER_HOST:
        realms += (DOCKER_REALM,)
    return replace(
        found,
        base=base,
        tls=tls,
        headers=headers,
        credential=credential,
        ask=access.ask if is_own else None,
        credential_source=credential_source,
        realms=realms,
        namespace="" if _is_at(found, origin_host(domain)) else domain,
        tls_source=tls_source,
    )


def _is_own(found: Endpoint, domain: str) -> bool:
    """Whether a host is the registry itself, or the `server` that a file puts in its place."""
    return found.is_server or _is_at(found, origin_host(domain))


def _is_at(found: Endpoint, host: str) -> bool:
    origin = found.base.origin
    return host.lower() in {origin.netloc, f"{origin.host}:{origin.port}", f"[{origin.host}]"}


def _with_access(tls: Tls, source: str, access: Access) -> tuple[Tls, str]:
    if not (access.skip_verify or access.ca or access.cert):
        return tls, source
    return (
        Tls(
            access.skip_verify or tls.skip_verify,
            (access.ca,) if access.ca else tls.ca,
            ((access.cert, access.key),) if access.cert else tls.client,
        ),
        "the request",
    )
