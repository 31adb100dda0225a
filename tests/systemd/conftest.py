"""Machines with systemd as their first process, one a module; a failed test shows its log."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import census, images, underway
from tests.packaging.rpms import built
from tests.systemd.machine import Machine
from tests.systemd.tree import debian_tree

TEST_S = 900  # the first test of all makes the tree
IMAGE = images.REFERENCE


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "/systemd/" in str(item.path):
            item.add_marker(pytest.mark.root)
            item.add_marker(pytest.mark.timeout(TEST_S))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    report = yield
    machine = getattr(item, "funcargs", {}).get("machine")
    if report.failed and report.when != "teardown" and isinstance(machine, Machine):
        report.sections.append(("the machine", machine.report()))
    return report


@pytest.fixture(scope="module")
def bare_machine() -> Iterator[Machine]:
    """A booted machine without Lighter, and with what tests put into one. Nothing of it is left."""
    owners = census.Owners()
    before = census.Census.take(owners)
    machine = Machine(debian_tree(), owners)
    try:
        machine.boot()
        machine.put(images.busybox_archive(), "/var/lib/image.tar")
        machine.put(underway.SOURCE, underway.SCRIPT)
        yield machine
    finally:
        machine.close()
    left = census.Census.settled(owners, before)
    assert not left, census.report(left)


@pytest.fixture(scope="session")
def rpms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The rpms of this checkout by their package's name."""
    return built(tmp_path_factory.mktemp("rpms"))


def install(machine: Machine, packages: dict[str, Path], how: str = "-i") -> None:
    """Install a version's packages with rpm; what they require of CentOS is not looked at."""
    paths = []
    for name, rpm in packages.items():
        if name == "lighter" or name.startswith("lighter-core-"):
            machine.put(rpm, f"/var/tmp/{rpm.name}")
            paths.append(f"/var/tmp/{rpm.name}")
    machine.run("rpm", *how.split(), "--nodeps", *paths, timeout=120)


@pytest.fixture(scope="module")
def machine(bare_machine: Machine, rpms: dict[str, Path]) -> Machine:
    """With Lighter installed and running, and the test image IMAGE imported."""
    install(bare_machine, rpms)
    bare_machine.run("systemctl", "enable", "--now", "lighterd.service")
    bare_machine.run("ctl", "images", "import", "/var/lib/image.tar")
    return bare_machine
