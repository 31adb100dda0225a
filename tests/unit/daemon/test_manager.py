"""A start in its order: who has waited for it comes first, for a while."""

import asyncio

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


@pytest.mark.parametrize(("looks", "looked"), [(0, 1), (3, 4), (1000, 8)])
def test_a_start_goes_on_when_those_who_waited_are_answered(
    looks: int, looked: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manager, "CLIENTS_FIRST_S", 0.0)
    server = Asked(looks)
    asyncio.run(manager._answered(server))  # type: ignore[arg-type]
    assert server.looked == looked
