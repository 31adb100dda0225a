"""The manager's event loop looks outside once in a few turns, and nobody outside waits for long."""

import asyncio
import os
import selectors
from collections.abc import Iterator

import pytest

from lighter.daemon.turns import TURNS, Selector


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    yield ends
    for end in ends:
        os.close(end)


def test_news_are_looked_for_once_in_a_few_turns(pipe: tuple[int, int]) -> None:
    with Selector() as selector:
        selector.register(pipe[0], selectors.EVENT_READ)
        os.write(pipe[1], b"news")
        for _ in range(2):
            assert [bool(selector.select(0)) for _ in range(TURNS + 1)] == [False] * TURNS + [True]


def test_who_has_nothing_to_do_looks_at_once(pipe: tuple[int, int]) -> None:
    with Selector() as selector:
        selector.register(pipe[0], selectors.EVENT_READ)
        assert not selector.select(0.001)
        os.write(pipe[1], b"news")
        for timeout in (None, 60.0, None):
            assert selector.select(timeout)


def test_work_without_an_end_keeps_nobody_out(pipe: tuple[int, int]) -> None:
    async def hear() -> int:
        loop, turns, heard = asyncio.get_running_loop(), 0, asyncio.Event()

        def go_on() -> None:
            nonlocal turns
            turns += 1
            if not heard.is_set():
                loop.call_soon(go_on)

        loop.add_reader(pipe[0], heard.set)
        os.write(pipe[1], b"news")
        go_on()
        await heard.wait()
        return turns

    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(Selector())) as runner:
        assert 1 <= runner.run(hear()) <= TURNS + 3
