"""What a check of the stores finds, one for each thing that is not as it was recorded."""

from dataclasses import dataclass

FOUND = "found"  # nothing was to be done
REPAIRED = "repaired"
LEFT = "left"

DATABASE = "database"
CONTENT = "content"
FILE = "file"
IMAGE = "image"
SNAPSHOT = "snapshot"
DIRECTORY = "directory"


@dataclass(frozen=True)
class Found:
    """`namespace` is "" for what belongs to all of them; `note`: what was done, or is to be."""

    kind: str
    name: str
    problem: str
    namespace: str = ""
    outcome: str = FOUND
    note: str = ""


@dataclass
class Counted:
    """How much was looked at."""

    blobs: int = 0
    bytes: int = 0
    snapshots: int = 0
