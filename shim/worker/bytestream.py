"""Exact reads over a source of chunks: what stands between the decoder and a parser."""

from collections.abc import Iterator


class ByteStream:
    """`chunks` is any iterator of bytes; `offset` counts what was read. Holds one chunk."""

    __slots__ = ("_chunk", "_chunks", "_position", "offset")

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._chunk = b""
        self._position = 0
        self.offset = 0

    def read(self, size: int) -> bytes:
        """`size` bytes, fewer only when the stream ends."""
        start = self._position
        end = start + size
        if end <= len(self._chunk):
            self._position = end
            self.offset += size
            return self._chunk[start:end]
        return b"".join(self.take(size))

    def take(self, size: int) -> Iterator[memoryview]:
        """`size` bytes in pieces that are not copied, fewer only when the stream ends."""
        left = size
        while left:
            start = self._position
            step = min(left, len(self._chunk) - start)
            if not step:
                if not self._load():
                    return
                continue
            self._position = start + step
            self.offset += step
            left -= step
            yield memoryview(self._chunk)[start : start + step]

    def skip(self, size: int) -> int:
        """Pass over `size` bytes; returns how many there were."""
        step = min(size, len(self._chunk) - self._position)
        self._position += step
        self.offset += step
        if step == size:
            return size
        return step + sum(len(piece) for piece in self.take(size - step))

    def drain(self) -> int:
        """Read to the end; returns how many bytes there were."""
        count = len(self._chunk) - self._position
        while self._load():
            count += len(self._chunk)
        self._position = len(self._chunk)
        self.offset += count
        return count

    def _load(self) -> bool:
        for chunk in self._chunks:
            if chunk:
                self._chunk = chunk
                self._position = 0
                return True
        self._chunk = b""
        self._position = 0
        return False
