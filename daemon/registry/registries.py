"""All registries, as the configuration describes them: the one resolver for every way in.

What speaks HTTP is loaded at the first use: the manager starts without it.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from lighter.daemon.images.reference import Reference
from lighter.daemon.registry.access import ANONYMOUS, Access
from lighter.daemon.registry.addresses import link
from lighter.daemon.registry.proxies import Proxies
from lighter.daemon.registry.settings import RegistrySettings

if TYPE_CHECKING:
    from lighter.daemon.registry.answer import Deadlines
    from lighter.daemon.registry.client import Remote
    from lighter.daemon.registry.conversation import Conversation
    from lighter.daemon.registry.endpoints import Endpoint
    from lighter.daemon.registry.lookup import Lookup
    from lighter.daemon.registry.retry import Backoff
    from lighter.daemon.registry.transport import Step

log = logging.getLogger("lighter.registry")


class Registries:
    """Made once by daemon/app.py. `settings` may be replaced, and hold for what comes after."""

    def __init__(
        self,
        settings: RegistrySettings,
        deadlines: "Deadlines | None" = None,
        backoff: "Backoff | None" = None,
        lookup: "Lookup | None" = None,
    ) -> None:
        self.settings = settings
        self._deadlines = deadlines
        self._backoff = backoff
        self._lookup = lookup

    def remote(self, reference: Reference, access: Access = ANONYMOUS) -> "Remote":
        """The repository that `reference` names; nothing is contacted before it is used.

        Entering it raises InvalidArgument for a hosts.toml that cannot be used, with file and key.
        """
        from lighter.daemon.registry.client import Remote

        return Remote(reference, lambda: self.conversation(reference.domain, access))

    async def conversation(
        self, domain: str, access: Access, trace: "Callable[[Step], None] | None" = None
    ) -> "Conversation":
        """A conversation with the hosts of one registry. To be closed. Raises InvalidArgument for a
        hosts.toml that cannot be used.
        """
        from lighter.daemon.registry import hosts
        from lighter.daemon.registry.addresses import Targets
        from lighter.daemon.registry.answer import Deadlines
        from lighter.daemon.registry.conversation import Conversation
        from lighter.daemon.registry.lookup import Lookup
        from lighter.daemon.registry.redact import Redactor
        from lighter.daemon.registry.retry import Backoff
        from lighter.daemon.registry.transport import Transport

        settings = self.settings
        endpoints, targets = await asyncio.to_thread(hosts.endpoints, domain, access, settings)
        proxies = settings.proxies or Proxies.from_environment()
        redactor = Redactor()
        if self._lookup is None:
            self._lookup = Lookup()  # belongs to the running loop
        transport = Transport(
            Targets(_own_hosts(endpoints, proxies), targets),
            proxies,
            redactor,
            self._deadlines or Deadlines(),
            self._lookup,
            trace or _log_step,
        )
        return Conversation(domain, endpoints, transport, redactor, self._backoff or Backoff())


def _own_hosts(endpoints: "list[Endpoint]", proxies: Proxies) -> set[str]:
    own = {endpoint.origin.host for endpoint in endpoints}
    for proxy in filter(None, (proxies.http, proxies.https)):
        address = proxy if "://" in proxy else f"http://{proxy}"
        scheme, _, rest = address.partition("://")
        netloc = rest.partition("/")[0].rpartition("@")[2]
        own.add(link(f"{scheme}://{netloc}", "use proxy").origin.host)
    return own


def _log_step(step: "Step") -> None:
    log.debug(
        "%s %s -> %d%s%s",
        step.method,
        step.url,
        step.status,
        f" with {step.sent}" if step.sent else "",
        f", {step.note}" if step.note else "",
    )
