"""The first contents of a volume: what the image has where the volume is mounted.

The copy is made beside `_data`, synced and renamed over it, so that a manager that dies or a power
cut leaves an empty volume or a whole one. The rename takes the directory's place, and a container
that runs on it would be on one that has no name any more. So everybody who is about to use a volume
settles with it first, one after the other; of a volume that another container has settled with
nothing is replaced.
"""

import asyncio
import contextlib
import errno
import os
import secrets
from collections.abc import Sequence
from typing import Any

from lighter.daemon.files import sync_directory
from lighter.daemon.images.worker import Worker
from lighter.daemon.metadata.volumes import VolumeStore
from lighter.daemon.snapshots.disk import sync_file_system
from lighter.daemon.snapshots.types import TreeRemover
from lighter.daemon.types import Mount
from lighter.proto.errors import FailedPrecondition, InvalidArgument, LighterError
from lighter.proto.faults import hit
from lighter.proto.paths import Root

ADOPTED_LABEL = "io.lighter/adopted"  # of a volume whose directory was there before its record
PART = "filling-"  # + hex: a copy that is under way, beside `_data`


class Filling:
    """Gives volumes that are empty and unused their owner and the image's files."""

    def __init__(
        self, root: Root, store: VolumeStore, worker: Worker, remove_tree: TreeRemover
    ) -> None:
        self._root = root
        self._store = store
        self._worker = worker
        self._remove_tree = remove_tree
        self._locks: dict[tuple[str, str], asyncio.Lock] = {}
        self._settled: dict[tuple[str, str], set[object]] = {}

    async def settle(
        self,
        namespace: str,
        name: str,
        user: object,
        owner: tuple[int, int],
        image: tuple[Sequence[Mount], str] | None,
    ) -> bool:
        """After this the volume's directory stays the same one until `user` lets go.

        An empty one that nobody uses goes to `owner` if it is root's, and is filled from `image`:
        the mounts of a snapshot of it and the place in there. Whatever is there of the kind that
        docker copies is: files with owner, mode, times and attributes. Returns whether it was such
        a one. Raises LighterError.
        """
        key = namespace, name
        async with self._locks.setdefault(key, asyncio.Lock()):
            others = self._settled.get(key, set()) - {user}
            path = self._root.volume_data(namespace, name)
            used = others or self._store.users(namespace).get(name)
            labels = self._store.get(namespace, name).labels
            is_fresh = False
            # A container whose record was lost too may run on the directory of a lost database.
            if (
                not used
                and ADOPTED_LABEL not in labels
                and await asyncio.to_thread(_is_empty, path)
            ):
                try:
                    _give(path, owner)
                    if image is not None:
                        await self._fill(namespace, name, *image)
                except OSError as err:
                    raise FailedPrecondition(f"fill volume {name}: {err.strerror}") from err
                is_fresh = True
            self._settled.setdefault(key, set()).add(user)
            return is_fresh

    def let_go(self, namespace: str, name: str, user: object) -> None:
        """`user` is recorded by now, or will not be."""
        self._settled.get((namespace, name), set()).discard(user)

    def forget(self, namespace: str, name: str) -> None:
        """Nobody claims the volume any more."""
        self._locks.pop((namespace, name), None)
        self._settled.pop((namespace, name), None)

    async def place(self, mounts: Sequence[Mount], path: str) -> str:
        """Where `path` leads in the snapshot with these mounts. Raises LighterError."""
        said = await self._worker.run({"job": "place", **_where(mounts, path)}, [])
        try:
            return str(said["place"], "utf-8")
        except UnicodeDecodeError as err:
            raise InvalidArgument(f"mount {path[:80]}: it leads to a name that is no text") from err

    async def _fill(
        self, namespace: str, name: str, mounts: Sequence[Mount], destination: str
    ) -> None:
        where = _where(mounts, destination)
        look = await self._worker.run({"job": "look", "follow": True, **where}, [])
        if not look["found"] or not _is_directory(look["target"]):
            return
        part = f"{self._root.volume(namespace, name)}/{PART}{secrets.token_hex(4)}"
        os.mkdir(part, 0o755)
        try:
            await self._copy({"job": "pack", "name": b".", "follow": True, **where}, part)
            await asyncio.to_thread(_sync_files, part)
            hit("volume.filled")
            # rename(2): over a directory that is empty.
            os.rename(part, self._root.volume_data(namespace, name))
            await asyncio.to_thread(sync_directory, self._root.volume(namespace, name))
        except OSError as err:
            # Somebody on the host has put a file there meanwhile: it is no longer an empty volume.
            if err.errno != errno.ENOTEMPTY:
                raise
        finally:
            with contextlib.suppress(LighterError):  # what is left goes at the next start
                if os.path.lexists(part):  # noqa: ASYNC240 (one look at our own directory)
                    await self._remove_tree(part)

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


def _where(mounts: Sequence[Mount], path: str) -> dict[str, Any]:
    snapshot = [[mount.type, mount.source, list(mount.options)] for mount in mounts]
    return {"mounts": snapshot, "path": os.fsencode(path)}


def _is_empty(path: str) -> bool:
    with os.scandir(path) as entries:
        return next(entries, None) is None


def _sync_files(path: str) -> None:
    """Most images have nothing where their volumes are: then nobody waits for the disk."""
    if not _is_empty(path):
        sync_file_system(path)


def _give(path: str, owner: tuple[int, int]) -> None:
    """Give it to `owner` if it is still root's: any other owner was chosen, here or by whoever kept
    its files.
    """
    found = os.lstat(path)
    if (found.st_uid, found.st_gid) == (0, 0) != owner:
        os.chown(path, *owner, follow_symlinks=False)


def _is_directory(mode: int) -> bool:
    return mode & 0o170000 == 0o040000  # S_IFDIR, inode(7)
