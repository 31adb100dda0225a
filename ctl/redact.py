"""What a bundle for other eyes must not show: what people gave their containers."""

import json
from collections.abc import Mapping
from typing import Any

HIDDEN = "(hidden)"
# Labels of these beginnings are written by container managers, and say how things hang together.
_OURS = ("containerd.io/", "io.containerd.", "io.lighter.", "nerdctl/", "com.docker/engine")
# What tmpfs, devpts and overlays are told. Others may be a password, of cifs say.
_PLAIN_OPTIONS = {
    *("size", "nr_blocks", "nr_inodes", "mode", "uid", "gid", "ptmxmode", "max", "context"),
    *("lowerdir", "upperdir", "workdir"),
}


def spec(text: str) -> Any:
    """An OCI spec: names of variables, and the program, without values and arguments."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return HIDDEN
    return _spec(document) if isinstance(document, dict) else HIDDEN


def _spec(document: dict[str, Any]) -> dict[str, Any]:
    kept: dict[str, Any] = labels(document)
    process = document.get("process")
    if isinstance(process, dict):
        kept["process"] = {
            **process,
            "env": [str(one).partition("=")[0] + "=" + HIDDEN for one in process.get("env") or ()],
            "args": _program(process.get("args")),
        }
    kept["annotations"] = _values(document.get("annotations"))
    mounts = document.get("mounts")
    if isinstance(mounts, list):
        kept["mounts"] = [_mount(one) for one in mounts if isinstance(one, dict)]
    hooks = document.get("hooks")
    if isinstance(hooks, dict):
        kept["hooks"] = {
            when: [one.get("path") for one in each if isinstance(one, dict)]
            for when, each in hooks.items()
            if isinstance(each, list)
        }
    return kept


def _mount(mount: dict[str, Any]) -> dict[str, Any]:
    options = mount.get("options")
    if not isinstance(options, list):
        return {key: value for key, value in mount.items() if key != "options"}
    return {**mount, "options": [_option(str(one)) for one in options]}


def _option(option: str) -> str:
    name, sign, _ = option.partition("=")
    return option if not sign or name in _PLAIN_OPTIONS else name + sign + HIDDEN


def labels(value: Any) -> Any:
    """A copy in which tables named `labels` or `annotations` keep their keys, and our values."""
    if isinstance(value, Mapping):
        return {
            key: _values(inner) if key in ("labels", "annotations") else labels(inner)
            for key, inner in value.items()
        }
    return [labels(item) for item in value] if isinstance(value, list | tuple) else value


def _values(table: Any) -> Any:
    if not isinstance(table, Mapping):
        return table
    return {key: value if str(key).startswith(_OURS) else HIDDEN for key, value in table.items()}


def _program(args: Any) -> list[str]:
    if not isinstance(args, list) or not args:
        return []
    return [str(args[0]), *([f"{HIDDEN}: {len(args) - 1} more"] if args[1:] else [])]
