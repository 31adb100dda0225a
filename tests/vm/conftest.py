"""Machines for the tests here: each module has its own, and a failed test shows what it said."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vm.disk import Disk, the_disk
from tests.vm.machine import Machine
from tests.vm.payload import make_payload

# The longest: its module's machine boots, after the disk was made.
TEST_S = 1200


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
def payload(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_payload(tmp_path_factory.mktemp("payload"))


@pytest.fixture(scope="module")
def machine(disk: Disk, payload: Path) -> Iterator[Machine]:
    """A running one with the payload mounted, for one module."""
    machine = Machine(disk, payload)
    try:
        yield machine.start()
    finally:
        machine.close()
