"""Methods that move images and content between here and registries, around Puller and Pusher."""

from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import asdict
from typing import Any

from lighter.daemon.images import platforms
from lighter.daemon.images.platforms import Platform
from lighter.daemon.images.progress import Report
from lighter.daemon.images.pull import AT_ONCE, Pulled, Puller, PullOptions
from lighter.daemon.images.push import Pusher, PushOptions
from lighter.daemon.rpc.access import access_of
from lighter.daemon.rpc.fields import Fields
from lighter.daemon.rpc.methods import Call, Method, Result
from lighter.daemon.rpc.reporting import reported
from lighter.daemon.types import Descriptor
from lighter.proto.names import check_name

Body = Mapping[str, Any]


def transfer_methods(puller: Puller, pusher: Pusher) -> dict[str, Method]:
    async def pull(call: Call, body: Body) -> AsyncIterator[Any]:
        fields = Fields("images.pull", body)
        namespace = check_name(call.namespace, "namespace")
        name = fields.needed("name")
        options = PullOptions(
            platforms=_platforms(fields),
            all_platforms=fields.flag("all_platforms"),
            unpack=fields.flag("unpack", True),
            all_metadata=fields.flag("all_metadata"),
            metadata_only=fields.flag("metadata_only"),
            snapshotter=fields.text("snapshotter"),
            labels=fields.labels(),
            at_once=fields.integer("at_once", AT_ONCE),
        )
        access = access_of(fields.mapping("access"))

        async def start(report: Report) -> Pulled:
            return await puller.pull(namespace, name, options, access, report)

        async with aclosing(reported(start)) as steps:
            async for step in steps:
                if not isinstance(step, Result):
                    yield step
                    continue
                pulled: Pulled = step.value
                yield Result(
                    {
                        "image": pulled.image.name,
                        "digest": pulled.image.target.digest,
                        "downloaded_bytes": pulled.downloaded_bytes,
                        "download_s": pulled.download_s,
                        "unpack_s": pulled.unpack_s,
                    }
                )

    async def push(call: Call, body: Body) -> AsyncIterator[Any]:
        fields = Fields("images.push", body)
        namespace = check_name(call.namespace, "namespace")
        name = fields.needed("name")
        local = fields.text("local") or name
        options = PushOptions(
            platform=_platform(fields),
            digest=fields.text("digest"),
            at_once=fields.integer("at_once", AT_ONCE),
        )
        access = access_of(fields.mapping("access"))

        async def start(report: Report) -> Descriptor:
            return await pusher.push(namespace, local, name, options, access, report)

        async with aclosing(reported(start)) as steps:
            async for step in steps:
                yield Result(asdict(step.value)) if isinstance(step, Result) else step

    async def push_object(call: Call, body: Body) -> AsyncIterator[Any]:
        fields = Fields("content.push_object", body)
        namespace = check_name(call.namespace, "namespace")
        name, digest = fields.needed("name"), fields.needed("digest")
        media_type = fields.needed("media_type")
        access = access_of(fields.mapping("access"))

        async def start(report: Report) -> Descriptor:
            return await pusher.push_object(namespace, name, digest, media_type, access, report)

        async with aclosing(reported(start)) as steps:
            async for step in steps:
                yield Result(asdict(step.value)) if isinstance(step, Result) else step

    return {
        "images.pull": Method(stream=pull),
        "images.push": Method(stream=push),
        "content.push_object": Method(stream=push_object),
    }


def _platforms(fields: Fields) -> tuple[Platform, ...]:
    """`platform` alone is what the first release knows."""
    texts = fields.texts("platforms") or tuple(filter(None, [fields.text("platform")]))
    return tuple(map(platforms.parse, texts))


def _platform(fields: Fields) -> Platform | None:
    text = fields.text("platform")
    return platforms.parse(text) if text else None
