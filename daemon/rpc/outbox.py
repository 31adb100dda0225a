"""What a client's connection does not take at the moment: a bounded queue in front of it."""

import asyncio
from collections import deque
from collections.abc import Callable

MAX_MESSAGES = 256
MAX_BYTES = 32 << 20


class Outbox:
    """Messages in order. Answers are queued, streams wait until the queue is empty."""

    def __init__(self) -> None:
        self._queue: deque[list[bytes]] = deque()
        self._size_bytes = 0
        self._empty = asyncio.Event()
        self._empty.set()

    def __len__(self) -> int:
        return len(self._queue)

    def add(self, frames: list[bytes]) -> bool:
        """Queue one message; False when there is no room for it."""
        size_bytes = self._size_bytes + sum(map(len, frames))
        if len(self._queue) >= MAX_MESSAGES or size_bytes > MAX_BYTES:
            return False
        self._size_bytes = size_bytes
        self._queue.append(frames)
        self._empty.clear()
        return True

    def flush(self, send: Callable[[list[bytes]], bool]) -> None:
        """Pass messages to `send` until it returns False or nothing is left."""
        while self._queue:
            frames = self._queue.popleft()  # first: `send` may find the client gone, and close us
            if not send(frames):
                self._queue.appendleft(frames)
                break
            self._size_bytes -= sum(map(len, frames))
        if not self._queue:
            self._empty.set()

    async def emptied(self) -> None:
        await self._empty.wait()

    def close(self) -> None:
        """The client is gone: nobody waits for it any more."""
        self._queue.clear()
        self._empty.set()
