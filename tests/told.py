"""What a listener knows of the objects: those of the events, to be compared with those of the rows.

They differ where a change and its event are not one transaction, and something came between.
"""

from typing import Any

import msgpack

from lighter.daemon.metadata.db import Database
from lighter.proto import events

_COMING = {events.IMAGE_CREATE, events.IMAGE_UPDATE, events.SNAPSHOT_PREPARE, events.CONTENT_CREATE}
_GOING = {events.IMAGE_DELETE, events.SNAPSHOT_REMOVE}


def check_told(db: Database, namespace: str) -> None:
    """Images, and snapshots but for views, are the ones that were told; so is content, and what
    was told of it and is gone was collected."""
    told = _told(db, namespace)
    there = {
        kind: {row[0] for row in db.rows(query, (namespace,))}
        for kind, query in (
            ("images", "SELECT name FROM images WHERE namespace = ?"),
            ("snapshot", "SELECT key FROM snapshots WHERE namespace = ? AND kind != 'view'"),
            ("content", "SELECT digest FROM content WHERE namespace = ?"),
        )
    }
    assert told["images"] == there["images"]
    assert told["snapshot"] == there["snapshot"]
    assert told["content"] >= there["content"]


def _told(db: Database, namespace: str) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {"images": set(), "snapshot": set(), "content": set()}
    rows = db.rows(
        "SELECT topic, body FROM events WHERE namespace = ? ORDER BY sequence", (namespace,)
    )
    for topic, packed in rows:
        body: dict[str, Any] = msgpack.unpackb(packed)
        kind = topic.split("/")[1]
        if topic in _COMING:
            found[kind].add(body.get("name") or body.get("key") or body["digest"])
        elif topic in _GOING:
            found[kind].discard(body.get("name") or body["key"])
        elif topic == events.SNAPSHOT_COMMIT:
            found[kind].remove(body["key"])
            found[kind].add(body["name"])
        elif topic == events.CONTENT_DELETE:
            found[kind].remove(body["digest"])
    return found
