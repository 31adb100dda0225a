"""Reading container logs (proto/logchunks): from the end, from a time, and as they grow.

The files are read where they are; the shim that writes them is not asked, and does not notice.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass

from lighter.proto import logchunks

FOLLOW_S = 0.05


@dataclass(frozen=True)
class Chunk:
    """Bytes as the container wrote them. `stream`: 1 stdout, 2 stderr, 3 the shim's notice."""

    timestamp: int
    stream: int
    data: bytes


@dataclass
class _Position:
    number: int
    offset: int


class LogReader:
    """Reads one log directory."""

    def __init__(self, directory: str) -> None:
        self._dir = directory

    async def read(
        self, tail: int | None, since: int | None, follow: bool, ended: Callable[[], bool]
    ) -> AsyncIterator[Chunk]:
        """Chunks, oldest first. `tail` keeps the last lines, `since` (ns) the newer chunks.

        With `follow` new ones come as they are written, until `ended` says that no more will.
        """
        numbers = self._numbers()
        position = _Position(numbers[0] if numbers else 1, 0)
        if tail is not None:
            kept, position = await asyncio.to_thread(self._tail, numbers, tail)
            for chunk in kept:
                if since is None or chunk.timestamp > since:
                    yield chunk
        while True:
            no_more = not follow or ended()
            for chunk in self._new(position):
                if since is None or chunk.timestamp > since:
                    yield chunk
            if no_more:
                return
            await asyncio.sleep(FOLLOW_S)

    def _new(self, position: _Position) -> Iterator[Chunk]:
        """Whole chunks from `position` on, which moves along; passes on to the next files."""
        while True:
            for chunk, end in self._chunks(position.number, position.offset):
                position.offset = end
                yield chunk
            later = [number for number in self._numbers() if number > position.number]
            if not later:
                return
            # The file is finished only now that a later one is there: read what came meanwhile.
            for chunk, end in self._chunks(position.number, position.offset):
                position.offset = end
                yield chunk
            position.number, position.offset = later[0], 0

    def _tail(self, numbers: list[int], lines: int) -> tuple[list[Chunk], _Position]:
        """The chunks that hold the last `lines` lines, the first one cut, and where they end."""
        kept: list[Chunk] = []
        position = _Position(numbers[-1] if numbers else 1, 0)
        ends = 0  # line ends in `kept`, the very last one not counted
        for number in reversed(numbers):
            chunks = list(self._chunks(number, 0))
            if number == position.number and chunks:
                position.offset = chunks[-1][1]
            for chunk, _end in reversed(chunks):
                if lines <= 0:
                    return [], position
                ends += chunk.data.count(b"\n") - (not kept and chunk.data.endswith(b"\n"))
                kept.append(chunk)
                if ends >= lines:
                    kept[-1] = _after_line_end(chunk, ends - lines + 1)
                    return kept[::-1], position
        return kept[::-1], position

    def _chunks(self, number: int, offset: int) -> Iterator[tuple[Chunk, int]]:
        try:
            path = f"{self._dir}/{logchunks.file_name(number)}"
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return
        with os.fdopen(fd, "rb") as file:
            file.seek(offset)
            while True:
                head = logchunks.parse_head(file.read(logchunks.HEAD.size))
                if head is None:
                    return
                timestamp, stream, length = head
                data = file.read(length)
                if len(data) < length:
                    return  # being written, or cut short by a power loss
                yield Chunk(timestamp, stream, data), file.tell()

    def _numbers(self) -> list[int]:
        try:
            names = os.listdir(self._dir)
        except FileNotFoundError:
            return []
        return sorted(n for n in map(logchunks.file_number, names) if n is not None)


def _after_line_end(chunk: Chunk, count: int) -> Chunk:
    """The rest of the chunk after its `count`-th line end."""
    cut = 0
    for _ in range(count):
        cut = chunk.data.index(b"\n", cut) + 1
    return Chunk(chunk.timestamp, chunk.stream, chunk.data[cut:])
