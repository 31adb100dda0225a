"""Snapshots as overlayfs layers whose committed ones are erofs images, which nothing writes to.

    snapshots/erofs/<number>/fs           an active snapshot's own files; of a committed one, where
                                          its image is mounted
    snapshots/erofs/<number>/layer.erofs  a committed one's image
    snapshots/erofs/<number>/stale        what the image was made of, until it is removed

An image is mounted when something above it is prepared or mounted, and stays so until its snapshot
is removed: the mounts of running containers name it. After a reboot it is mounted again. The image
is complete before the snapshot is recorded as committed, so a crash leaves either an active one
with an image that the next commit replaces, or a committed one whose old files are still there.
"""

import asyncio
import logging
import os

from lighter.daemon.errors import from_os
from lighter.daemon.events.log import EventLog
from lighter.daemon.metadata.db import Database
from lighter.daemon.snapshots import erofsimage
from lighter.daemon.snapshots.disk import make_directory
from lighter.daemon.snapshots.overlay import OverlaySnapshotter
from lighter.daemon.snapshots.rows import Row
from lighter.daemon.snapshots.types import LayerTarget, TreeRemover
from lighter.daemon.types import Mount, Usage
from lighter.proto.errors import FailedPrecondition, LighterError
from lighter.proto.faults import hit

logger = logging.getLogger(__name__)


class ErofsSnapshotter(OverlaySnapshotter):
    """As overlayfs, but a committed layer is one file."""

    name = "erofs"
    layers_apart = False  # a layer's directory changes places when it is committed

    def __init__(
        self,
        snapshots_dir: str,
        db: Database,
        events_log: EventLog,
        remove_tree: TreeRemover,
        links_dir: str = "",
    ) -> None:
        super().__init__(snapshots_dir, db, events_log, remove_tree, links_dir)
        self._mounting = asyncio.Lock()

    @property
    def unusable(self) -> str:
        return super().unusable or erofsimage.missing()

    async def _fill(self, path: str, parents: tuple[int, ...], kind: str) -> None:
        await self._mount_images(parents)
        await super()._fill(path, parents, kind)

    async def mounts(self, namespace: str, key: str) -> tuple[Mount, ...]:
        await self._mount_images(self._rows.chain(self._mountable(namespace, key).parent))
        return await super().mounts(namespace, key)

    async def layer_target(self, namespace: str, key: str) -> LayerTarget:
        row = self._active("apply to", namespace, key)
        await self._mount_images(self._rows.chain(row.parent))
        return await super().layer_target(namespace, key)

    async def _before_commit(self, row: Row, usage: Usage | None) -> Usage | None:
        made = await erofsimage.make(self.files(row.number), self._image(row.number))
        hit("snapshot.image-made")
        return usage or made

    async def _after_commit(self, row: Row) -> None:
        hit("snapshot.image-committed")
        try:
            await self._mount_images((row.number,))
        except LighterError as err:
            logger.warning("%s", err.message)  # whoever needs it tries again, and is told

    async def recover(self) -> None:
        await super().recover()
        for _name, number in self._entries():
            await self._remove_stale(number)

    def _image(self, number: int) -> str:
        return f"{self.dir}/{number}/layer.erofs"

    def _stale(self, number: int) -> str:
        return f"{self.dir}/{number}/stale"

    async def _mount_images(self, numbers: tuple[int, ...]) -> None:
        """Have the images of committed snapshots mounted. Raises FailedPrecondition, Internal."""
        if not await asyncio.to_thread(self._unmounted, numbers):
            return
        async with self._mounting:
            for number in await asyncio.to_thread(self._unmounted, numbers):
                await asyncio.to_thread(self._make_place, number)
                hit("snapshot.image-mounting")
                await erofsimage.mount(self._image(number), self.files(number))
                await self._remove_stale(number)

    def _unmounted(self, numbers: tuple[int, ...]) -> list[int]:
        return [number for number in numbers if not os.path.ismount(self.files(number))]

    def _make_place(self, number: int) -> None:
        """Give a committed snapshot's image an empty directory to be mounted at."""
        files, image = self.files(number), self._image(number)
        if not os.path.exists(image):
            raise FailedPrecondition(f"mount layer {number}: its image {image} is missing")
        try:
            if os.path.lexists(files) and os.listdir(files):
                os.rename(files, self._stale(number))
            if not os.path.lexists(files):  # a crash may have come between the two
                make_directory(files, 0o755)
        except OSError as err:
            raise from_os(f"mount layer {number}", err) from err

    async def _remove_stale(self, number: int) -> None:
        try:
            if await asyncio.to_thread(os.path.lexists, self._stale(number)):
                await self._remove_tree(self._stale(number))
        except LighterError as err:
            logger.warning("remove %s: %s", self._stale(number), err.message)

    async def _discard(self, path: str) -> bool:
        try:
            await asyncio.to_thread(erofsimage.unmount, f"{path}/fs")
        except OSError as err:
            logger.warning("unmount %s/fs: %s", path, err.strerror)
            return False
        return await super()._discard(path)
