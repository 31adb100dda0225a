"""Work that reports as it goes, as a stream that never grows.

Of each piece of content only the last word waits for a caller who looks away.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import asdict
from typing import Any

from lighter.daemon.images.progress import Progress, Report


class Reporting:
    """Runs `start(report)`; iterating yields its progress as maps, then `result` is there.

    A caller who stops iterating cancels the work, and leaves when it has let go.
    """

    def __init__(self, start: Callable[[Report], Awaitable[Any]]) -> None:
        self._start = start
        self._waiting: dict[tuple[str, str], Progress] = {}
        self._news = asyncio.Event()
        self.result: Any = None

    def _report(self, progress: Progress) -> None:
        key = (progress.digest, progress.kind)
        self._waiting.pop(key, None)  # the new word stands where it was said
        self._waiting[key] = progress
        self._news.set()

    async def __aiter__(self) -> AsyncIterator[dict[str, Any]]:
        work = asyncio.ensure_future(self._start(self._report))
        work.add_done_callback(lambda _work: self._news.set())
        try:
            while not work.done() or self._waiting:
                await self._news.wait()
                self._news.clear()
                while self._waiting:
                    key = next(iter(self._waiting))
                    yield asdict(self._waiting.pop(key))
            self.result = await work
        finally:
            work.cancel()
            await asyncio.wait((work,))
