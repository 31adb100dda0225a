"""So many at a time, as long as each of them gets on."""

import asyncio

from lighter.daemon.turns import Turns

NEVER_S = 1000.0


class Holders:
    """Tasks that hold a turn each until they are let go."""

    def __init__(self, turns: Turns) -> None:
        self.turns = turns
        self.inside: list[int] = []
        self.go = asyncio.Event()

    async def hold(self, number: int) -> None:
        async with self.turns.take():
            self.inside.append(number)
            await self.go.wait()


async def _run_others() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def test_more_wait_in_order() -> None:
    asyncio.run(_more_wait_in_order())


async def _more_wait_in_order() -> None:
    holders = Holders(Turns(2, NEVER_S))
    async with asyncio.TaskGroup() as group:
        for number in range(4):
            group.create_task(holders.hold(number))
        await _run_others()
        assert holders.inside == [0, 1]
        holders.go.set()
    assert holders.inside == [0, 1, 2, 3]


def test_f44_one_that_does_not_end_counts_no_longer() -> None:
    asyncio.run(_f44_one_that_does_not_end_counts_no_longer())


async def _f44_one_that_does_not_end_counts_no_longer() -> None:
    turns = Turns(1, 0.01)
    holders = Holders(turns)
    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        group.create_task(holders.hold(0))
        await _run_others()
        async with turns.take():
            assert holders.inside == [0]
        holders.go.set()
    # What has lapsed is not given back once more.
    turns._patience_s = NEVER_S
    late = Holders(turns)
    async with asyncio.TaskGroup() as group:
        for number in range(2):
            group.create_task(late.hold(number))
        await _run_others()
        assert late.inside == [0]
        late.go.set()


def test_who_gives_up_waiting_has_held_nothing() -> None:
    asyncio.run(_who_gives_up_waiting_has_held_nothing())


async def _who_gives_up_waiting_has_held_nothing() -> None:
    turns = Turns(1, NEVER_S)
    holders = Holders(turns)
    async with asyncio.TaskGroup() as group:
        group.create_task(holders.hold(0))
        await _run_others()
        waiting = group.create_task(holders.hold(1))
        await _run_others()
        waiting.cancel()
        await _run_others()
        group.create_task(holders.hold(2))
        await _run_others()
        assert holders.inside == [0]
        holders.go.set()
    assert holders.inside == [0, 2]
