"""The rpms of this checkout, once as they are and once under a higher version, and their files."""

from pathlib import Path

import pytest

from lighter.proto.version import VERSION
from tests.integration.conftest import make_lighterd, owners
from tests.packaging.rpms import NEXT, built, unpack

__all__ = ["make_lighterd", "owners"]

TEST_S = 600  # the first test of all builds
CORE = f"lighter-core-{VERSION}"
COMPAT = "lighter-containerd-compat"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "/packaging/" in str(item.path):
            item.add_marker(pytest.mark.timeout(TEST_S))
            item.add_marker(pytest.mark.root)


@pytest.fixture(scope="session")
def rpms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Package name → rpm."""
    return built(tmp_path_factory.mktemp("rpms"))


@pytest.fixture(scope="session")
def newer(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same sources under a higher version."""
    return built(tmp_path_factory.mktemp("newer"), NEXT)


@pytest.fixture(scope="session")
def unpacked(rpms: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the files of both packages."""
    root = tmp_path_factory.mktemp("unpacked")
    for name in ("lighter", CORE):
        unpack(rpms[name], root)
    return root
