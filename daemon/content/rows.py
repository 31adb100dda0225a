"""What the database knows of content: which namespace sees which digest, and what may be swept."""

import json
import sqlite3
import time
from collections.abc import Iterable, Mapping

from lighter.daemon.content.blobs import Arrival
from lighter.daemon.content.digest import Digest
from lighter.daemon.filters import label_path
from lighter.daemon.metadata.columns import labels_of, texts
from lighter.daemon.metadata.namespaces import merge_labels
from lighter.daemon.types import ContentInfo

TRASH = "content"
SHAREABLE_LABEL = "containerd.io/namespace.shareable"


def record(tx: sqlite3.Connection, namespace: str, digest: Digest, arrival: Arrival) -> bool:
    """Note what has arrived, and that it is not to be swept; whether it is new to the namespace."""
    now = time.time_ns()
    row = tx.execute(
        "SELECT labels FROM content WHERE namespace = ? AND digest = ?", (namespace, digest)
    ).fetchone()
    labels = merge_labels((texts(row["labels"]) if row else None) or {}, arrival.labels)
    tx.execute(
        "INSERT INTO content(namespace, digest, size_bytes, labels, created_at, updated_at)"
        " VALUES(?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE"
        " SET size_bytes = excluded.size_bytes, labels = excluded.labels,"
        " updated_at = excluded.updated_at",
        (namespace, digest, arrival.size_bytes, json.dumps(labels), now, now),
    )
    tx.execute("DELETE FROM trash WHERE owner = ? AND name = ?", (TRASH, digest.hex))
    return row is None


def row_to_share(digest: Digest) -> tuple[str, tuple[str, ...]]:
    """The query of content's size and namespace's labels; of several rows one that is shared."""
    query = (
        "SELECT size_bytes, namespaces.labels FROM content"
        " JOIN namespaces ON namespaces.name = content.namespace"
        " WHERE digest = ? ORDER BY"
        # Of AND both sides are computed, and the second fails for what is no JSON.
        " CASE WHEN typeof(namespaces.labels) = 'text' AND json_valid(namespaces.labels)"
        " THEN json_extract(namespaces.labels, ?) = 'true' ELSE 0 END DESC"
    )
    return query, (digest, f'$."{SHAREABLE_LABEL}"')


def record_seen(
    tx: sqlite3.Connection,
    namespace: str,
    digest: Digest,
    size_bytes: int,
    labels: Mapping[str, str],
) -> bool:
    """Give a namespace the sight of what is there; whether it is new to it."""
    now = time.time_ns()
    done = tx.execute(
        "INSERT OR IGNORE INTO content(namespace, digest, size_bytes, labels,"
        " created_at, updated_at)"
        " VALUES(?, ?, ?, ?, ?, ?)",
        (namespace, digest, size_bytes, json.dumps(merge_labels({}, labels)), now, now),
    )
    return done.rowcount > 0


def delete_rows(tx: sqlite3.Connection, namespace: str, digests: Iterable[Digest]) -> int:
    """Inside a transaction: take content from a namespace and note what may be swept."""
    gone = 0
    for digest in digests:
        gone += tx.execute(
            "DELETE FROM content WHERE namespace = ? AND digest = ?", (namespace, digest)
        ).rowcount
        tx.execute("INSERT OR IGNORE INTO trash(owner, name) VALUES(?, ?)", (TRASH, digest.hex))
    return gone


def field_of(info: ContentInfo, path: tuple[str, ...]) -> str | None:
    """What a filter asks of content (containerd's AdaptInfo; sizes cannot be compared)."""
    if path == ("digest",):
        return info.digest
    if path[0] == "labels":
        return info.labels.get(label_path(path[1:]))
    return None


def info_of(row: sqlite3.Row) -> ContentInfo:
    return ContentInfo(
        digest=row["digest"],
        size=row["size_bytes"],
        labels=labels_of(row, f"content {row['digest']}"),
        created_at=row["created_at"],
        updated_at=row["updated_at"],
    )
