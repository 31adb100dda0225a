"""Containers as they are recorded: definitions, not processes (those are tasks)."""

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from lighter.daemon.metadata.columns import mapping, readable, stored, texts, unreadable
from lighter.daemon.metadata.db import Database
from lighter.daemon.metadata.namespaces import Also, ensure_in, merge_labels, nothing
from lighter.daemon.orphans import OWNER_LABEL
from lighter.daemon.types import MAX_SPEC_BYTES, Container
from lighter.proto.daemon_api import PAGE_ROWS
from lighter.proto.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from lighter.proto.names import BROKEN_LABEL, check_labels, check_name

_BESIDE_SPEC = (
    "namespace, id, image, runtime, snapshotter, snapshot_key, labels, options, created_at,"
    " updated_at"
)
_WHOLE = f"{_BESIDE_SPEC}, spec"
_LISTED = f"{_BESIDE_SPEC}, x'' AS spec"


class Stored(NamedTuple):
    """A container as its row has it: `labels` and `options` are JSON texts, or damaged."""

    namespace: str
    id: str
    image: str
    runtime: str
    snapshotter: str
    snapshot_key: str
    labels: str
    options: str
    created_at: int
    updated_at: int
    spec: bytes

    def read(self) -> Container:
        """What it says; what cannot be read is empty, and the labels say so."""
        options = mapping(self.options)
        damaged = [] if options is not None else ["options"]
        damaged += unreadable(self._fields, self, damaged)
        return Container(
            namespace=self.namespace,
            id=self.id,
            image=self.image,
            runtime=self.runtime,
            snapshotter=self.snapshotter,
            snapshot_key=self.snapshot_key,
            spec=bytes(self.spec),
            labels=readable(self.labels, f"container {self.namespace}/{self.id}", *damaged),
            options=options or {},
            created_at=self.created_at,
            updated_at=self.updated_at,
        )


class ContainerStore:
    """The containers of all namespaces. Methods raise "verb container id: cause" errors."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def create(self, container: Container, also: Also = nothing) -> Container:
        """Returns what was recorded, with its times. Raises AlreadyExists, InvalidArgument."""
        check_name(container.id, "container")
        check_labels(dict(container.labels))
        _check_spec("create", container)
        now = time.time_ns()
        made = replace(container, created_at=now, updated_at=now)
        with self._db.durable_transaction() as tx:
            ensure_in(tx, made.namespace)
            done = tx.execute(
                "INSERT OR IGNORE INTO containers(namespace, id, image, runtime, snapshotter,"
                " snapshot_key, spec, labels, options, created_at, updated_at)"
                " VALUES(?,?,?,?,?,?,?,?,?,?,?)",
                (
                    made.namespace,
                    made.id,
                    made.image,
                    made.runtime,
                    made.snapshotter,
                    made.snapshot_key,
                    made.spec,
                    stored(made.labels),
                    json.dumps(dict(made.options)),
                    now,
                    now,
                ),
            )
            if not done.rowcount:
                raise AlreadyExists(f"create container {made.id}: it already exists")
            also(tx)
        return made

    def get(self, namespace: str, container_id: str) -> Container:
        """Raises NotFound, which names the other namespaces that have such a container."""
        return self._find("get", namespace, container_id).read()

    def stored(self, namespace: str, container_id: str) -> Stored:
        """As `get`, for who has read this row before."""
        return self._find("get", namespace, container_id)

    def _find(self, verb: str, namespace: str, container_id: str) -> Stored:
        row = self._db.row(
            f"SELECT {_WHOLE} FROM containers WHERE namespace = ? AND id = ?",  # noqa: S608
            (namespace, container_id),
        )
        if row is None:
            raise self._missing(verb, namespace, container_id)
        return Stored._make(row)

    def list(
        self, namespace: str, cursor: str = "", limit: int = PAGE_ROWS
    ) -> tuple[tuple[Container, ...], str]:
        """One page by id, after the id `cursor`, and the next cursor ("" at the end).

        The containers listed have an empty spec: a page must fit a message.
        """
        limit = max(1, min(limit, PAGE_ROWS))
        rows, more = self._db.page(
            f"SELECT {_LISTED} FROM containers WHERE namespace = ? AND id > ?"  # noqa: S608
            " ORDER BY id LIMIT ?",
            (namespace, cursor),
            limit,
        )
        page = tuple(Stored._make(row).read() for row in rows)
        return page, page[-1].id if more else ""

    def list_stored(self, namespace: str) -> Iterator[Stored]:
        """All containers of a namespace by id, with their specs."""
        rows = self._db.rows(
            f"SELECT {_WHOLE} FROM containers WHERE namespace = ? ORDER BY id",  # noqa: S608
            (namespace,),
        )
        return map(Stored._make, rows)

    def option(self, key: str) -> Iterator[Any]:
        """What the options of all containers that have `key` say under it."""
        rows = self._db.rows(
            "SELECT namespace, id, options FROM containers WHERE instr(options, ?)",
            (json.dumps(key),),
        )
        found = ((mapping(row["options"]) or {}).get(key) for row in rows)
        return (value for value in found if value is not None)

    def specs_beside_damaged_options(self) -> Iterator[dict[str, Any]]:
        """The specs of containers whose options cannot be read: what the options named may be in
        there too.
        """
        rows = self._db.rows(
            "SELECT options, spec FROM containers WHERE CASE"
            " WHEN typeof(options) = 'text' AND json_valid(options)"
            " THEN json_type(options) = 'object' ELSE 0 END = 0"
        )
        return (mapping(bytes(row["spec"])) or {} for row in rows if row["spec"])

    def replace(self, container: Container, also: Also = nothing) -> Container:
        """Record all fields anew but its times; returns it with them.

        Raises NotFound, and FailedPrecondition for one whose record is damaged.
        """
        check_labels(dict(container.labels))
        check_whole("update", self._find("update", container.namespace, container.id).read())
        _check_spec("update", container)
        now = time.time_ns()
        with self._db.durable_transaction() as tx:
            done = tx.execute(
                "UPDATE containers SET image = ?, runtime = ?, snapshotter = ?, snapshot_key = ?,"
                " spec = ?, labels = ?, options = ?, updated_at = ?"
                " WHERE namespace = ? AND id = ?",
                (
                    container.image,
                    container.runtime,
                    container.snapshotter,
                    container.snapshot_key,
                    container.spec,
                    stored(container.labels),
                    json.dumps(dict(container.options)),
                    now,
                    container.namespace,
                    container.id,
                ),
            )
            if not done.rowcount:
                raise self._missing("update", container.namespace, container.id)
            also(tx)
        return self.get(container.namespace, container.id)

    def resolve(self, namespace: str, ref: str) -> str:
        """The id that equals `ref`, else the only generated one that begins with it.

        Names are never abbreviated; only generated hex ids are. Raises NotFound, or InvalidArgument
        when several begin with `ref`.
        """
        rows = self._db.rows(
            "SELECT id FROM containers WHERE namespace = ? AND (id = ? OR"
            " substr(id, 1, ?) = ? AND length(id) IN (12, 64) AND id NOT GLOB '*[^0-9a-f]*')"
            " ORDER BY id = ? DESC, id LIMIT 4",
            (namespace, ref, len(ref), ref, ref),
        )
        ids = [row["id"] for row in rows]
        if not ref or not ids:
            raise self._missing("resolve", namespace, ref)
        if ids[0] == ref or len(ids) == 1:
            return str(ids[0])
        raise InvalidArgument(f"resolve container {ref}: several begin with it: {', '.join(ids)}")

    def update(
        self,
        namespace: str,
        container_id: str,
        *,
        spec: bytes | None = None,
        labels: Mapping[str, str] | None = None,
        options: Mapping[str, object] | None = None,
    ) -> Container:
        """Change what is given; `labels` is merged, "" removing one.

        Raises NotFound, and FailedPrecondition for one whose record is damaged.
        """
        old = self.get(namespace, container_id)
        check_whole("update", old)
        new = replace(
            old,
            spec=old.spec if spec is None else spec,
            labels=merge_labels(old.labels, labels or {}),
            options=old.options if options is None else dict(options),
            updated_at=time.time_ns(),
        )
        _check_spec("update", new)
        with self._db.durable_transaction() as tx:
            tx.execute(
                "UPDATE containers SET spec = ?, labels = ?, options = ?, updated_at = ?"
                " WHERE namespace = ? AND id = ?",
                (
                    new.spec,
                    stored(new.labels),
                    json.dumps(dict(new.options)),
                    new.updated_at,
                    namespace,
                    container_id,
                ),
            )
        return new

    def rename(self, container: Container, name: str, spec: bytes, also: Also = nothing) -> None:
        """Give it and the snapshot that is kept under its name another one.

        Raises NotFound, AlreadyExists, and FailedPrecondition for one whose record is damaged.
        """
        check_whole("rename", container)
        now = time.time_ns()
        key = name if container.snapshot_key == container.id else container.snapshot_key
        with self._db.durable_transaction() as tx:
            done = tx.execute(
                "UPDATE OR IGNORE containers SET id = ?, spec = ?, snapshot_key = ?, updated_at = ?"
                " WHERE namespace = ? AND id = ?",
                (name, spec, key, now, container.namespace, container.id),
            )
            if not done.rowcount:
                raise AlreadyExists(f"rename container {container.id}: {name} exists already")
            if key != container.snapshot_key:
                where = (container.snapshotter, container.namespace)
                taken = (
                    "SELECT 1 FROM snapshots WHERE snapshotter = ? AND namespace = ? AND key = ?"
                )
                if tx.execute(taken, (*where, key)).fetchone():
                    raise AlreadyExists(f"rename container {container.id}: snapshot {key} exists")
                row = tx.execute(
                    "SELECT labels FROM snapshots WHERE snapshotter = ? AND namespace = ?"
                    " AND key = ?",
                    (*where, container.id),
                ).fetchone()
                labels = (texts(row["labels"]) if row else None) or {}
                owned = {**labels, **({OWNER_LABEL: name} if OWNER_LABEL in labels else {})}
                tx.execute(
                    "UPDATE snapshots SET key = ?, labels = ?, updated_at = ?"
                    " WHERE snapshotter = ? AND namespace = ? AND key = ?",
                    (key, json.dumps(owned), now, *where, container.id),
                )
            also(tx)

    def delete(self, namespace: str, container_id: str, also: Also = nothing) -> None:
        """Raises NotFound."""
        with self._db.durable_transaction() as tx:
            done = tx.execute(
                "DELETE FROM containers WHERE namespace = ? AND id = ?", (namespace, container_id)
            )
            if not done.rowcount:
                raise self._missing("delete", namespace, container_id)
            also(tx)

    def _missing(self, verb: str, namespace: str, container_id: str) -> NotFound:
        rows = self._db.rows(
            "SELECT namespace FROM containers WHERE id = ? ORDER BY namespace LIMIT 3",
            (container_id,),
        )
        hint = "".join(
            f"; namespace {row['namespace']} has one (ctl -n {row['namespace']} …)" for row in rows
        )
        return NotFound(
            f"{verb} container {container_id}: there is none in namespace {namespace}{hint}"
        )


def _check_spec(verb: str, container: Container) -> None:
    if len(container.spec) > MAX_SPEC_BYTES:
        raise InvalidArgument(
            f"{verb} container {container.id}: its spec has {len(container.spec)} bytes, "
            f"at most {MAX_SPEC_BYTES} are allowed"
        )


def check_whole(verb: str, container: Container) -> None:
    """Raises FailedPrecondition when its record could not be read whole."""
    broken = container.labels.get(BROKEN_LABEL)
    if broken:
        raise FailedPrecondition(
            f"{verb} container {container.id}: its record is damaged ({broken} cannot be read); "
            "remove it and create it anew"
        )
