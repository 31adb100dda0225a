"""Connections of a running container and its definition: both or neither, whatever comes between.

Plugins, the namespace and the files that the container sees are played; records and definitions are
on disk.
"""

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import pytest

from lighter.daemon.metadata.containers import ContainerStore
from lighter.daemon.metadata.db import Database
from lighter.daemon.network.attachments import Attachments, Wanted
from lighter.daemon.network.chain import Attachment, Chain
from lighter.daemon.network.configs import Configs, Network
from lighter.daemon.network.live import LiveNetworks
from lighter.daemon.network.netns import NetworkNamespaces
from lighter.daemon.network.records import Record, Records
from lighter.daemon.tasks.entry import Entry
from lighter.daemon.types import Container
from lighter.proto.errors import (
    AlreadyExists,
    FailedPrecondition,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from lighter.proto.paths import Root, State

NS, ID = "default", "one"
RESULT = {"cniVersion": "1.0.0", "ips": [{"address": "10.20.0.2/24"}]}
OWN_NETWORK = json.dumps({"linux": {"namespaces": [{"type": "network"}]}}).encode()


class Plugins(Chain):
    def __init__(self) -> None:
        super().__init__((), 1.0)

    def check_plugins(self, network: Network) -> None:
        pass

    async def add(
        self,
        network: Network,
        attachment: Attachment,
        note: Callable[[dict[str, Any]], Awaitable[None]],
    ) -> dict[str, Any]:
        return RESULT

    async def delete(
        self,
        network: Network,
        attachment: Attachment,
        result: Mapping[str, Any],
        *,
        was_added: bool = True,
    ) -> None:
        pass


class Namespaces(NetworkNamespaces):
    def is_there(self, path: str) -> bool:
        return True

    async def without_ipv6(self, key: str) -> None:
        pass


class SlowRecords(Records):
    """`at` is set when a record is being written, which goes on when `go` is."""

    def __init__(self, root: Root, state: State) -> None:
        super().__init__(root, state)
        self.at, self.go = threading.Event(), threading.Event()
        self.go.set()

    def save(self, record: Record, *, durable: bool = True) -> None:
        self.at.set()
        assert self.go.wait(30)
        super().save(record, durable=durable)


class Definitions(ContainerStore):
    full = False

    def update(self, *args: Any, **changes: Any) -> Container:
        if self.full:
            raise ResourceExhausted("no room")
        return super().update(*args, **changes)


class Service:
    """NetworkService, as far as it is asked; `write` is what writing the files does."""

    def __init__(self) -> None:
        self.names = self
        self.write: Callable[[], Awaitable[None]] | None = None

    def files_of(self, key: str) -> bool:
        return self.write is not None

    async def write_files(self, *_: object) -> None:
        assert self.write is not None
        await self.write()

    async def renew(self, namespace: str, networks: list[str]) -> None:
        pass


class Place:
    """A container that runs in no network yet, and one configuration, `a`."""

    def __init__(self, path: Path) -> None:
        self.db = Database(str(path / "lighter.db"))
        self.store = Definitions(self.db)
        self.store.create(Container(NS, ID, "", "", "", "", OWN_NETWORK, {}, {}, 0, 0))
        (path / "a.conf").write_text('{"cniVersion": "1.0.0", "name": "a", "type": "played"}')
        root, state = Root(str(path / "root")), State(str(path / "state"))
        self.records = SlowRecords(root, state)
        self.attachments = Attachments(
            instance="test",
            boot_id="now",
            chain=Plugins(),
            store=self.records,
            netns=Namespaces(state, cast("Any", None)),
            bundle_of=cast("Any", None),
        )
        self.record = self.attachments.new(NS, ID)
        self.service = Service()
        entry = Entry(NS, ID, "incarnation", "running", "", "now", 0)
        self.live = LiveNetworks(
            cast("Any", self.service),
            self.attachments,
            Configs([str(path)]),
            self.store,
            lambda *_: entry,
        )

    def connect(self, ip: str = "") -> Coroutine[Any, Any, object]:
        return self.live.connect(NS, ID, "a", Wanted(ips=(ip,) if ip else ()))

    def disconnect(self) -> Coroutine[Any, Any, None]:
        return self.live.disconnect(NS, ID, "a")

    @property
    def attached(self) -> list[str]:
        return [one.network.name for one in self.attachments.get(self.record.key).attached]

    @property
    def defined(self) -> list[str]:
        option = self.store.get(NS, ID).options.get("network") or {}
        return list(option.get("networks") or ())


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    place = Place(tmp_path)
    yield place
    place.db.close()


def test_it_is_defined_although_its_files_cannot_be_written(place: Place) -> None:
    async def fail() -> None:
        raise Unavailable("write hosts: no")

    async def steps() -> None:
        place.service.write = fail
        with pytest.raises(Unavailable):
            await place.connect()
        assert place.attached == place.defined == ["a"]
        with pytest.raises(Unavailable):
            await place.disconnect()
        assert place.attached == place.defined == []

    asyncio.run(steps())


def test_it_is_defined_although_its_client_goes(place: Place) -> None:
    async def steps() -> None:
        writing = asyncio.Event()

        async def hang() -> None:
            writing.set()
            await asyncio.Event().wait()

        place.service.write = hang
        for asked, left in ((place.connect, ["a"]), (place.disconnect, [])):
            writing.clear()
            call = asyncio.create_task(asked())
            await asyncio.wait_for(writing.wait(), 30)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            assert place.attached == place.defined == left

    asyncio.run(steps())


def test_who_goes_while_the_record_is_written_leaves_both_or_neither(place: Place) -> None:
    async def give_up(steps: Coroutine[Any, Any, object]) -> None:
        place.records.at.clear()
        place.records.go.clear()
        call = asyncio.create_task(steps)
        assert await asyncio.to_thread(place.records.at.wait, 30)
        call.cancel()
        await asyncio.sleep(0)
        place.records.go.set()
        with pytest.raises(asyncio.CancelledError):
            await call

    async def steps() -> None:
        await give_up(place.connect())
        assert place.attached == place.defined == []
        await place.connect()
        await give_up(place.disconnect())
        assert place.attached == place.defined == []

    asyncio.run(steps())


def test_what_cannot_be_defined_is_not_attached(place: Place) -> None:
    place.store.full = True
    with pytest.raises(ResourceExhausted):
        asyncio.run(place.connect())
    assert place.attached == place.defined == []


def test_what_a_dead_manager_has_attached_alone_is_completed(place: Place) -> None:
    async def steps() -> None:
        await place.connect()
        place.store.update(NS, ID, options={})
        with pytest.raises(FailedPrecondition, match=r"gave 10\.20\.0\.2, not 10\.20\.0\.9"):
            await place.connect("10.20.0.9")
        assert place.defined == []
        await place.connect("10.20.0.2")
        assert place.attached == place.defined == ["a"]
        with pytest.raises(AlreadyExists):
            await place.connect()

    asyncio.run(steps())


def test_what_a_dead_manager_has_detached_or_defined_alone_is_completed(place: Place) -> None:
    async def steps() -> None:
        await place.connect()
        defined = place.store.get(NS, ID).options
        await place.disconnect()
        place.store.update(NS, ID, options=defined)
        await place.disconnect()
        assert place.attached == place.defined == []
        with pytest.raises(NotFound):
            await place.disconnect()
        place.store.update(NS, ID, options=defined)
        await place.connect()
        assert place.attached == place.defined == ["a"]

    asyncio.run(steps())
