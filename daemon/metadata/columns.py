"""Columns that hold JSON: `labels`, `options`, `annotations`. One that is damaged spoils no other.

What cannot be read reads as empty and marks its object with a label, BROKEN_LABEL, whose value
names the columns, and with them any other whose text is none. So it is seen in every list, through
every API, found by a filter, and can be removed. The label is no part of what is stored.
"""

import json
import logging
import sqlite3
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from lighter.daemon.metadata.texts import Unreadable
from lighter.proto.names import BROKEN_LABEL

log = logging.getLogger("lighter.database")


def mapping(text: object) -> dict[str, Any] | None:
    """A JSON object with its values; None for what is none."""
    if not isinstance(text, str | bytes) or isinstance(text, Unreadable):
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def texts(text: object) -> dict[str, str] | None:
    """A JSON object whose values are texts; None for what is none."""
    value = mapping(text)
    if value is None or not all(isinstance(one, str) for one in value.values()):
        return None
    return value


def labels_of(row: sqlite3.Row, what: str, *damaged: str) -> dict[str, str]:
    """The row's labels, as `readable` has them."""
    return readable(row["labels"], what, *damaged, *unreadable(row.keys(), row, damaged))


def unreadable(
    names: Iterable[str], values: Iterable[object], besides: Collection[str] = ()
) -> list[str]:
    """The columns whose text is none, but for labels (`readable` looks at these) and `besides`."""
    return [
        name
        for name, value in zip(names, values, strict=True)
        if type(value) is Unreadable and name != "labels" and name not in besides
    ]


def readable(text: object, what: str, *damaged: str) -> dict[str, str]:
    """The labels of this text; with BROKEN_LABEL when they, or the columns `damaged`, cannot be
    read.

    `what` is for the log: "container web".
    """
    labels = texts(text)
    broken = (*(("labels",) if labels is None else ()), *damaged)
    if not broken:
        return labels or {}
    log.error("read %s: its %s cannot be read", what, " and ".join(broken))
    return {**(labels or {}), BROKEN_LABEL: ",".join(broken)}


def stored(labels: Mapping[str, str]) -> str:
    """The text for the column."""
    return json.dumps({key: value for key, value in labels.items() if key != BROKEN_LABEL})
