"""Methods that make images of files and files of images: import, export, convert."""

import os
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import aclosing, contextmanager
from typing import Any

from lighter.daemon.images import platforms
from lighter.daemon.images.convert import Converter, ConvertOptions
from lighter.daemon.images.exporter import Exporter, ExportOptions
from lighter.daemon.images.importer import ImportOptions
from lighter.daemon.images.progress import Report
from lighter.daemon.images.service import ImageService
from lighter.daemon.rpc.fields import Fields
from lighter.daemon.rpc.handed import open_source, open_target
from lighter.daemon.rpc.methods import Call, Method, Result
from lighter.daemon.rpc.reporting import reported
from lighter.daemon.types import Image
from lighter.proto.names import check_name

Body = Mapping[str, Any]


def archive_methods(
    images: ImageService, exporter: Exporter, converter: Converter
) -> dict[str, Method]:
    async def import_(call: Call, body: Body) -> AsyncIterator[Any]:
        fields = Fields("images.import", body)
        namespace = check_name(call.namespace, "namespace")
        options = ImportOptions(
            base_name=fields.text("base_name"),
            index_name=fields.text("index_name"),
            digests=fields.flag("digests"),
            skip_digest_for_named=fields.flag("skip_digest_for_named"),
            platforms=_platforms(fields),
            all_platforms=fields.flag("all_platforms"),
            unpack=fields.flag("unpack", True),
            compress_blobs=fields.flag("compress_blobs"),
            snapshotter=fields.text("snapshotter"),
        )
        archive = open_source("import", fields.needed("source"), call.pid)

        async def start(report: Report) -> tuple[Image, ...]:
            return await images.import_archive(namespace, archive, options, report)

        with _closed_at_last(archive):
            async with aclosing(reported(start)) as steps:
                async for step in steps:
                    if not isinstance(step, Result):
                        yield step
                        continue
                    yield Result({"images": [image.name for image in step.value]})

    async def export(call: Call, body: Body) -> AsyncIterator[Any]:
        fields = Fields("images.export", body)
        namespace = check_name(call.namespace, "namespace")
        names = fields.texts("names")
        options = ExportOptions(
            platforms=_platforms(fields),
            all_platforms=fields.flag("all_platforms"),
            skip_manifest_json=fields.flag("skip_manifest_json"),
            skip_non_distributable=fields.flag("skip_non_distributable"),
        )
        archive = open_target("export", fields.needed("target"), call.pid)

        async def start(report: Report) -> int:
            return await exporter.run(namespace, names, archive, options, report)

        with _closed_at_last(archive):
            async with aclosing(reported(start)) as steps:
                async for step in steps:
                    is_last = isinstance(step, Result)
                    yield Result({"size_bytes": step.value}) if is_last else step

    async def convert(call: Call, body: Body) -> AsyncIterator[Any]:
        fields = Fields("images.convert", body)
        namespace = check_name(call.namespace, "namespace")
        source, name = fields.needed("name"), fields.needed("target")
        options = ConvertOptions(
            oci=fields.flag("oci"),
            compression=fields.text("compression"),
            platforms=_platforms(fields),
            all_platforms=fields.flag("all_platforms"),
        )

        async def start(report: Report) -> Image:
            return await converter.run(namespace, source, name, options, report)

        async with aclosing(reported(start)) as steps:
            async for step in steps:
                if not isinstance(step, Result):
                    yield step
                    continue
                image: Image = step.value
                yield Result({"image": image.name, "digest": image.target.digest})

    return {
        "images.import": Method(stream=import_),
        "images.export": Method(stream=export),
        "images.convert": Method(stream=convert),
    }


def _platforms(fields: Fields) -> tuple[platforms.Platform, ...]:
    return tuple(map(platforms.parse, fields.texts("platforms")))


@contextmanager
def _closed_at_last(fd: int) -> Iterator[None]:
    try:
        yield
    finally:
        os.close(fd)
