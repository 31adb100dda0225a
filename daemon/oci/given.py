"""A whole OCI spec that a caller hands in: taken as it is, once it can be one."""

import json
from collections.abc import Mapping
from typing import Any

from lighter.daemon.oci.checks import check_mount, encode
from lighter.daemon.types import MAX_SPEC_BYTES
from lighter.proto.errors import InvalidArgument

# Keys that are looked at, here or by who takes over.
_TOP = frozenset(("process", "root", "linux", "mounts", "hooks", "annotations", "hostname"))
_ROOT = frozenset(("path", "readonly"))
_LINUX = frozenset(
    ("namespaces", "cgroupsPath", "uidMappings", "gidMappings", "devices", "resources", "seccomp")
)
_MOUNT = frozenset(("destination", "type", "source", "options"))
_NAMESPACE = frozenset(("type", "path"))


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
    _check_spelling(spec, _TOP, "")
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
    _check_spelling(spec["root"], _ROOT, "root.")
    _check_spelling(spec["linux"], _LINUX, "linux.")
    mounts = spec.get("mounts") or []
    if not isinstance(mounts, list) or not all(isinstance(one, Mapping) for one in mounts):
        raise InvalidArgument("read specification: mounts is no list of objects")
    for one in mounts:
        _check_spelling(one, _MOUNT, "mounts.")
        check_mount(one)
    namespaces = spec["linux"].get("namespaces") or []
    if not isinstance(namespaces, list) or not all(isinstance(n, Mapping) for n in namespaces):
        raise InvalidArgument("read specification: linux.namespaces is no list of objects")
    for one in namespaces:
        _check_spelling(one, _NAMESPACE, "linux.namespaces.")
    if not any(one.get("type") == "mount" for one in namespaces):
        # The runtime would mount the root for the host to see, and nobody would unmount it.
        raise InvalidArgument("read specification: linux.namespaces has none of type mount")
    encode(spec)
    return spec


def _check_spelling(given: Mapping[str, Any], names: frozenset[str], where: str) -> None:
    """Runtimes in Go take a key in any mixture of cases, and what is checked here in one alone."""
    folded = {name.casefold(): name for name in names}
    for key in given:
        meant = folded.get(str(key).casefold(), key)
        if meant != key:
            raise InvalidArgument(f"read specification: {where}{key} is to be {where}{meant}")
