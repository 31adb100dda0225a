"""What others ask of a container's network while its start is under way: by real records."""

import asyncio
import json
from pathlib import Path
from typing import Any

from lighter.daemon.network.attachments import Attachments
from lighter.daemon.network.configs import Network
from lighter.daemon.network.live import LiveNetworks
from lighter.daemon.network.names import Names
from lighter.daemon.network.records import Records
from lighter.daemon.network.request import NetworkRequest
from lighter.daemon.network.service import NetworkService
from lighter.daemon.types import Container
from lighter.proto.paths import Root, State

BRIDGE = Network("a", "1.0.0", ({"type": "bridge", "ipam": {"type": "host-local"}},))
WEB = Container("default", "web", "", "", "", "", json.dumps({}).encode(), {}, {}, 0, 0)
RESULT = {"cniVersion": "1.0.0", "ips": [{"address": "10.0.0.2/24"}]}


class Plugins:
    """Told when the first ADD is asked; it ends when the test says."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.adding, self.may_end = asyncio.Event(), asyncio.Event()

    async def add(self, *_of: Any) -> dict[str, Any]:
        self.calls.append("ADD")
        self.adding.set()
        await self.may_end.wait()
        self.calls.append("added")
        return RESULT

    async def check(self, *_of: Any) -> None:
        self.calls.append("CHECK")

    async def delete(self, *_of: Any, was_added: bool) -> None:
        self.calls.append("DEL")


class Namespaces:
    def path(self, key: str) -> str:
        return f"/netns/{key}"

    def is_there(self, _path: str) -> bool:
        return True

    async def make(self, key: str, *, ipv6: bool) -> None:
        pass


class Others:
    """The configurations there are, and a container with no earlier end under way."""

    def find(self, _name: str) -> Network:
        return BRIDGE

    async def earlier_released(self, _namespace: str, _id: str) -> None:
        pass


async def during_a_start(tmp_path: Path) -> list[str]:
    plugins = Plugins()
    records = Records(Root(str(tmp_path)), State(str(tmp_path / "state")))
    attachments = Attachments(
        instance="test",
        boot_id="",
        chain=plugins,  # type: ignore[arg-type]
        store=records,
        netns=Namespaces(),  # type: ignore[arg-type]
        bundle_of=lambda *_of: None,  # type: ignore[arg-type,return-value]
    )
    names = Names(attachments, str(tmp_path / "addresses"))
    others: Any = Others()
    service = NetworkService(attachments, others, others, others, others, names)
    live = LiveNetworks(service, attachments, others, others, lambda *_of: None)
    async with asyncio.TaskGroup() as group:
        group.create_task(service.prepare(WEB, NetworkRequest(networks=("a",))))
        await plugins.adding.wait()
        reload = group.create_task(live.reload("default", "web", force=True))
        await asyncio.wait({reload}, timeout=0.3)
        assert plugins.calls == ["ADD"], "it waits for the start's own"
        plugins.may_end.set()
    return plugins.calls


def test_a_reload_waits_for_the_start_that_is_under_way(tmp_path: Path) -> None:
    """Its own DEL and ADD of the same interface would come between, and its address be given on."""
    calls = asyncio.run(asyncio.wait_for(during_a_start(tmp_path), 30))
    assert calls == ["ADD", "added", "CHECK", "DEL", "ADD", "added"]
