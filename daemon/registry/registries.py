"""All registries, as the configuration describes them: the one resolver for every way in."""

from typing import Protocol

from lighter.daemon.images.reference import Reference
from lighter.daemon.registry.access import ANONYMOUS, Access
from lighter.daemon.registry.client import Remote


class Registries(Protocol):
    """Made once by daemon/app.py."""

    def remote(self, reference: Reference, access: Access = ANONYMOUS) -> Remote:
        """The repository that `reference` names; nothing is contacted before it is used.

        Raises InvalidArgument for a hosts.toml that cannot be used, with file and key.
        """
