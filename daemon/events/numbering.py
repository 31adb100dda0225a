"""Numbers of events over a power cut: none that may have been told is given out a second time.

An event is told when it is committed, which is not yet durable: a cut may take it, but not out of
the memory of who has seen its number. So the first start after one leaves numbers out, as many as
can have been lost. A manager that stops in order notes its last number, which is durable then.
"""

import logging
import sqlite3

from lighter.daemon.metadata.db import Database
from lighter.proto.errors import LighterError

log = logging.getLogger("lighter.events")

# SQLite flushes its log at the latest when it has 1000 pages, and an event takes two of them.
SKIPPED = 10_000

# The highest number that was given out or left out; no row before the first.
NEWEST = "SELECT seq FROM sqlite_sequence WHERE name = 'events'"

_BOOT = "events-boot"
_UNTIL = "events-until"


def begin(db: Database, boot_id: str) -> None:
    """Called before the first event of this manager."""
    noted = {row[0]: row[1] for row in db.rows("SELECT key, value FROM meta")}
    if noted.get(_BOOT) == boot_id and _UNTIL not in noted:
        return
    with db.durable_transaction() as tx:
        last = _newest(tx)
        if noted.get(_BOOT) not in (None, boot_id) and noted.get(_UNTIL) != str(last):
            log.warning("host stopped with a manager: events after %d may be lost", last)
            _continue_after(tx, last + SKIPPED)
        tx.execute("DELETE FROM meta WHERE key = ?", (_UNTIL,))
        tx.execute("INSERT OR REPLACE INTO meta(key, value) VALUES(?, ?)", (_BOOT, boot_id))


def end(db: Database) -> None:
    """Called after the last event of this manager."""
    try:
        with db.durable_transaction() as tx:
            values = (_UNTIL, str(_newest(tx)))
            tx.execute("INSERT OR REPLACE INTO meta(key, value) VALUES(?, ?)", values)
    except LighterError as err:  # then a reboot leaves numbers out
        log.warning("note the last event: %s", err)


def _newest(tx: sqlite3.Connection) -> int:
    row = tx.execute(NEWEST).fetchone()
    return int(row[0]) if row else 0


def _continue_after(tx: sqlite3.Connection, number: int) -> None:
    tx.execute("DELETE FROM sqlite_sequence WHERE name = 'events'")
    tx.execute("INSERT INTO sqlite_sequence(name, seq) VALUES('events', ?)", (number,))
