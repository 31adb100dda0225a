"""A start in its order: who has waited for it comes first, for a while."""

import asyncio
from types import SimpleNamespace

import pytest

from lighter.daemon import manager


class Asked:
    """A server that somebody waits for during its first `looks`."""

    def __init__(self, looks: int) -> None:
        self._looks = looks
        self.looked = 0

    @property
    def is_asked(self) -> bool:
        self.looked += 1
        return self.looked <= self._looks


@pytest.mark.parametrize(("looks", "looked"), [(0, 1), (3, 4), (1000, 10)])
def test_a_start_goes_on_when_those_who_waited_are_answered(looks: int, looked: int) -> None:
    server = Asked(looks)
    asyncio.run(manager._answered(server))  # type: ignore[arg-type]
    assert server.looked == looked


class Tasks:
    """A supervisor of one task, whose shim comes when it was looked for `looks` times."""

    def __init__(self, looks: int) -> None:
        self._looks = looks
        self.looked = 0

    @property
    def entries(self) -> dict[str, SimpleNamespace]:
        self.looked += 1
        silent = self.looked <= self._looks
        return {"c": SimpleNamespace(unknown_from=1.0 if silent else None)}


@pytest.mark.parametrize(("looks", "looked"), [(0, 1), (2, 3), (1000, 4)])
def test_a_start_goes_on_when_all_shims_are_there_or_one_does_not_come(
    looks: int, looked: int
) -> None:
    supervisor = Tasks(looks)
    asyncio.run(manager._adopted(supervisor, 4 * manager.LOOK_S))  # type: ignore[arg-type]
    assert supervisor.looked == looked
