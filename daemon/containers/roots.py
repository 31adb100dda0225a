"""The root of a new container: a snapshot of an image, or a directory that is there already.

With mapped ids the files must belong to the ids that the container's have on the host. So the
image's top snapshot gets a child whose files are given away, made once for a mapping and kept like
the image's own as long as a container or the collector's rules need it.
"""

import hashlib
import os
import secrets
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

from lighter.daemon.images import platforms
from lighter.daemon.images.service import ImageService
from lighter.daemon.images.unpack import UNPACKING_LABEL
from lighter.daemon.images.worker import Worker
from lighter.daemon.oci import idmaps
from lighter.daemon.oci.checks import check_path
from lighter.daemon.oci.config import read_image_config
from lighter.daemon.oci.idmaps import IdMaps
from lighter.daemon.orphans import OWNER_LABEL, Orphans
from lighter.daemon.snapshots.removal import remove_quietly
from lighter.daemon.snapshots.types import COMMITTED, Snapshotter, find_snapshotter
from lighter.daemon.types import ImageConfig, Mount
from lighter.proto.errors import AlreadyExists, InvalidArgument, NotFound
from lighter.proto.faults import hit


@dataclass(frozen=True)
class RootWish:
    """What of a request decides about the root. `directory` "" is a snapshot of the image."""

    directory: str = ""
    platform: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    id_maps: IdMaps = field(default_factory=IdMaps)
    remap_labels: bool = False


@dataclass(frozen=True)
class MadeRoot:
    """`path` "" is the snapshot `key`, which `mounts` show; `chain_id` names what it was made of,
    "" what may change.
    """

    image: str
    config: ImageConfig
    warnings: tuple[str, ...]
    mounts: tuple[Mount, ...]
    snapshotter: str = ""
    key: str = ""
    chain_id: str = ""
    path: str = ""


class RootMaker:
    def __init__(
        self,
        images: ImageService,
        snapshotters: Mapping[str, Snapshotter],
        worker: Worker,
        orphans: Orphans,
    ) -> None:
        self._images = images
        self._snapshotters = snapshotters
        self._worker = worker
        self._orphans = orphans

    def directory(self, wish: RootWish) -> MadeRoot:
        """A root that nobody makes. Raises InvalidArgument."""
        path = check_path(wish.directory, "root directory")
        for name in ("dev", "proc", "sys"):  # as the shim looks at a snapshot's
            if os.path.islink(f"{path}/{name}"):
                raise InvalidArgument(f"use root directory {path}: /{name} in it is a link")
        if not os.path.isdir(path):
            raise InvalidArgument(f"use root directory {path}: it is no directory")
        if wish.platform or wish.labels or wish.remap_labels:
            raise InvalidArgument(
                "use root directory: platform and labels are those of an image's snapshot"
            )
        return MadeRoot("", ImageConfig(), (), (Mount("bind", path, ("rbind", "ro")),), path=path)

    async def snapshot(
        self,
        namespace: str,
        id_: str,
        image: str,
        snapshotter_name: str,
        wish: RootWish,
        undo: AsyncExitStack,
    ) -> MadeRoot:
        """A writable snapshot of the image, removed by `undo` if it comes to that.

        Raises NotFound (image, snapshotter), InvalidArgument, and what unpacking raises.
        """
        snapshotter = find_snapshotter(self._snapshotters, snapshotter_name)
        platform = platforms.parse(wish.platform) if wish.platform else None
        resolved = await self._images.config(namespace, image, platform)
        config, warnings = read_image_config(resolved.config)
        chain_id = await self._images.unpack(namespace, image, snapshotter_name, platform=platform)
        labels = {**wish.labels, OWNER_LABEL: id_}
        with self._images.collector.pin() as pin:
            parent = chain_id
            if wish.id_maps:
                if wish.remap_labels:
                    labels |= idmaps.labels(wish.id_maps)
                parent = _mapped_name(chain_id, wish.id_maps)
                pin.snapshot(namespace, snapshotter_name, parent)
                await self._give_away(namespace, snapshotter, chain_id, parent, wish.id_maps)
            await self._orphans.make_way(snapshotter, namespace, id_)
            mounts = await snapshotter.prepare(namespace, id_, parent, labels)
        undo.push_async_callback(remove_quietly, snapshotter, namespace, id_)
        return MadeRoot(
            image=resolved.name,
            config=config,
            warnings=warnings,
            mounts=mounts,
            snapshotter=snapshotter_name,
            key=id_,
            chain_id=chain_id,
        )

    async def _give_away(
        self, namespace: str, snapshotter: Snapshotter, chain_id: str, name: str, maps: IdMaps
    ) -> None:
        """Make the committed snapshot `name`, unless it is there."""
        try:
            if (await snapshotter.stat(namespace, name)).kind == COMMITTED:
                return
        except NotFound:
            pass
        # Marked as what a dead manager leaves while it unpacks, which the next one removes.
        key = f"extract-{secrets.token_hex(8)} {name}"
        mark = {UNPACKING_LABEL: self._images.unpacker.mark}
        async with AsyncExitStack() as undo:
            mounts = await snapshotter.prepare(namespace, key, chain_id, mark)
            undo.push_async_callback(remove_quietly, snapshotter, namespace, key)
            await self._worker.run(
                {
                    "job": "remap",
                    "mounts": [[m.type, m.source, list(m.options)] for m in mounts],
                    "uids": [[one.container, one.host, one.size] for one in maps.uids],
                    "gids": [[one.container, one.host, one.size] for one in maps.gids],
                },
                (),
            )
            hit("containers.remapped")
            try:
                await snapshotter.commit(namespace, name, key)
            except AlreadyExists:
                return  # somebody else was faster; ours is undone
            undo.pop_all()


def _mapped_name(chain_id: str, maps: IdMaps) -> str:
    text = ",".join(map(str, maps.uids)) + ";" + ",".join(map(str, maps.gids))
    return f"{chain_id}-ids-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
