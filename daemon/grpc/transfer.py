"""containerd.services.transfer.v1.Transfer: one call moves an image, by the services of `ctl`.

from                to
OCIRegistry         ImageStore           pull
ImageStore          OCIRegistry          push
ImageImportStream   ImageStore           import
ImageStore          ImageExportStream    export
ImageStore          ImageStore           tag
"""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from google.protobuf.empty_pb2 import Empty

from lighter.daemon.content.store import ContentStore
from lighter.daemon.grpc import bytestreams
from lighter.daemon.grpc.calls import Call
from lighter.daemon.grpc.leases import hold, holder
from lighter.daemon.grpc.pb import transfer_pb2 as pb
from lighter.daemon.grpc.pb import transfer_types_pb2 as ends
from lighter.daemon.grpc.pb.types_pb2 import Descriptor
from lighter.daemon.grpc.streams import Stream, Streams
from lighter.daemon.grpc.transferends import (
    Destination,
    access,
    destination,
    import_options,
    platform,
    read,
)
from lighter.daemon.grpc.transferprogress import Telling, Tree
from lighter.daemon.grpc.translate import descriptor
from lighter.daemon.grpc.words import quoted, saying
from lighter.daemon.images.exporter import Exporter, ExportOptions
from lighter.daemon.images.progress import Progress, Report
from lighter.daemon.images.pull import Puller, PullOptions
from lighter.daemon.images.push import Pusher, PushOptions
from lighter.daemon.images.reference import Reference
from lighter.daemon.images.service import ImageService
from lighter.daemon.leases import IMAGES, Leases
from lighter.daemon.types import Image
from lighter.proto.errors import AlreadyExists, InvalidArgument, NotFound, Unimplemented

Tell = Callable[[ends.Progress], None]


@dataclass(frozen=True)
class Parts:
    """The services that a transfer uses."""

    content: ContentStore
    images: ImageService
    puller: Puller
    pusher: Pusher
    exporter: Exporter
    leases: Leases


class TransferService:
    NAME = "containerd.services.transfer.v1.Transfer"

    def __init__(self, streams: Streams, parts: Parts) -> None:
        self._streams = streams
        self._parts = parts

    async def transfer(self, call: Call, request: pb.TransferRequest) -> Empty:
        namespace = call.namespace
        lease = holder(self._parts.leases, namespace, call.lease)
        made: list[Image] = []
        async with self._told(namespace, request.options.progress_stream) as tell:
            match read(request.source), read(request.destination):
                case ends.OCIRegistry() as source, ends.ImageStore() as store:
                    made = await self._pull(namespace, source, store, tell)
                case ends.ImageStore() as store, ends.OCIRegistry() as registry:
                    await self._push(namespace, store, registry, tell)
                case ends.ImageImportStream() as archive, ends.ImageStore() as store:
                    made = await self._import(namespace, archive, store, tell)
                case ends.ImageStore() as store, ends.ImageExportStream() as archive:
                    await self._export(namespace, store, archive, tell)
                case ends.ImageStore() as source, ends.ImageStore() as store:
                    made = self._tag(namespace, source, store)
                case _:
                    raise Unimplemented(
                        "method Transfer not implemented for "
                        f"{request.source.type_url} to {request.destination.type_url}"
                    )
        for image in made:
            hold(self._parts.leases, namespace, lease, IMAGES, image.name)
        return Empty()

    async def _pull(
        self, namespace: str, source: ends.OCIRegistry, store: ends.ImageStore, tell: Tell
    ) -> list[Image]:
        to = destination(store)
        if to.prefix is not None or not to.names:
            raise InvalidArgument(f"pull {source.reference}: expected the names it is to have here")
        tree = Tree(self._parts.content, namespace, to.names[0], tell)
        where = _registry(source)
        async with self._taken(namespace, source.resolver.auth_stream) as stream:
            reach = access(source, stream)
            reference = source.reference
            for wanted in to.platforms or (None,):
                unpacked = [named for of, named in to.unpacks if of == wanted]
                options = PullOptions(
                    platforms=(wanted,) if wanted else (),
                    all_platforms=wanted is None,
                    all_metadata=to.all_metadata,
                    unpack=bool(unpacked),
                    snapshotter=unpacked[0] if unpacked else "",
                    labels=to.labels,
                    names=to.names,
                )
                report = _pulling(tree, to.names[0], where)
                pulled = await self._parts.puller.pull(namespace, reference, options, reach, report)
                # The tag may be moved meanwhile: all platforms are of one image.
                digest = pulled.image.target.digest
                reference = f"{Reference.parse(source.reference).name}@{digest}"
        made = [self._parts.images.record(namespace, name) for name in to.names]
        made += self._name_by_digest(namespace, to, made[0])
        await self._unpack(namespace, made[:1], to, tree.report)
        for image in made:
            tree.image("saved", image.name, descriptor(image.target))
        tree.line(f"Completed pull from {where}")
        return made

    async def _push(
        self, namespace: str, store: ends.ImageStore, registry: ends.OCIRegistry, tell: Tell
    ) -> None:
        if len(store.platforms) > 1:
            raise Unimplemented(f"push {store.name}: one platform is taken, or none for all")
        image = self._record(namespace, store.name)
        tree = Tree(self._parts.content, namespace, image.name, tell)
        where, target = _registry(registry), descriptor(image.target)
        tree.line(f"Pushing to {where}")
        tree.image("pushing content", image.name, target)
        options = PushOptions(platform=platform(store.platforms[0]) if store.platforms else None)
        async with self._taken(namespace, registry.resolver.auth_stream) as stream:
            await self._parts.pusher.push(
                namespace,
                image.name,
                registry.reference,
                options,
                access(registry, stream),
                tree.report,
            )
        tree.image("pushed content", image.name, target)
        tree.line(f"Completed push to {where}")

    async def _import(
        self, namespace: str, archive: ends.ImageImportStream, store: ends.ImageStore, tell: Tell
    ) -> list[Image]:
        to = destination(store)
        options = import_options(to, archive)
        tree = Tree(self._parts.content, namespace, "", tell)
        tree.line("Importing")
        async with (
            self._wanted(namespace, archive.stream) as stream,
            bytestreams.source(stream) as (read_fd, feeding),
        ):
            found = await _beside(
                self._parts.images.import_archive(namespace, read_fd, options, tree.report),
                feeding,
            )
        await self._unpack(namespace, found, to, tree.report)
        for image in found:
            tree.image("saved", image.name, descriptor(image.target))
        tree.line("Completed import")
        return list(found)

    async def _export(
        self, namespace: str, store: ends.ImageStore, archive: ends.ImageExportStream, tell: Tell
    ) -> None:
        if any(given.is_prefix for given in store.extra_references):
            raise Unimplemented("export images: they are not found by a prefix")
        names = [*filter(None, (store.name, *(given.name for given in store.extra_references)))]
        found = [self._record(namespace, name).name for name in names]
        options = ExportOptions(
            platforms=tuple(map(platform, archive.platforms)),
            all_platforms=archive.all_platforms,
            skip_manifest_json=archive.skip_compatibility_manifest,
            skip_non_distributable=archive.skip_non_distributable,
        )
        tell(ends.Progress(event="Exporting"))
        async with (
            self._wanted(namespace, archive.stream) as stream,
            bytestreams.target(stream) as (write_fd, drawing),
        ):
            try:
                await self._parts.exporter.run(namespace, found, write_fd, options)
            finally:
                os.close(write_fd)
            await drawing
            await stream.finish()  # the answer says that the client has all of it
        tell(ends.Progress(event="Completed export"))

    def _tag(self, namespace: str, source: ends.ImageStore, store: ends.ImageStore) -> list[Image]:
        to, image = destination(store), self._record(namespace, source.name)
        if to.prefix is not None or not (to.names or to.digested):
            raise InvalidArgument(f"tag {source.name}: expected the names it is to have too")
        names = [*to.names, *(f"{name}@{image.target.digest}" for name in to.digested)]
        made = []
        for name in names:  # that has the labels of this call alone, also if it was there
            try:
                made.append(self._parts.images.create(namespace, name, image.target, to.labels))
            except AlreadyExists:
                made.append(self._parts.images.update(namespace, name, image.target, to.labels))
        return made

    # --- what several of them do

    def _record(self, namespace: str, name: str) -> Image:
        with saying({NotFound: f"image {quoted(name)}: not found"}):
            return self._parts.images.record(namespace, name)

    def _name_by_digest(self, namespace: str, to: Destination, image: Image) -> list[Image]:
        digest = image.target.digest
        return [
            self._parts.images.tag(namespace, image.name, f"{name}@{digest}", force=True)
            for name in to.digested
        ]

    async def _unpack(
        self, namespace: str, found: Iterable[Image], to: Destination, report: Report
    ) -> None:
        """For all platforms that are asked for and that an image has."""
        images = self._parts.images
        for image in found:
            for wanted, snapshotter in to.unpacks:
                try:
                    await images.config(namespace, image.name, wanted)
                except NotFound:
                    continue
                await images.unpack(namespace, image.name, snapshotter, report, platform=wanted)

    @asynccontextmanager
    async def _told(self, namespace: str, stream_id: str) -> AsyncIterator[Tell]:
        """Where to tell how far it is; nowhere for ""."""
        async with self._taken(namespace, stream_id) as stream:
            if stream is None:
                yield lambda _progress: None
                return
            telling = Telling(stream)
            try:
                yield telling.tell
            finally:
                await telling.close()

    @asynccontextmanager
    async def _taken(self, namespace: str, stream_id: str) -> AsyncIterator[Stream | None]:
        """The stream of this id, which ends with the block; None for ""."""
        if not stream_id:
            yield None
            return
        async with self._wanted(namespace, stream_id) as stream:
            yield stream

    @asynccontextmanager
    async def _wanted(self, namespace: str, stream_id: str) -> AsyncIterator[Stream]:
        stream = self._streams.take(namespace, stream_id)
        try:
            yield stream
        finally:
            await stream.close()


def _registry(registry: ends.OCIRegistry) -> str:
    """As containerd names it in its lines of progress."""
    return f"OCI Registry ({registry.reference})"


def _pulling(tree: Tree, name: str, where: str) -> Report:
    def report(progress: Progress) -> None:
        if progress.status == "resolving":
            tree.line(f"Resolving from {where}")
        elif progress.status == "resolved":
            tree.line(f"Pulling from {where}")
            tree.image("fetching image content", name, Descriptor(digest=progress.digest))
        else:
            tree.report(progress)

    return report


async def _beside(
    work: Awaitable[tuple[Image, ...]], feeding: "asyncio.Future[None]"
) -> tuple[Image, ...]:
    """The result of `work`; if what feeds it fails first, that error."""
    doing = asyncio.ensure_future(work)
    try:
        await asyncio.wait((doing, feeding), return_when=asyncio.FIRST_COMPLETED)
        if feeding.done() and not doing.done():
            await feeding  # raises what it has failed with
        return await doing
    finally:
        doing.cancel()
        await asyncio.wait((doing,))
