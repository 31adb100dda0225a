"""Machines for the tests here: each module has its own, and a failed test shows what it said."""

import shutil
from collections.abc import Iterator

import pytest

from tests import census
from tests.vm.beside import Beside
from tests.vm.disks import Disks, make_disks
from tests.vm.machine import Machine, switched_on

# Ends what no deadline of its own has ended. The first test makes the disk and two sets of rpms and
# boots; a loaded host was seen to take twenty minutes for that.
TEST_S = 2700
# What is made beside the service's tests is asked for after them, in the order of its making.
_ORDER = {"test_docker": 1, "test_selinux": 2, "test_power": 3, "test_host_tests": 4}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ours = [item for item in items if "/vm/" in str(item.path)]
    for item in ours:
        item.add_marker(pytest.mark.root)
        item.add_marker(pytest.mark.timeout(TEST_S))
    ours.sort(key=lambda item: _ORDER.get(item.path.stem, 0))
    places = (at for at, item in enumerate(items) if "/vm/" in str(item.path))
    for at, item in zip(list(places), ours, strict=True):
        items[at] = item


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: "pytest.CallInfo[None]") -> Iterator[None]:
    report = yield
    if report.failed and report.when != "teardown":
        for name, machine in getattr(item, "funcargs", {}).items():
            if isinstance(machine, Machine):
                report.sections.append((f"machine {name}", machine.tell()))
    return report


@pytest.fixture(scope="package", autouse=True)
def nothing_is_left() -> Iterator[None]:
    """Of all machines together, which come and go beside each other, and of the disks' mounts."""
    owners = census.Owners()
    before = census.Census.take(owners)
    yield
    left = census.Census.settled(owners, before)
    assert not left, census.report(left)


@pytest.fixture(scope="package")
def disks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Disks]:
    work = tmp_path_factory.mktemp("disks")
    yield make_disks(work)
    shutil.rmtree(work)  # pytest would keep it for three runs


@pytest.fixture(scope="package")
def beside(
    request: pytest.FixtureRequest,
    disks: Disks,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Beside]:
    modules = {item.path.stem for item in request.session.items}
    work = tmp_path_factory.mktemp("beside")
    beside = Beside(disks, work, modules)
    yield beside
    beside.close()
    shutil.rmtree(work)


@pytest.fixture(scope="module")
def machine(disks: Disks, beside: Beside) -> Iterator[Machine]:
    """A running one with Lighter installed, for one module."""
    with switched_on(disks.installed, disks.payload) as machine:
        yield machine
