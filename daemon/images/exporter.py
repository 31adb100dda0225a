"""Export: images become one archive that docker, podman, skopeo and ctr read.

    oci-layout  index.json  blobs/sha256/<hex>     an OCI image layout (image-spec, image-layout.md)
    manifest.json                                  what `docker load` reads, over the same blobs

The names stand in index.json as containerd writes them, the whole one in its own annotation and
the tag in OCI's. An index is written whole; of its images, those of the wanted platform. The same
images make the same bytes.
"""

import asyncio
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from lighter.daemon.content.digest import Digest
from lighter.daemon.content.gc import Collector
from lighter.daemon.content.store import ContentStore
from lighter.daemon.errors import from_os
from lighter.daemon.images import platforms
from lighter.daemon.images.dockersave import (
    NAME_ANNOTATION,
    REF_ANNOTATION,
    docker_tag,
    tag_of,
)
from lighter.daemon.images.documents import OCI_INDEX, is_non_distributable
from lighter.daemon.images.graph import Graph, StoredDocuments, Walker
from lighter.daemon.images.platforms import Platform
from lighter.daemon.images.progress import Progress, Report, unreported
from lighter.daemon.images.store import ImageStore
from lighter.daemon.images.tarout import TarOut
from lighter.daemon.types import Descriptor, Image
from lighter.daemon.whole import whole
from lighter.proto.errors import FailedPrecondition, InvalidArgument, NotFound
from lighter.proto.faults import hit

MAX_EXPORTS = 16
_TELL_S = 0.2
_LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'


@dataclass(frozen=True)
class ExportOptions:
    """Without `platforms` it is this host's; `all_platforms` wants all that the images list."""

    platforms: tuple[Platform, ...] = ()
    all_platforms: bool = False
    skip_manifest_json: bool = False
    skip_non_distributable: bool = False


class Exporter:
    """Writes images of one content store."""

    def __init__(self, content: ContentStore, images: ImageStore, collector: Collector) -> None:
        self._content = content
        self._images = images
        self._collector = collector
        # Threads of their own: one that waits for a slow reader is missed nowhere else.
        self._threads = ThreadPoolExecutor(MAX_EXPORTS, "export")

    async def run(
        self,
        namespace: str,
        names: Sequence[str],
        out_fd: int,
        options: ExportOptions,
        report: Report = unreported,
    ) -> int:
        """Write the archive to `out_fd` (the caller's; a pipe is non-blocking); returns its size.

        Raises NotFound for a name or content that is missing, before a byte is written;
        FailedPrecondition when the reader goes away, ResourceExhausted for a full disk, DataLoss
        as soon as bytes turn out to be others than were recorded: the archive breaks off there.
        """
        if not names:
            raise InvalidArgument("export images: no image is named")
        with self._collector.pin() as pin:
            found = {
                image.name: image
                for image in (self._images.find(namespace, name, "export") for name in names)
            }
            images = [found[name] for name in sorted(found)]
            graph = await self._walk(namespace, images, options)
            for digest in graph.found:
                pin.content(namespace, digest)
            documents: dict[str, bytes] = {"index.json": _index(images), "oci-layout": _LAYOUT}
            if not options.skip_manifest_json:
                saved = await self._manifest_json(namespace, images, options)
                if saved:
                    documents["manifest.json"] = saved
            return await self._in_thread(out_fd, graph, documents, report)

    async def _walk(self, namespace: str, images: Iterable[Image], options: ExportOptions) -> Graph:
        documents = StoredDocuments(self._content, namespace)
        leave_out = is_non_distributable if options.skip_non_distributable else None
        everything = Graph()
        for image in images:
            if options.all_platforms:
                graph = await Walker(documents, None, leave_out).walk(image.target)
                everything.add(graph)
                continue
            for wanted in _wanted(options):
                await Walker(documents, wanted).resolve(image.target)  # says what there is
                graph = await Walker(documents, wanted, leave_out).walk(image.target)
                everything.add(graph)
        return everything

    async def _manifest_json(
        self, namespace: str, images: Iterable[Image], options: ExportOptions
    ) -> bytes:
        """One entry per image that the platform has, with all its tags; empty for none."""
        documents = StoredDocuments(self._content, namespace)
        wanted = _wanted(options)[0]
        entries: dict[str, dict[str, Any]] = {}
        for image in images:
            try:
                resolved = await Walker(documents, wanted).resolve(image.target)
            except NotFound:
                continue  # all platforms were asked for, and this one is not among them
            entry = entries.setdefault(
                resolved.descriptor.digest,
                {
                    "Config": _path(resolved.manifest.config),
                    "RepoTags": [],
                    "Layers": [_path(layer) for layer in resolved.manifest.layers],
                },
            )
            if tag := docker_tag(image.name):
                entry["RepoTags"].append(tag)
        return _json(list(entries.values())) if entries else b""

    async def _in_thread(
        self, out_fd: int, graph: Graph, documents: Mapping[str, bytes], report: Report
    ) -> int:
        """The writing, beside the loop; a cancelled caller leaves when the thread has ended."""
        total_bytes = graph.size_bytes
        stop_fd = os.eventfd(0, os.EFD_CLOEXEC)
        try:
            out = TarOut(out_fd, stop_fd)
            loop = asyncio.get_running_loop()
            writing = loop.run_in_executor(self._threads, self._write, out, graph, documents)
            try:
                while not (await asyncio.wait((writing,), timeout=_TELL_S))[0]:
                    done = min(out.done_bytes, total_bytes)
                    report(Progress("exporting", done_bytes=done, total_bytes=total_bytes))
            finally:
                os.eventfd_write(stop_fd, 1)
                await whole(_settled(writing))
            await writing
        except BrokenPipeError as err:
            raise FailedPrecondition("export images: whoever read the archive went away") from err
        except OSError as err:
            raise from_os("export images", err) from err
        finally:
            os.close(stop_fd)
        report(Progress("exporting", done_bytes=total_bytes, total_bytes=total_bytes))
        return out.done_bytes

    def _write(self, out: TarOut, graph: Graph, documents: Mapping[str, bytes]) -> None:
        blobs = sorted(graph.found.items())
        for digest, descriptor in blobs:  # what is missing is said before a byte is written
            os.close(self._content.open_known(digest, descriptor.size))
        hit("export.opened")
        out.directory("blobs/")
        out.directory("blobs/sha256/")
        for digest, descriptor in blobs:
            fd = self._content.open_known(digest, descriptor.size)
            try:
                out.blob(_path(descriptor), fd, descriptor.size, Digest.parse(digest))
            finally:
                os.close(fd)
            hit("export.blob")
        for name, data in sorted(documents.items()):
            out.data(name, data)
        out.end()


def _wanted(options: ExportOptions) -> tuple[Platform, ...]:
    return options.platforms or (platforms.host(),)


def _path(descriptor: Descriptor) -> str:
    return f"blobs/sha256/{Digest.parse(descriptor.digest).hex}"


def _index(images: Iterable[Image]) -> bytes:
    return _json(
        {
            "schemaVersion": 2,
            "mediaType": OCI_INDEX,
            "manifests": [
                {
                    "mediaType": image.target.media_type,
                    "digest": image.target.digest,
                    "size": image.target.size,
                    "annotations": {
                        **image.target.annotations,
                        NAME_ANNOTATION: image.name,
                        REF_ANNOTATION: tag_of(image.name) or image.name,
                    },
                }
                for image in images
            ],
        }
    )


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), sort_keys=True).encode()


async def _settled(work: "asyncio.Future[None]") -> None:
    await asyncio.wait((work,))
    if not work.cancelled():
        work.exception()  # looked at: a cancelled caller hears of its cancellation instead
