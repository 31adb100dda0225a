"""The index of the database's log (`…-shm`), a file that is mapped: there a full disk is a signal.

SQLite has the file system allocate it by one byte for each 4 KiB. Where blocks are smaller the rest
are holes until the first write to the log, and who writes to one on a full disk ends by SIGBUS. So
there a database is opened only with room for both. An index that is there is no room: the first
connection after a `kill -9` makes it anew.
"""

import errno
import os

_INDEX_BYTES = 32 << 10  # as large as it begins, and stays while the log is moved away in time
_FIRST_WRITE_BYTES = 32 << 10  # goes to the log before the index hears of it
_PAGE_BYTES = 4096  # what SQLite allocates by, whatever the blocks are
_FULL = (errno.ENOSPC, errno.EDQUOT)


def has_room(database: str) -> bool:
    """Whether a connection to the database, which exists, can be opened without such an end."""
    folder = os.path.dirname(database)
    try:
        if os.statvfs(folder).f_bsize >= _PAGE_BYTES:
            return True
        fd = os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(fd, 0, _INDEX_BYTES + _FIRST_WRITE_BYTES)
        finally:
            os.close(fd)
    except OSError as err:
        return err.errno not in _FULL
    return True
