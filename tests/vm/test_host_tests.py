"""Tests that hold on any host, run in a machine (guest_tests.py): here each is told by itself."""

from collections.abc import Callable

import pytest

from tests.vm.beside import Beside
from tests.vm.guest_tests import TESTS, Outcome


@pytest.fixture(scope="module")
def outcomes(beside: Beside) -> dict[str, Outcome]:
    """By the name of the test."""
    return beside.outcomes()


@pytest.mark.parametrize("test", TESTS)
def test_on_cgroup_v2(
    outcomes: dict[str, Outcome], test: str, record_property: Callable[[str, object], None]
) -> None:
    found = {name: outcome for name, outcome in outcomes.items() if name.startswith(test)}
    assert found, f"it was not run; these were: {list(outcomes)}"
    for name, outcome in found.items():
        for what, value in outcome.told.items():
            record_property(f"{name.rpartition('::')[2]}: {what}", value)
    assert not any(outcome.why for outcome in found.values()), "\n".join(
        outcome.why for outcome in found.values() if outcome.why
    )
