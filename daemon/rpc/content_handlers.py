"""Methods about content and leases: maps in, the store's and its ingests' calls, maps out."""

import asyncio
import hashlib
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing, suppress
from dataclasses import asdict
from typing import Any

from lighter.daemon.content.digest import Digest
from lighter.daemon.content.gc import Collector
from lighter.daemon.content.ingests import Ingests
from lighter.daemon.content.source import chunks
from lighter.daemon.content.store import ContentStore
from lighter.daemon.content.writer import Writer
from lighter.daemon.errors import from_os
from lighter.daemon.filterfields import of_lease
from lighter.daemon.filters import any_of
from lighter.daemon.leases import CONTENT, Leases
from lighter.daemon.rpc.fields import Fields
from lighter.daemon.rpc.handed import open_source
from lighter.daemon.rpc.methods import Call, Method, Result
from lighter.daemon.types import ContentInfo
from lighter.proto.daemon_api import PAGE_ROWS
from lighter.proto.errors import AlreadyExists, DataLoss, NotFound, OutOfRange
from lighter.proto.names import check_name

Body = Mapping[str, Any]

READ_BYTES = 256 << 10  # one item of content.read
TELL_S = 0.5  # between two words about an ingest's progress
LAYERS_LABEL = "containerd.io/gc.ref.content.l."
OLD_LAYERS_LABEL = "containerd.io/gc.ref.content."


def content_methods(
    content: ContentStore, ingests: Ingests, leases: Leases, collector: Collector
) -> dict[str, Method]:
    async def list_(call: Call, body: Body) -> Any:
        fields = Fields("content.list", body)
        page, cursor = content.list(
            _namespace(call),
            fields.text("cursor"),
            fields.integer("limit", PAGE_ROWS),
            fields.texts("filters"),
        )
        return {"content": [_info(info) for info in page], "next": cursor or None}

    async def get(call: Call, body: Body) -> Any:
        digest = Fields("content.get", body).needed("digest")
        return {"content": _info(content.info(_namespace(call), digest))}

    async def read(call: Call, body: Body) -> AsyncIterator[Any]:
        fields = Fields("content.read", body)
        namespace, digest = _namespace(call), fields.needed("digest")
        offset = max(0, fields.integer("offset"))
        with collector.pin() as pin:
            pin.content(namespace, digest)
            fd = content.open(namespace, digest)
            hashed = None if offset else hashlib.sha256()
            try:
                while data := await asyncio.to_thread(_piece, fd, offset, hashed):
                    offset += len(data)
                    yield {"data": data}
            except OSError as err:
                err.filename = content.path(Digest.parse(digest))
                raise from_os(f"read content {digest}", err) from err
            finally:
                os.close(fd)
            if hashed is not None and hashed.hexdigest() != Digest.parse(digest).hex:
                raise DataLoss(f"read content {digest}: its bytes have another digest")
        yield Result({})

    async def ingest(call: Call, body: Body) -> AsyncIterator[Any]:
        fields = Fields("content.ingest", body)
        namespace, ref = _namespace(call), fields.needed("ref")
        expected = fields.text("expected_digest")
        size_bytes = fields.integer("expected_bytes")
        labels, lease = fields.labels(), fields.text("lease")
        if expected:
            Digest.parse(expected)
        if lease:
            leases.get(namespace, lease)
        source = open_source("ingest", fields.needed("source"), call.pid, blocking=False)
        try:
            try:
                writer = await ingests.open(
                    namespace, ref, total_bytes=size_bytes, expected=expected
                )
            except AlreadyExists:
                if lease:
                    leases.add(namespace, lease, CONTENT, expected)
                yield Result({"digest": expected, "existed": True})
                return
            try:
                async with writer:
                    async with aclosing(_copy(source, writer, size_bytes, expected)) as progress:
                        async for item in progress:
                            yield item
                    digest = writer.digest
                    with collector.pin() as pin:
                        pin.content(namespace, digest)
                        if lease:
                            leases.add(namespace, lease, CONTENT, digest)
                        try:
                            await writer.commit(size_bytes, expected, labels)
                            existed = False
                        except AlreadyExists:
                            existed = True
            except (DataLoss, OutOfRange):
                with suppress(NotFound):  # what the disk has lost is gone already
                    await ingests.abort(namespace, ref)  # no rest makes these bytes the right ones
                raise
        finally:
            os.close(source)
        yield Result({"digest": digest, "existed": existed})

    async def active(call: Call, _body: Body) -> Any:
        return {"ingests": [asdict(status) for status in ingests.list(_namespace(call))]}

    async def abort(call: Call, body: Body) -> Any:
        await ingests.abort(_namespace(call), Fields("content.abort", body).needed("ref"))
        return {}

    async def label(call: Call, body: Body) -> Any:
        fields = Fields("content.label", body)
        digest, labels = fields.needed("digest"), fields.labels()
        old = content.info(_namespace(call), digest)
        info = content.label(_namespace(call), digest, labels)
        collector.on_relabelled(old.labels, info.labels)
        return {"content": _info(info)}

    async def delete(call: Call, body: Body) -> Any:
        await content.delete(_namespace(call), Fields("content.delete", body).needed("digest"))
        collector.on_deleted()
        return {}

    async def why(call: Call, body: Body) -> Any:
        fields = Fields("content.why", body)
        found = collector.why(_namespace(call), fields.needed("name"), fields.text("snapshotter"))
        return {
            "kept": [
                {
                    "what": what,
                    "chains": [
                        [
                            {"kind": step.node.kind, "name": step.node.name, "how": step.how}
                            for step in chain
                        ]
                        for chain in chains
                    ],
                }
                for what, chains in found.items()
            ]
        }

    async def prune_references(call: Call, body: Body) -> Any:
        namespace = _namespace(call)
        dry_run = Fields("content.prune_references", body).flag("dry_run")
        pruned = []
        for info in _all(lambda cursor: content.list(namespace, cursor)):
            labels = sorted(filter(_is_layer_label, info.labels))
            pruned += [{"digest": info.digest, "label": label} for label in labels]
            if labels and not dry_run:
                content.label(namespace, info.digest, dict.fromkeys(labels, ""))
        if pruned and not dry_run:
            await collector.collect(namespace)
        return {"pruned": pruned}

    return {
        "content.list": Method(unary=list_),
        "content.get": Method(unary=get),
        "content.read": Method(stream=read),
        "content.ingest": Method(stream=ingest),
        "content.active": Method(unary=active),
        "content.abort": Method(unary=abort),
        "content.label": Method(unary=label),
        "content.delete": Method(unary=delete),
        "content.why": Method(unary=why),
        "content.prune_references": Method(unary=prune_references),
    }


def _piece(fd: int, offset: int, hashed: "hashlib._Hash | None") -> bytes:
    data = os.pread(fd, READ_BYTES, offset)
    if hashed is not None:
        hashed.update(data)
    return data


async def _copy(
    source: int, writer: Writer, size_bytes: int, expected: str
) -> AsyncGenerator[dict[str, int], None]:
    """The source into the ingest, whose bytes it begins with; items tell how far it is.

    Only a digest tells whether what is there came from this source: without one it begins anew.
    """
    if writer.offset and not expected:
        await writer.truncate(0)
    skip = writer.offset
    told = asyncio.get_running_loop().time()
    async for data in chunks(source, f"the source of ingest {writer.ref}"):
        fresh = data[skip:]
        skip = max(0, skip - len(data))
        if size_bytes and writer.offset + len(fresh) > size_bytes:
            raise OutOfRange(
                f"write ingest {writer.ref}: its source has more than the {size_bytes} bytes "
                "that are expected"
            )
        if fresh:
            await writer.write(fresh)
        now = asyncio.get_running_loop().time()
        if now - told >= TELL_S:
            told = now
            yield {"offset": writer.offset}


def lease_methods(leases: Leases, collector: Collector) -> dict[str, Method]:
    async def create(call: Call, body: Body) -> Any:
        fields = Fields("leases.create", body)
        lease = leases.create(_namespace(call), fields.text("id"), fields.labels())
        return {"lease": asdict(lease)}

    async def list_(call: Call, body: Body) -> Any:
        wanted = any_of(Fields("leases.list", body).texts("filters"))
        found = leases.list(_namespace(call))
        return {"leases": [asdict(lease) for lease in found if wanted(of_lease(lease))]}

    async def delete(call: Call, body: Body) -> Any:
        fields = Fields("leases.delete", body)
        leases.delete(_namespace(call), fields.needed("id"))
        if fields.flag("sync"):
            await collector.collect(_namespace(call))
        else:
            collector.on_deleted()
        return {}

    async def add_resource(call: Call, body: Body) -> Any:
        fields = Fields("leases.add_resource", body)
        leases.add(
            _namespace(call), fields.needed("id"), fields.needed("type"), fields.needed("resource")
        )
        return {}

    async def delete_resource(call: Call, body: Body) -> Any:
        fields = Fields("leases.delete_resource", body)
        leases.remove(
            _namespace(call), fields.needed("id"), fields.needed("type"), fields.needed("resource")
        )
        collector.on_deleted()
        return {}

    async def resources(call: Call, body: Body) -> Any:
        found = leases.resources(_namespace(call), Fields("leases.resources", body).needed("id"))
        return {"resources": [{"type": type_, "resource": name} for type_, name in found]}

    return {
        "leases.create": Method(unary=create),
        "leases.list": Method(unary=list_),
        "leases.delete": Method(unary=delete),
        "leases.add_resource": Method(unary=add_resource),
        "leases.delete_resource": Method(unary=delete_resource),
        "leases.resources": Method(unary=resources),
    }


def _namespace(call: Call) -> str:
    return check_name(call.namespace, "namespace")


def _info(info: ContentInfo) -> dict[str, Any]:
    return {
        "digest": info.digest,
        "size_bytes": info.size,
        "labels": dict(info.labels),
        "created_at": info.created_at,
        "updated_at": info.updated_at,
    }


def _all(page_from: Callable[[str], tuple[tuple[ContentInfo, ...], str]]) -> list[ContentInfo]:
    found: list[ContentInfo] = []
    cursor, more = "", True
    while more:
        page, cursor = page_from(cursor)
        found += page
        more = bool(cursor)
    return found


def _is_layer_label(label: str) -> bool:
    """Whether a label names a layer: by `l.`, or as older clients do, by its number from 1 on."""
    if label.startswith(LAYERS_LABEL):
        return True
    number = label.removeprefix(OLD_LAYERS_LABEL)
    return label.startswith(OLD_LAYERS_LABEL) and number.isdigit() and number != "0"
