"""Where a layer that is made goes: hashed, compressed, hashed again, written to a descriptor."""

import hashlib
import os

from lighter.proto.errors import InvalidArgument, Unavailable
from lighter.shim import guard

LEVEL = {"gzip": 1, "zstd": 3}


class Sink:
    """Takes the bytes of a tar. Made before the worker locks itself in: it may load a library."""

    __slots__ = ("_compressor", "_fd", "_plain", "_stored", "size_bytes")

    def __init__(self, fd: int, compression: str) -> None:
        self._fd = fd
        self._plain, self._stored = hashlib.sha256(), hashlib.sha256()
        self.size_bytes = 0
        self._compressor = None
        try:
            if compression == "gzip":
                zlib = guard.load_late("isal.isal_zlib")
                self._compressor = zlib.compressobj(LEVEL["gzip"], zlib.DEFLATED, 31)
            elif compression == "zstd":
                library = guard.load_late("zstandard")
                options = {"level": LEVEL["zstd"], "write_checksum": True}
                self._compressor = library.ZstdCompressor(**options).compressobj()
            elif compression:
                raise InvalidArgument(f"make layer: compression {compression!a} is not known")
        except ImportError as err:
            raise Unavailable(f"make layer: {err}") from err

    @property
    def diff_id(self) -> str:
        return "sha256:" + self._plain.hexdigest()

    @property
    def digest(self) -> str:
        return "sha256:" + self._stored.hexdigest()

    def write(self, data: bytes) -> None:
        self._plain.update(data)
        self._store(self._compressor.compress(data) if self._compressor else data)

    def finish(self) -> None:
        if self._compressor:
            self._store(self._compressor.flush())

    def _store(self, data: bytes) -> None:
        self._stored.update(data)
        self.size_bytes += len(data)
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self._fd, rest) :]
