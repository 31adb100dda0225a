"""The names of images: rows that point a name, stored as it was given, at a tree of content."""

import json
import sqlite3
import time
from collections.abc import Iterable, Mapping

from lighter.daemon.events.log import Event, EventLog
from lighter.daemon.images import reference
from lighter.daemon.metadata.columns import labels_of, stored, texts
from lighter.daemon.metadata.db import Database
from lighter.daemon.metadata.namespaces import ensure_in, merge_labels
from lighter.daemon.types import Descriptor, Image
from lighter.proto import events
from lighter.proto.daemon_api import PAGE_ROWS
from lighter.proto.errors import AlreadyExists, InvalidArgument, NotFound
from lighter.proto.names import check_labels

MAX_NAME_BYTES = 1024


class ImageStore:
    """The image names of all namespaces. Errors read "verb image name: cause".

    Each change is told, by an event in the transaction that makes it.
    """

    def __init__(self, db: Database, events_log: EventLog) -> None:
        self._db = db
        self._events = events_log

    def put_all(
        self,
        namespace: str,
        targets: Mapping[str, Descriptor],
        *,
        replace: bool = True,
        labels: Mapping[str, str] | None = None,
    ) -> tuple[Image, ...]:
        """Point names at targets, in one transaction; a name's birth and labels stay, but for
        what `labels` changes of them: the value "" removes one.

        Without `replace`, raises AlreadyExists for a name that exists.
        """
        recorded = []
        with self._db.durable_transaction() as tx:
            ensure_in(tx, namespace)
            for name, target in targets.items():
                _check_name(name)
                before = _labels(tx, namespace, name)
                _put(tx, namespace, name, target, {}, replace=replace)
                after = before or {}
                if labels:
                    after = merge_labels(after, labels)
                    _set_labels(tx, namespace, name, after)
                topic = events.IMAGE_CREATE if before is None else events.IMAGE_UPDATE
                recorded.append(self._tell(tx, namespace, topic, name, after))
        self._events.announce(*recorded)
        return tuple(self.get(namespace, name) for name in targets)

    def create(
        self,
        namespace: str,
        name: str,
        target: Descriptor,
        labels: Mapping[str, str],
        at_ns: int | None = None,
    ) -> Image:
        """A new name with labels, made at `at_ns` or now. Raises AlreadyExists, InvalidArgument."""
        _check_name(name)
        kept = merge_labels({}, labels)
        with self._db.durable_transaction() as tx:
            ensure_in(tx, namespace)
            _put(tx, namespace, name, target, kept, replace=False, at_ns=at_ns)
            recorded = self._tell(tx, namespace, events.IMAGE_CREATE, name, kept)
        self._events.announce(recorded)
        return self.get(namespace, name)

    def update(
        self,
        namespace: str,
        name: str,
        target: Descriptor,
        labels: Mapping[str, str],
        at_ns: int | None = None,
    ) -> Image:
        """Point a name elsewhere at `at_ns` or now, with exactly these labels.

        Raises NotFound, InvalidArgument.
        """
        self.get(namespace, name)
        kept = merge_labels({}, labels)
        with self._db.durable_transaction() as tx:
            _put(tx, namespace, name, target, {}, replace=True)
            _set_labels(tx, namespace, name, kept, at_ns)
            recorded = self._tell(tx, namespace, events.IMAGE_UPDATE, name, kept)
        self._events.announce(recorded)
        return self.get(namespace, name)

    def get(self, namespace: str, name: str) -> Image:
        """The image of exactly this name. Raises NotFound."""
        image = self._exact(namespace, name)
        if image is None:
            raise self._missing("get", namespace, name)
        return image

    def find(self, namespace: str, name: str, verb: str = "find") -> Image:
        """The image of exactly this name, else of its full form. Raises NotFound."""
        image = self._exact(namespace, name)
        if image is None:
            try:
                image = self._exact(namespace, reference.normalise(name))
            except InvalidArgument:
                pass
        if image is None:
            raise self._missing(verb, namespace, name)
        return image

    def targets(self, namespace: str, names: Iterable[str]) -> dict[str, Descriptor]:
        """What those of the names that are here stand for."""
        found = {name: self._exact(namespace, name) for name in names}
        return {name: image.target for name, image in found.items() if image is not None}

    def exists(self, namespace: str, name: str) -> bool:
        """Whether there is an image of exactly this name."""
        return self._exact(namespace, name) is not None

    def list(
        self, namespace: str, cursor: str = "", limit: int = PAGE_ROWS
    ) -> tuple[tuple[Image, ...], str]:
        """One page by name, after the name `cursor`, and the next cursor ("" at the end)."""
        limit = max(1, min(limit, PAGE_ROWS))
        rows, more = self._db.page(
            "SELECT * FROM images WHERE namespace = ? AND name > ? ORDER BY name LIMIT ?",
            (namespace, cursor),
            limit,
        )
        page = tuple(map(_image, rows))
        return page, page[-1].name if more else ""

    def label(
        self, namespace: str, name: str, changes: Mapping[str, str], *, replace_all: bool = False
    ) -> Image:
        """Set labels; the value "" removes one, `replace_all` all that are not named.

        Raises NotFound, InvalidArgument.
        """
        before = self.get(namespace, name).labels
        labels = merge_labels({} if replace_all else before, changes)
        with self._db.durable_transaction() as tx:
            _set_labels(tx, namespace, name, labels)
            recorded = self._tell(tx, namespace, events.IMAGE_UPDATE, name, labels)
        self._events.announce(recorded)
        return self.get(namespace, name)

    def delete(self, namespace: str, names: Iterable[str]) -> None:
        """Raises NotFound; then none is deleted."""
        recorded = []
        with self._db.durable_transaction() as tx:
            for name in names:
                done = tx.execute(
                    "DELETE FROM images WHERE namespace = ? AND name = ?", (namespace, name)
                )
                if not done.rowcount:
                    raise self._missing("delete", namespace, name)
                recorded.append(
                    self._events.append(tx, namespace, events.IMAGE_DELETE, {"name": name})
                )
        self._events.announce(*recorded)

    def _tell(
        self,
        tx: sqlite3.Connection,
        namespace: str,
        topic: str,
        name: str,
        labels: Mapping[str, str],
    ) -> Event:
        return self._events.append(tx, namespace, topic, {"name": name, "labels": dict(labels)})

    def _exact(self, namespace: str, name: str) -> Image | None:
        row = self._db.row(
            "SELECT * FROM images WHERE namespace = ? AND name = ?", (namespace, name)
        )
        return _image(row) if row else None

    def _missing(self, verb: str, namespace: str, name: str) -> NotFound:
        rows = self._db.rows(
            "SELECT namespace FROM images WHERE name = ? ORDER BY namespace LIMIT 3", (name,)
        )
        hint = "".join(
            f"; namespace {row['namespace']} has it (ctl -n {row['namespace']} …)" for row in rows
        )
        return NotFound(
            f"{verb} image {name}: there is no such image in namespace {namespace}{hint}",
            missing="image",
        )


def _check_name(name: str) -> None:
    if not name or len(name.encode(errors="replace")) > MAX_NAME_BYTES or not name.isprintable():
        raise InvalidArgument(
            f"name image {name[:60]!r}: a name has 1 to {MAX_NAME_BYTES} bytes, all printable"
        )


def _labels(tx: sqlite3.Connection, namespace: str, name: str) -> dict[str, str] | None:
    """None when there is no such name."""
    row = tx.execute(
        "SELECT labels FROM images WHERE namespace = ? AND name = ?", (namespace, name)
    ).fetchone()
    return None if row is None else texts(row["labels"]) or {}


def _put(
    tx: sqlite3.Connection,
    namespace: str,
    name: str,
    target: Descriptor,
    labels: Mapping[str, str],
    *,
    replace: bool,
    at_ns: int | None = None,
) -> None:
    """Record a name; one that is there keeps its labels and its birth."""
    now = time.time_ns() if at_ns is None else at_ns
    conflict = (
        "DO UPDATE SET media_type = excluded.media_type, digest = excluded.digest,"
        " size_bytes = excluded.size_bytes, annotations = excluded.annotations,"
        " updated_at = excluded.updated_at"
        if replace
        else "DO NOTHING"
    )
    done = tx.execute(
        "INSERT INTO images(namespace, name, media_type, digest, size_bytes, annotations,"
        " labels, created_at, updated_at)"
        f" VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT {conflict}",
        (
            namespace,
            name,
            target.media_type,
            target.digest,
            target.size,
            json.dumps(dict(target.annotations)),
            stored(labels),
            now,
            now,
        ),
    )
    if not done.rowcount:
        raise AlreadyExists(f"create image {name}: it already exists")


def _set_labels(
    tx: sqlite3.Connection,
    namespace: str,
    name: str,
    labels: Mapping[str, str],
    at_ns: int | None = None,
) -> None:
    now = time.time_ns() if at_ns is None else at_ns
    tx.execute(
        "UPDATE images SET labels = ?, updated_at = ? WHERE namespace = ? AND name = ?",
        (stored(check_labels(dict(labels))), now, namespace, name),
    )


def _image(row: sqlite3.Row) -> Image:
    annotations = texts(row["annotations"])
    damaged = () if annotations is not None else ("annotations",)
    return Image(
        namespace=row["namespace"],
        name=row["name"],
        target=Descriptor(
            media_type=row["media_type"],
            digest=row["digest"],
            size=row["size_bytes"],
            annotations=annotations or {},
        ),
        labels=labels_of(row, f"image {row['namespace']}/{row['name']}", *damaged),
        created_at=row["created_at"],
        updated_at=row["updated_at"],
    )
