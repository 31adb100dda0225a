"""What a manager that starts finds of the networks of the one before, by real records."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from lighter.daemon.network.attachments import Attachments
from lighter.daemon.network.ending import Endings
from lighter.daemon.network.records import Records
from lighter.proto.paths import Root, State


class Namespaces:
    def path(self, key: str) -> str:
        return f"/netns/{key}"

    def is_there(self, _path: str) -> bool:
        return False

    async def remove(self, _key: str) -> None:
        pass

    def kept(self) -> list[str]:
        return []


class Names:
    def networks(self, _record: Any) -> set[str]:
        return set()

    async def renew(self, *_of: Any) -> None:
        pass

    async def renew_all(self) -> None:
        pass


class Strays:
    """Finds none; knows whose were looked for."""

    def __init__(self) -> None:
        self.sought: list[set[str]] = []

    async def end(self, tokens: set[str]) -> list[int]:
        self.sought.append(tokens)
        await asyncio.sleep(0)
        return []


class World:
    """One manager's networks; `bundle` is that of the only container's task."""

    def __init__(self, path: Path) -> None:
        self.bundle = path / "bundle"
        self.bundle.mkdir(exist_ok=True)
        self.strays = Strays()
        self.attachments = Attachments(
            instance="test",
            boot_id="",
            chain=SimpleNamespace(strays=self.strays),  # type: ignore[arg-type]
            store=Records(Root(str(path)), State(str(path / "state"))),
            netns=Namespaces(),  # type: ignore[arg-type]
            bundle_of=lambda *_of: SimpleNamespace(dir=str(self.bundle)),  # type: ignore[arg-type,return-value]
        )
        self.attachments.load()
        configs: Any = SimpleNamespace(read=lambda: ([], []))
        names: Any = Names()
        self.endings = Endings(self.attachments, configs, names)

    async def left_by_the_one_before(self) -> str:
        record = self.attachments.new("default", "web")
        await self.attachments.save(record)
        return record.key


def test_a_start_frees_what_one_before_it_was_cut_short_of(tmp_path: Path) -> None:
    """Also before that is looked for; but not what a task has that may come back, nor another's."""

    async def starts() -> None:
        before = World(tmp_path)
        left, held = [await before.left_by_the_one_before() for _ in range(2)]
        (before.bundle / "config.json").write_text(held)
        after = World(tmp_path)
        made = after.attachments.new("default", "web").key  # by another start, at the same time
        start = asyncio.create_task(after.endings.earlier_released("default", "web"))
        recovery = asyncio.create_task(after.endings.recover(lambda *_of: None))
        try:
            await start
            assert not after.attachments.knows(left)
            assert {record.key for record in after.attachments.all()} == {held, made}
        finally:
            recovery.cancel()

    asyncio.run(asyncio.wait_for(starts(), 30))


def test_plugins_of_starts_by_this_manager_are_no_strays(tmp_path: Path) -> None:
    async def starts() -> None:
        before = World(tmp_path)
        token = before.attachments.get(await before.left_by_the_one_before()).token
        after = World(tmp_path)
        made = after.attachments.new("default", "other").key
        await after.endings.recover(lambda *_of: None)
        assert after.strays.sought == [{token}]
        assert after.attachments.knows(made)

    asyncio.run(asyncio.wait_for(starts(), 30))


def test_all_is_released_once_it_is_known_what_all_is(tmp_path: Path) -> None:
    async def stops() -> None:
        before = World(tmp_path)
        left = await before.left_by_the_one_before()
        after = World(tmp_path)
        released = asyncio.create_task(after.endings.all_released())
        recovery = asyncio.create_task(after.endings.recover(lambda *_of: None))
        await released
        assert not after.attachments.knows(left)
        await recovery

    asyncio.run(asyncio.wait_for(stops(), 30))
