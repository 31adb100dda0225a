"""TEXT in the database that is no UTF-8: found in all tables, and made again where it can be told.

What this manager writes is ASCII but for a few names, so a letter that is no UTF-8 had another
highest bit. That is no guess where the text must be JSON, or a digest; of a name it is the likely
one, and the old name could not be asked for anyway.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from typing import NamedTuple

from lighter.daemon.content.digest import Digest
from lighter.daemon.metadata.columns import mapping
from lighter.daemon.metadata.db import Database
from lighter.daemon.metadata.texts import Unreadable, restored, text_of
from lighter.daemon.storecheck.found import DATABASE, LEFT, REPAIRED, Found
from lighter.proto.errors import InvalidArgument, LighterError

_JSON = {"labels", "options", "annotations", "record", "log"}
# Their rows tell of what a shim knows better: it was asked when they could not be read.
_ASKED_AGAIN = {"tasks", "execs", "tombstones"}


class Torn(NamedTuple):
    """One text in one column, of one row or of several."""

    table: str
    column: str
    text: Unreadable
    namespace: str


def torn(path: str) -> list[Torn]:
    """All there are, by a connection of its own: for a thread."""
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5)) as opened:
            opened.row_factory = sqlite3.Row
            opened.text_factory = text_of
            tables = [
                row["name"]
                for row in opened.execute(
                    "SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name"
                )
            ]
            found = {one: None for table in tables for one in _torn_of(opened, table)}
    except sqlite3.Error:
        return []  # the check of its pages says what is wrong
    return list(found)


def _torn_of(opened: sqlite3.Connection, table: str) -> Iterator[Torn]:
    for row in opened.execute(f"SELECT * FROM {table} NOT INDEXED"):  # noqa: S608
        for column, value in zip(row.keys(), row, strict=True):
            if type(value) is Unreadable:
                namespace = row["namespace"] if "namespace" in row.keys() else ""  # noqa: SIM118
                yield Torn(table, column, value, namespace or "")


def found(db: Database, one: Torn) -> Found:
    problem = f"{one.column} of {one.table} is no text: {str(one.text)[:100]}"
    return Found(DATABASE, db.path, problem, one.namespace)


def repair(db: Database, one: Torn) -> Found:
    """In one transaction, by the text itself: no index may lead to it any more."""
    said = found(db, one)
    text = restored(one.text)
    # By a look at every row, for its place in the order may be another one.
    where = f"WHERE +{one.column} = CAST(? AS TEXT)"
    try:
        with db.durable_transaction() as tx:
            tx.execute(f"REINDEX {one.table}")
            if one.table in _ASKED_AGAIN:
                tx.execute(f"DELETE FROM {one.table} {where}", (one.text.raw,))  # noqa: S608
                note = "removed"
            elif not _can_be(one.column, text):
                return replace(said, outcome=LEFT, note="it cannot be told what it was")
            else:
                tx.execute(
                    f"UPDATE OR IGNORE {one.table} SET {one.column} = ? {where}",  # noqa: S608
                    (text, one.text.raw),
                )
                note = f"it is {text[:100]}"
            rest = tx.execute(f"SELECT 1 FROM {one.table} {where}", (one.text.raw,))  # noqa: S608
            left = rest.fetchone()
    except LighterError as err:
        return replace(said, outcome=LEFT, note=err.message)
    if left:
        return replace(said, outcome=LEFT, note=f"there is another {text[:100]}")
    return replace(said, outcome=REPAIRED, note=note)


def _can_be(column: str, text: str) -> bool:
    if column in _JSON:
        return mapping(text) is not None
    if column == "digest":
        try:
            Digest.parse(text)
        except InvalidArgument:
            return False
    return text.isprintable()
