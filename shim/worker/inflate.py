"""From a descriptor to the tar inside: read, hash, inflate, hash, in a thread beside the consumer.

The interpreter lock is free while isal or zstd inflates and OpenSSL hashes, so this thread runs
beside the one that writes files: two cores are used, and a layer takes as long as its slower half.
Memory is bounded by the queue: QUEUE_CHUNKS chunks of CHUNK bytes, whatever the input expands to.
"""

import hashlib
import os
import queue
import threading
from collections.abc import Iterator

from isal import igzip_lib

from lighter.proto.errors import DataLoss, Unimplemented
from lighter.shim.worker.channel import Channel
from lighter.shim.worker.failure import typed
from lighter.shim.worker.zstd import is_zstd, unzstd
from lighter.shim.worker.zstd import load as load_zstd

CHUNK = 1 << 20
QUEUE_CHUNKS = 6
_READ = 256 << 10
# What is fed at once to a gzip member whose end is not known to be far: the decoder copies all
# that follows a member's end, and a file of empty members would be copied quadratically.
_FIRST_FEED = 4 << 10

_GZIP_MAGIC = b"\x1f\x8b\x08"
_UNSUPPORTED = (
    (b"\xfd7zXZ\x00", "xz"),
    (b"BZh", "bzip2"),
)
_HEAD = 6  # bytes that tell any of these
_STACK = 256 << 10


class Source:
    """Iterate for the tar's bytes; the digests and counts are final once the iterator ended.

    `compressed` False takes the input for the tar itself, whatever it begins with. Input that is
    silent for `patience_s` is given up, with DeadlineExceeded.
    """

    __slots__ = (
        "_channel",
        "_compressed",
        "_fd",
        "_hash_in",
        "_hash_out",
        "_head",
        "_patience_s",
        "_queue",
        "in_bytes",
        "out_bytes",
    )

    def __init__(
        self,
        fd: int,
        channel: Channel | None = None,
        *,
        hash_input: bool = False,
        compressed: bool = True,
        patience_s: float | None = None,
    ) -> None:
        self._fd = fd
        self._channel = channel
        self._compressed = compressed
        self._patience_s = patience_s
        self._head = b""
        self._hash_in = hashlib.sha256() if hash_input else None
        self._hash_out = hashlib.sha256()
        self._queue: queue.Queue[bytes | Exception | None] = queue.Queue(QUEUE_CHUNKS)
        self.in_bytes = 0
        self.out_bytes = 0

    @property
    def diff_id(self) -> str:
        """The digest of the uncompressed stream."""
        return "sha256:" + self._hash_out.hexdigest()

    @property
    def digest(self) -> str | None:
        """The digest of the input, if it was asked for."""
        return "sha256:" + self._hash_in.hexdigest() if self._hash_in else None

    def look(self) -> None:
        """Read the first bytes and load what they need: what a worker does before it locks itself
        in. Waits for them."""
        if not self._compressed:
            return
        chunks = self._read()
        while len(self._head) < _HEAD and (chunk := next(chunks, b"")):
            self._head += chunk
        if is_zstd(self._head):
            load_zstd()

    def __iter__(self) -> Iterator[bytes]:
        # The interpreter's default is what the spawner made the default of the C library.
        threading.stack_size(_STACK)
        threading.Thread(target=self._produce, name="inflate", daemon=True).start()
        while (chunk := self._queue.get()) is not None:
            if isinstance(chunk, Exception):
                raise chunk
            yield chunk

    def _produce(self) -> None:
        try:
            chunks = _chain(self._head, self._read())
            for chunk in decode(chunks) if self._compressed else chunks:
                self._hash_out.update(chunk)
                self.out_bytes += len(chunk)
                self._queue.put(chunk)
        except Exception as err:
            self._queue.put(err)
        else:
            self._queue.put(None)

    def _read(self) -> Iterator[bytes]:
        while True:
            try:
                if self._channel is not None:
                    self._channel.wait_readable(self._fd, self._patience_s)
                chunk = os.read(self._fd, _READ)
            except OSError as err:
                raise typed(err, "read input") from err
            if not chunk:
                return
            self.in_bytes += len(chunk)
            if self._hash_in is not None:
                self._hash_in.update(chunk)
            yield chunk


def decode(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """The uncompressed stream, in chunks of about CHUNK bytes; the first bytes tell the format.

    Raises DataLoss for damage, Unimplemented for a compression that is known but not read here.
    """
    head = b""
    for chunk in chunks:
        head += chunk
        if len(head) >= _HEAD:
            break
    whole = _chain(head, chunks)
    if head.startswith(_GZIP_MAGIC):
        yield from _gunzip(whole)
    elif is_zstd(head):
        yield from unzstd(whole)
    else:
        for magic, name in _UNSUPPORTED:
            if head.startswith(magic):
                raise Unimplemented(f"decompress input: {name} is not supported")
        yield from whole


def _chain(head: bytes, chunks: Iterator[bytes]) -> Iterator[bytes]:
    if head:
        yield head
    yield from chunks


def _gunzip(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """All members of a gzip file (RFC 1952). Zero bytes after the last are padding, as in gzip(1);
    anything else there is an error, as in Go's reader."""
    member = None
    feed = 0
    for chunk in chunks:
        position = 0
        while position < len(chunk):
            if member is None:
                if chunk[position] == 0:
                    _expect_padding(chunk[position:], chunks)
                    return
                member = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
                feed = _FIRST_FEED
            piece = chunk[position : position + feed]
            position += len(piece)
            feed = min(2 * feed, _READ)
            yield from _inflate(member, piece)
            if member.eof:
                position -= len(member.unused_data)
                member = None
    if member is not None:
        raise DataLoss("decompress input: it ends inside a gzip member")


def _inflate(member: igzip_lib.IgzipDecompressor, piece: bytes) -> Iterator[bytes]:
    """Everything that `piece` expands to, at most CHUNK bytes at a time."""
    try:
        out = member.decompress(piece, CHUNK)
        while out:
            yield out
            if member.eof or member.needs_input:
                return
            out = member.decompress(b"", CHUNK)
    except igzip_lib.IsalError as err:  # type: ignore[misc]  # the stub calls it an instance
        raise DataLoss(f"decompress input: {err}") from err


def _expect_padding(rest: bytes, chunks: Iterator[bytes]) -> None:
    for chunk in _chain(rest, chunks):
        if chunk.strip(b"\0"):
            raise DataLoss("decompress input: data follows the last gzip member")
