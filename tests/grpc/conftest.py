"""Tests of containerd's API: a Python client made from the same .proto files, and the real ctr."""

import secrets
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import census
from tests.containerd import Containerd
from tests.grpc.client import Api
from tests.grpc.pair import Pair
from tests.grpc.space import Space
from tests.grpc.workshop import Workshop
from tests.harness import Lighterd
from tests.integration.conftest import busybox, lighterd, make_lighterd, one_lighterd, owners

__all__ = ["busybox", "lighterd", "make_lighterd", "one_lighterd", "owners"]

Ctr = Callable[..., subprocess.CompletedProcess[bytes]]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "/tests/grpc/" in str(item.path):
            item.add_marker(pytest.mark.root)


@pytest.fixture
def api(lighterd: Lighterd) -> Iterator[Api]:
    """A client of the running instance, in namespace `default`."""
    with Api(lighterd.grpc_address) as client:
        yield client


@pytest.fixture
def ctr(lighterd: Lighterd) -> Ctr:
    """Runs Debian's ctr against the running instance; the caller looks at what came of it."""
    return lambda *words, **options: run_ctr(lighterd.grpc_address, *words, **options)


@pytest.fixture(scope="session")
def shared_lighterd() -> Iterator[Lighterd]:
    """One instance for all tests that keep to a namespace of their own (see `space`)."""
    lighterd = Lighterd(census.Owners()).start()
    try:
        yield lighterd
    finally:
        lighterd.close()


@pytest.fixture
def space(shared_lighterd: Lighterd) -> Iterator[Space]:
    """A namespace of the test's own, which is removed with all that it holds."""
    with Space(shared_lighterd, f"space-{secrets.token_hex(4)}") as made:
        yield made


@pytest.fixture(scope="session")
def containerd() -> Iterator[Containerd]:
    """Debian's containerd, for what the same ctr says of it."""
    with Containerd() as peer:
        yield peer


def run_ctr(
    address: str,
    *words: str,
    data: bytes | None = None,
    timeout: float = 60,
) -> subprocess.CompletedProcess[bytes]:
    """ctr's end at one of the two daemons."""
    return subprocess.run(
        ["ctr", "--address", address, *words],
        input=data,
        stdin=subprocess.DEVNULL if data is None else None,
        capture_output=True,
        timeout=timeout,
        check=False,
    )


@pytest.fixture
def pair(containerd: Containerd, shared_lighterd: Lighterd, tmp_path: Path) -> Iterator[Pair]:
    """Both daemons with the test image, in a namespace for each."""
    both = Pair(containerd, shared_lighterd, tmp_path / "fifos")
    yield both
    both.close()


@pytest.fixture
def workshop(shared_lighterd: Lighterd, tmp_path: Path) -> Iterator[Workshop]:
    """Containers of a namespace of the test's own."""
    with Workshop(shared_lighterd, tmp_path / "fifos") as made:
        yield made
