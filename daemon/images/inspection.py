"""Looking at images: whether their content is here, what they consist of, what they take."""

import os
from dataclasses import dataclass
from typing import Any

from lighter.daemon.content.store import ContentStore
from lighter.daemon.images import platforms
from lighter.daemon.images.documents import (
    CONFIGS,
    INDEXES,
    MANIFESTS,
    MAX_DOCUMENT_BYTES,
    Index,
    Manifest,
    load,
    parse,
)
from lighter.daemon.images.graph import MAX_DEPTH, MAX_NODES, choose
from lighter.daemon.images.service import ImageService
from lighter.daemon.types import Descriptor, Image, Usage
from lighter.proto.daemon_api import PAGE_ROWS
from lighter.proto.errors import DataLoss, LighterError, NotFound, ResourceExhausted

MAX_TREE_BYTES = 8 << 20

COMPLETE = "complete"
INCOMPLETE = "incomplete"
UNAVAILABLE = "unavailable"


@dataclass(frozen=True)
class Checked:
    """Of the config and layers for this host: how many there are and how many are here, in bytes
    too. `unavailable`: the manifest itself is not here, so nobody knows; `problem` says why."""

    image: Image
    status: str
    required: int
    present: int
    required_bytes: int
    present_bytes: int
    unpacked: bool
    problem: str = ""


class Inspection:
    """Reads; changes nothing."""

    def __init__(self, images: ImageService, content: ContentStore) -> None:
        self._images = images
        self._content = content

    async def check(
        self,
        namespace: str,
        filters: tuple[str, ...] = (),
        cursor: str = "",
        limit: int = PAGE_ROWS,
        snapshotter: str = "",
    ) -> tuple[tuple[Checked, ...], str]:
        """One page by name, after the name `cursor`, and the next cursor ("" at the end)."""
        self._images.snapshotter(namespace, snapshotter)
        page, after = self._images.page(namespace, filters, cursor, limit)
        return tuple([await self._check(image, snapshotter) for image in page]), after

    async def _check(self, image: Image, snapshotter: str) -> Checked:
        try:
            manifest = await self._manifest(image)
        except LighterError as err:
            return Checked(image, UNAVAILABLE, 0, 0, 0, 0, False, err.message)
        required = {item.digest: item for item in (manifest.config, *manifest.layers)}.values()
        present = [item for item in required if self.is_here(image.namespace, item)]
        complete = len(present) == len(required)
        return Checked(
            image,
            COMPLETE if complete else INCOMPLETE,
            len(required),
            len(present),
            sum(item.size for item in required),
            sum(item.size for item in present),
            await self._is_unpacked(image, snapshotter),
        )

    async def _manifest(self, image: Image) -> Manifest:
        descriptor = image.target
        for _ in range(MAX_DEPTH):
            document = await self._document(image.namespace, descriptor)
            if isinstance(document, Manifest):
                return document
            chosen = [
                entry
                for entry in choose(document, platforms.host())
                if entry.media_type in INDEXES | MANIFESTS
            ]
            if not chosen:
                raise NotFound(f"check image {image.name}: none is for {platforms.host()}")
            # One that says its platform is meant; others are guesses.
            descriptor = min(chosen, key=lambda entry: entry.platform is None)
        raise ResourceExhausted(f"check image {image.name}: indexes lie over {MAX_DEPTH} deep")

    async def _document(self, namespace: str, descriptor: Descriptor) -> Index | Manifest:
        data = await self._content.read_document(namespace, descriptor.digest, MAX_DOCUMENT_BYTES)
        return parse(data, descriptor.media_type, f"document {descriptor.digest}")

    def is_here(self, namespace: str, descriptor: Descriptor) -> bool:
        """Whether the record and the file have the size that the descriptor says."""
        try:
            if self._content.info(namespace, descriptor.digest).size != descriptor.size:
                return False
            os.close(self._content.open_known(descriptor.digest, descriptor.size))
        except (NotFound, DataLoss):
            return False
        return True

    async def _is_unpacked(self, image: Image, snapshotter: str) -> bool:
        try:
            top = (await self._images.config(image.namespace, image.name)).chain_id
            return not top or await self._images.has_snapshot(image.namespace, top, snapshotter)
        except LighterError:
            return False

    async def usage(
        self, namespace: str, name: str, snapshotter: str = ""
    ) -> tuple[tuple[str, Usage], ...]:
        """(key, usage) of each of an image's snapshots, the highest first.

        Raises NotFound, also for an image that is not unpacked.
        """
        chosen = self._images.snapshotter(namespace, snapshotter)
        key = (await self._images.config(namespace, name)).chain_id
        if key and not await self._images.has_snapshot(namespace, key, snapshotter):
            raise NotFound(f"measure image {name}: it is not unpacked by {chosen.name}")
        found = []
        while key:
            found.append((key, await chosen.usage(namespace, key)))
            key = (await chosen.stat(namespace, key)).parent
        return tuple(found)

    async def tree(self, namespace: str, name: str, content: bool = False) -> dict[str, Any]:
        """{name, target: node}, a node {media_type, digest, size_bytes, platform, present, content,
        children}; `content` adds the JSON of documents. Raises NotFound, ResourceExhausted."""
        image = self._images.find(namespace, name)
        tree = _Tree(self, self._content, namespace, content)
        return {"name": image.name, "target": await tree.node(image.target, 1)}


class _Tree:
    """One tree, within a budget."""

    def __init__(
        self, inspection: Inspection, content: ContentStore, namespace: str, with_content: bool
    ) -> None:
        self._inspection = inspection
        self._content = content
        self._namespace = namespace
        self._with_content = with_content
        self._nodes = 0
        self._bytes = 0

    async def node(self, descriptor: Descriptor, depth: int) -> dict[str, Any]:
        self._nodes += 1
        if self._nodes > MAX_NODES or depth > MAX_DEPTH:
            raise ResourceExhausted(
                f"inspect image: over {MAX_NODES} pieces of content, or {MAX_DEPTH} deep"
            )
        node: dict[str, Any] = {
            "media_type": descriptor.media_type,
            "digest": descriptor.digest,
            "size_bytes": descriptor.size,
            "platform": str(platforms.of(descriptor.platform)) if descriptor.platform else "",
            "present": self._inspection.is_here(self._namespace, descriptor),
            "content": None,
            "children": [],
        }
        kind = descriptor.media_type
        if node["present"] and kind in INDEXES | MANIFESTS | CONFIGS:
            self._bytes += descriptor.size
            if self._bytes > MAX_TREE_BYTES:
                raise ResourceExhausted(f"inspect image: over {MAX_TREE_BYTES} bytes of documents")
            data = await self._content.read_document(
                self._namespace, descriptor.digest, MAX_DOCUMENT_BYTES
            )
            what = f"document {descriptor.digest}"
            if self._with_content:
                node["content"] = load(data, what)
            if kind not in CONFIGS:
                document = parse(data, kind, what)
                children = (
                    document.manifests
                    if isinstance(document, Index)
                    else (document.config, *document.layers)
                )
                node["children"] = [await self.node(child, depth + 1) for child in children]
        return node
