"""A stop of all containers ends in time, whatever their networks wait for."""

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from lighter.daemon.containers import stopping
from lighter.daemon.containers.stopping import StopAll


def test_a_network_that_is_not_given_back_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "CLOSED_S", 0.1)
    asked = []

    async def never_released() -> None:
        asked.append(True)
        await asyncio.Event().wait()

    nothing: Any = SimpleNamespace(entries={}, debts=SimpleNamespace(hold_owed=lambda: None))
    stop_all = StopAll(nothing, cast(Any, None), cast(Any, None), nothing, never_released)

    async def run() -> list[stopping.Stopped]:
        return [one async for one in stop_all.run(0.0)]

    assert asyncio.run(asyncio.wait_for(run(), 30)) == []
    assert asked
