"""What a device's file of the Container Device Interface changes in an OCI spec.

The field names are CDI's (SPEC.md, "containerEdits"); what is left out of a device node is taken
from the host's.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from lighter.daemon.oci.checks import check_mount, check_path
from lighter.daemon.oci.environ import merge
from lighter.daemon.oci.host import read_device
from lighter.proto.errors import InvalidArgument

_HOOKS = (
    *("prestart", "createRuntime", "createContainer"),
    *("startContainer", "poststart", "poststop"),
)
_NODE = {"type": str, "major": int, "minor": int, "fileMode": int, "uid": int, "gid": int}
_RDT = ("closID", "l3CacheSchema", "memBwSchema", "enableCMT", "enableMBM")


def apply(spec: dict[str, Any], edits: Iterable[Mapping[str, Any]]) -> None:
    """Change the spec. Raises InvalidArgument for what the runtime spec does not take."""
    for edit in edits:
        _env(spec, _list(edit, "env", str))
        for node in _list(edit, "deviceNodes", dict):
            _device(spec, node)
        for mount in _list(edit, "mounts", dict):
            _mount(spec, mount)
        for hook in _list(edit, "hooks", dict):
            _hook(spec, hook)
        gids = spec["process"]["user"].setdefault("additionalGids", [])
        gids += [g for g in _list(edit, "additionalGids", int) if g and g not in gids]
        rdt = edit.get("intelRdt")
        if isinstance(rdt, dict):
            spec["linux"]["intelRdt"] = {key: rdt[key] for key in _RDT if key in rdt}


def _list(edit: Mapping[str, Any], key: str, kind: type) -> list[Any]:
    values = edit.get(key) or []
    if not isinstance(values, list) or not all(isinstance(value, kind) for value in values):
        raise InvalidArgument(f"edit specification: {key} is no list of the right kind")
    return values


def _env(spec: dict[str, Any], entries: list[str]) -> None:
    if not all("=" in entry for entry in entries):
        raise InvalidArgument("edit specification: an env entry is not NAME=value")
    spec["process"]["env"] = merge(spec["process"].get("env") or (), entries)


def _device(spec: dict[str, Any], node: Mapping[str, Any]) -> None:
    path = check_path(node.get("path"), "device node")
    source = check_path(node.get("hostPath") or path, "device node")
    given = {key: node[key] for key in _NODE if node.get(key) is not None}
    if not all(isinstance(value, _NODE[key]) for key, value in given.items()):
        raise InvalidArgument(f"edit specification: device {path}: a field has a wrong type")
    try:
        found = read_device(source)
    except (OSError, ValueError) as err:
        if not {"type", "major", "minor"} <= given.keys():
            cause = err.strerror if isinstance(err, OSError) else "it is no device"
            raise InvalidArgument(f"edit specification: device {source}: {cause}") from err
        found = {}
    device = {**found, **given, "path": path}
    user = spec["process"]["user"]
    for key in ("uid", "gid"):
        if key not in given and user[key]:  # CDI gives it to who the container runs as
            device[key] = user[key]
    linux = spec["linux"]
    devices = [one for one in linux.get("devices") or () if one["path"] != path]
    linux["devices"] = [*devices, device]
    access = node.get("permissions") or "rwm"
    if not isinstance(access, str) or set(access) - set("rwm"):
        raise InvalidArgument(f"edit specification: device {path}: permissions are not of rwm")
    if device["type"] in ("b", "c"):
        rule = {key: device[key] for key in ("type", "major", "minor")}
        linux["resources"].setdefault("devices", []).append(
            {"allow": True, **rule, "access": access}
        )


def _mount(spec: dict[str, Any], mount: Mapping[str, Any]) -> None:
    options = list(mount.get("options") or ())
    kind = mount.get("type") or ""
    if not kind and not {"bind", "rbind"} & set(options):
        options.append("rbind")
    clean = check_mount(
        {
            "destination": mount.get("containerPath"),
            "source": mount.get("hostPath"),
            "type": kind or "bind",
            "options": options,
        }
    )
    others = [one for one in spec["mounts"] if one["destination"] != clean["destination"]]
    spec["mounts"] = [*others, clean]


def _hook(spec: dict[str, Any], hook: Mapping[str, Any]) -> None:
    name = hook.get("hookName")
    if name not in _HOOKS:
        raise InvalidArgument(f"edit specification: hook {str(name)[:40]!r} is not known")
    made: dict[str, Any] = {"path": check_path(hook.get("path"), "hook")}
    for key in ("args", "env"):
        if hook.get(key):
            made[key] = _list(hook, key, str)
    timeout = hook.get("timeout")
    if timeout is not None:
        if type(timeout) is not int or timeout <= 0:
            raise InvalidArgument(f"edit specification: hook {name}: timeout is no number")
        made["timeout"] = timeout
    spec.setdefault("hooks", {}).setdefault(name, []).append(made)
