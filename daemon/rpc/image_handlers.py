"""Methods about images: the maps of proto/daemon_api around ImageService."""

import asyncio
import os
import stat
from collections.abc import AsyncIterator, Mapping
from dataclasses import asdict
from typing import Any

from lighter.daemon.events import EventLog
from lighter.daemon.images.importer import ImportOptions
from lighter.daemon.images.progress import Progress
from lighter.daemon.images.service import ImageService, ImageSummary
from lighter.daemon.rpc.fields import Fields
from lighter.daemon.rpc.server import Call, Method, Result
from lighter.proto import events
from lighter.proto.daemon_api import PAGE_ROWS
from lighter.proto.errors import InvalidArgument
from lighter.proto.names import check_name

Body = Mapping[str, Any]


def image_methods(images: ImageService, events_log: EventLog) -> dict[str, Method]:
    async def list_(call: Call, body: Body) -> Any:
        fields = Fields("images.list", body)
        page, cursor = await images.list(
            check_name(call.namespace, "namespace"),
            fields.text("cursor"),
            fields.integer("limit", PAGE_ROWS),
        )
        return {"images": [_summary(summary) for summary in page], "next": cursor or None}

    async def get(call: Call, body: Body) -> Any:
        name = Fields("images.get", body).needed("name")
        details = await images.get(check_name(call.namespace, "namespace"), name)
        image = asdict(details.image)
        return {"image": image, "manifest": details.manifest, "config": details.config}

    async def delete(call: Call, body: Body) -> Any:
        namespace = check_name(call.namespace, "namespace")
        name = Fields("images.delete", body).needed("name")
        stored = images.find(namespace, name).name
        await images.delete(namespace, stored)
        events_log.publish(namespace, events.IMAGE_DELETE, {"name": stored})
        return {}

    async def import_(call: Call, body: Body) -> AsyncIterator[Any]:
        fields = Fields("images.import", body)
        namespace = check_name(call.namespace, "namespace")
        options = ImportOptions(
            base_name=fields.text("base_name"),
            index_name=fields.text("index_name"),
            digests=fields.flag("digests"),
            all_platforms=fields.flag("all_platforms"),
            unpack=fields.flag("unpack", True),
            snapshotter=fields.text("snapshotter"),
        )
        archive = _open_source(fields.needed("source"), call.pid)
        steps: asyncio.Queue[Progress | None] = asyncio.Queue()
        work = asyncio.ensure_future(
            images.import_archive(namespace, archive, options, steps.put_nowait)
        )
        work.add_done_callback(lambda _work: steps.put_nowait(None))
        try:
            while (step := await steps.get()) is not None:
                yield asdict(step)
            imported = await work
        finally:
            work.cancel()
            # The archive stays open until the work has let go of it.
            await asyncio.wait((work,))
            os.close(archive)
        for image in imported:
            events_log.publish(namespace, events.IMAGE_CREATE, {"name": image.name})
        yield Result({"images": [image.name for image in imported]})

    return {
        "images.list": Method(unary=list_),
        "images.get": Method(unary=get),
        "images.delete": Method(unary=delete),
        "images.import": Method(stream=import_),
    }


def _open_source(path: str, pid: int) -> int:
    """The archive that the caller has open: a file or a pipe. The caller closes the result."""
    if not path.startswith(f"/proc/{pid}/fd/") or "/.." in path:
        raise InvalidArgument(f"import {path}: it is no descriptor of process {pid}")
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK)
    except OSError as err:
        raise InvalidArgument(f"import {path}: {err.strerror}") from err
    mode = os.fstat(fd).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISFIFO(mode):
        os.close(fd)
        raise InvalidArgument(f"import {path}: it is neither a file nor a pipe")
    os.set_blocking(fd, True)
    return fd


def _summary(summary: ImageSummary) -> dict[str, Any]:
    image = summary.image
    return {
        "name": image.name,
        "media_type": image.target.media_type,
        "digest": image.target.digest,
        "size_bytes": summary.size_bytes,
        "platforms": list(summary.platforms),
        "labels": dict(image.labels),
        "created_at": image.created_at,
        "updated_at": image.updated_at,
        "problem": summary.problem,
    }
