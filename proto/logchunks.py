"""The container log's format: what a shim appends and the manager reads.

A log directory holds files `<10 digits>.log`, numbered upwards; the highest is being written. A
file is a run of chunks: a 16-byte head (time in ns since the epoch, stream, length of the data)
and the bytes as the container wrote them, at most 64 KiB. Nothing is parsed or escaped on the way
in: lines are made by the reader. A chunk cut short at the end of a file (power loss) is not there.
"""

import struct

HEAD = struct.Struct("<QBxxxI")
MAX_CHUNK = 64 * 1024
SUFFIX = ".log"


def file_name(number: int) -> str:
    return f"{number:010d}{SUFFIX}"


def file_number(name: str) -> int | None:
    """The number in a log file's name, None for any other file."""
    stem = name.removesuffix(SUFFIX)
    if name == stem or len(stem) != 10 or not stem.isascii() or not stem.isdigit():
        return None
    return int(stem)


def parse_head(head: bytes) -> tuple[int, int, int] | None:
    """(timestamp, stream, length), or None when these are not the first bytes of a chunk."""
    if len(head) < HEAD.size:
        return None
    timestamp, stream, length = HEAD.unpack(head[: HEAD.size])
    if not 1 <= stream <= 3 or length > MAX_CHUNK:
        return None
    return timestamp, stream, length
