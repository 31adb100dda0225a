"""Push: a tree of content goes to a registry: blobs, then manifests, then indexes, last the tag."""

import asyncio
import os
import re
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass

from lighter.daemon.content.digest import Digest
from lighter.daemon.content.gc import Collector
from lighter.daemon.content.store import ContentStore
from lighter.daemon.images.documents import INDEXES, MANIFESTS, MAX_DOCUMENT_BYTES, parse
from lighter.daemon.images.graph import Graph, StoredDocuments, Walker
from lighter.daemon.images.platforms import Platform
from lighter.daemon.images.progress import Board, Report
from lighter.daemon.images.pull import (
    AT_ONCE,
    MAX_SOURCE_BYTES,
    SOURCE_LABEL,
    repositories_in,
)
from lighter.daemon.images.reference import Reference, is_repository
from lighter.daemon.images.store import ImageStore
from lighter.daemon.images.together import all_of
from lighter.daemon.registry.access import Access
from lighter.daemon.registry.client import Remote
from lighter.daemon.registry.registries import Registries
from lighter.daemon.types import Descriptor, Image
from lighter.proto.errors import FailedPrecondition, InvalidArgument, NotFound
from lighter.proto.faults import hit

READ_BYTES = 1 << 20

# type/subtype of RFC 6838, section 4.2
_NAME = "[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}"
_MEDIA_TYPE = re.compile(f"{_NAME}/{_NAME}", re.ASCII)


@dataclass(frozen=True)
class PushOptions:
    """`platform` picks one manifest out of an index; without it the whole index is pushed.

    `digest` pushes that document instead of what the local name stands for.
    """

    platform: Platform | None = None
    digest: str = ""
    at_once: int = AT_ONCE


class Pusher:
    """Pushes images of one content store."""

    def __init__(
        self,
        *,
        content: ContentStore,
        images: ImageStore,
        collector: Collector,
        registries: Registries,
    ) -> None:
        self._content = content
        self._images = images
        self._collector = collector
        self._registries = registries

    async def push(
        self,
        namespace: str,
        local: str,
        name: str,
        options: PushOptions,
        access: Access,
        report: Report,
    ) -> Descriptor:
        """Make `name` in its registry stand for what `local` is here; returns what was pushed.

        What the registry has is not sent. Raises NotFound (no such image, no such platform),
        FailedPrecondition for an index of which content is missing here, and what the registry
        raises, naming reference, digest and host.
        """
        reference = Reference.parse(name)
        image = self._images.find(namespace, local)
        with Board(report, str(reference)) as board, self._collector.pin() as pin:
            target = await self._chosen(namespace, image, options)
            graph = await self._whole(namespace, image, target)
            for digest in graph.found:
                pin.content(namespace, digest)
            for descriptor in graph.found.values():
                board.piece(_kind(descriptor), descriptor.digest, "waiting", 0, descriptor.size)
            async with self._registries.remote(reference, access) as remote:
                work = _Work(self._content, namespace, reference, remote, board)
                await work.push_all(graph, target, options.at_once)
            board.say("done", target.digest)
        return target

    async def push_object(
        self,
        namespace: str,
        name: str,
        digest: str,
        media_type: str,
        access: Access,
        report: Report,
    ) -> Descriptor:
        """Push one blob, or one manifest or index alone, to the repository of `name`.

        `media_type` tells which. A document gets the tag of `name`, unless `name` has a digest;
        the registry refuses one whose parts it lacks. Raises NotFound without the content here,
        InvalidArgument for a media type that is none or that the document denies, and what the
        registry raises.
        """
        reference = Reference.parse(name)
        if not _MEDIA_TYPE.fullmatch(media_type):
            raise InvalidArgument(f"push {digest}: {media_type[:80]!r} is no media type")
        size = self._content.info(namespace, Digest.parse(digest)).size
        descriptor = Descriptor(media_type, digest, size)
        with Board(report, str(reference)) as board, self._collector.pin() as pin:
            pin.content(namespace, Digest.parse(digest))
            is_document = media_type in INDEXES | MANIFESTS
            if is_document:
                data = await self._content.read_document(namespace, digest, MAX_DOCUMENT_BYTES)
                parse(data, media_type, f"document {digest}")
            async with self._registries.remote(reference, access) as remote:
                work = _Work(self._content, namespace, reference, remote, board)
                if is_document:
                    await work.push_document(descriptor, reference.tag)
                else:
                    await work.push_blob(descriptor, asyncio.Semaphore())
            board.say("done", digest)
        return descriptor

    async def _chosen(self, namespace: str, image: Image, options: PushOptions) -> Descriptor:
        if options.digest:
            documents = StoredDocuments(self._content, namespace)
            graph = await Walker(documents, None).walk(image.target)
            for descriptor in graph.found.values():
                if descriptor.digest == options.digest:
                    return descriptor
            raise NotFound(f"push image {image.name}: it has no document {options.digest}")
        if options.platform is None:
            return image.target
        documents = StoredDocuments(self._content, namespace)
        return (await Walker(documents, options.platform).resolve(image.target)).descriptor

    async def _whole(self, namespace: str, image: Image, target: Descriptor) -> Graph:
        try:
            return await Walker(StoredDocuments(self._content, namespace), None).walk(target)
        except NotFound as err:
            raise FailedPrecondition(
                f"push image {image.name}: not all of its platforms are here: {err.message}; "
                "give a platform, or pull all of them first"
            ) from err


class _Work:
    """One push under way."""

    def __init__(
        self,
        content: ContentStore,
        namespace: str,
        reference: Reference,
        remote: Remote,
        board: Board,
    ) -> None:
        self._content = content
        self._namespace = namespace
        self._reference = reference
        self._remote = remote
        self._board = board

    async def push_all(self, graph: Graph, target: Descriptor, at_once: int) -> None:
        """Children before parents: a registry refuses a document whose parts it has not."""
        slots = asyncio.Semaphore(max(1, at_once))
        await all_of(
            [
                asyncio.ensure_future(self.push_blob(descriptor, slots))
                for descriptor in graph.found.values()
                if descriptor.media_type not in INDEXES | MANIFESTS
            ]
        )
        for descriptor in graph.documents:
            if descriptor.digest != target.digest:
                await self.push_document(descriptor, "")
        await self.push_document(target, self._reference.tag)

    async def push_blob(self, descriptor: Descriptor, slots: asyncio.Semaphore) -> None:
        digest, size, kind = descriptor.digest, descriptor.size, _kind(descriptor)

        def told(sent_bytes: int) -> None:
            self._board.piece(kind, digest, "uploading", sent_bytes, size)

        async with slots:
            pushed = await self._remote.push_blob(
                descriptor,
                lambda: self._bytes_of(digest, size),
                mount_from=self._near(digest),
                progress=told,
            )
        hit("push.blob")
        self._board.piece(kind, digest, "done" if pushed else "exists", size, size)
        self._note(digest)

    async def push_document(self, descriptor: Descriptor, tag: str) -> None:
        digest, size = descriptor.digest, descriptor.size
        data = await self._content.read_document(self._namespace, digest, MAX_DOCUMENT_BYTES)
        await self._remote.push_document(descriptor, data, tag)
        hit("push.document")
        self._board.piece(_kind(descriptor), digest, "done", size, size)
        self._note(digest)

    def _near(self, digest: str) -> str:
        """Another repository of this registry that has the blob, as far as is known here."""
        for repository in self._sources(digest):
            if repository != self._reference.repository:
                return repository
        return ""

    def _sources(self, digest: str) -> list[str]:
        with suppress(NotFound):
            labels = self._content.info(self._namespace, digest).labels
            # Anybody may have written the label, and it becomes part of a URL.
            return sorted(filter(is_repository, repositories_in(labels, self._reference)))
        return []

    def _note(self, digest: str) -> None:
        """The registry has it now, for a later push to another of its repositories."""
        repositories = sorted({*self._sources(digest), self._reference.repository})
        text = ",".join(repositories)
        if len(text) <= MAX_SOURCE_BYTES:
            with suppress(NotFound):
                key = SOURCE_LABEL + self._reference.host
                self._content.note(self._namespace, digest, {key: text})

    async def _bytes_of(self, digest: str, size_bytes: int) -> AsyncIterator[bytes]:
        fd = self._content.open(self._namespace, digest)
        try:
            offset = 0
            while offset < size_bytes:
                data = await asyncio.to_thread(os.pread, fd, READ_BYTES, offset)
                if not data:
                    return
                offset += len(data)
                yield data
        finally:
            os.close(fd)


def _kind(descriptor: Descriptor) -> str:
    if descriptor.media_type in INDEXES:
        return "index"
    if descriptor.media_type in MANIFESTS:
        return "manifest"
    return "config" if descriptor.media_type.endswith("json") else "layer"
