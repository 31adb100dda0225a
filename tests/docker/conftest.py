"""Docker on Lighter: real dockerds of two releases, and one with its images in the manager."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests import census
from tests.docker.enclosure import Enclosure
from tests.docker.engine import VARIANTS, Engine, load_image
from tests.harness import Lighterd, settled
from tests.integration.conftest import owners

__all__ = ["owners"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "/tests/docker/" in str(item.path):
            item.add_marker(pytest.mark.root)
            if shutil.which("apt-get") is None:
                item.add_marker(pytest.mark.skip(reason="Docker is fetched from Debian"))


@dataclass(frozen=True)
class Host:
    """One enclosure with a manager and a dockerd that uses it."""

    enclosure: Enclosure
    lighterd: Lighterd
    engine: Engine

    def mounts_of_containers(self) -> list[str]:
        """Inside the enclosure, where the manager's census does not see them."""
        state = self.lighterd.state
        return [
            *self.enclosure.mounts(below=state / "tasks"),
            *self.enclosure.mounts(below=state / "netns"),
        ]


@pytest.fixture(scope="session", params=["20.10", "26-snapshotter"])
def host(request: pytest.FixtureRequest) -> Iterator[Host]:
    """One per variant for all tests. What images have to do with is tested in all of them."""
    variant = VARIANTS[request.param]
    enclosure = Enclosure()
    lighterd = Lighterd(census.Owners())
    lighterd.prefix = enclosure.prefix
    lighterd.resumes = True  # Docker goes on with what it has begun
    engine = Engine(
        enclosure, lighterd.grpc_address, variant.release, snapshotter=variant.snapshotter
    )
    lighterd.cgroups.add(f"/{engine.cgroup}")
    lighterd.start()
    try:
        engine.start()
        load_image(engine, lighterd)
        yield Host(enclosure, lighterd, engine)
    finally:
        try:
            engine.close()
        finally:
            try:
                lighterd.close()
            finally:
                enclosure.close()


@pytest.fixture
def engine(host: Host, request: pytest.FixtureRequest) -> Iterator[Engine]:
    """Without containers; when the test is over, the manager holds nothing of any either."""
    host.engine.calm.clear()
    yield host.engine
    for daemon in (host.lighterd, host.engine):  # which a failed test may have left dead
        if daemon.process is None or daemon.process.poll() is not None:
            daemon.start()
    calm = host.engine.calm | set(host.engine.says("ps", "-q", "--no-trunc").split())
    host.engine.clear()
    with host.lighterd.client("moby") as client:
        tasks = client.call("tasks", "list")["tasks"]
        left = client.call("containers", "list", cursor="", limit=100)["containers"]
        # Docker asks once to remove a record: when nobody is there to ask, or when it restores the
        # container while it is told of its end again, the record stays (docs/docker.md). Not one of
        # a container that has ended while both were there.
        if request.node.get_closest_marker("away"):
            for row in left:
                client.call("containers", "delete", id=row["id"], force=True)
            left = [row for row in left if row["id"] in calm]
            tasks = client.call("tasks", "list")["tasks"]
    assert not tasks and not left, f"left: {tasks} {left}\n{host.engine.log_end()}"
    settled(lambda: [*host.lighterd.left_of_containers(), *host.mounts_of_containers()])


@pytest.fixture
def lighterd(host: Host) -> Lighterd:
    return host.lighterd


@pytest.fixture
def enclosure(host: Host) -> Enclosure:
    return host.enclosure
