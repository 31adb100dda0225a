"""Methods about images: the maps of proto/daemon_api around ImageService."""

import os
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from lighter.daemon.images import platforms
from lighter.daemon.images.inspection import Checked, Inspection
from lighter.daemon.images.mounted import MountedImages
from lighter.daemon.images.service import ImageService, ImageSummary
from lighter.daemon.rpc.fields import Fields
from lighter.daemon.rpc.handed import open_place
from lighter.daemon.rpc.methods import Call, Method
from lighter.proto.daemon_api import PAGE_ROWS
from lighter.proto.names import check_name

Body = Mapping[str, Any]


def image_methods(
    images: ImageService, inspection: Inspection, mounted: MountedImages
) -> dict[str, Method]:
    async def list_(call: Call, body: Body) -> Any:
        fields = Fields("images.list", body)
        page, cursor = await images.list(
            check_name(call.namespace, "namespace"),
            fields.text("cursor"),
            fields.integer("limit", PAGE_ROWS),
            fields.texts("filters"),
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
        await images.delete(namespace, name)
        return {}

    async def tag(call: Call, body: Body) -> Any:
        fields = Fields("images.tag", body)
        namespace = check_name(call.namespace, "namespace")
        source, name = fields.needed("source"), fields.needed("name")
        images.tag(namespace, source, name, force=fields.flag("force"))
        return {}

    async def label(call: Call, body: Body) -> Any:
        fields = Fields("images.label", body)
        namespace = check_name(call.namespace, "namespace")
        name, changes = fields.needed("name"), fields.labels()
        replace_all = fields.flag("replace_all")
        image = images.label(namespace, name, changes, replace_all=replace_all)
        return {"labels": dict(image.labels)}

    async def check(call: Call, body: Body) -> Any:
        fields = Fields("images.check", body)
        page, cursor = await inspection.check(
            check_name(call.namespace, "namespace"),
            fields.texts("filters"),
            fields.text("cursor"),
            fields.integer("limit", PAGE_ROWS),
            fields.text("snapshotter"),
        )
        return {"images": [_checked(checked) for checked in page], "next": cursor or None}

    async def usage(call: Call, body: Body) -> Any:
        fields = Fields("images.usage", body)
        namespace = check_name(call.namespace, "namespace")
        found = await inspection.usage(namespace, fields.needed("name"), fields.text("snapshotter"))
        return {"snapshots": [{"key": key, **asdict(usage)} for key, usage in found]}

    async def tree(call: Call, body: Body) -> Any:
        fields = Fields("images.tree", body)
        namespace = check_name(call.namespace, "namespace")
        return await inspection.tree(namespace, fields.needed("name"), fields.flag("content"))

    async def mount(call: Call, body: Body) -> Any:
        fields = Fields("images.mount", body)
        platform = fields.text("platform")
        place = open_place("mount image on", fields.needed("place"), call.pid)
        try:
            chain_id = await mounted.mount(
                check_name(call.namespace, "namespace"),
                fields.needed("name"),
                fields.needed("target"),
                place,
                rw=fields.flag("rw"),
                platform=platforms.parse(platform) if platform else None,
                snapshotter=fields.text("snapshotter"),
            )
        finally:
            os.close(place)
        return {"chain_id": chain_id}

    async def unmount(call: Call, body: Body) -> Any:
        fields = Fields("images.unmount", body)
        namespace = check_name(call.namespace, "namespace")
        await mounted.unmount(namespace, fields.needed("target"), remove=fields.flag("remove"))
        return {}

    return {
        "images.list": Method(unary=list_),
        "images.get": Method(unary=get),
        "images.delete": Method(unary=delete),
        "images.tag": Method(unary=tag),
        "images.label": Method(unary=label),
        "images.check": Method(unary=check),
        "images.usage": Method(unary=usage),
        "images.tree": Method(unary=tree),
        "images.mount": Method(unary=mount),
        "images.unmount": Method(unary=unmount),
    }


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


def _checked(checked: Checked) -> dict[str, Any]:
    image = checked.image
    return {
        "name": image.name,
        "media_type": image.target.media_type,
        "digest": image.target.digest,
        "status": checked.status,
        "required": checked.required,
        "present": checked.present,
        "required_bytes": checked.required_bytes,
        "present_bytes": checked.present_bytes,
        "unpacked": checked.unpacked,
        "problem": checked.problem,
    }
