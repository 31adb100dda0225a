"""A whole OCI spec that a caller hands in: taken as it is, once it can be one."""

import json
from collections.abc import Mapping
from typing import Any

from lighter.daemon.oci.checks import MAX_SPEC_BYTES, check_mount, encode
from lighter.proto.errors import InvalidArgument


def read_spec(text: str) -> dict[str, Any]:
    """The parsed spec; its root must be an absolute path, since no snapshot is made for it.

    Raises InvalidArgument for what no runtime takes, and for mounts where labels are written.
    """
    if len(text.encode(errors="surrogatepass")) > MAX_SPEC_BYTES:
        raise InvalidArgument(f"read specification: over {MAX_SPEC_BYTES} bytes")
    try:
        spec = json.loads(text)
    except (ValueError, RecursionError) as err:
        raise InvalidArgument(f"read specification: not JSON: {err}") from err
    if not isinstance(spec, dict):
        raise InvalidArgument("read specification: it is no JSON object")
    for name in ("process", "root", "linux"):
        if not isinstance(spec.get(name), dict):
            raise InvalidArgument(f"read specification: {name} is missing or no object")
    process = spec["process"]
    args = process.get("args")
    if not isinstance(args, list) or not args or not all(isinstance(one, str) for one in args):
        raise InvalidArgument("read specification: process.args is no list of words")
    root = spec["root"].get("path")
    if not isinstance(root, str) or not root.startswith("/"):
        raise InvalidArgument("read specification: root.path is not absolute")
    for key in ("mounts",):
        mounts = spec.get(key) or []
        if not isinstance(mounts, list) or not all(isinstance(one, Mapping) for one in mounts):
            raise InvalidArgument(f"read specification: {key} is no list of objects")
        for one in mounts:
            check_mount(one)
    namespaces = spec["linux"].get("namespaces") or []
    if not isinstance(namespaces, list) or not all(isinstance(n, Mapping) for n in namespaces):
        raise InvalidArgument("read specification: linux.namespaces is no list of objects")
    encode(spec)
    return spec
