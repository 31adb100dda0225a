"""The networks there are: listed, looked at, created and removed."""

import asyncio
import builtins
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lighter.daemon.metadata.columns import mapping
from lighter.daemon.metadata.db import Database
from lighter.daemon.network import made
from lighter.daemon.network.attachments import Attachments
from lighter.daemon.network.configs import Configs, Network, Unusable, from_json
from lighter.daemon.network.made import NewNetwork
from lighter.proto.errors import AlreadyExists, FailedPrecondition, LighterError
from lighter.proto.names import check_name

STATUS_S = 2.0  # who lists networks waits for all of them


@dataclass(frozen=True)
class Listed:
    """A network as it is listed. `reason`: why nothing can be attached to it; "" when it can."""

    name: str
    version: str
    types: tuple[str, ...]
    path: str
    ours: bool
    default: bool
    subnets: tuple[str, ...]
    reason: str = ""


class NetworkCatalog:
    """Configurations on disk, and who uses them."""

    def __init__(
        self,
        attachments: Attachments,
        configs: Configs,
        db: Database,
        *,
        pool: str,
        addresses: str,
    ) -> None:
        self._attachments = attachments
        self._configs = configs
        self._db = db
        self._pool = pool
        self._addresses = addresses
        self._changing = asyncio.Lock()

    async def list(self) -> "tuple[builtins.list[Listed], builtins.list[Unusable]]":
        """All networks in the order of their files, and the files that are none."""
        networks, unusable = await asyncio.to_thread(self._configs.read)
        default = self._default(networks)
        listed = await asyncio.gather(*(self._listed(network, default) for network in networks))
        return listed, unusable

    def _default(self, networks: Sequence[Network]) -> str:
        names = [network.name for network in networks]
        return "default" if "default" in names else names[0] if names else ""

    async def _listed(self, network: Network, default: str) -> Listed:
        reason = ""
        try:
            self._attachments.chain.check_plugins(network)
            async with asyncio.timeout(STATUS_S):
                await self._attachments.chain.status(network)
        except LighterError as err:
            reason = err.message
        except TimeoutError:
            reason = f"status of network {network.name}: its plugins did not tell in {STATUS_S:g} s"
        return Listed(
            name=network.name,
            version=network.version,
            types=network.types,
            path=network.path,
            ours=made.is_ours(network),
            default=network.name == default,
            subnets=_subnets(network),
            reason=reason,
        )

    async def get(
        self, name: str
    ) -> tuple[Listed, dict[str, Any], "builtins.list[dict[str, Any]]"]:
        """The network, its configuration, and who is attached in which namespace."""
        network = self._configs.find(name)
        networks, _ = self._configs.read()
        return (
            await self._listed(network, self._default(networks)),
            network.as_json(),
            [
                {
                    "namespace": record.namespace,
                    "id": record.id,
                    "ifname": one.ifname,
                    "addresses": [address.address for address in one.view().addresses],
                }
                for record in self._attachments.all()
                for one in record.attached
                if one.network.name == network.name
            ],
        )

    async def create(self, new: NewNetwork) -> Network:
        """Write a configuration. Raises AlreadyExists, InvalidArgument, NotFound for a plugin."""
        async with self._changing:
            return await asyncio.to_thread(self._create, new)

    def _create(self, new: NewNetwork) -> Network:
        check_name(new.name, "network")
        networks, _ = self._configs.read()
        if any(network.name == new.name for network in networks):
            raise AlreadyExists(f"create network {new.name}: there is one")
        taken = made.taken_subnets(networks)
        document = made.configuration(new, self._pool, taken, self._addresses)
        network = from_json(document, new.name)
        self._attachments.chain.check_plugins(network)
        return made.write(self._configs.directories[0], document)

    async def remove(self, name: str) -> None:
        """Delete a configuration that `create` made. Refused with who uses it."""
        async with self._changing:
            network = self._configs.find(name, exact=True)
            users = self.users(network.name)
            if users:
                raise FailedPrecondition(
                    f"remove network {name}: it is used by {', '.join(users[:10])}"
                    + (f" and {len(users) - 10} more" if len(users) > 10 else "")
                )
            await asyncio.to_thread(made.remove, network)
            await asyncio.to_thread(made.remove_bridge, network)

    def users(self, name: str) -> "builtins.list[str]":
        """`namespace/container` of all that name it in their definition, or are attached."""
        rows = self._db.rows("SELECT namespace, id, options FROM containers ORDER BY namespace, id")
        defined = [
            f"{row['namespace']}/{row['id']}" for row in rows if _names(row["options"], name)
        ]
        attached = [
            f"{record.namespace}/{record.id}"
            for record in self._attachments.all()
            if any(one.network.name == name for one in record.attached)
        ]
        return list(dict.fromkeys((*defined, *attached)))


def _names(options: str, name: str) -> bool:
    """A record that is damaged may name any."""
    read = mapping(options)
    if read is None:
        return True
    request: Mapping[str, Any] = read.get("network") or {}
    return name in (request.get("networks") or ())


def _subnets(network: Network) -> tuple[str, ...]:
    found = []
    for plugin in network.plugins:
        ipam = plugin.get("ipam") or {}
        groups = [*(ipam.get("ranges") or []), [ipam]]
        found += [
            str(one["subnet"])
            for group in groups
            if isinstance(group, list)
            for one in group
            if isinstance(one, dict) and "subnet" in one
        ]
    return tuple(found)
