"""Integration tests run a real lighterd, real shims and real runc; each ends with the census."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests import census, images
from tests.harness import Lighterd


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "/integration/" in str(item.path):
            item.add_marker(pytest.mark.root)


@pytest.fixture(autouse=True)
def owners(request: pytest.FixtureRequest) -> Iterator[census.Owners]:
    """Whose marks count in this test; when it is over, nothing carrying one may be left."""
    alone = not request.config.getoption("--one-lighterd")
    if alone and request.node.get_closest_marker("shared_lighterd"):
        request.getfixturevalue("shared")  # what it has is there before and after
    owners = census.Owners()
    before = census.Census.take(owners)
    yield owners
    left = census.Census.settled(owners, before)
    assert not left, census.report(left)


@pytest.fixture
def make_lighterd(owners: census.Owners) -> Iterator[Callable[..., Lighterd]]:
    """Instances made in a test, not started; all are closed after it."""
    made: list[Lighterd] = []

    def make(**options: str) -> Lighterd:
        made.append(Lighterd(owners, **options))
        return made[-1]

    yield make
    problems = []
    for lighterd in made:
        try:
            lighterd.close()
        except AssertionError as error:
            problems.append(str(error))
    assert not problems, "\n".join(problems)


@pytest.fixture(scope="session")
def one_lighterd(request: pytest.FixtureRequest) -> Iterator[Lighterd | None]:
    """With --one-lighterd: the instance, which has the test image."""
    if not request.config.getoption("--one-lighterd"):
        yield None
        return
    with _with_image() as lighterd:
        yield lighterd


@contextmanager
def _with_image() -> Iterator[Lighterd]:
    """A running instance that has the test image."""
    lighterd = Lighterd(census.Owners()).start()
    try:
        lighterd.import_busybox()
        yield lighterd
    finally:
        lighterd.close()


@pytest.fixture
def lighterd(request: pytest.FixtureRequest, one_lighterd: Lighterd | None) -> Iterator[Lighterd]:
    """A running instance; without images, unless tests share it: all of a module that is marked
    `shared_lighterd`, or all with --one-lighterd.
    """
    if one_lighterd is not None:
        yield one_lighterd
        one_lighterd.clear()
    elif request.node.get_closest_marker("shared_lighterd"):
        yield request.getfixturevalue("manager")
    else:
        yield request.getfixturevalue("make_lighterd")().start()


@pytest.fixture
def busybox(lighterd: Lighterd) -> str:
    """The name of the imported test image."""
    with lighterd.client() as client:
        there = {row["name"] for row in client.call("images", "list")["images"]}
    return images.REFERENCE if images.REFERENCE in there else lighterd.import_busybox()


@pytest.fixture(scope="module")
def shared() -> Iterator[Lighterd]:
    """One running instance for all tests of a module, with the test image."""
    with _with_image() as lighterd:
        yield lighterd


@pytest.fixture
def manager(shared: Lighterd) -> Iterator[Lighterd]:
    """The module's instance, without what this test has made in it when it is over."""
    yield shared
    shared.clear()
