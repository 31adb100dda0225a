"""HTTP proxies, from the configuration, else from the manager's own environment.

A registry or a request cannot choose one. As Go's programs do, this machine's own addresses are
never reached through a proxy.
"""

import ipaddress
import os
from collections.abc import Mapping
from dataclasses import field
from typing import TYPE_CHECKING

from lighter.daemon.values import frozen

if TYPE_CHECKING:
    from lighter.daemon.registry.addresses import Origin


@frozen
class Proxies:
    """`http` and `https`: the proxy for addresses of that scheme, "" for none.

    `no_proxy`: comma-separated hosts, host:port, .domains, addresses and networks; "*" is all.
    """

    http: str = field(default="", repr=False)  # may hold a password
    https: str = field(default="", repr=False)
    no_proxy: str = ""

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> "Proxies":
        """HTTP_PROXY, HTTPS_PROXY and NO_PROXY, or the same in small letters."""

        def value(name: str) -> str:
            return environ.get(name) or environ.get(name.lower(), "")

        return cls(value("HTTP_PROXY"), value("HTTPS_PROXY"), value("NO_PROXY"))

    def __bool__(self) -> bool:
        return bool(self.http or self.https)

    def proxy_of(self, origin: "Origin") -> str:
        """The proxy's address for an origin, "" to go there directly."""
        from lighter.daemon.registry.addresses import is_loopback_literal

        proxy = self.https if origin.scheme == "https" else self.http
        if not proxy or is_loopback_literal(origin.host) or self._excepted(origin):
            return ""
        return proxy if "://" in proxy else f"http://{proxy}"

    def _excepted(self, origin: "Origin") -> bool:
        from lighter.daemon.registry.addresses import literal

        address = literal(origin.host)
        for entry in (part.strip().lower() for part in self.no_proxy.split(",")):
            if not entry:
                continue
            if entry == "*":
                return True
            if address is not None:
                try:
                    if address in ipaddress.ip_network(entry, strict=False):
                        return True
                except ValueError:
                    pass
            name, colon, port = entry.rpartition(":")
            if colon and port.isdigit() and not name.endswith(":"):
                if origin.port != int(port):
                    continue
                entry = name
            entry = entry.removeprefix("*")
            if origin.host == entry.strip("[]"):
                return True
            if address is None and origin.host.endswith("." + entry.lstrip(".")):
                return True
        return False
