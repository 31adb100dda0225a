"""Job `recompress`: a layer's tar, the same bytes, under another compression.

    {job: "recompress", to: "none" | "gzip" | "zstd", compressed: bool, limits: {max_bytes}} +
    [layer, new file] → {digest, diff_id, new_digest, size_bytes}

`digest` is of what was read, `diff_id` of the tar, `new_digest` and `size_bytes` of what was
written, which is synced. `compressed` false: the layer is a tar, whatever it begins with. The same
tar always becomes the same bytes. Memory is bounded by inflate.py's queue.
"""

import hashlib
import os
from collections.abc import Iterator
from typing import Any

from lighter.proto.errors import InvalidArgument, Unavailable, words_of
from lighter.shim import guard
from lighter.shim.worker import lockin, zstd
from lighter.shim.worker.budget import Budget
from lighter.shim.worker.channel import Channel
from lighter.shim.worker.failure import typed
from lighter.shim.worker.inflate import Source

_GZIP_WINDOW = 31  # zlib's way to ask for a gzip header with the largest window
_GZIP_LEVEL = 2  # of ISA-L's 0 to 3
_ZSTD_LEVEL = 3


def run(job: dict[str, Any], fds: list[int], channel: Channel) -> dict[str, Any]:
    """Do the job; see the module's head. Raises typed errors."""
    if len(fds) != 2:
        raise InvalidArgument(f"recompress layer: expected two descriptors, got {len(fds)}")
    layer, target = fds
    compressor = _compressor(job.get("to"))  # loads what it needs before the lock
    source = Source(layer, channel, hash_input=True, compressed=bool(job.get("compressed", True)))
    source.look()
    lockin.close_all_but([channel.fileno(), layer, target])
    lockin.enter([], ())
    budget = Budget(target, (job.get("limits") or {}).get("max_bytes"))
    written = hashlib.sha256()
    size = 0
    try:
        for piece in _compressed(source, compressor, channel):
            budget.file(len(piece))
            written.update(piece)
            size += len(piece)
            view = memoryview(piece)
            while view:
                view = view[os.write(target, view) :]
        os.fsync(target)
    except OSError as err:
        raise typed(err, "recompress layer") from err
    return {
        "digest": source.digest,
        "diff_id": source.diff_id,
        "new_digest": "sha256:" + written.hexdigest(),
        "size_bytes": size,
    }


def _compressor(to: object) -> Any:
    """An object with compress() and flush(), None for none. Raises InvalidArgument."""
    if to == "none":
        return None
    if to == "zstd":
        library = zstd.load()
        return library.ZstdCompressor(level=_ZSTD_LEVEL, write_checksum=True).compressobj()
    if to == "gzip":
        try:
            library = guard.load_late("isal.isal_zlib")
        except (ImportError, OSError) as err:
            raise Unavailable(f"load isal: {words_of(err)}") from err
        return library.compressobj(_GZIP_LEVEL, library.DEFLATED, _GZIP_WINDOW)
    raise InvalidArgument(f"recompress layer: {to!r} is no compression")


def _compressed(source: Source, compressor: Any, channel: Channel) -> Iterator[bytes]:
    for chunk in source:
        channel.tick(done_bytes=source.in_bytes)
        piece = chunk if compressor is None else compressor.compress(chunk)
        if piece:
            yield piece
    if compressor is not None:
        yield compressor.flush()
