"""The fixtures, and the census, of the integration tests, and which release does what."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.compat import first_release
from tests.harness import BIN, Lighterd
from tests.integration.conftest import busybox, lighterd, make_lighterd, one_lighterd, owners

__all__ = ["busybox", "lighterd", "make_lighterd", "one_lighterd", "owners"]


class Change(NamedTuple):
    """From one release's programs to another's."""

    before: Path
    after: Path


@pytest.fixture(scope="session")
def first() -> Path:
    """The programs of the first release."""
    return first_release.installed()


@pytest.fixture(params=["upgrade", "rollback"])
def change(request: pytest.FixtureRequest, first: Path) -> Change:
    return Change(first, BIN) if request.param == "upgrade" else Change(BIN, first)


@pytest.fixture
def changing(change: Change, make_lighterd: Callable[..., Lighterd]) -> Lighterd:
    """A running instance of the release before the change; `switch` goes to the one after."""
    made = make_lighterd()
    made.use(change.before)
    return made.start()
