"""One way to a registry: an address under which its API answers, and how to speak to it."""

from collections.abc import Mapping
from dataclasses import field
from typing import TYPE_CHECKING

from lighter.daemon.registry.access import NO_CREDENTIAL, Ask, Credential
from lighter.daemon.values import frozen

if TYPE_CHECKING:
    from lighter.daemon.registry.addresses import Link, Origin

PULL = "pull"
RESOLVE = "resolve"
PUSH = "push"
CAPABILITIES = frozenset({PULL, RESOLVE, PUSH})

CONNECT_S = 10.0


@frozen
class Tls:
    """`ca`: PEM files trusted besides the system's. `client`: pairs (certificate, key) of files."""

    skip_verify: bool = False
    ca: tuple[str, ...] = ()
    client: tuple[tuple[str, str], ...] = ()

    def for_others(self) -> "Tls":
        """The settings for hosts that this one redirects to: they are verified, but get no client
        certificate.
        """
        return Tls(ca=self.ca)


@frozen
class Endpoint:
    """`base` is everything before the repository, "https://host/v2".

    `namespace`: the registry a mirror is to serve, as its `ns` parameter, or "". `realms`: origins
    or host:port to which the credential may go for a token. `ask` tells one in place of
    `credential` once the host wants to know who we are. `is_server`: a file names it as the
    registry's own server. `source` says which file, or what rule,
    it is from; `credential_source` and `tls_source` the same of those.
    """

    base: "Link"
    capabilities: frozenset[str] = CAPABILITIES
    tls: Tls = Tls()
    headers: Mapping[str, tuple[str, ...]] = field(default_factory=dict, repr=False)
    credential: Credential = NO_CREDENTIAL
    ask: Ask | None = field(default=None, repr=False)
    realms: tuple[str, ...] = ()
    namespace: str = ""
    connect_s: float = CONNECT_S
    is_server: bool = False
    source: str = "default"
    credential_source: str = ""
    tls_source: str = ""

    @property
    def origin(self) -> "Origin":
        return self.base.origin

    @property
    def host(self) -> str:
        """As errors name it."""
        return self.base.origin.netloc

    def link(self, tail: str) -> "Link":
        """`tail` follows the base: "<repository>/manifests/<tag>"; "" is the API's root."""
        url = f"{self.base.url}/{tail}"
        if self.namespace and tail:
            url += ("&" if "?" in tail else "?") + f"ns={self.namespace}"
        return self.base._replace(url=url)

    def may_give_secret_to(self, realm: "Origin") -> bool:
        """Whether the credential may go to a token realm (SEC-27)."""
        from lighter.daemon.registry.addresses import DEFAULT_PORTS

        if realm.scheme == "http" and self.origin.scheme == "https":
            return False
        with_port = f"{realm.host}:{realm.port}"
        names = {str(realm), realm.netloc, with_port}
        if realm.port == DEFAULT_PORTS[realm.scheme]:
            names.add(realm.host)
        return realm == self.origin or bool(names & {name.lower() for name in self.realms})
