"""Work that reports: what a slow caller finds, and what becomes of the work when it leaves."""

import asyncio
from contextlib import aclosing
from typing import Any

import pytest

from lighter.daemon.images.progress import Board, Progress, Report, unreported
from lighter.daemon.rpc.methods import Result
from lighter.daemon.rpc.reporting import reported
from lighter.proto.errors import NotFound

DIGEST = "sha256:" + "a" * 64


def test_a_slow_caller_gets_the_last_word_of_each_piece() -> None:
    async def work(report: Report) -> str:
        for done in range(100_000):
            report(Progress("downloading", "x", DIGEST, done, 100_000, "layer"))
            report(Progress("downloading", "x", "other", done, 100_000, "layer"))
        await asyncio.sleep(0)
        return "result"

    async def scenario() -> None:
        *items, result = [item async for item in reported(work)]
        assert [item["digest"] for item in items] == [DIGEST, "other"]
        assert {item["done_bytes"] for item in items} == {99_999}
        assert result == Result("result")

    asyncio.run(scenario())


def test_two_images_that_share_a_layer_are_told_apart() -> None:
    async def work(report: Report) -> None:
        for ref in ("x", "y"):
            report(Progress("unpacking", ref, DIGEST, 1, 2))

    async def scenario() -> None:
        *items, _ = [item async for item in reported(work)]
        assert [item["ref"] for item in items] == ["x", "y"]

    asyncio.run(scenario())


def test_an_error_comes_after_what_was_reported() -> None:
    async def work(report: Report) -> None:
        report(Progress("resolving", "x"))
        raise NotFound("resolve x: there is none")

    async def scenario() -> None:
        items: list[dict[str, Any]] = []
        with pytest.raises(NotFound):
            async for item in reported(work):
                items.append(item)
        assert [item["status"] for item in items] == ["resolving"]

    asyncio.run(scenario())


def test_a_caller_that_leaves_ends_the_work_before_it_has_left() -> None:
    ended: list[str] = []

    async def work(report: Report) -> None:
        report(Progress("resolving", "x"))
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.01)
            ended.append("ended")

    async def scenario() -> None:
        async with aclosing(reported(work)) as stream:
            await anext(stream)
        assert ended == ["ended"]

    asyncio.run(scenario())


def test_a_board_tells_what_changed_and_at_the_end_what_is_left() -> None:
    told: list[Progress] = []

    async def scenario() -> None:
        with Board(told.append, "x") as board:
            board.say("resolving")
            for done in range(1000):
                board.piece("layer", DIGEST, "downloading", done, 1000)
            board.piece("layer", DIGEST, "done", 1000, 1000)

    asyncio.run(scenario())
    assert told == [
        Progress("resolving", "x"),
        Progress("done", "x", DIGEST, 1000, 1000, "layer"),
    ]


def test_a_board_tells_nothing_twice() -> None:
    told: list[Progress] = []

    async def scenario() -> None:
        with Board(told.append, "x") as board:
            board.piece("layer", DIGEST, "exists", 1, 1)
            board.say("done")
            board.piece("layer", DIGEST, "exists", 1, 1)

    asyncio.run(scenario())
    assert [progress.status for progress in told] == ["exists", "done"]
    unreported(told[0])
