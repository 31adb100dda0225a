"""Reading container logs (proto/logchunks): from the end, from a time, and as they grow.

The files are read where they are; the shim that writes them is not asked, and does not notice.
Reading is done in a thread and in batches of bounded size: a log may be of any length, and the
manager serves others meanwhile.
"""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass

from lighter.proto import logchunks

FOLLOW_S = 0.05
BATCH_BYTES = 512 * 1024
_CHUNK_COST = 256  # what an empty chunk counts for: many small ones cost time and memory too


@dataclass(frozen=True)
class Chunk:
    """Bytes as the container wrote them. `stream`: 1 stdout, 2 stderr, 3 the shim's notice."""

    timestamp: int
    stream: int
    data: bytes


@dataclass(frozen=True)
class _Position:
    """Where reading goes on: `offset` in file `number`, after `skip` line ends from there."""

    number: int
    offset: int
    skip: int = 0


class LogReader:
    """Reads one log directory."""

    def __init__(self, directory: str) -> None:
        self._dir = directory

    async def read(
        self,
        tail: int | None,
        since: int | None,
        follow: bool,
        ended: Callable[[], bool],
        *,
        until: int | None = None,
        is_anothers: Callable[[], bool] = lambda: False,
    ) -> AsyncIterator[Chunk]:
        """Chunks, oldest first. `tail` keeps the last lines, `since` (ns) the newer chunks.

        `until` (ns): nothing later, and no waiting for it. `tail` counts from the log's end.

        With `follow` new ones come as they are written, until `ended` says that no more will, or
        `is_anothers` that the directory has been made anew: where to go on is of the one before.
        """
        if tail is None:
            position = _Position(0, 0)
        else:
            position = await asyncio.to_thread(self._find_tail, max(0, tail))
        while True:
            no_more = not follow or ended() or (until is not None and time.time_ns() > until)
            while True:
                before = position
                chunks, position = await asyncio.to_thread(self._batch, position, since)
                if is_anothers():
                    return
                for chunk in chunks:
                    if until is not None and chunk.timestamp > until:
                        return
                    yield chunk
                if position == before:
                    break
            if no_more:
                return
            await asyncio.sleep(FOLLOW_S)

    def _batch(self, position: _Position, since: int | None) -> tuple[list[Chunk], _Position]:
        """Whole chunks from `position` on and where they end; the same position: no more yet."""
        number, offset, skip = position.number, position.offset, position.skip
        numbers = self._numbers()
        if number not in numbers:
            # Before the first file, or rotated away while it was read.
            later = [n for n in numbers if n > number]
            if not later:
                return [], position
            number, offset = later[0], 0
        # Whether it is finished is asked before it is read: what is written meanwhile is not lost.
        finished = [n for n in numbers if n > number]
        chunks: list[Chunk] = []
        cost = 0
        for chunk, end in self._chunks(number, offset):
            offset = end
            cost += _CHUNK_COST + len(chunk.data)
            if skip:
                skip, chunk = _skip_lines(chunk, skip)
            if chunk.data and (since is None or chunk.timestamp > since):
                chunks.append(chunk)
            if cost >= BATCH_BYTES:
                return chunks, _Position(number, offset, skip)
        if finished:
            number, offset = finished[0], 0
        return chunks, _Position(number, offset, skip)

    def _find_tail(self, lines: int) -> _Position:
        """Where the last `lines` lines begin. Bytes after the last line end are a line too."""
        numbers = self._numbers()
        if not lines and numbers:
            return _Position(numbers[-1], self._marks(numbers[-1])[1])
        wanted, last = lines, b""
        for number in reversed(numbers):
            marks, _size, file_last = self._marks(number)
            if file_last and not last:
                last = file_last
                wanted -= last != b"\n"  # a last line without an end is one of those wanted
            for offset, ends in reversed(marks):
                # What precedes the first wanted line ends here: that end is skipped too.
                if ends > wanted:
                    return _Position(number, offset, ends - wanted)
                wanted -= ends
        return _Position(0, 0)

    def _marks(self, number: int) -> tuple[list[tuple[int, int]], int, bytes]:
        """Line ends of a file by stretches of about BATCH_BYTES: [(offset, ends)], with the
        file's readable size and its last byte.
        """
        marks: list[tuple[int, int]] = []
        start = ends = end = 0
        last = b""
        for chunk, end in self._chunks(number, 0):
            ends += chunk.data.count(b"\n")
            last = chunk.data[-1:] or last
            if end - start >= BATCH_BYTES:
                marks.append((start, ends))
                start, ends = end, 0
        return [*marks, (start, ends)], end, last

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
                offset += logchunks.HEAD.size + length
                yield Chunk(timestamp, stream, data), offset

    def _numbers(self) -> list[int]:
        try:
            names = os.listdir(self._dir)
        except FileNotFoundError:
            return []
        return sorted(n for n in map(logchunks.file_number, names) if n is not None)


def _skip_lines(chunk: Chunk, count: int) -> tuple[int, Chunk]:
    """The chunk after its first `count` line ends, and how many of them are still to come."""
    cut = 0
    while count:
        found = chunk.data.find(b"\n", cut)
        if found < 0:
            return count, Chunk(chunk.timestamp, chunk.stream, b"")
        cut = found + 1
        count -= 1
    return 0, Chunk(chunk.timestamp, chunk.stream, chunk.data[cut:])
