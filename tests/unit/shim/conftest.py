"""Shims for unit tests: a manager that is only a test's, with a real spawner."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from lighter.shim import linux
from lighter.shim.loop import Loop
from tests.unit.shim import runtimes
from tests.unit.shim.manager import FakeManager


@pytest.fixture
def manager() -> Iterator[FakeManager]:
    manager = FakeManager()
    yield manager
    manager.close()


@pytest.fixture
def loop() -> Iterator[Loop]:
    """A loop that raises what nobody caught, when the test is over."""
    errors: list[BaseException] = []
    loop = Loop(errors.append)
    yield loop
    loop.close()
    assert not errors, errors


@pytest.fixture(scope="session")
def rootfs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runtimes.make_rootfs(tmp_path_factory.mktemp("rootfs"))


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system that 256 KiB fill."""
    directory = tmp_path / "tiny"
    directory.mkdir()
    linux.mount("tmpfs", str(directory), "tmpfs", data="size=256k")
    yield directory
    linux.umount(str(directory), linux.MNT_DETACH)
