"""A connected client: its calls, what its streams may send it, and what it does not take yet."""

import asyncio
from collections import deque
from collections.abc import Callable

MAX_MESSAGES = 256  # that wait for one client
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


class Credit:
    """What the reader of one stream still takes; its writer waits for more."""

    def __init__(self, size_bytes: int) -> None:
        self._left_bytes = size_bytes
        self._more = asyncio.Event()

    def grant(self, size_bytes: int) -> None:
        self._left_bytes += size_bytes
        self._more.set()

    async def spend(self, size_bytes: int) -> None:
        """Wait until there is some. The last of it may be overdrawn."""
        while self._left_bytes <= 0:
            self._more.clear()
            await self._more.wait()
        self._left_bytes -= size_bytes


class Client:
    """One process, by the kernel's word, on one connection."""

    def __init__(
        self, routing_id: bytes, pid: int, uid: int, pidfd: int, connection: tuple[int, int]
    ) -> None:
        self.routing_id = routing_id
        self.connection = connection
        self.pid = pid
        self.uid = uid
        self.pidfd = pidfd
        self.version = 0
        self.calls: dict[int, asyncio.Task[None]] = {}
        self.credits: dict[int, Credit] = {}
        self.outbox = Outbox()
