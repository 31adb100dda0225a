"""Mounts that come and go between host and container: what a bind's propagation asks of the root.

A runtime gives the container's root its propagation first, and a bind below it can be no more
shared than that (mount_namespaces(7), "Shared subtrees"); as with docker, the binds choose it.
"""

import os
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from lighter.proto.errors import InvalidArgument

_SHARED = frozenset(("shared", "rshared"))
_SLAVE = frozenset(("slave", "rslave"))
PROPAGATIONS = _SHARED | _SLAVE | {"private", "rprivate"}
_OCTAL = re.compile(r"\\([0-7]{3})")


class Point(NamedTuple):
    """A mount of the host: its place, and its optional fields (proc_pid_mountinfo(5))."""

    path: str
    fields: frozenset[str]


def read_mountinfo() -> tuple[Point, ...]:
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
        found = []
        for line in lines:
            words = line.split(" ")
            tags = words[6 : words.index("-", 6)]
            path = _OCTAL.sub(lambda octal: chr(int(octal[1], 8)), words[4])
            found.append(Point(path, frozenset(tag.partition(":")[0] for tag in tags)))
        return tuple(found)


def asks_propagation(spec: dict[str, Any]) -> bool:
    """Whether a mount is to be shared with the host, or a slave of it."""
    return any((_SHARED | _SLAVE).intersection(one.get("options") or ()) for one in spec["mounts"])


def set_root_propagation(spec: dict[str, Any], points: Sequence[Point]) -> None:
    """Put `linux.rootfsPropagation` in, unless it was asked for.

    Raises InvalidArgument for a source on a mount that the host does not share.
    """
    wanted = ""
    for mount in spec["mounts"]:
        options = frozenset(mount.get("options") or ())
        if options & _SHARED:
            _check(mount, points, {"shared"})
            wanted = "rshared"
        elif options & _SLAVE:
            _check(mount, points, {"shared", "master"})
            wanted = wanted or "rslave"
    if wanted:
        spec["linux"].setdefault("rootfsPropagation", wanted)


def _check(mount: dict[str, Any], points: Sequence[Point], kinds: set[str]) -> None:
    source = os.path.realpath(mount["source"])
    above = [point for point in points if _is_below(source, point.path)]
    # The last mount on the deepest place is the one that is seen.
    point = max(enumerate(above), key=lambda item: (len(item[1].path), item[0]))[1]
    if not kinds & point.fields:
        raise InvalidArgument(
            f"mount {mount['source']} at {mount['destination']}: it is on {point.path}, which the "
            "host does not share (mount --make-rshared)"
        )


def _is_below(path: str, top: str) -> bool:
    return path == top or path.startswith(top.rstrip("/") + "/")
