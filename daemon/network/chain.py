"""A network's list of plugins as one act: ADD in order, CHECK in order, DEL in reverse.

ADD   each plugin gets what the one before it answered; when one fails, the whole list is undone
CHECK every plugin looks at what the chain answered at its end (CNI 0.4.0 and later)
DEL   every plugin is asked, also after one has failed: what can go is gone
"""

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lighter.daemon.network import plugin as plugins
from lighter.daemon.network import result as results
from lighter.daemon.network.configs import Network
from lighter.daemon.network.strays import TOKEN, Strays
from lighter.proto.errors import FailedPrecondition, InvalidArgument, LighterError, Unimplemented
from lighter.proto.faults import hit

log = logging.getLogger("lighter.network")

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class Attachment:
    """Who is attached: `sandbox` is CNI's container id, `netns` a path, "" when it is gone.

    `capabilities` is what plugins may take of the runtime's configuration, by capability; `args`
    become CNI_ARGS.
    """

    sandbox: str
    ifname: str
    netns: str
    token: str
    capabilities: Mapping[str, Any] = field(default_factory=dict)
    args: Mapping[str, str] = field(default_factory=dict)


class Chain:
    """Calls plugins. `directories` are where they are looked for."""

    def __init__(self, directories: Sequence[str], timeout_s: float) -> None:
        self.directories = tuple(directories)
        self.strays = Strays()
        self._timeout_s = timeout_s

    def check_plugins(self, network: Network) -> None:
        """Raises NotFound when a plugin of the network, or one for its addresses, is missing."""
        for plugin in network.plugins:
            plugins.find(str(plugin["type"]), self.directories)
            kind = (plugin.get("ipam") or {}).get("type")
            if kind:
                plugins.find(str(kind), self.directories)

    async def add(
        self,
        network: Network,
        attachment: Attachment,
        note: Callable[[dict[str, Any]], Awaitable[None]],
    ) -> dict[str, Any]:
        """Attach; the last plugin's result. `note` keeps each one before the next plugin runs:
        what that one does can be undone only by who knows it.

        Raises what plugin.call and result.read raise. Undoing is the caller's, who has the record.
        """
        result: dict[str, Any] = {}
        for plugin in network.plugins:
            hit("network.adding")
            answer = await self._call("ADD", network, plugin, attachment, result)
            hit("network.plugin-ended")
            if answer:
                results.read(answer, network.name)
                result = answer
                await note(result)
            hit("network.plugin-added")
        if not result:
            raise FailedPrecondition(f"attach to network {network.name}: no plugin gave a result")
        return result

    async def check(
        self, network: Network, attachment: Attachment, result: Mapping[str, Any]
    ) -> None:
        """Raises Unimplemented where the configuration has no CHECK, else what a plugin finds."""
        if network.disable_check:
            raise Unimplemented(f"check network {network.name}: its configuration forbids it")
        if not network.at_least("0.4.0"):
            raise Unimplemented(
                f"check network {network.name}: its cniVersion {network.version} has no CHECK"
            )
        for plugin in network.plugins:
            try:
                await self._call("CHECK", network, plugin, attachment, result)
            except FailedPrecondition as err:
                if not _is_false_alarm(network, plugin, err, result):
                    raise

    async def delete(
        self,
        network: Network,
        attachment: Attachment,
        result: Mapping[str, Any],
        *,
        was_added: bool = True,
    ) -> None:
        """Detach. Raises the first failure when all plugins were asked.

        Unless `was_added`, a plugin that does not speak the version is one that has done nothing.
        """
        failures: list[LighterError] = []
        for plugin in reversed(network.plugins):
            try:
                await self._call(
                    "DEL",
                    network,
                    plugin,
                    attachment,
                    result if network.at_least("0.4.0") else {},
                )
            except LighterError as err:
                if isinstance(err, InvalidArgument) and not was_added:
                    continue
                log.warning("detach %s from %s: %s", attachment.sandbox, network.name, err)
                failures.append(err)
            except Exception as err:  # the others are asked all the same
                log.exception("detach %s from %s", attachment.sandbox, network.name)
                failures.append(FailedPrecondition(f"detach from network {network.name}: {err!r}"))
            hit("network.plugin-deleted")
        if failures:
            raise failures[0]

    async def status(self, network: Network) -> None:
        """CNI 1.1: whether its plugins could attach now. Raises what they say."""
        if network.at_least("1.1.0"):
            for plugin in network.plugins:
                await self._call("STATUS", network, plugin, None, {})

    async def _call(
        self,
        command: str,
        network: Network,
        plugin: Mapping[str, Any],
        attachment: Attachment | None,
        previous: Mapping[str, Any],
    ) -> dict[str, Any]:
        program = plugins.find(str(plugin["type"]), self.directories)
        environ = {
            "PATH": _PATH,
            "CNI_COMMAND": command,
            "CNI_PATH": ":".join(self.directories),
        }
        given: Mapping[str, Any] = {}
        if attachment is not None:
            given = attachment.capabilities
            environ |= {
                "CNI_CONTAINERID": attachment.sandbox,
                "CNI_NETNS": attachment.netns,
                "CNI_IFNAME": attachment.ifname,
                TOKEN: attachment.token,
            }
            if attachment.args:
                args = {"IgnoreUnknown": "1", **attachment.args}
                environ["CNI_ARGS"] = ";".join(f"{key}={value}" for key, value in args.items())
        config = configuration(network, plugin, given, previous)
        return await plugins.call(program, environ, config, self._timeout_s, self.strays)


def _is_false_alarm(
    network: Network, plugin: Mapping[str, Any], error: LighterError, result: Mapping[str, Any]
) -> bool:
    """Of plugins of Debian's 1.1.1 for one.

    portmap asks for the rules of IPv6 where the container has no such address, when it has found
    those of IPv4. sbr moves routes to a table of its own, where the plugin that has made them, and
    looks at its addresses first, does not find them.
    """
    has_ipv6 = any(":" in str(item.get("address")) for item in _ips(result))
    if plugin["type"] == "portmap":
        return not has_ipv6 and "ipv6 dnat" in error.message
    moved = any(one["type"] == "sbr" for one in network.plugins)
    return moved and any(words in error.message for words in _NO_ROUTE)


_NO_ROUTE = ("Failed to find Gateway", "not found in routing table")


def configuration(
    network: Network,
    plugin: Mapping[str, Any],
    given: Mapping[str, Any],
    previous: Mapping[str, Any],
) -> dict[str, Any]:
    """What one plugin reads: its own object, and what CNI adds to that (section 4)."""
    config = {key: value for key, value in plugin.items() if key != "capabilities"}
    config |= {"name": network.name, "cniVersion": network.version}
    config.pop("cniVersions", None)
    takes = plugin.get("capabilities") or {}
    chosen = {name: value for name, value in given.items() if takes.get(name) is True}
    if chosen:
        config["runtimeConfig"] = {**(plugin.get("runtimeConfig") or {}), **chosen}
    if previous:
        config["prevResult"] = in_version(previous, network.version)
    return config


def in_version(result: Mapping[str, Any], version: str) -> dict[str, Any]:
    """A result as a plugin of this version reads it: `ips[].version` was dropped with 1.0.

    What is no address is left out: a record may have it, and its end must come all the same.
    """
    if result.get("cniVersion") == version or "ip4" in result or "ip6" in result:
        return dict(result)
    ips = []
    for item in _ips(result):
        ip = {key: value for key, value in item.items() if key != "version"}
        if version in ("0.3.0", "0.3.1", "0.4.0"):
            ip["version"] = "6" if ":" in str(item.get("address")) else "4"
        ips.append(ip)
    others = {key: value for key, value in result.items() if key != "ips"}
    return {**others, "cniVersion": version, **({"ips": ips} if ips else {})}


def _ips(result: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    found = result.get("ips")
    return [item for item in found if isinstance(item, dict)] if isinstance(found, list) else []
