"""Whether an instance's database and its directories tell the same story, seen from outside.

Read with plain SQLite and directory listings, none of the product's code: what it thinks of itself
is not asked. For an instance that holds no containers any more.
"""

import json
import sqlite3
from pathlib import Path


def store_problems(root: Path) -> list[str]:
    """Differences between records and disk, as lines for a person; none when all is well."""
    database = root / "lighter.db"
    if not database.exists():
        return []
    connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=5)
    try:
        return [
            *_integrity(connection),
            *_content(connection, root),
            *_snapshots(connection, root),
            *_of_containers(connection),
        ]
    except sqlite3.DatabaseError as error:
        return [f"database: {error}"]
    finally:
        connection.close()


def unfinished(root: Path, *, but_pulls: bool = False) -> list[str]:
    """Half-written content, and leases, which keep something until somebody goes on with it.

    Both stay for a day of a pull that has failed, so that the next one resumes it: with `but_pulls`
    that is well, as are leases, which may be a test's. What no pull goes on with, nobody asks for.
    """
    database = root / "lighter.db"
    if not database.exists():
        return []
    connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=5)
    try:
        leases = connection.execute("SELECT namespace, id FROM leases").fetchall()
    except sqlite3.DatabaseError as error:
        return [f"database: {error}"]
    finally:
        connection.close()
    pulling = {of for of, lease in leases if but_pulls and lease.startswith("pull-")}
    written = [_told_of(path.parent) for path in (root / "content" / "writes").glob("*/data")]
    return [
        *(f"lease: {lease} of {of}" for of, lease in leases if not but_pulls),
        *(f"half-written: {ref}" for of, ref in sorted(written) if of not in pulling),
    ]


def _told_of(ingest: Path) -> tuple[str, str]:
    """Namespace and ref of a named ingest; its directory when it does not say."""
    try:
        about = json.loads((ingest / "about.json").read_bytes())
        return str(about["namespace"]), str(about["ref"])
    except (OSError, ValueError, KeyError):
        return "", ingest.name


_OWN_SNAPSHOTTERS = ("btrfs", "erofs", "native", "overlayfs")


def _integrity(connection: sqlite3.Connection) -> list[str]:
    found = [str(row[0]) for row in connection.execute("PRAGMA integrity_check")]
    broken = connection.execute("PRAGMA foreign_key_check").fetchall()
    return [f"database: {line}" for line in found if line != "ok"] + [
        f"database: broken reference {row}" for row in broken
    ]


def _content(connection: sqlite3.Connection, root: Path) -> list[str]:
    recorded = {row[0] for row in connection.execute("SELECT DISTINCT digest FROM content")}
    blobs = root / "content" / "blobs"
    stored = {f"{path.parent.name}:{path.name}" for path in blobs.glob("*/*")}
    targets = {row[0] for row in connection.execute("SELECT digest FROM images")}
    return [
        *(f"blob without a record: {digest}" for digest in sorted(stored - recorded)),
        *(f"record without its blob: {digest}" for digest in sorted(recorded - stored)),
        *(f"image without its content: {digest}" for digest in sorted(targets - recorded)),
    ]


def _snapshots(connection: sqlite3.Connection, root: Path) -> list[str]:
    rows = connection.execute("SELECT snapshotter, number, kind, key FROM snapshots").fetchall()
    # What a plugin makes has no directory here.
    recorded = {f"{row[0]}/{row[1]}" for row in rows if row[0] in _OWN_SNAPSHOTTERS}
    folder = root / "snapshots"
    stored = {str(path.relative_to(folder)) for path in folder.glob("*/*") if path.is_dir()}
    return [
        *(f"snapshot directory without a record: {name}" for name in sorted(stored - recorded)),
        *(f"snapshot record without its directory: {name}" for name in sorted(recorded - stored)),
        *(f"snapshot of no container: {row[3]}" for row in rows if row[2] != "committed"),
    ]


def _of_containers(connection: sqlite3.Connection) -> list[str]:
    """Rows that should have gone with the last container."""
    tables = ("containers", "tasks", "execs", "trash", "tombstones")
    return [
        f"row of {table}: {tuple(row[:3])}"
        for table in tables
        for row in connection.execute(f"SELECT * FROM {table}")
    ]
