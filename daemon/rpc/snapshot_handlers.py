"""Methods about snapshots: the maps of proto/daemon_api around SnapshotService."""

import asyncio
import os
from collections.abc import AsyncIterator, Mapping
from dataclasses import asdict
from typing import Any

from lighter.daemon.images.progress import Progress
from lighter.daemon.images.service import ImageService
from lighter.daemon.rpc.fields import Fields
from lighter.daemon.rpc.handed import open_target
from lighter.daemon.rpc.methods import Call, Method, Result
from lighter.daemon.snapshots.service import SnapshotService
from lighter.daemon.types import Mount
from lighter.proto.daemon_api import PAGE_ROWS
from lighter.proto.names import check_name

Body = Mapping[str, Any]


def snapshot_methods(snapshots: SnapshotService, images: ImageService) -> dict[str, Method]:
    async def list_(call: Call, body: Body) -> Any:
        fields = Fields("snapshots.list", body)
        page, cursor = await snapshots.list(
            _namespace(call),
            fields.text("snapshotter"),
            fields.text("cursor"),
            fields.integer("limit", PAGE_ROWS),
        )
        return {"snapshots": [asdict(info) for info in page], "next": cursor or None}

    async def get(call: Call, body: Body) -> Any:
        return {"snapshot": asdict(await snapshots.get(*_which(call, "get", body)))}

    async def usage(call: Call, body: Body) -> Any:
        return asdict(await snapshots.usage(*_which(call, "usage", body)))

    async def mounts(call: Call, body: Body) -> Any:
        return _mounts(await snapshots.mounts(*_which(call, "mounts", body)))

    async def prepare(call: Call, body: Body) -> Any:
        fields = Fields("snapshots.prepare", body)
        which = _which(call, "prepare", body)
        return _mounts(await snapshots.prepare(*which, fields.text("parent"), fields.labels()))

    async def view(call: Call, body: Body) -> Any:
        fields = Fields("snapshots.view", body)
        which = _which(call, "view", body)
        return _mounts(await snapshots.view(*which, fields.text("parent"), fields.labels()))

    async def commit(call: Call, body: Body) -> Any:
        fields = Fields("snapshots.commit", body)
        namespace, snapshotter, key = _which(call, "commit", body)
        name = fields.needed("name")
        await snapshots.commit(namespace, snapshotter, name, key, fields.labels())
        return {}

    async def label(call: Call, body: Body) -> Any:
        labels = Fields("snapshots.label", body).labels()
        info = await snapshots.label(*_which(call, "label", body), labels)
        return {"snapshot": asdict(info)}

    async def delete(call: Call, body: Body) -> Any:
        await snapshots.delete(*_which(call, "delete", body))
        return {}

    async def diff(call: Call, body: Body) -> Any:
        fields = Fields("snapshots.diff", body)
        namespace, snapshotter, key = _which(call, "diff", body)
        lower = fields.text("lower")
        if fields.flag("parent"):
            lower = (await snapshots.get(namespace, snapshotter, key)).parent
        target = open_target("write", fields.needed("target"), call.pid, append=True)
        try:
            os.set_blocking(target, True)
            return await snapshots.diff(
                namespace, snapshotter, (lower, key), target, fields.text("compression")
            )
        finally:
            os.close(target)

    async def unpack(call: Call, body: Body) -> AsyncIterator[Any]:
        fields = Fields("snapshots.unpack", body)
        namespace = _namespace(call)
        name = snapshots.image(namespace, fields.needed("image"))
        snapshotter = images.snapshotter(namespace, fields.text("snapshotter")).name
        steps: asyncio.Queue[Progress | None] = asyncio.Queue()
        work = asyncio.ensure_future(images.unpack(namespace, name, snapshotter, steps.put_nowait))
        work.add_done_callback(lambda _work: steps.put_nowait(None))
        try:
            while (step := await steps.get()) is not None:
                yield asdict(step)
            key = await work
        finally:
            work.cancel()
            await asyncio.wait((work,))
        yield Result({"key": key})

    unary = {
        "list": list_,
        "get": get,
        "usage": usage,
        "mounts": mounts,
        "prepare": prepare,
        "view": view,
        "commit": commit,
        "label": label,
        "delete": delete,
        "diff": diff,
    }
    return {
        **{f"snapshots.{name}": Method(unary=method) for name, method in unary.items()},
        "snapshots.unpack": Method(stream=unpack),
    }


def _namespace(call: Call) -> str:
    return check_name(call.namespace, "namespace")


def _which(call: Call, method: str, body: Body) -> tuple[str, str, str]:
    """(namespace, snapshotter, key) that a request is about."""
    fields = Fields(f"snapshots.{method}", body)
    return _namespace(call), fields.text("snapshotter"), fields.needed("key")


def _mounts(mounts: tuple[Mount, ...]) -> dict[str, Any]:
    return {"mounts": [asdict(mount) for mount in mounts]}
