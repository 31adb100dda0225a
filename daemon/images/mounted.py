"""Images mounted on directories of the host, to be looked into or changed.

A snapshot whose key is the directory's path owns the mount: a view, or with `rw` an active one. So
it outlives the manager, and nothing that it needs is collected. The order that makes a crash
harmless: the snapshot is made with a label that says "mounting", a worker mounts, the label goes.
A start removes what still has it, and views that are mounted nowhere (a reboot, a plain umount);
what somebody may have written stays until it is asked for.

The directory may be below a file system that no longer answers: it is looked at in threads.
"""

import logging
import os
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import partial

from lighter.daemon.images.platforms import Platform
from lighter.daemon.images.service import ImageService
from lighter.daemon.images.worker import Worker
from lighter.daemon.looks import Looks
from lighter.daemon.snapshots.types import ACTIVE, VIEW, Snapshotter
from lighter.daemon.types import Mount, SnapshotInfo
from lighter.daemon.whole import whole
from lighter.proto.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    LighterError,
    NotFound,
)
from lighter.proto.faults import hit

IMAGE_LABEL = "io.lighter/mounted-image"
_MOUNTING_LABEL = "io.lighter/mounting"

_OCTAL = re.compile(r"\\([0-7]{3})")

logger = logging.getLogger(__name__)


class MountedImages:
    """Mounts and unmounts; one at a time per directory."""

    def __init__(
        self, images: ImageService, snapshotters: Mapping[str, Snapshotter], worker: Worker
    ) -> None:
        self._images = images
        self._snapshotters = snapshotters
        self._worker = worker
        self._busy: set[str] = set()
        self._looks = Looks()

    async def mount(
        self,
        namespace: str,
        name: str,
        target: str,
        target_fd: int,
        *,
        rw: bool = False,
        platform: Platform | None = None,
        snapshotter: str = "",
    ) -> str:
        """Mount the image on the directory `target`, which `target_fd` (O_PATH) has open.

        Returns the name of its top snapshot. Raises NotFound, InvalidArgument, FailedPrecondition;
        AlreadyExists when an image is mounted there, or something written there is kept.
        """
        check = partial(_check_place, target, target_fd)
        await self._looks.at(f"mount image on {target}", check)
        top = await self._images.unpack(namespace, name, snapshotter, platform=platform)
        chosen = self._images.snapshotter(namespace, snapshotter)
        image = self._images.find(namespace, name)
        if not top:
            raise FailedPrecondition(f"mount image {image.name}: it has no layers")
        if target in self._busy:
            raise AlreadyExists(f"mount image {image.name}: {target} is being mounted already")
        self._busy.add(target)
        try:
            await whole(self._mount(namespace, image.name, target, target_fd, top, chosen, rw=rw))
        finally:
            self._busy.discard(target)
        return top

    async def _mount(
        self,
        namespace: str,
        name: str,
        target: str,
        target_fd: int,
        top: str,
        snapshotter: Snapshotter,
        *,
        rw: bool,
    ) -> None:
        mounts = await self._kept(namespace, name, target, top, snapshotter, rw=rw)
        if mounts is None:
            make = snapshotter.prepare if rw else snapshotter.view
            labels = {IMAGE_LABEL: name, _MOUNTING_LABEL: "1"}
            mounts = await make(namespace, target, top, labels)
            is_new = True
        else:
            is_new = False
        hit("mount.prepared")
        job = {
            "job": "mount",
            "mounts": [[mount.type, mount.source, list(mount.options)] for mount in mounts],
        }
        try:
            await self._worker.run(job, [target_fd])
            hit("mount.mounted")
            await snapshotter.update(namespace, target, {_MOUNTING_LABEL: ""})
        except LighterError:
            with suppress(LighterError):
                await self._take_off(target, mounts)
            if is_new:
                await snapshotter.remove(namespace, target)
            raise

    async def _kept(
        self,
        namespace: str,
        name: str,
        target: str,
        top: str,
        snapshotter: Snapshotter,
        *,
        rw: bool,
    ) -> tuple[Mount, ...] | None:
        """The mounts of what an earlier mount left for this one; what is of no use is removed."""
        for namespaced, other, info in await self._of(target):
            mounts = await other.mounts(namespaced, target)
            owner = info.labels.get(IMAGE_LABEL, "a snapshot")
            if await self._is_mounted(target, mounts):
                raise AlreadyExists(f"mount image {name}: {owner} is mounted on {target}")
            if info.kind == VIEW:
                await other.remove(namespaced, target)
            elif (namespaced, other, rw, info.parent) == (namespace, snapshotter, True, top):
                return mounts
            else:
                raise AlreadyExists(
                    f"mount image {name}: what was written to {owner} on {target} is kept "
                    f"(namespace {namespaced}); `ctl images unmount --rm {target}` removes it"
                )
        return None

    async def unmount(self, namespace: str, target: str, *, remove: bool = False) -> None:
        """Take the image off `target`; a view goes with it, what was written with `remove`.

        Raises NotFound when no image of the namespace is mounted there, FailedPrecondition when it
        is in use.
        """
        found = [row for row in await self._of(target) if row[0] == namespace]
        if not found:
            raise NotFound(f"unmount {target}: no image of namespace {namespace} is mounted there")
        await whole(self._unmount(target, found, remove=remove))

    async def _unmount(
        self, target: str, found: Iterable[tuple[str, Snapshotter, SnapshotInfo]], *, remove: bool
    ) -> None:
        for namespace, snapshotter, info in found:
            await self._take_off(target, await snapshotter.mounts(namespace, target))
            hit("unmount.unmounted")
            if remove or info.kind == VIEW:
                await snapshotter.remove(namespace, target)

    async def _take_off(self, target: str, mounts: tuple[Mount, ...]) -> None:
        while await self._is_mounted(target, mounts):
            done = await self._worker.run({"job": "unmount", "target": target}, [])
            if not done["unmounted"]:
                return

    async def _is_mounted(self, target: str, mounts: tuple[Mount, ...]) -> bool:
        look = partial(is_mounted, target, mounts)
        return await self._looks.at(f"look at what is mounted on {target}", look)

    async def _of(self, target: str) -> list[tuple[str, Snapshotter, SnapshotInfo]]:
        """The snapshots that stand for images on this directory, of all namespaces."""
        found = []
        for namespace in self._images.namespaces():
            for snapshotter in self._snapshotters.values():
                try:
                    info = await snapshotter.stat(namespace, target)
                except NotFound:
                    continue
                if IMAGE_LABEL in info.labels and info.kind in (ACTIVE, VIEW):
                    found.append((namespace, snapshotter, info))
        return found

    async def recover(self) -> None:
        """Once after a start: undo mounts that a dead manager left half made, and forget views
        that are mounted nowhere. What this manager does meanwhile is left alone."""
        for namespace in self._images.namespaces():
            for snapshotter in self._snapshotters.values():
                cursor, more = "", True
                while more:
                    page, cursor = await snapshotter.walk(namespace, cursor)
                    for info in page:
                        if IMAGE_LABEL in info.labels and info.key not in self._busy:
                            await self._settle(namespace, snapshotter, info)
                    more = bool(cursor)

    async def _settle(self, namespace: str, snapshotter: Snapshotter, info: SnapshotInfo) -> None:
        target = info.key
        half_made = _MOUNTING_LABEL in info.labels
        try:
            mounts = await snapshotter.mounts(namespace, target)
            if half_made:
                await self._take_off(target, mounts)
            if half_made or (info.kind == VIEW and not await self._is_mounted(target, mounts)):
                await snapshotter.remove(namespace, target)
        except LighterError as err:
            logger.warning("settle image on %s: %s", target, err.message)


def _check_place(target: str, target_fd: int) -> None:
    """Make sure that the caller and the manager mean the same directory by this path."""
    if not os.path.isabs(target) or os.path.normpath(target) != target or len(target) > 1000:
        raise InvalidArgument(f"mount image on {target}: it is no absolute path of a directory")
    if target == "/":
        raise InvalidArgument("mount image on /: it would hide the whole file system")
    try:
        same = os.path.samestat(os.stat(target), os.fstat(target_fd))
    except OSError as err:
        raise InvalidArgument(f"mount image on {target}: {err.strerror}") from err
    if not same:
        raise FailedPrecondition(
            f"mount image on {target}: the manager sees another directory there than the caller; "
            "one of them is in a mount namespace of its own"
        )


def is_mounted(target: str, mounts: tuple[Mount, ...]) -> bool:
    """Whether the topmost mount on `target` is of a snapshot with these mounts."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
        here = [fields for line in lines if _plain((fields := line.split(" "))[4]) == target]
    if not here:
        return False
    last = mounts[-1]
    if last.type != "overlay":
        with suppress(OSError):
            return os.path.samestat(os.stat(target), os.stat(last.source))
        return False
    lower = [option for option in last.options if option.startswith("lowerdir=")]
    shown = set(_plain(here[-1][-1].strip()).split(","))
    upper = [option for option in last.options if option.startswith("upperdir=")]
    return shown >= set(lower + upper)


def _plain(text: str) -> str:
    """A field of mountinfo without its escapes (proc_pid_mountinfo(5))."""
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), text)
