"""What is left of containers whose create or delete was cut short: their snapshots and logs.

A container's snapshot is made before its record and removed after it, so that a record is never
without one. What a crash leaves in between is found by the label that names its owner; snapshots
that a client made for itself carry none and are not touched.
"""

import logging
import os
import shutil
from collections.abc import Callable, Iterable, Mapping

from lighter.daemon.snapshots.types import Snapshotter
from lighter.proto.errors import LighterError, NotFound
from lighter.proto.paths import Root

log = logging.getLogger("lighter.containers")

OWNER_LABEL = "io.lighter.container"

# Whether (namespace, container id) is recorded, or being made this moment.
IsOwner = Callable[[str, str], bool]


class Orphans:
    """Finds and removes them: all at a start, one when its id is wanted again."""

    def __init__(
        self, root: Root, snapshotters: Mapping[str, Snapshotter], is_owner: IsOwner
    ) -> None:
        self._root = root
        self._snapshotters = snapshotters
        self._is_owner = is_owner

    async def remove_all(self, namespaces: Iterable[str]) -> None:
        """Once after a start. What cannot be removed is logged, and tried at the next one."""
        self._remove_logs()
        for namespace in namespaces:
            for snapshotter in self._snapshotters.values():
                try:
                    await self._remove_snapshots(snapshotter, namespace)
                except LighterError as err:
                    log.warning("remove snapshots without a container: %s", err)

    async def _remove_snapshots(self, snapshotter: Snapshotter, namespace: str) -> None:
        cursor = ""
        while True:
            page, cursor = await snapshotter.walk(namespace, cursor)
            for snapshot in page:
                owner = snapshot.labels.get(OWNER_LABEL)
                if owner is not None and not self._is_owner(namespace, owner):
                    log.info("remove snapshot %s of a container that is gone", snapshot.key)
                    await snapshotter.remove(namespace, snapshot.key)
            if not cursor:
                return

    async def make_way(self, snapshotter: Snapshotter, namespace: str, container_id: str) -> None:
        """Remove the orphan under this id's key; its caller alone is making the container."""
        try:
            labels = (await snapshotter.stat(namespace, container_id)).labels
        except NotFound:
            return
        if labels.get(OWNER_LABEL) == container_id:
            await snapshotter.remove(namespace, container_id)

    def _remove_logs(self) -> None:
        logs = f"{self._root.dir}/logs"
        for namespace in _directories(logs):
            for id_ in _directories(f"{logs}/{namespace}"):
                if not self._is_owner(namespace, id_):
                    log.info("remove log of deleted container %s", id_)
                    shutil.rmtree(f"{logs}/{namespace}/{id_}", ignore_errors=True)


def _directories(path: str) -> tuple[str, ...]:
    try:
        return tuple(entry.name for entry in os.scandir(path) if entry.is_dir())
    except FileNotFoundError:
        return ()
