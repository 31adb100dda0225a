"""daemon/reload: what a running manager takes over, and what stays in force."""

import asyncio
import logging
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from lighter.daemon.config.schema import Config, load
from lighter.daemon.notify import Notifier
from lighter.daemon.registry.registries import Registries
from lighter.daemon.reload import Reloaded, Reloader
from lighter.proto.errors import InvalidArgument


class Place:
    """A manager's configuration in force, its file, and what systemd is told."""

    def __init__(self, directory: Path) -> None:
        self.file = directory / "config.toml"
        self.file.write_text('[debug]\nlevel = "info"\n')
        self.systemd = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.systemd.bind(str(directory / "notify"))
        self.systemd.setblocking(False)
        running = self.read()
        self.registries = Registries(running.registry)
        notifier = Notifier(str(directory / "notify"))
        self.reloader = Reloader(running, self.read, notifier, self.registries)

    def read(self) -> Config:
        return load(str(self.file))

    def reload(self) -> Reloaded:
        return asyncio.run(self.reloader.reload())

    def told(self) -> list[str]:
        """The first word of each message since the last look."""
        found = []
        while True:
            try:
                found.append(self.systemd.recv(4096).decode().split("\n")[0])
            except BlockingIOError:
                return found


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    root = logging.getLogger()
    before = root.level, root.handlers[:], logging.raiseExceptions
    made = Place(tmp_path)
    yield made
    made.systemd.close()
    root.setLevel(before[0])
    root.handlers[:], logging.raiseExceptions = before[1:]


def test_f78_a_broken_file_changes_nothing_and_the_reload_is_over(place: Place) -> None:
    running, settings = place.reloader.running, place.registries.settings
    place.file.write_text('[debug]\nlevel = "loud"\n')
    with pytest.raises(InvalidArgument, match=r"config\.toml:2: debug\.level is 'loud'"):
        place.reload()
    assert place.reloader.running is running
    assert place.registries.settings is settings
    assert place.told() == ["RELOADING=1", "READY=1"]  # else systemd waits for its end


def test_f78_what_waits_for_a_start_is_not_in_force(place: Place) -> None:
    place.file.write_text(
        '[debug]\nlevel = "warn"\n[plugins."io.lighter.v1"]\nsnapshotter = "native"\n'
    )
    done = place.reload()
    assert done.changed == ("debug.level: info -> warn",)
    assert done.at_next_start == ("plugins.io.lighter.v1.snapshotter",)
    assert (place.reloader.running.level, place.reloader.running.snapshotter) == (
        *("warn", Config.snapshotter),
    )
    again = place.reload()
    assert (again.changed, again.at_next_start) == ((), done.at_next_start)


def test_f78_a_file_that_is_slow_to_read_holds_nothing_up(place: Place) -> None:
    """The event loop turns meanwhile; who asks then has a turn of its own, and reads anew."""
    asked, go_on, levels = threading.Event(), threading.Event(), iter(("warn", "debug"))

    def read() -> Config:
        asked.set()
        go_on.wait()
        return Config(level=next(levels))

    async def steps() -> None:
        reloader = Reloader(Config(), read, Notifier(None), place.registries)
        first = asyncio.ensure_future(reloader.reload())
        await asyncio.to_thread(asked.wait)
        second = asyncio.ensure_future(reloader.reload())
        await asyncio.sleep(0)
        assert not first.done() and not second.done()
        go_on.set()
        assert (await first).changed == ("debug.level: info -> warn",)
        assert (await second).changed == ("debug.level: warn -> debug",)

    asyncio.run(steps())
