"""Work that reports as it goes, as a stream that never grows.

Of each piece of content only the last word waits for a caller who looks away.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import asdict
from typing import Any

from lighter.daemon.images.progress import Progress, Report
from lighter.daemon.rpc.methods import Result


async def reported(start: Callable[[Report], Awaitable[Any]]) -> AsyncGenerator[Any, None]:
    """Run `start(report)`: its progress as maps, then a Result with what it returned.

    To be used with contextlib.aclosing: whoever stops early cancels the work, and has left when
    the work has let go of everything.
    """
    waiting: dict[tuple[str, str, str], Progress] = {}
    news = asyncio.Event()

    def report(progress: Progress) -> None:
        key = (progress.ref, progress.digest, progress.kind)
        waiting.pop(key, None)  # the new word stands where it was said
        waiting[key] = progress
        news.set()

    work = asyncio.ensure_future(start(report))
    work.add_done_callback(lambda _work: news.set())
    try:
        while not work.done() or waiting:
            await news.wait()
            news.clear()
            while waiting:
                yield asdict(waiting.pop(next(iter(waiting))))
        yield Result(await work)
    finally:
        work.cancel()
        await asyncio.wait((work,))
