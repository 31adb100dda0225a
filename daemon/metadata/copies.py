"""Copies of the database beside it: only begun with room for all of it, and removed if never ended.

A start that fails is tried again a second later, for ever: one that filled the disk with half of a
copy each time would take from containers what they write to.
"""

import logging
import os

from lighter.daemon import files
from lighter.daemon.metadata.reserve import LOW_BYTES
from lighter.proto.errors import ResourceExhausted

log = logging.getLogger("lighter.database")

_PART = ".part"  # and SQLite's own "-journal" of it


def part_of(target: str) -> str:
    """The name of a copy that becomes `target` when it is complete."""
    return f"{target}.{os.urandom(4).hex()}{_PART}"


def drop(part: str) -> None:
    """Remove one that failed, with the journal that SQLite leaves then."""
    files.remove(part)
    files.remove(part + "-journal")


def remove_parts(database: str) -> None:
    """Remove what a kill or a power cut has left of copies; with the instance's lock alone."""
    folder, name = os.path.split(database)
    for other in os.listdir(folder):
        path = f"{folder}/{other}"
        if other.startswith(f"{name}.") and other.removesuffix("-journal").endswith(_PART):
            log.warning("remove %s: it was never completed", path)
            try:
                files.remove(path)
            except OSError as err:  # it takes room, and harms nothing
                log.warning("remove %s: %s", path, err.strerror)


def size_of(database: str) -> int:
    """The most bytes that a copy may have: what is in the log may be in the database, too."""
    files_of_it = (database, database + "-wal")
    return sum(os.path.getsize(path) for path in files_of_it if os.path.exists(path))


def missing_room(database: str, size_bytes: int) -> str:
    """What a copy of so many bytes lacks beside the database; "" when it has room."""
    folder = os.path.dirname(database)
    needed = size_bytes + LOW_BYTES  # without giving up the reserve
    free = files.free_bytes(folder, needed)
    if free >= needed:
        return ""
    return f"it needs {needed} bytes in {folder}, {free} are free"


def need_room(attempt: str, database: str, size_bytes: int) -> None:
    """Raises ResourceExhausted, and nothing is written, where a copy has no room."""
    if missing := missing_room(database, size_bytes):
        raise ResourceExhausted(f"{attempt}: {missing}")
