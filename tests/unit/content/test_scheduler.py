"""When a collection runs: after deletions, after many changes, with rests between, never idle."""

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable

import pytest

from lighter.daemon.content import scheduler as scheduling
from lighter.daemon.content.scheduler import Schedule, Scheduler
from lighter.proto.errors import DataLoss

QUICK = {"startup_delay_s": 0.0, "pause_threshold": 0.5}  # rests as long as a pause, 5 ms at least
PATIENCE_S = 10.0


class Collections:
    """What the scheduler asks for: each call's time, and what it answers."""

    def __init__(self, pause_s: float = 0.0) -> None:
        self.times: list[float] = []
        self.pause_s = pause_s
        self.failures = 0
        self.failure: Exception = DataLoss("collect: asked to fail")
        self.called = asyncio.Event()

    async def collect(self) -> float:
        self.times.append(time.monotonic())
        self.called.set()
        if self.failures:
            self.failures -= 1
            raise self.failure
        return self.pause_s

    async def reach(self, count: int) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while len(self.times) < count:
                self.called.clear()
                await self.called.wait()


def scheduled(
    steps: Callable[[Scheduler, Collections], Awaitable[None]],
    collections: Collections | None = None,
    **schedule: float,
) -> Collections:
    """Run `steps` beside a scheduler."""
    collections = collections or Collections()

    async def beside() -> None:
        scheduler = Scheduler(Schedule(**{**QUICK, **schedule}), collections.collect)  # type: ignore[arg-type]
        running = asyncio.ensure_future(scheduler.run())
        try:
            await steps(scheduler, collections)
        finally:
            running.cancel()
            await asyncio.wait([running])

    asyncio.run(beside())
    return collections


def test_a_start_collects_once_and_an_idle_manager_never() -> None:
    async def steps(_scheduler: Scheduler, collections: Collections) -> None:
        await collections.reach(1)
        await asyncio.sleep(0.3)  # sixty rests
        assert len(collections.times) == 1

    scheduled(steps)


def test_a_deletion_asks_for_a_collection() -> None:
    async def steps(scheduler: Scheduler, collections: Collections) -> None:
        await collections.reach(1)
        scheduler.deleted()
        await collections.reach(2)
        scheduler.deleted()
        await collections.reach(3)

    scheduled(steps)


def test_so_many_changes_ask_for_one_and_fewer_do_not() -> None:
    async def steps(scheduler: Scheduler, collections: Collections) -> None:
        await collections.reach(1)
        for _ in range(4):
            scheduler.mutated()
        await asyncio.sleep(0.1)
        assert len(collections.times) == 1
        scheduler.mutated()
        await collections.reach(2)

    scheduled(steps, mutation_threshold=5)


def test_a_mutation_threshold_of_0_leaves_it_to_deletions() -> None:
    async def steps(scheduler: Scheduler, collections: Collections) -> None:
        await collections.reach(1)
        for _ in range(1000):
            scheduler.mutated()
        await asyncio.sleep(0.1)
        assert len(collections.times) == 1

    scheduled(steps, mutation_threshold=0)


def test_pauses_take_at_most_their_share_of_the_time() -> None:
    async def steps(scheduler: Scheduler, collections: Collections) -> None:
        for count in range(1, 4):
            await collections.reach(count)
            scheduler.deleted()

    pause_s, share = 0.01, 0.1
    collections = scheduled(steps, Collections(pause_s), pause_threshold=share)
    first, second, third = collections.times
    # A pause of 10 ms may come every 100 ms: 90 ms of rest.
    rest_s = pause_s / share - pause_s
    assert second - first >= rest_s
    assert third - second >= rest_s


def test_many_deletions_do_not_wait_for_the_rest() -> None:
    async def steps(scheduler: Scheduler, collections: Collections) -> None:
        await collections.reach(1)
        scheduler.deleted()
        await asyncio.sleep(0.05)
        assert len(collections.times) == 1  # rests for minutes
        scheduler.deleted()
        await collections.reach(2)

    scheduled(steps, Collections(pause_s=10), deletion_threshold=2, pause_threshold=0.02)


def test_the_schedule_delay_gathers_what_comes_together() -> None:
    async def steps(scheduler: Scheduler, collections: Collections) -> None:
        await collections.reach(1)
        scheduler.deleted()
        await asyncio.sleep(0.05)
        scheduler.deleted()
        await collections.reach(2)
        assert collections.times[1] - collections.times[0] >= 0.2
        await asyncio.sleep(0.3)
        assert len(collections.times) == 2

    scheduled(steps, schedule_delay_s=0.2)


@pytest.mark.parametrize("kind", [DataLoss, RuntimeError])
def test_a_failed_collection_is_tried_again(
    kind: type[Exception], caplog: pytest.LogCaptureFixture
) -> None:
    async def steps(_scheduler: Scheduler, collections: Collections) -> None:
        await collections.reach(2)
        assert collections.times[1] - collections.times[0] >= 0.9

    collections = Collections()
    collections.failures = 1
    collections.failure = kind("collect: asked to fail")
    scheduled(steps, collections)
    assert "asked to fail" in caplog.text


def test_a_deletion_during_a_collection_is_not_lost() -> None:
    class Deleting(Collections):
        scheduler: Scheduler

        async def collect(self) -> float:
            await super().collect()
            if len(self.times) == 1:
                await asyncio.sleep(0)
                self.scheduler.deleted()
            return 0.0

    collections = Deleting()

    async def steps(scheduler: Scheduler, _collections: Collections) -> None:
        collections.scheduler = scheduler
        await collections.reach(2)

    scheduled(steps, collections)


@pytest.mark.parametrize("threshold", [0, 1])
def test_a_collection_that_fails_each_time_is_tried_less_and_less(
    monkeypatch: pytest.MonkeyPatch, threshold: int
) -> None:
    monkeypatch.setattr(scheduling, "RETRY_S", 0.01)
    monkeypatch.setattr(scheduling, "MAX_RETRY_S", 0.16)

    collections = Collections()
    collections.failures = 6

    async def steps(_scheduler: Scheduler, collections: Collections) -> None:
        await collections.reach(7)
        rests = [after - before for before, after in itertools.pairwise(collections.times)]
        for rest, least in zip(rests, (0.01, 0.02, 0.04, 0.08, 0.16, 0.16), strict=True):
            assert rest >= least

    scheduled(steps, collections, deletion_threshold=threshold)


def test_a_collection_that_fails_each_time_is_not_told_each_time(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(scheduling, "RETRY_S", 0.001)
    monkeypatch.setattr(scheduling, "MAX_RETRY_S", 0.001)
    collections = Collections()
    collections.failures, collections.failure = 40, ZeroDivisionError("a mistake")

    async def steps(_scheduler: Scheduler, collections: Collections) -> None:
        await collections.reach(41)

    scheduled(steps, collections)
    told = [(record.getMessage(), bool(record.exc_info)) for record in caplog.records]
    assert [place for _said, place in told] == [True, *[False] * 6]
    assert told[-2][0].startswith("collect garbage: ZeroDivisionError: a mistake; 32 times")
    assert told[-1][0] == "collect garbage: done, at try 41"
