"""The records of one snapshotter beside its directories; both are read in one step of the loop."""

import os
import re
from dataclasses import dataclass

from lighter.daemon.metadata.db import Database
from lighter.daemon.snapshots.overlay import base36
from lighter.daemon.snapshots.rows import trash_owner

_NUMBER = re.compile(r"[1-9][0-9]*", re.ASCII)


@dataclass(frozen=True)
class Recorded:
    """One record."""

    number: int
    namespace: str
    key: str
    kind: str


class Stock:
    """What there is of a snapshotter, as of now."""

    def __init__(self, db: Database, snapshots_dir: str, snapshotter: str) -> None:
        self._db = db
        self._dir = f"{snapshots_dir}/{snapshotter}"
        self._links_dir = f"{os.path.dirname(snapshots_dir)}/l"
        self._snapshotter = snapshotter
        names = os.listdir(self._dir) if os.path.isdir(self._dir) else []
        self.directories = {int(name) for name in names if _NUMBER.fullmatch(name)}
        self.rows = {
            row["number"]: Recorded(row["number"], row["namespace"], row["key"], row["kind"])
            for row in db.rows("SELECT * FROM snapshots WHERE snapshotter = ?", (snapshotter,))
        }
        owner = trash_owner(snapshotter)
        noted = db.rows("SELECT name FROM trash WHERE owner = ?", (owner,))
        self._noted = {row["name"] for row in noted}

    @property
    def without_directory(self) -> list[Recorded]:
        """Children first."""
        gone = sorted(self.rows.keys() - self.directories, reverse=True)
        return [self.rows[number] for number in gone]

    @property
    def without_record(self) -> list[int]:
        """`new-…` is being made, or is removed by the next start; what is noted goes by itself."""
        strange = self.directories - self.rows.keys()
        return sorted(number for number in strange if str(number) not in self._noted)

    def children(self, number: int) -> list[str]:
        rows = self._db.rows("SELECT key FROM snapshots WHERE parent = ? ORDER BY key", (number,))
        return [row["key"] for row in rows]

    def why_used(self, number: int) -> str:
        """Who may need a directory that no record knows; "" for nobody."""
        if children := self.children(number):
            return f"snapshot {children[0]} names it as its parent"
        with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as mounts:
            if f"{self._dir}/{number}/" in mounts.read():
                return "it is mounted"
        if os.path.lexists(f"{self._links_dir}/{base36(number)}"):
            return "it may be mounted by its short name"
        return ""
