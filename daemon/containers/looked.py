"""What of a request is looked up on the host, which may hang: for a thread."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lighter.daemon.containers.request import CreateRequest
from lighter.daemon.oci.blockio import class_limits
from lighter.daemon.oci.controls import read_controls
from lighter.daemon.oci.limits import NONE, resources
from lighter.proto.errors import InvalidArgument


def resources_of(request: CreateRequest) -> dict[str, Any]:
    """The spec's limits, for the controls that the kernel has. Raises InvalidArgument."""
    limits = request.limits
    if request.blockio_class:
        if limits.block != NONE.block:
            raise InvalidArgument("limit container: a block io class and its limits were given")
        block = class_limits(request.blockio_config, request.blockio_class)
        limits = replace(limits, block=block)
    return resources(limits, read_controls()) if limits != NONE else {}


def sources(spec: Mapping[str, Any]) -> dict[str, str]:
    """Path of the host → what it is for."""
    binds = [
        m
        for m in spec.get("mounts") or ()
        if not {"bind", "rbind"}.isdisjoint(m.get("options") or ())
    ]
    wanted = {mount["source"]: f"mount it at {mount['destination']}" for mount in binds}
    joined = [n for n in spec["linux"].get("namespaces") or () if n.get("path")]
    wanted.update({n["path"]: f"join it as {n['type']} namespace" for n in joined})
    return wanted
