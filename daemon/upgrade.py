"""Whether a version can take over this instance: every shim that runs, and the database.

Asked before anything is touched: by `ctl upgrade check`, of a manager that knows its shims by what
they say themselves; and by the launcher of an installed version when it is started, which has their
records in the state directory alone. A record that cannot be read decides nothing there: it stands
against each version alike.
"""

import json
import os
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from typing import Any, NamedTuple

from lighter.daemon import files
from lighter.daemon.metadata import index
from lighter.daemon.procfs import read_boot_id
from lighter.daemon.tasks.reach import is_alive
from lighter.proto.release import Release, protocols_of

MAX_RECORD = 1 << 20
FIRST_VERSION = "0.1.0"  # its records do not say so


class RunningShim(NamedTuple):
    """A shim whose process lives. `protocols` is empty when nobody can tell what it speaks."""

    namespace: str
    id: str
    pid: int
    version: str
    protocols: tuple[int, ...]


class Verdict(NamedTuple):
    """What stands against a version: shims that it cannot adopt, a schema that it cannot open."""

    shims: int
    refused: tuple[RunningShim, ...]
    problems: tuple[str, ...]  # one line each
    warnings: tuple[str, ...]  # what is no obstacle, and should be known

    @property
    def can_take_over(self) -> bool:
        return not self.problems


def running_shims(tasks_dir: str, but: Release | None = None) -> list[RunningShim]:
    """The shims of this boot that live; a record that cannot be read is no shim.

    `but`: without those that this version speaks with, whose processes need no look then.
    """
    boot_id = read_boot_id()
    found = []
    for namespace in files.directories_in(tasks_dir):
        for id_ in files.directories_in(f"{tasks_dir}/{namespace}"):
            record = _read(f"{tasks_dir}/{namespace}/{id_}/shim.json")
            if but is not None and but.speaks_with(protocols_of(record)):
                continue
            if record.get("boot_id") == boot_id and is_alive(record):
                version = str(record.get("version", FIRST_VERSION))
                pid = int(record["pid"])
                found.append(RunningShim(namespace, id_, pid, version, protocols_of(record)))
    return found


def schema_of(database: str) -> int:
    """The schema version of the database; 0 when there is none, or none that can be read."""
    if not os.path.exists(database) or not index.has_room(database):
        return 0
    try:
        with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=1)) as opened:
            return int(opened.execute("PRAGMA user_version").fetchone()[0])
    except sqlite3.Error:
        return 0  # whoever opens it next says what is wrong with it


def judge(
    release: Release, shims: Sequence[RunningShim], schema: int, now: Release | None = None
) -> Verdict:
    """Whether `release` can take over; with `now`, also whether that one could come back."""
    refused = tuple(shim for shim in shims if not release.speaks_with(shim.protocols))
    problems = [
        f"shim of {shim.namespace}/{shim.id}: it is not connected, and its record cannot be read: "
        f"nobody can tell whether version {release.version} could adopt it"
        if not shim.protocols
        else f"shim of {shim.namespace}/{shim.id} (version {shim.version}) speaks protocol "
        f"{_numbers(shim.protocols)}, version {release.version} speaks "
        f"{_numbers(release.protocols)}"
        for shim in refused
    ]
    if schema > release.schema_newest:
        problems.append(
            f"the database has schema {schema}, version {release.version} works with "
            f"{release.schema_newest} at most"
        )
    warnings = []
    if now is not None and release.schema > now.schema_newest:
        warnings.append(
            f"no way back: version {release.version} brings the database to schema "
            f"{release.schema}, version {now.version} works with {now.schema_newest} at most"
        )
    if now is not None and not now.speaks_with(release.protocols):
        warnings.append(
            f"no way back: version {now.version} cannot adopt shims of version {release.version}"
        )
    return Verdict(len(shims), refused, tuple(problems), tuple(warnings))


def _numbers(protocols: Sequence[int]) -> str:
    return ", ".join(str(number) for number in protocols)


def _read(path: str) -> dict[str, Any]:
    try:
        data = files.read_capped(path, MAX_RECORD)
        value = json.loads(data or b"null")
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
