"""Looks at paths of callers: their results, their errors, and those that never end."""

import asyncio
import threading
from collections.abc import Iterator

import pytest

from lighter.daemon.looks import HANGING, Looks
from lighter.proto.errors import DeadlineExceeded, ResourceExhausted
from tests.nothreads import no_threads

SOON_S = 0.05


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """What a hanging look waits for; opened at the end."""
    gate = threading.Event()
    yield gate
    gate.set()


def failing() -> None:
    raise FileNotFoundError("gone")


def timing_out() -> None:
    raise TimeoutError("the look's own")


def test_a_look_returns_or_raises_what_it_finds() -> None:
    async def steps() -> None:
        looks = Looks()
        assert await looks.at("use it", threading.current_thread) is not threading.current_thread()
        with pytest.raises(FileNotFoundError, match="gone"):
            await looks.at("use it", failing)
        with pytest.raises(TimeoutError, match="the look's own"):
            await looks.at("use it", timing_out)

    asyncio.run(steps())


def test_one_that_hangs_is_left_alone_and_too_many_are_refused(gate: threading.Event) -> None:
    async def steps() -> None:
        looks = Looks(SOON_S)
        hanging = [looks.at("use /mnt/dead", gate.wait) for _ in range(HANGING)]
        for result in await asyncio.gather(*hanging, return_exceptions=True):
            assert isinstance(result, DeadlineExceeded)
            assert result.message.startswith("use /mnt/dead: ")
        with pytest.raises(ResourceExhausted, match="use /mnt/dead: 32 looks"):
            await looks.at("use /mnt/dead", gate.wait)
        gate.set()
        for _ in range(2000):
            if not looks.under_way:
                break
            await asyncio.sleep(0.01)
        looks._look_s = 30.0  # a thread may take longer to begin than those that hang are given
        assert await looks.at("use it", lambda: 1) == 1

    asyncio.run(steps())


def test_a_look_that_gets_no_thread_counts_as_none() -> None:
    async def steps() -> None:
        looks = Looks()
        with no_threads(), pytest.raises(ResourceExhausted, match="use it: can't start new thread"):
            await looks.at("use it", lambda: 1)
        assert looks.under_way == 0
        assert await looks.at("use it", lambda: 1) == 1

    asyncio.run(steps())
