"""Flags of what the container sees as its files."""

from __future__ import annotations

from lighter.ctl import grammar
from lighter.ctl.cli import SNAPSHOTTER, absolute, key_values, read_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

_MOUNT_KEYS = {
    "type": "type",
    "src": "source",
    "source": "source",
    "dst": "destination",
    "destination": "destination",
    "target": "destination",
    "options": "options",
    "bind-propagation": "propagation",
    "tmpfs-size": "size",
    "tmpfs-mode": "mode",
}
_FLAGS = {
    ("ro", True): "ro",
    ("readonly", True): "ro",
    ("ro", False): "rw",
    ("readonly", False): "rw",
    ("bind-nonrecursive", True): "bind",
    ("bind-nonrecursive", False): "rbind",
    ("volume-nocopy", True): "nocopy",
}
_TRUE = {"": True, "true": True, "1": True, "false": False, "0": False}
_PROPAGATIONS = ("private", "rprivate", "shared", "rshared", "slave", "rslave")

OPTIONS = (
    grammar.option(
        "--mount",
        multiple=True,
        help="type=bind,src=/tmp,dst=/hostdir,options=rbind:rw; type=volume,src=NAME,dst=/data",
    ),
    grammar.option(
        "--tmpfs", multiple=True, metavar="PATH[:OPTIONS]", help="/run:size=64m,mode=755"
    ),
    grammar.option("--config", "-c", metavar="FILE", help="The OCI spec; then IMAGE is left out."),
    grammar.option("--rootfs", is_flag=True, help="IMAGE is a directory, the container's root."),
    grammar.option("--rootfs-propagation", default="", help="Of the root: private, rslave, …"),
    grammar.option("--platform", default="", metavar="OS/ARCH[/VARIANT]", help="Of the image."),
    grammar.option("--snapshotter-label", multiple=True, metavar="KEY=VALUE", help="Of its files."),
    grammar.option("--read-only", is_flag=True, help="Root filesystem cannot be written."),
    grammar.option(
        "--snapshotter",
        envvar=SNAPSHOTTER,
        help="Keeper of the root filesystem.",
    ),
)


def fields(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Their part of the body of containers.create."""
    return {
        "mounts": [*map(mount, flags["mount"]), *map(tmpfs, flags["tmpfs"])],
        "spec": read_text(flags["config"], "specification") if flags["config"] else "",
        "rootfs_propagation": flags["rootfs_propagation"],
        "platform": flags["platform"],
        "snapshot_labels": key_values(flags["snapshotter_label"], "snapshotter label", bare=True),
        "read_only": flags["read_only"],
        "snapshotter": flags["snapshotter"] or "",
    }


def tmpfs(text: str) -> dict[str, Any]:
    """One --tmpfs: `path[:option,…]`, with docker's defaults."""
    path, _, words = text.partition(":")
    if not path.startswith("/"):
        raise grammar.UsageError(f"--tmpfs {text!r}: an absolute path is expected")
    return _tmpfs(path, [word for word in words.split(",") if word])


def _tmpfs(path: str, options: list[str]) -> dict[str, Any]:
    """With noexec, nosuid and nodev where the options do not say the contrary."""
    kept = [o for o in ("noexec", "nosuid", "nodev") if o.removeprefix("no") not in options]
    return {
        "type": "tmpfs",
        "source": "tmpfs",
        "destination": path,
        "options": [*(option for option in kept if option not in options), *options],
    }


def mount(text: str) -> dict[str, Any]:
    """One --mount as {type, source, destination, options}. Raises grammar.UsageError.

    Fields are separated by commas, a field with a comma is quoted as in CSV; options are separated
    by colons. A relative source of a bind mount is seen from ctl's working directory.
    """
    import csv

    found: dict[str, str] = {}
    options: list[str] = []
    for field in next(csv.reader([text]), []):
        key, sign, value = field.partition("=")
        if (key, True) in _FLAGS and value in _TRUE:
            options.append(_FLAGS[key, _TRUE[value]])
            continue
        name = _MOUNT_KEYS.get(key)
        if name is None or not sign:
            raise grammar.UsageError(f"--mount {text!r}: {field!r} is not known here")
        if name == "options":
            options += [option for option in value.split(":") if option]
        else:
            found[name] = value
    kind = found.get("type") or "bind"
    if not found.get("destination"):
        raise grammar.UsageError(f"--mount {text!r}: dst is missing")
    if "propagation" in found:
        if found["propagation"] not in _PROPAGATIONS or kind != "bind":
            raise grammar.UsageError(f"--mount {text!r}: bind-propagation cannot be this")
        options.append(found["propagation"])
    if {"size", "mode"} & found.keys():
        if kind != "tmpfs":
            raise grammar.UsageError(f"--mount {text!r}: tmpfs-size and -mode are for type=tmpfs")
        options += [f"{key}={found[key]}" for key in ("size", "mode") if key in found]
    source = found.get("source", "")
    if kind == "bind":
        if not source:
            raise grammar.UsageError(f"--mount {text!r}: src is missing")
        source = absolute(source)
        if not {"bind", "rbind"} & set(options):
            options.append("rbind")
    return {
        "type": kind,
        # An empty one would shift the columns of /proc/mounts; of a volume it is "without a name".
        "source": source or ("" if kind == "volume" else kind),
        "destination": found["destination"],
        "options": options,
    }
