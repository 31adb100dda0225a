"""The exit record: how a container ended, on disk before anyone is told.

    <root>/exits/<namespace>/<id>.json   {incarnation, exit_status, exited_at, cause, pid}

Written beside its place and renamed, so that it is whole or absent. It is removed once a manager
has committed the exit; a manager that finds one and no shim settles the task from it.
"""

import os

from lighter.proto.faults import hit
from lighter.shim.files import json_object, write_all


def write(path: str, record: dict[str, object], durable: bool) -> None:
    """Put the record in place; `durable` makes it survive a power loss as well. Raises OSError."""
    temporary = path + ".tmp"
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        fd = os.open(temporary, flags, 0o600)
        try:
            write_all(fd, json_object(record))
            if durable:
                os.fsync(fd)
        finally:
            os.close(fd)
        hit("shim.exit-record-written")
        os.rename(temporary, path)
    except BaseException:
        remove(temporary)
        raise
    if durable:
        directory = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def remove(path: str) -> None:
    """Forget a record that is committed elsewhere."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
