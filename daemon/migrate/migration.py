"""Taking images over from another store: content is linked, hashed and recorded, names last.

Nothing of the other store is changed or moved, so that it works as before, and the way back is to
go on with it. What is there already is not taken again, and no name of ours is pointed elsewhere.
A migration that was broken off is simply run again.
"""

import asyncio
import errno
import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from lighter.daemon.content.blobs import Arrival
from lighter.daemon.content.digest import Digest
from lighter.daemon.content.store import ContentStore
from lighter.daemon.errors import from_os
from lighter.daemon.images import platforms
from lighter.daemon.images.graph import Graph, Walker
from lighter.daemon.images.store import ImageStore
from lighter.daemon.migrate.containerd import ContainerdRoot, Named, Unreadable
from lighter.proto.errors import DataLoss, LighterError, NotFound
from lighter.proto.faults import hit

TAKEN = "taken"
PRESENT = "present"  # by this name, the same image
KEPT = "kept"  # by this name another image, which stays
FAILED = "failed"
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Migrated:
    """What became of one image. `linked`: of its content, without what was here already."""

    namespace: str
    name: str
    outcome: str
    linked: int = 0
    copied: int = 0
    size_bytes: int = 0
    reason: str = ""


class Migration:
    """From one root of containerd's into our stores."""

    def __init__(self, source: ContainerdRoot, content: ContentStore, images: ImageStore) -> None:
        self._source = source
        self._content = content
        self._images = images

    def wanted(self, namespaces: Iterable[str]) -> Iterator[Named | Unreadable]:
        """The images of these namespaces; without any, of all. Raises NotFound for a namespace."""
        there = self._source.namespaces()
        for namespace in namespaces or there:
            if namespace not in there:
                raise NotFound(f"migrate namespace {namespace}: only {', '.join(there)} are there")
            yield from self._source.images(namespace)

    async def take(self, image: Named | Unreadable, *, dry_run: bool = False) -> Migrated:
        """One image: whole, or not at all. What went wrong is in the answer."""
        if isinstance(image, Unreadable):
            return Migrated(image.namespace, image.name, FAILED, reason=image.why)
        try:
            found = self._images.get(image.namespace, image.name)
            same = found.target.digest == image.target.digest
            why = "" if same else f"it is {found.target.digest} here"
            return Migrated(image.namespace, image.name, PRESENT if same else KEPT, reason=why)
        except NotFound:
            pass
        try:
            return await self._take(image, dry_run)
        except LighterError as err:
            return Migrated(image.namespace, image.name, FAILED, reason=err.message)

    async def _take(self, image: Named, dry_run: bool) -> Migrated:
        graph = await self._walk(image)
        missing = {
            digest: descriptor.size
            for digest, descriptor in graph.found.items()
            if not self._content.has(image.namespace, digest)
        }
        size = sum(missing.values())
        if dry_run:
            return Migrated(image.namespace, image.name, TAKEN, len(missing), 0, size)
        copied = 0
        async with self._content.new_ingest() as ingest:
            arrivals = []
            for digest, size_bytes in missing.items():
                path = ingest.file(digest.hex)
                is_link = await asyncio.to_thread(self._bring, digest, size_bytes, path)
                copied += not is_link
                labels = self._source.sources(image.namespace, digest)
                labels |= graph.labels.get(digest, {})
                arrivals.append(Arrival(path, digest, size_bytes, labels, is_link))
            hit("migrate.linked")
            await self._content.adopt_all(image.namespace, arrivals)
        for digest in graph.found.keys() - missing.keys():
            if digest in graph.labels:
                self._content.label(image.namespace, digest, graph.labels[digest])
        hit("migrate.adopted")
        self._images.create(image.namespace, image.name, image.target, image.labels)
        linked = len(missing) - copied
        return Migrated(image.namespace, image.name, TAKEN, linked, copied, size)

    async def _walk(self, image: Named) -> Graph:
        """Every platform that is whole there; mostly that is the host's alone."""
        try:
            return await Walker(self._source, None).walk(image.target)
        except NotFound:
            return await Walker(self._source, platforms.host()).walk(image.target)

    def _bring(self, digest: Digest, size_bytes: int, path: str) -> bool:
        """Link a file, or copy it from another file system; True for a link. Raises DataLoss."""
        source = self._source.path(digest)
        is_link = True
        try:
            try:
                os.link(source, path, follow_symlinks=False)
            except OSError as err:
                if err.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK):
                    raise
                is_link = False
                _copy(source, path)
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            with os.fdopen(fd, "rb") as file:
                hashed = hashlib.sha256()
                while block := file.read(_BLOCK):
                    hashed.update(block)
        except OSError as err:
            raise from_os(f"migrate content {digest}", err) from err
        if hashed.hexdigest() != digest.hex:
            raise DataLoss(f"migrate content {digest}: {source} has other bytes")
        return is_link


def _copy(source: str, path: str) -> None:
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
    with os.fdopen(os.open(source, flags), "rb") as there, open(path, "xb") as here:
        shutil.copyfileobj(there, here, _BLOCK)
        here.flush()
        os.fsync(here.fileno())
