"""The first thing that an instance's database is asked: whether it is all that there was."""

import contextlib
import os
import time

from lighter.daemon import eventnumbers
from lighter.daemon.metadata.db import Database
from lighter.daemon.tasks.recovery import read_boot_id
from lighter.proto.paths import Root, State

LOST = "the database was not there, and containers or their files were"


def begin(db: Database, root: Root, state: State) -> int:
    """Count a start, and note with the first one when its database cannot be the first there was.

    Returns the generation. A shim heeds no lower one than it has seen, and outlives a database that
    is lost: beside tasks, the first number is the time.
    """
    has_tasks = _has_entries(state.tasks)
    lost = has_tasks or _has_files(root)
    eventnumbers.begin(db, read_boot_id())
    return db.raise_generation(int(time.time()) if has_tasks else 1, LOST if lost else "")


def _has_files(root: Root) -> bool:
    """Whether there is content or a snapshot, which a first start of all finds none of."""
    for place in (f"{root.content}/blobs", root.snapshots):
        with contextlib.suppress(FileNotFoundError), os.scandir(place) as kinds:
            if any(kind.is_dir() and os.listdir(kind.path) for kind in kinds):
                return True
    return False


def _has_entries(path: str) -> bool:
    with contextlib.suppress(FileNotFoundError), os.scandir(path) as found:
        return any(found)
    return False
