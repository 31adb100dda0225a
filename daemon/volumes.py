"""Volumes: directories that outlive the containers that use them.

    <root>/volumes/<namespace>/<name>/_data         what containers see
                                     /filling-<hex> a copy out of an image that is under way
    <root>/volumes/.removed/<16 hex>                deleted, on its way out

A row makes a directory a volume. A directory without one, as a lost database leaves it, is taken
with what is in it when a volume of its name is made; what was deleted never comes back that way,
because its name is taken from it before anything else.

What a container asked for stands in its record's options under `volumes`, one {name, destination,
anonymous} for each; that is what "in use" means. Between the making of a volume and that record it
is claimed (`Claim`).
"""

import asyncio
import builtins
import contextlib
import logging
import os
import secrets
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from lighter.daemon import files
from lighter.daemon.images.worker import Worker
from lighter.daemon.metadata.volumes import Volume, VolumeStore
from lighter.daemon.oci.checks import check_path
from lighter.daemon.oci.propagation import PROPAGATIONS
from lighter.daemon.snapshots.types import TreeRemover
from lighter.daemon.types import Mount
from lighter.proto.errors import (
    FailedPrecondition,
    InvalidArgument,
    LighterError,
    NotFound,
    ResourceExhausted,
)
from lighter.proto.faults import hit
from lighter.proto.names import check_name
from lighter.proto.paths import Root

log = logging.getLogger("lighter.volumes")

VOLUME = "volume"  # the type of a mount that asks for one
NO_COPY = "nocopy"
_REMOVED = ".removed"
_MAX_MOUNTS = 1000
_MODE = 0o755  # what containers see until an image's directory is copied in


@dataclass(frozen=True)
class Pruned:
    """Names that went, and what could not."""

    names: tuple[str, ...]
    size_bytes: int
    problems: tuple[str, ...]


class Volumes:
    """The volumes of all namespaces."""

    def __init__(
        self, root: Root, store: VolumeStore, worker: Worker, remove_tree: TreeRemover
    ) -> None:
        self._root = root
        self._store = store
        self._worker = worker
        self._remove_tree = remove_tree
        self._claimed: Counter[tuple[str, str]] = Counter()
        self._filling: dict[tuple[str, str], asyncio.Lock] = {}

    # looking

    def path(self, namespace: str, name: str) -> str:
        """The directory that containers see."""
        return self._root.volume(namespace, name) + "/_data"

    def get(self, namespace: str, name: str) -> Volume:
        """Raises NotFound."""
        return self._store.get(namespace, name)

    def list(self, namespace: str) -> tuple[Volume, ...]:
        return self._store.list(namespace)

    def users(self, namespace: str) -> "dict[str, builtins.list[str]]":
        """By volume, the containers that use it."""
        return self._store.users(namespace)

    async def size_bytes(self, namespace: str, name: str) -> int:
        """What its files take on the disk."""
        return await asyncio.to_thread(_size_of, self.path(namespace, name))

    # making and removing

    @staticmethod
    def new_name() -> str:
        """One that nobody has: 64 hex digits, as docker's."""
        return secrets.token_hex(32)

    def create(
        self,
        namespace: str,
        name: str,
        labels: Mapping[str, str] | None = None,
        *,
        anonymous: bool = False,
    ) -> tuple[Volume, bool]:
        """(the volume, whether it is new): one that is there is returned as it is, as docker does.

        Raises InvalidArgument, ResourceExhausted.
        """
        check_name(namespace, "namespace")
        check_name(name, VOLUME)
        with contextlib.suppress(NotFound):
            return self._store.get(namespace, name), False
        directory = self._root.volume(namespace, name)
        try:
            files.make_directory(directory, 0o711)
            with contextlib.suppress(FileExistsError):
                os.mkdir(directory + "/_data")
                os.chmod(directory + "/_data", _MODE)
        except OSError as err:
            raise ResourceExhausted(f"create volume {name}: {err.strerror}") from err
        hit("volume.directory-made")
        volume = Volume(namespace, name, dict(labels or {}), anonymous, time.time_ns())
        self._store.create(volume)
        return volume, True

    async def delete(self, namespace: str, name: str) -> None:
        """Remove a volume with its files. Raises NotFound, FailedPrecondition with its users."""
        self._store.get(namespace, name)
        users = self._store.users(namespace).get(name, [])
        if users:
            listed = ", ".join(users[:8]) + (" …" if len(users) > 8 else "")
            raise FailedPrecondition(
                f"delete volume {name}: container{'s' * (len(users) > 1)} {listed} "
                f"use{'s' * (len(users) == 1)} it",
                containers=users,
            )
        if self._claimed[namespace, name]:
            raise FailedPrecondition(f"delete volume {name}: a container is being made with it")
        removed_as = secrets.token_hex(8)
        self._store.delete(namespace, name, removed_as)
        hit("volume.row-gone")
        self._put_away(namespace, name, removed_as)
        await self._sweep(namespace, name, removed_as)

    async def prune(self, namespace: str, *, everything: bool) -> Pruned:
        """Remove what no container uses: anonymous volumes, with `everything` named ones too."""
        names, problems, size_bytes = [], [], 0
        used = self._store.users(namespace)
        for volume in self._store.list(namespace):
            if volume.name in used or not (everything or volume.anonymous):
                continue
            try:
                size = await self.size_bytes(namespace, volume.name)
                await self.delete(namespace, volume.name)
            except LighterError as err:
                problems.append(err.message)
            else:
                names.append(volume.name)
                size_bytes += size
        return Pruned(tuple(names), size_bytes, tuple(problems))

    async def delete_anonymous(self, namespace: str, options: Mapping[str, Any]) -> None:
        """After its container: those that were made for it alone."""
        for row in options.get("volumes") or ():
            if row.get("anonymous"):
                await self.delete_quietly(namespace, row["name"])

    async def recover(self) -> None:
        """Once after a start: finish what a manager that died had begun to remove or to fill."""
        for namespace, name, removed_as in self._store.trash():
            try:
                if not self._exists(namespace, name):
                    self._put_away(namespace, name, removed_as)
                await self._sweep(namespace, name, removed_as)
            except (LighterError, OSError) as err:
                log.warning("remove volume %s of %s: %s", name, namespace, err)
        for top, folders, _files in _two_levels(self._root.volumes):
            for folder in folders:
                if folder.startswith("filling-"):
                    await self._remove_quietly(f"{top}/{folder}")

    def _exists(self, namespace: str, name: str) -> bool:
        try:
            self._store.get(namespace, name)
        except NotFound:
            return False
        return True

    def _removed(self, removed_as: str) -> str:
        return f"{self._root.volumes}/{_REMOVED}/{removed_as}"

    def _put_away(self, namespace: str, name: str, removed_as: str) -> None:
        files.make_directory(f"{self._root.volumes}/{_REMOVED}", 0o700)
        if not os.path.lexists(self._removed(removed_as)):
            with contextlib.suppress(FileNotFoundError):
                os.rename(self._root.volume(namespace, name), self._removed(removed_as))

    async def _sweep(self, namespace: str, name: str, removed_as: str) -> None:
        path = self._removed(removed_as)
        if os.path.lexists(path):  # noqa: ASYNC240 (one look at our own directory)
            await self._remove_tree(path)
        self._store.forget_trash(namespace, name, removed_as)

    async def delete_quietly(self, namespace: str, name: str) -> None:
        try:
            await self.delete(namespace, name)
        except NotFound:
            pass
        except LighterError as err:
            log.info("keep volume %s: %s", name, err.message)

    async def _remove_quietly(self, path: str) -> None:
        try:
            if os.path.lexists(path):  # noqa: ASYNC240 (one look at our own directory)
                await self._remove_tree(path)
        except LighterError as err:
            log.warning("remove %s: %s", path, err.message)

    # use

    def claim(self, namespace: str) -> "Claim":
        """The volumes of one container that is being made; an async context manager."""
        return Claim(self, namespace)

    async def fill(
        self, namespace: str, name: str, mounts: Sequence[Mount], destination: str
    ) -> None:
        """Copy the image's directory at `destination` into a volume that is empty and unused.

        `mounts` are those of a snapshot of the image. Whatever is there of the kind that docker
        copies is: files with owner, mode, times and attributes. Raises LighterError.
        """
        lock = self._filling.setdefault((namespace, name), asyncio.Lock())
        async with lock:
            target = self.path(namespace, name)
            if os.listdir(target) or self._store.users(namespace).get(name):
                return
            snapshot = [[mount.type, mount.source, list(mount.options)] for mount in mounts]
            where = {"mounts": snapshot, "path": os.fsencode(destination)}
            look = await self._worker.run({"job": "look", "follow": True, **where}, [])
            if not look["found"] or not _is_directory(look["target"]):
                return
            part = f"{self._root.volume(namespace, name)}/filling-{secrets.token_hex(4)}"
            os.mkdir(part, 0o755)
            try:
                await self._copy({"job": "pack", "name": b".", "follow": True, **where}, part)
                hit("volume.filled")
                os.rename(part, target)  # rename(2): over a directory that is empty
            except OSError as err:
                raise FailedPrecondition(f"fill volume {name}: {err.strerror}") from err
            finally:
                await self._remove_quietly(part)

    async def _copy(self, pack: dict[str, Any], target: str) -> None:
        """One worker reads the image, another writes the volume: neither reaches the other's."""
        read_end, write_end = os.pipe2(os.O_CLOEXEC)

        async def read() -> None:
            try:
                await self._worker.run(pack, [write_end])
            finally:
                os.close(write_end)

        async def write() -> None:
            job = {"job": "extract", "path": b"/", "target": target, "devices": True}
            try:
                await self._worker.run(job, [read_end])
            finally:
                os.close(read_end)

        both = [asyncio.ensure_future(work) for work in (read(), write())]
        try:
            await asyncio.gather(*both)
        finally:
            for work in both:
                work.cancel()
            await asyncio.wait(both)

    def hold(self, namespace: str, name: str) -> None:
        self._claimed[namespace, name] += 1

    def let_go(self, namespace: str, name: str) -> None:
        self._claimed[namespace, name] -= 1
        if not self._claimed[namespace, name]:
            del self._claimed[namespace, name]
            self._filling.pop((namespace, name), None)


class Claim:
    """Makes the volumes that a new container asks for; what is new goes again unless kept.

    `rows` is what its record says of them.
    """

    def __init__(self, volumes: Volumes, namespace: str) -> None:
        self._volumes = volumes
        self._namespace = namespace
        self._held: list[str] = []
        self._new: list[str] = []
        self.rows: list[dict[str, Any]] = []

    async def mounts(
        self,
        asked: Sequence[Mapping[str, Any]],
        image_volumes: Sequence[str],
        snapshot: Sequence[Mount],
        owner: tuple[int, int] = (0, 0),
    ) -> tuple[Mapping[str, Any], ...]:
        """`asked` with each volume as the bind that it is, outer directories before inner ones.

        `owner`: the host's ids of the container's root, to whom an empty new volume belongs.
        The image's own volumes get one each where nothing else is asked for. Raises LighterError.
        """
        if len(asked) + len(image_volumes) > _MAX_MOUNTS:
            raise ResourceExhausted(f"mount volumes: more than {_MAX_MOUNTS} mounts")
        places = {_place(mount) for mount in asked}
        wanted = list(asked)
        for path in image_volumes:
            # Written by whoever made the image, so taken as chroot would.
            place = "/" + "/".join(part for part in path.split("/") if part not in ("", ".", ".."))
            if place not in places and place != "/":
                places.add(place)
                wanted.append({"type": VOLUME, "source": "", "destination": place, "options": []})
        made = [
            await self._mount(mount, snapshot, owner) if mount.get("type") == VOLUME else mount
            for mount in wanted
        ]
        return tuple(sorted(made, key=lambda mount: _place(mount).count("/")))

    async def _mount(
        self, mount: Mapping[str, Any], snapshot: Sequence[Mount], owner: tuple[int, int]
    ) -> Mapping[str, Any]:
        given, options = str(mount.get("source") or ""), list(mount.get("options") or ())
        name, destination = given or self._volumes.new_name(), _place(mount)
        volume, is_new = self._volumes.create(self._namespace, name, anonymous=not given)
        self._volumes.hold(self._namespace, name)
        self._held.append(name)
        if is_new:
            self._new.append(name)
            os.chown(self._volumes.path(self._namespace, name), *owner)
        if NO_COPY not in options:
            await self._volumes.fill(self._namespace, name, snapshot, destination)
        self.rows.append({"name": name, "destination": destination, "anonymous": not given})
        plain = [option for option in options if option != NO_COPY]
        if not PROPAGATIONS.intersection(plain):
            plain.append("rprivate")  # docker's default; else it is what the root has
        return {
            "type": "bind",
            "source": self._volumes.path(volume.namespace, volume.name),
            "destination": destination,
            "options": ["rbind", *(option for option in plain if option not in ("bind", "rbind"))],
        }

    def keep(self) -> None:
        """The container is recorded: its volumes stay."""
        self._new.clear()

    async def __aenter__(self) -> "Claim":
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for name in self._held:
            self._volumes.let_go(self._namespace, name)
        for name in self._new:
            await self._volumes.delete_quietly(self._namespace, name)


def _place(mount: Mapping[str, Any]) -> str:
    """Where a mount goes; of what is no text the spec's own check will say so."""
    destination = mount.get("destination")
    if mount.get("type") != VOLUME and not isinstance(destination, str):
        return ""
    return check_path(destination, "mount destination")


def _is_directory(mode: int) -> bool:
    return mode & 0o170000 == 0o040000  # S_IFDIR, inode(7)


def _two_levels(top: str) -> "list[tuple[str, list[str], list[str]]]":
    """os.walk of the volumes' own directories, not of what is in a volume."""
    found = []
    for path, folders, names in os.walk(top):
        depth = path[len(top) :].count("/")
        found.append((path, list(folders), names))
        folders[:] = [] if depth >= 2 else [name for name in folders if name != _REMOVED]
    return found


def _size_of(path: str) -> int:
    total = 0
    seen: set[tuple[int, int]] = set()
    for top, _folders, names in os.walk(path):
        for name in (".", *names):
            with contextlib.suppress(OSError):
                status = os.lstat(f"{top}/{name}")
                inode = (status.st_dev, status.st_ino)
                if inode not in seen:
                    seen.add(inode)
                    total += status.st_blocks * 512
    return total


def check_driver(driver: str, options: Mapping[str, str]) -> None:
    """Docker's `local` driver without options is all there is. Raises InvalidArgument."""
    if driver not in ("", "local"):
        raise InvalidArgument(f"create volume: there is no driver {driver!r}, only local")
    if options:
        raise InvalidArgument(
            f"create volume: options ({', '.join(sorted(options))}) are not taken; mount the file "
            "system on the host and bind it (-v /its/place:/dst)"
        )
