"""Volumes: directories that outlive the containers that use them.

    <root>/volumes/<namespace>/<name>/_data         what containers see
                                     /filling-<hex> a copy out of an image that is under way
    <root>/volumes/.removed/<16 hex>                deleted, on its way out

A row makes a directory a volume. A directory without one, as a lost database leaves it, is taken
with what is in it when a volume of its name is made; what was deleted never comes back that way,
because its name is taken from it before anything else.

What a container asked for stands in its record's options under `volumes`, one {name, destination,
anonymous} for each; that is what "in use" means. Between the making of a volume and that record it
is claimed (volumes/claim.py).
"""

import asyncio
import builtins
import contextlib
import logging
import os
import secrets
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lighter.daemon import files
from lighter.daemon.images.worker import Worker
from lighter.daemon.metadata.volumes import Volume, VolumeStore
from lighter.daemon.snapshots import disk
from lighter.daemon.snapshots.types import TreeRemover
from lighter.daemon.volumes.filling import ADOPTED_LABEL, PART, Filling
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

_REMOVED = ".removed"
_TICK_NS = 20_000_000  # so much the times of files may lag behind the clock: a tick of the kernel
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
        self._remove_tree = remove_tree
        self._claimed: Counter[tuple[str, str]] = Counter()
        self._unasked: set[tuple[str, str]] = set()  # new ones of claims, which may undo that
        self._left: tuple[list[tuple[str, str, str]], list[str]] = ([], [])
        self.filling = Filling(root, store, worker, remove_tree)

    # looking

    def path(self, namespace: str, name: str) -> str:
        """The directory that containers see."""
        return self._root.volume_data(namespace, name)

    def get(self, namespace: str, name: str) -> Volume:
        """Raises NotFound."""
        return self._store.get(namespace, name)

    def list(self, namespace: str) -> tuple[Volume, ...]:
        return self._store.list(namespace)

    def users(self, namespace: str) -> "dict[str, builtins.list[str]]":
        """By volume, the containers that use it."""
        return self._store.users(namespace)

    async def size_bytes(self, namespace: str, name: str) -> int:
        """What its files take on the disk. Raises FailedPrecondition."""
        try:
            return (await asyncio.to_thread(disk.measure, self.path(namespace, name))).size_bytes
        except OSError as err:
            raise FailedPrecondition(f"measure volume {name}: {err.strerror}") from err

    # making and removing

    @staticmethod
    def new_name() -> str:
        """A name that nobody has: 64 hex digits, like docker's."""
        return secrets.token_hex(32)

    def create(
        self,
        namespace: str,
        name: str,
        labels: Mapping[str, str] | None = None,
        *,
        anonymous: bool = False,
        asked: bool = True,
    ) -> tuple[Volume, bool]:
        """(the volume, whether its directory is new): one that is there is returned as it is.

        Not `asked`: for a claim, which takes away again what is new when it fails, unless somebody
        has asked for it meanwhile. Raises InvalidArgument, ResourceExhausted.
        """
        check_name(namespace, "namespace")
        check_name(name, "volume")
        with contextlib.suppress(NotFound):
            found = self._store.get(namespace, name)
            if asked:
                self._unasked.discard((namespace, name))
            return found, False
        is_new, kept = False, self._is_of_lost_database(namespace, name)
        try:
            for of, removed, removed_as in self._store.trash():
                if (of, removed) == (namespace, name):
                    self._put_away(namespace, name, removed_as)
            files.make_directory(self._root.volume(namespace, name), 0o711)
            with contextlib.suppress(FileExistsError):
                os.mkdir(self.path(namespace, name))
                os.chmod(self.path(namespace, name), _MODE)
                is_new = True
        except OSError as err:
            raise ResourceExhausted(f"create volume {name}: {err.strerror}") from err
        hit("volume.directory-made")
        adopted = {ADOPTED_LABEL: "true"} if kept and not is_new else {}
        volume = Volume(namespace, name, {**(labels or {}), **adopted}, anonymous, time.time_ns())
        self._store.create(volume)
        if is_new and not asked:
            self._unasked.add((namespace, name))
        return volume, is_new

    def _is_of_lost_database(self, namespace: str, name: str) -> bool:
        """Whether its directory is older than all that is known; nobody but we change that one."""
        try:
            made_at = os.stat(self._root.volume(namespace, name)).st_mtime_ns
        except OSError:
            return False
        return made_at < self._store.database_born_at() - _TICK_NS

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
        try:
            self._put_away(namespace, name, removed_as)
        except OSError as err:  # the note stays: a start, or a new volume of this name, does it
            raise FailedPrecondition(f"delete files of volume {name}: {err.strerror}") from err
        await self._sweep(namespace, name, removed_as)

    async def prune(self, namespace: str, *, everything: bool) -> Pruned:
        """Remove what no container uses: anonymous volumes, with `everything` named ones too."""
        names, problems, size_bytes = [], [], 0
        used = self._store.users(namespace)
        for volume in self._store.list(namespace):
            if volume.name in used or not (everything or volume.anonymous):
                continue
            size = 0
            try:
                with contextlib.suppress(FailedPrecondition):  # no reason to keep it
                    size = await self.size_bytes(namespace, volume.name)
                await self.delete(namespace, volume.name)
            except LighterError as err:
                problems.append(err.message)
            else:
                names.append(volume.name)
                size_bytes += size
        return Pruned(tuple(names), size_bytes, tuple(problems))

    async def delete_anonymous(self, namespace: str, options: Mapping[str, Any]) -> None:
        """Delete the volumes that were made for a container alone, which has been removed."""
        for row in options.get("volumes") or ():
            if row.get("anonymous"):
                await self.delete_quietly(namespace, row["name"])

    def recover(self) -> None:
        """Before anybody is served: take away what a manager that died had begun to remove or fill.

        Only names are changed here; `tidy` removes the files.
        """
        away, left = [], []
        try:
            for note in self._store.trash():
                if not self._exists(*note[:2]):
                    self._put_away(*note)
                away.append(note)
            for part in self._parts():
                files.make_directory(f"{self._root.volumes}/{_REMOVED}", 0o700)
                os.rename(part, self._removed(secrets.token_hex(8)))
        except OSError as err:  # a note that stays is heeded by whoever asks for the name
            log.warning("put volumes' remains away: %s", err)
        with contextlib.suppress(OSError):
            left = os.listdir(f"{self._root.volumes}/{_REMOVED}")
        self._left = away, left

    async def tidy(self) -> None:
        """Remove the files of what `recover` found."""
        notes, left = self._left
        self._left = ([], [])
        for name in left:
            try:
                await self._remove_tree(self._removed(name))
            except LighterError as err:
                log.warning("remove %s: %s", self._removed(name), err.message)
        for namespace, name, removed_as in notes:
            if not os.path.lexists(self._removed(removed_as)):  # noqa: ASYNC240 (our own directory)
                self._store.forget_trash(namespace, name, removed_as)

    def _parts(self) -> Iterator[str]:
        """Copies out of an image that nobody finishes any more."""
        for namespace in _folders(self._root.volumes):
            if namespace != _REMOVED:
                for volume in _folders(f"{self._root.volumes}/{namespace}"):
                    inside = f"{self._root.volumes}/{namespace}/{volume}"
                    yield from (f"{inside}/{x}" for x in _folders(inside) if x.startswith(PART))

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

    # use

    def end_claim(self, namespace: str, name: str) -> bool:
        """End the claim of the one that has made the volume. Returns whether nobody else has asked
        for it meanwhile.
        """
        was_unasked = (namespace, name) in self._unasked
        self._unasked.discard((namespace, name))
        return was_unasked

    def hold(self, namespace: str, name: str) -> None:
        self._claimed[namespace, name] += 1

    def let_go(self, namespace: str, name: str) -> None:
        self._claimed[namespace, name] -= 1
        if not self._claimed[namespace, name]:
            del self._claimed[namespace, name]
            self.filling.forget(namespace, name)


def _folders(path: str) -> builtins.list[str]:
    try:
        with os.scandir(path) as entries:
            return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return []


def check_driver(driver: str, options: Mapping[str, str]) -> None:
    """Docker's `local` driver without options is all there is. Raises InvalidArgument."""
    if driver not in ("", "local"):
        raise InvalidArgument(f"create volume: there is no driver {driver!r}, only local")
    if options:
        raise InvalidArgument(
            f"create volume: options ({', '.join(sorted(options))}) are not taken; mount the file "
            "system on the host and bind it (-v /its/place:/dst)"
        )
