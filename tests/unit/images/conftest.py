"""The image services of one instance, on disk, with real workers."""

import asyncio
import os
import shutil
import tempfile
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from lighter.daemon.content.store import ContentStore
from lighter.daemon.events.log import EventLog
from lighter.daemon.images.importer import ImportOptions
from lighter.daemon.images.progress import Progress
from lighter.daemon.images.service import ImageService
from lighter.daemon.images.worker import tree_remover
from lighter.daemon.metadata.db import Database
from lighter.daemon.snapshots.native import NativeSnapshotter
from lighter.daemon.snapshots.overlay import OverlaySnapshotter
from lighter.daemon.snapshots.types import Snapshotter
from lighter.daemon.types import Image
from tests.fakes.worker import ForkWorker
from tests.told import check_told

NS = "default"


class Place:
    """The services, which can be opened again as a next manager does."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.worker = ForkWorker()
        self.runner = asyncio.Runner()
        self.open()

    def open(self) -> None:
        self.db = Database(str(self.root / "lighter.db"))
        self.log = EventLog(self.db)
        self.content = ContentStore(str(self.root / "content"), self.db, self.log)
        remove = tree_remover(self.worker)
        snapshots = str(self.root / "snapshots")
        self.overlay = OverlaySnapshotter(snapshots, self.db, self.log, remove)
        self.native = NativeSnapshotter(snapshots, self.db, self.log, remove)
        self.snapshotters: dict[str, Snapshotter] = {
            "overlayfs": self.overlay,
            "native": self.native,
        }
        self.images = ImageService(self.db, self.log, self.content, self.snapshotters, self.worker)

    def reopen(self) -> None:
        self.db.close()
        self.open()
        self.run(self.images.recover())

    def close(self) -> None:
        self.runner.close()
        self.db.close()

    def run(self, steps: Coroutine[Any, Any, Any]) -> Any:
        async def all_of_it() -> Any:
            try:
                return await steps
            finally:
                for snapshotter in self.snapshotters.values():
                    await snapshotter.sweep()

        return self.runner.run(all_of_it())

    def take(
        self,
        archive: bytes | Path,
        options: ImportOptions | None = None,
        namespace: str = NS,
        progress: list[Progress] | None = None,
    ) -> list[str]:
        """Import; returns the names."""
        path = archive if isinstance(archive, Path) else self.root / "archive"
        if isinstance(archive, bytes):
            path.write_bytes(archive)
        fd = os.open(path, os.O_RDONLY)
        report = progress.append if progress is not None else lambda _: None
        try:
            images: tuple[Image, ...] = self.run(
                self.images.import_archive(namespace, fd, options, report)
            )
        finally:
            os.close(fd)
        return [image.name for image in images]

    def blobs(self) -> set[str]:
        return {"sha256:" + name for name in os.listdir(self.root / "content/blobs/sha256")}

    def content_rows(self) -> set[str]:
        return {row["digest"] for row in self.db.rows("SELECT digest FROM content")}

    def ingests(self) -> list[str]:
        return os.listdir(self.root / "content/ingest")

    def names(self) -> list[str]:
        return [row["name"] for row in self.db.rows("SELECT name FROM images ORDER BY name")]

    def snapshot_keys(self, snapshotter: str = "overlayfs") -> set[str]:
        rows = self.db.rows("SELECT key FROM snapshots WHERE snapshotter = ?", (snapshotter,))
        return {row["key"] for row in rows}

    def snapshot_directories(self, snapshotter: str = "overlayfs") -> int:
        return len(os.listdir(self.root / "snapshots" / snapshotter))

    def is_empty(self) -> bool:
        """Nothing of any image is left, recorded or on disk."""
        return not (
            self.names()
            or self.content_rows()
            or self.blobs()
            or self.ingests()
            or self.snapshot_keys()
            or self.snapshot_keys("native")
            or self.snapshot_directories()
            or self.snapshot_directories("native")
            or self.db.rows("SELECT * FROM trash")
        )

    def check_whole(self) -> None:
        """Records and disk agree, and events with both; nothing is half made."""
        check_told(self.db, NS)
        assert self.content_rows() == self.blobs()
        assert self.ingests() == []
        assert self.db.rows("SELECT * FROM trash") == []
        for name in self.snapshotters:
            keys = self.snapshot_keys(name)
            assert self.snapshot_directories(name) == len(keys)
            assert not [key for key in keys if key.startswith("extract-")]


@pytest.fixture
def place() -> Iterator[Place]:
    root = tempfile.mkdtemp(prefix="lighter-", dir="/var/tmp")
    place = Place(Path(root))
    yield place
    place.close()
    shutil.rmtree(root)
