"""Methods about the files of containers: looked at, copied, exported, compared, committed."""

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import Any

from lighter.daemon.containers.files import ContainerFiles
from lighter.daemon.containers.freezing import Freezing
from lighter.daemon.containers.service import ContainerService
from lighter.daemon.images.commit import CommitOptions, Committer
from lighter.daemon.rpc.fields import Fields
from lighter.daemon.rpc.handed import open_source, open_target
from lighter.daemon.rpc.methods import Call, Method, methods, namespace_of
from lighter.proto.errors import InvalidArgument

Body = Mapping[str, Any]
_IDS = range((1 << 32) - 1)


def file_methods(
    files: ContainerFiles,
    committer: Committer,
    containers: ContainerService,
    freezing: Freezing,
) -> dict[str, Method]:
    async def look(call: Call, body: Body) -> Any:
        fields = Fields("files.look", body)
        found = await files.look(namespace_of(call), fields.id(), fields.raw("path"))
        return {
            "mode": found.mode,
            "size_bytes": found.size_bytes,
            "mtime_ns": found.mtime_ns,
            "link": found.link,
            "target_mode": found.target_mode,
        }

    async def pack(call: Call, body: Body) -> Any:
        fields = Fields("files.pack", body)
        with _target("copy", fields, call) as target:
            entries = await files.pack(
                namespace_of(call),
                fields.id(),
                fields.raw("path"),
                fields.raw("name"),
                target,
                follow=fields.flag("follow"),
            )
        return {"entries": entries}

    async def extract(call: Call, body: Body) -> Any:
        fields = Fields("files.extract", body)
        owner = _owner(fields)
        source = open_source("copy", fields.needed("source"), call.pid)
        try:
            entries = await files.put(
                namespace_of(call), fields.id(), fields.raw("path"), source, owner
            )
        finally:
            os.close(source)
        return {"entries": entries}

    async def export(call: Call, body: Body) -> Any:
        fields = Fields("files.export", body)
        with _target("export", fields, call) as target:
            entries = await files.export(namespace_of(call), fields.id(), target)
        return {"entries": entries}

    async def changes(call: Call, body: Body) -> Any:
        fields = Fields("files.changes", body)
        with _target("list changes", fields, call) as target:
            entries = await files.changes(namespace_of(call), fields.id(), target)
        return {"entries": entries}

    async def commit(call: Call, body: Body) -> Any:
        fields = Fields("files.commit", body)
        namespace, id_ = namespace_of(call), fields.id()
        options = CommitOptions(
            fields.text("author"), fields.text("message"), fields.texts("changes")
        )
        container = await containers.get(namespace, id_)
        frozen = freezing.frozen(namespace, id_)
        async with frozen if fields.flag("pause") else contextlib.nullcontext():
            image = await committer.run(container, fields.needed("name"), options)
        return {"image": image.name, "digest": image.target.digest}

    return methods(
        "files",
        look=look,
        pack=pack,
        extract=extract,
        export=export,
        changes=changes,
        commit=commit,
    )


@contextlib.contextmanager
def _target(verb: str, fields: Fields, call: Call) -> Iterator[int]:
    fd = open_target(verb, fields.needed("target"), call.pid)
    os.set_blocking(fd, True)  # a worker writes, and waits for who reads
    try:
        yield fd
    finally:
        os.close(fd)


def _owner(fields: Fields) -> tuple[int, int] | None:
    uid, gid = fields.integer_or_none("uid"), fields.integer_or_none("gid")
    if uid is None or gid is None:
        return None
    if uid not in _IDS or gid not in _IDS:
        raise InvalidArgument(f"copy: {uid}:{gid} is no owner")
    return uid, gid
