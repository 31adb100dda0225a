"""The database's tables, as a list of migrations: the n-th takes a database to `user_version` n.

A released migration is never edited. A release adds at most one, and it only adds (tables,
columns with a default, indexes): so the release before can work on the newer database, and no
older one is asked to. For the same reason every INSERT names its columns; 0.1.0 did not, so the
migration after the first adds no column to a table that 0.1.0 fills (all but tasks, execs, events
and snapshots).

Labels, annotations and options of containers are JSON texts. Times are nanoseconds since the
epoch. Tasks hold no foreign key to containers: a shim whose container is not recorded must be
recordable.
"""

import sqlite3

from lighter.proto.errors import FailedPrecondition
from lighter.proto.faults import hit

# snapshots.number: AUTOINCREMENT, because a number names a directory and is never used twice.
# trash: what a sweep may remove from disk, (owner, name) of bytes that no row wants any more.
_FIRST = """
CREATE TABLE meta(key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;

CREATE TABLE namespaces(
    name TEXT PRIMARY KEY, labels TEXT NOT NULL, created_at INTEGER NOT NULL
) WITHOUT ROWID;

CREATE TABLE images(
    namespace TEXT NOT NULL REFERENCES namespaces(name), name TEXT NOT NULL,
    media_type TEXT NOT NULL, digest TEXT NOT NULL, size_bytes INTEGER NOT NULL,
    annotations TEXT NOT NULL, labels TEXT NOT NULL,
    created_at INTEGER NOT NULL, updated_at INTEGER NOT NULL,
    PRIMARY KEY(namespace, name)
) WITHOUT ROWID;

CREATE TABLE content(
    namespace TEXT NOT NULL REFERENCES namespaces(name), digest TEXT NOT NULL,
    size_bytes INTEGER NOT NULL, labels TEXT NOT NULL,
    created_at INTEGER NOT NULL, updated_at INTEGER NOT NULL,
    PRIMARY KEY(namespace, digest)
) WITHOUT ROWID;
CREATE INDEX content_by_digest ON content(digest);

CREATE TABLE snapshots(
    number INTEGER PRIMARY KEY AUTOINCREMENT, snapshotter TEXT NOT NULL,
    namespace TEXT NOT NULL REFERENCES namespaces(name), key TEXT NOT NULL,
    parent INTEGER REFERENCES snapshots(number), kind TEXT NOT NULL, labels TEXT NOT NULL,
    size_bytes INTEGER NOT NULL DEFAULT 0, inodes INTEGER NOT NULL DEFAULT 0,
    created_at INTEGER NOT NULL, updated_at INTEGER NOT NULL,
    UNIQUE(snapshotter, namespace, key)
);
CREATE INDEX snapshots_by_parent ON snapshots(parent);

CREATE TABLE trash(
    owner TEXT NOT NULL, name TEXT NOT NULL, PRIMARY KEY(owner, name)
) WITHOUT ROWID;

CREATE TABLE containers(
    namespace TEXT NOT NULL REFERENCES namespaces(name), id TEXT NOT NULL,
    image TEXT NOT NULL, runtime TEXT NOT NULL,
    snapshotter TEXT NOT NULL, snapshot_key TEXT NOT NULL, spec BLOB NOT NULL,
    labels TEXT NOT NULL, options TEXT NOT NULL,
    created_at INTEGER NOT NULL, updated_at INTEGER NOT NULL,
    PRIMARY KEY(namespace, id)
);

CREATE TABLE leases(
    namespace TEXT NOT NULL REFERENCES namespaces(name), id TEXT NOT NULL,
    labels TEXT NOT NULL, created_at INTEGER NOT NULL, expires_at INTEGER,
    PRIMARY KEY(namespace, id)
) WITHOUT ROWID;

CREATE TABLE lease_resources(
    namespace TEXT NOT NULL, lease TEXT NOT NULL, type TEXT NOT NULL, resource TEXT NOT NULL,
    PRIMARY KEY(namespace, lease, type, resource),
    FOREIGN KEY(namespace, lease) REFERENCES leases(namespace, id) ON DELETE CASCADE
) WITHOUT ROWID;

CREATE TABLE tasks(
    namespace TEXT NOT NULL, id TEXT NOT NULL, incarnation TEXT UNIQUE, state TEXT,
    pid INTEGER, pid_start INTEGER, shim_pid INTEGER, shim_start INTEGER, boot_id TEXT,
    terminal INTEGER, created_at INTEGER, started_at INTEGER,
    exit_status INTEGER, exited_at INTEGER, cause TEXT,
    closed INTEGER, last_sequence INTEGER, options BLOB,
    PRIMARY KEY(namespace, id)
);

CREATE TABLE execs(
    namespace TEXT NOT NULL, id TEXT NOT NULL, exec_id TEXT NOT NULL, state TEXT,
    pid INTEGER, terminal INTEGER, created_at INTEGER, started_at INTEGER,
    exit_status INTEGER, exited_at INTEGER, cause TEXT,
    PRIMARY KEY(namespace, id, exec_id)
);

CREATE TABLE tombstones(
    incarnation TEXT PRIMARY KEY, namespace TEXT, id TEXT, at INTEGER
);

CREATE TABLE events(
    sequence INTEGER PRIMARY KEY AUTOINCREMENT, timestamp INTEGER,
    namespace TEXT, topic TEXT, body BLOB
);
"""

# volumes: no foreign key to namespaces, since the release before, which does not know them, would
# fail to remove a namespace instead of refusing to. Who uses one stands in containers.options.
# restarts.settled: the incarnation of the task whose end was dealt with. due_at: a start is owed.
# removal: it is being removed by force, which the next manager finishes.
# sandboxes.record: what a client wrote of it, as JSON (daemon/metadata/sandboxes.py).
_SECOND = """
CREATE TABLE volumes(
    namespace TEXT NOT NULL, name TEXT NOT NULL, labels TEXT NOT NULL,
    anonymous INTEGER NOT NULL, created_at INTEGER NOT NULL,
    PRIMARY KEY(namespace, name)
) WITHOUT ROWID;

CREATE TABLE restarts(
    namespace TEXT NOT NULL, id TEXT NOT NULL,
    count INTEGER NOT NULL, stopped INTEGER NOT NULL, settled TEXT NOT NULL,
    exit_status INTEGER, delay_ms INTEGER NOT NULL, due_at INTEGER, error TEXT NOT NULL,
    removal TEXT NOT NULL,
    PRIMARY KEY(namespace, id),
    FOREIGN KEY(namespace, id) REFERENCES containers(namespace, id)
        ON UPDATE CASCADE ON DELETE CASCADE
);

CREATE TABLE health(
    namespace TEXT NOT NULL, id TEXT NOT NULL,
    incarnation TEXT NOT NULL, status TEXT NOT NULL, failing_streak INTEGER NOT NULL,
    log TEXT NOT NULL,
    PRIMARY KEY(namespace, id),
    FOREIGN KEY(namespace, id) REFERENCES containers(namespace, id)
        ON UPDATE CASCADE ON DELETE CASCADE
);

CREATE TABLE sandboxes(
    namespace TEXT NOT NULL, id TEXT NOT NULL, labels TEXT NOT NULL, record TEXT NOT NULL,
    created_at INTEGER NOT NULL, updated_at INTEGER NOT NULL,
    PRIMARY KEY(namespace, id)
) WITHOUT ROWID;
"""

MIGRATIONS: tuple[str, ...] = (_FIRST, _SECOND)


def version_of(connection: sqlite3.Connection) -> int:
    """The schema version a database is at; 0 for an empty one."""
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def migrate(connection: sqlite3.Connection, migrations: tuple[str, ...]) -> None:
    """Bring a database up to the last of `migrations`, in one transaction: all of them or none.

    One version more than is known is left as it is and works. Raises FailedPrecondition for any
    further one, and for a database that is not what its version says.
    """
    version = version_of(connection)
    if version > len(migrations) + 1:
        raise FailedPrecondition(
            f"open database: its schema is version {version}, this release knows "
            f"{len(migrations)} and works with {len(migrations) + 1} at most; "
            "go back by one release at a time"
        )
    if version >= len(migrations):
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        for script in migrations[version:]:
            for statement in script.split(";"):  # executescript would commit before it begins
                connection.execute(statement)
            hit("migrate.changed")
        connection.execute(f"PRAGMA user_version = {len(migrations)}")
        hit("migrate.versioned")
    except sqlite3.OperationalError as err:
        connection.execute("ROLLBACK")
        raise FailedPrecondition(
            f"migrate database from schema {version} to {len(migrations)}: {err}; "
            "it stays as it was"
        ) from err
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")
