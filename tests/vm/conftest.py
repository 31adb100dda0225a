"""Machines for the tests here: each module has its own, and a failed test shows what it said."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vm.disk import Disk, the_disk
from tests.vm.machine import Machine, switched_on
from tests.vm.payload import make_payload

# Ends what no deadline of its own has ended. The first test makes the disk and two sets of rpms and
# boots; a loaded host was seen to take twenty minutes for that.
TEST_S = 2700


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "/vm/" in str(item.path):
            item.add_marker(pytest.mark.root)
            item.add_marker(pytest.mark.timeout(TEST_S))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: "pytest.CallInfo[None]") -> Iterator[None]:
    report = yield
    if report.failed and report.when != "teardown":
        for name, machine in getattr(item, "funcargs", {}).items():
            if isinstance(machine, Machine):
                report.sections.append((f"machine {name}", machine.tell()))
    return report


@pytest.fixture(scope="session")
def disk() -> Disk:
    return the_disk()


@pytest.fixture(scope="session")
def payload(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    work = tmp_path_factory.mktemp("payload")
    yield make_payload(work)
    shutil.rmtree(work)  # pytest would keep it for three runs


@pytest.fixture(scope="module")
def machine(disk: Disk, payload: Path) -> Iterator[Machine]:
    """A running one with the payload mounted, for one module."""
    with switched_on(disk, payload) as machine:
        yield machine
