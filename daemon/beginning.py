"""The first thing that an instance's database is asked: whether it is all that there was."""

import contextlib
import logging
import os
import time

from lighter.daemon import files
from lighter.daemon.events import numbering
from lighter.daemon.metadata.db import Database
from lighter.daemon.procfs import read_boot_id
from lighter.proto.paths import Root, State

log = logging.getLogger("lighter.beginning")

LOST = "the database was not there, and containers or their files were"
OLDER = "the database is an older copy of the one that was used before"


def begin(db: Database, root: Root, state: State) -> int:
    """Count a start, and note with the first one when its database cannot be the first there was.

    Returns the generation. A shim heeds no lower one than it has seen, and outlives a database that
    is lost, or replaced by an older copy: beside tasks, the first number is the time, and the last
    one stands beside them too.
    """
    has_tasks = _has_entries(state.tasks)
    lost = has_tasks or _has_files(root)
    numbering.begin(db, read_boot_id())
    last = f"{state.dir}/generation"
    generation = db.raise_generation(
        int(time.time()) if has_tasks else 1,
        LOST if lost else "",
        seen=_read(last, root.instance),
        older=OLDER,
    )
    try:
        files.write_whole(last, f"{root.instance} {generation}\n".encode())
    except FileNotFoundError:
        pass  # no manager has been here yet, nor any shim
    except OSError as err:  # it is needed only beside a database that somebody puts back
        log.warning("note generation in %s: %s", last, err.strerror)
    return generation


def _read(path: str, instance: str) -> int:
    """The generation that this instance has noted there; 0 for none."""
    with contextlib.suppress(OSError, ValueError):
        of, generation = (files.read_capped(path, 40) or b"").decode("ascii").split()
        if of == instance:
            return int(generation)
    return 0


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
