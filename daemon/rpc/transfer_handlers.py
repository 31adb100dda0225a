"""Methods that move images between here and registries, around Puller and Pusher."""

from collections.abc import AsyncIterator, Mapping
from dataclasses import asdict
from typing import Any

from lighter.daemon.events import EventLog
from lighter.daemon.images import platforms
from lighter.daemon.images.platforms import Platform
from lighter.daemon.images.progress import Report
from lighter.daemon.images.pull import AT_ONCE, Pulled, Puller, PullOptions
from lighter.daemon.images.push import Pusher, PushOptions
from lighter.daemon.rpc.access import access_of
from lighter.daemon.rpc.fields import Fields
from lighter.daemon.rpc.reporting import Reporting
from lighter.daemon.rpc.server import Call, Method, Result
from lighter.daemon.types import Descriptor
from lighter.proto import events
from lighter.proto.names import check_name

Body = Mapping[str, Any]


def transfer_methods(puller: Puller, pusher: Pusher, events_log: EventLog) -> dict[str, Method]:
    async def pull(call: Call, body: Body) -> AsyncIterator[Any]:
        fields = Fields("images.pull", body)
        namespace = check_name(call.namespace, "namespace")
        name = fields.needed("name")
        options = PullOptions(
            platform=_platform(fields),
            all_platforms=fields.flag("all_platforms"),
            unpack=fields.flag("unpack", True),
            snapshotter=fields.text("snapshotter"),
            labels=fields.labels(),
            at_once=fields.integer("at_once", AT_ONCE),
        )
        access = access_of(fields.mapping("access"))

        async def start(report: Report) -> Pulled:
            return await puller.pull(namespace, name, options, access, report)

        work = Reporting(start)
        async for item in work:
            yield item
        pulled: Pulled = work.result
        topic = events.IMAGE_CREATE if pulled.is_new else events.IMAGE_UPDATE
        events_log.publish(namespace, topic, {"name": pulled.image.name})
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

        work = Reporting(start)
        async for item in work:
            yield item
        yield Result(asdict(work.result))

    return {"images.pull": Method(stream=pull), "images.push": Method(stream=push)}


def _platform(fields: Fields) -> Platform | None:
    text = fields.text("platform")
    return platforms.parse(text) if text else None
